"""How hard generated tests try: as much as they say, or a tenth of it where TEST_EFFORT is ``quick`` (scripts/test --fast).

What a test checks is the same either way.
"""

from __future__ import annotations

import os

QUICK = os.environ.get("TEST_EFFORT") == "quick"


def tries(whole: int) -> int:
    """Return how many examples, seeds or rounds to try of ``whole``; at least one."""
    return max(1, whole // 10) if QUICK else whole
