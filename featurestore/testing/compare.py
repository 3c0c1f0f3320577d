"""When two values of one feature, computed in two ways, agree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.definitions.layout import FeatureLayout


def values_agree(a: Any, b: Any, *, tolerance: float = 0.0, slack: float = 0.0) -> bool:
    """Return whether two feature values are the same; lists element by element.

    Args:
        a: One value; None is null.
        b: The other.
        tolerance: Relative difference allowed between doubles; everything else is compared exactly.
        slack: Absolute difference allowed between doubles.

    >>> values_agree(float("nan"), float("nan")), values_agree(None, 0), values_agree(0.0, -0.0), values_agree(1, 1.5)
    (True, False, True, False)
    >>> values_agree(0.1 + 0.2, 0.3), values_agree(0.1 + 0.2, 0.3, tolerance=1e-9)
    (False, True)
    >>> values_agree([1.0, float("nan")], [1.0, float("nan")]), values_agree([1], [1, None])
    (True, False)
    """
    if a is None or b is None:
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(
            values_agree(x, y, tolerance=tolerance, slack=slack) for x, y in zip(a, b, strict=True)
        )
    if not (isinstance(a, float) or isinstance(b, float)):
        return bool(a == b)
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    if a == b:
        return True
    return math.isfinite(a) and math.isfinite(b) and abs(a - b) <= tolerance * max(abs(a), abs(b)) + slack


SLACK = 1e-9
"""Absolute difference allowed between doubles that have a tolerance: sums of large values that cancel."""


def values_match(feature: FeatureLayout, a: Any, b: Any) -> bool:
    """Return whether two values of a feature agree, as its aggregate states it: every check decides by this.

    Args:
        feature: The feature.
        a: One value; None is null.
        b: The other.
    """
    tolerance = feature.aggregate.tolerance
    return values_agree(a, b, tolerance=tolerance, slack=SLACK if tolerance else 0.0)
