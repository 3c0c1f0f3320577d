"""Vectors whose values are still in the columns that were decoded for many entities at once. Pure.

Whoever asks the first of them for a value has the values of all made: together that costs a fraction of one by one, and nothing
where nobody asks.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from featurestore.online.columns import lists_of, newest_of
from featurestore.online.vector import FeatureVector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from featurestore.online.columns import ViewColumns
    from featurestore.timeline import Instant


class Rows:
    """The rows of some views' columns as Python values. Safe to share: what two threads make at once is the same.

    Args:
        views: What every view says, all of the same entities.
        pick: Place of every value among those of the views; None when they are all of them, in order.
    """

    __slots__ = ("_made", "_pick", "_views")

    def __init__(self, views: Sequence[ViewColumns], pick: Sequence[int] | None) -> None:
        self._views, self._pick = views, pick
        self._made: list[tuple[Any, ...]] | None = None

    def row(self, number: int) -> tuple[Any, ...]:
        """Return the values of one entity."""
        made = self._made
        if made is None:
            columns = [column for view in self._views for column in lists_of(view.blocks, view.width)]
            if self._pick is not None:
                columns = [columns[place] for place in self._pick]
            made = self._made = list(zip(*columns, strict=True))
        return made[number]


def uncut(
    names: tuple[str, ...],
    views: Mapping[str, ViewColumns],
    complete: Sequence[Instant | None],
    at: Sequence[Instant],
    *,
    pick: Sequence[int] | None,
    spans: Mapping[str, Any],
) -> list[FeatureVector]:
    """Return the vectors of entities, each with a completeness and time of its own; the rest as of ``FeatureVector``."""
    nothing: dict[str, Any] = {}
    make: Callable[[type[FeatureVector]], FeatureVector] = FeatureVector.__new__
    row = Rows([*views.values()], pick).row
    (first, one), *others = views.items()
    known = [{first: is_known} for is_known in one.known.tolist()]
    as_of = [{first: instant} for instant in newest_of(one)]
    for name, view in others:
        for mine, newest, is_known, instant in zip(known, as_of, view.known.tolist(), newest_of(view), strict=True):
            mine[name], newest[name] = is_known, instant
    vectors = []
    for number, (mine, newest, through, t) in enumerate(zip(known, as_of, complete, at, strict=True)):
        vector = make(FeatureVector)  # as its __init__ does, but for the row
        vector.names, vector.known, vector.as_of = names, mine, newest
        vector.complete_through, vector.at = through, t
        vector.reads = vector.conditions = nothing
        vector.spans, vector._cut = spans, partial(row, number)  # noqa: SLF001 - it is made here alone
        vectors.append(vector)
    return vectors
