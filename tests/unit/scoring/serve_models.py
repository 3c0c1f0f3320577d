"""Serves the models in argv[1], following their aliases closely; argv[2] is what a challenger does."""

from __future__ import annotations

import sys

from featurestore.scoring.service import serve
from tests.unit.scoring.support import MemoryReader

if __name__ == "__main__":
    serve(
        sys.argv[1],
        lambda: MemoryReader({f"k{i}": [float(i), i, 1.0] for i in range(64)}),
        port=0,
        admin_port=0,
        follow_s=0.02,
        challenger=sys.argv[2] if len(sys.argv) > 2 else "off",
    )
