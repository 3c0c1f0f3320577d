"""When two values of one feature, computed in two ways, agree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


def values_match(feature: FeatureLayout, a: Any, b: Any, inputs: Callable[[], Sequence[Any]] | None = None) -> bool:
    """Return whether two values of a feature agree, as its aggregate states it: every check decides by this.

    Integers, texts, extremes and ordered values have to be equal. Floating values may differ by the aggregate's relative
    ``tolerance``; where terms cancel, by its ``slack``; and sketches by the error they state (``within_error``). The last two
    depend on the inputs, which are asked for only when the values differ by more than the first.

    Args:
        feature: The feature.
        a: One value; None is null.
        b: The other.
        inputs: Gives the inputs of all events in the window, nulls as None; where None, terms are taken not to cancel, and
            sketches have to be equal.
    """
    aggregate = feature.aggregate
    if values_agree(a, b, tolerance=aggregate.tolerance):
        return True
    if inputs is None:
        return False
    values = inputs()
    slack = aggregate.slack([abs(float(v)) for v in values if isinstance(v, (int, float)) and math.isfinite(v)])
    if aggregate.tolerance and values_agree(a, b, tolerance=aggregate.tolerance, slack=slack):
        return True
    return aggregate.within_error(a, b, values)
