"""What a ``BatchReader`` gathers from the blobs of many keys, and what it merges and finalizes together. Pure.

A *cell* is a (window, measure), a group the cells of one kind of partial. Two gathers of 8-byte words serve all groups:

    from rows     every slot of every cell
    from tails    every slot of every measure

In both the slots that merging adds up come first, so that one look tells whether any could leave int64; then group by group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.algebra import Aggregate
from featurestore.algebra.tiles import RECORD_SLOTS

if TYPE_CHECKING:
    from featurestore.algebra import Window
    from featurestore.definitions.layout import ViewLayout
    from featurestore.definitions.parts import Part

LIMIT = 1 << 56
"""Added slots from here on, or below minus this, are read one by one."""


class UnusualError(Exception):
    """What numpy and Python may compute differently; the keys are then read one by one."""


@dataclass(frozen=True, slots=True)
class Read:
    """Features that are finalized alike: the aggregate, their window where the value depends on it, their cells."""

    aggregate: Aggregate
    window: Window | None
    cells: np.ndarray | None
    """Numbers within the group; None for all of them in order."""
    features: np.ndarray


@dataclass(frozen=True, slots=True)
class Group:
    """Cells whose partials are merged alike.

    Attributes:
        aggregate: Merges and has the empty partial of all of them.
        cells: Per slot of a partial, where its cells lie in the gather of rows.
        measures: Per slot, where its measures lie in the gather of tails.
        reads: What becomes of them.
    """

    aggregate: Aggregate
    cells: tuple[slice, ...]
    measures: tuple[slice, ...]
    reads: list[Read]


@dataclass(frozen=True, slots=True)
class GatherPlan:
    """Both gathers, and the groups.

    Attributes:
        windows: (ladder, window) by number.
        cell_window: Of every word gathered from rows, its window's number.
        cell_word: Its place in a whole row, and in a short one; shape (words, 2).
        cell_tail: Its place in the gather of tails; shape (words, 1).
        record_word: Of every word gathered from tails, its place in a record; shape (words, 1).
        least_rows: The least of every word gathered from rows that is added up, the first ones; shape (words, 1).
        least_tails: The same of tails.
        order: In which order the groups' slots stand in both gathers.
        groups: What is merged alike.
    """

    windows: list[tuple[int, Window]]
    cell_window: np.ndarray
    cell_word: np.ndarray
    cell_tail: np.ndarray
    record_word: np.ndarray
    least_rows: np.ndarray
    least_tails: np.ndarray
    order: list[int]
    groups: list[Group]


def gather_plan(layout: ViewLayout) -> GatherPlan:
    """Return the plan of a view of one part."""
    part = layout.parts[0]
    windows: dict[tuple[int, Window], int] = {}
    cells: dict[Any, dict[tuple[int, int], int]] = {}
    reads: dict[Any, dict[Any, list[tuple[int, int]]]] = {}
    for read in part.reads:
        feature = layout.features[read.feature]
        number = windows.setdefault((read.ladder, feature.window), len(windows))
        kind, _, _, value_type, kept = part.measures[read.measure].partial_identity
        mine = cells.setdefault((kind, value_type, kept), {})
        cell = mine.setdefault((number, read.measure), len(mine))
        one = feature.aggregate
        alike = (type(one), tuple(one.parameters.items()), feature.window if _depends(one) else None)
        reads.setdefault((kind, value_type, kept), {}).setdefault(alike, []).append((cell, read.feature))
    return _laid_out(layout, part, [*windows], cells, reads)


def _laid_out(
    layout: ViewLayout,
    part: Part,
    windows: list[tuple[int, Window]],
    cells: dict[Any, dict[tuple[int, int], int]],
    reads: dict[Any, dict[Any, list[tuple[int, int]]]],
) -> GatherPlan:
    merges = {alike: part.measures[next(iter(mine))[1]] for alike, mine in cells.items()}
    grouped = [(alike, slot) for alike, merge in merges.items() for slot in range(len(merge.slots))]
    order = sorted(
        range(len(grouped)), key=lambda place: grouped[place][1] not in merges[grouped[place][0]].added_slots
    )
    rows: list[tuple[int, int, int, int]] = []
    tails: list[int] = []
    least: tuple[list[int], list[int]] = ([], [])
    row_slices: dict[Any, dict[int, slice]] = {alike: {} for alike in cells}
    tail_slices: dict[Any, dict[int, slice]] = {alike: {} for alike in cells}
    for alike, slot in (grouped[place] for place in order):
        mine = cells[alike]
        measures = list(dict.fromkeys(measure for _, measure in mine))
        row_slices[alike][slot] = slice(len(rows), len(rows) + len(mine))
        tail_slices[alike][slot] = slice(len(tails), len(tails) + len(measures))
        for number, measure in mine:
            held = part.ladders[windows[number][0]].measures
            place = sum(len(part.measures[each].slots) for each in held[: held.index(measure)]) + slot
            short = part.short_places[windows[number][0]][place]
            rows.append((number, place, short, len(tails) + measures.index(measure)))
        tails += [len(RECORD_SLOTS) + part.slot_offsets[measure] + slot for measure in measures]
        if slot in merges[alike].added_slots:
            lowest = 0 if slot == 0 else -LIMIT  # the first is a count
            least[0].extend([lowest] * len(mine))
            least[1].extend([lowest] * len(measures))
    cell_window, *cell_word, cell_tail = np.array(rows, dtype=np.int64).T
    return GatherPlan(
        windows,
        np.ascontiguousarray(cell_window),
        np.stack(cell_word, axis=1),
        cell_tail[:, None].copy(),
        np.array(tails, dtype=np.int64)[:, None],
        np.array(least[0], dtype=np.int64)[:, None],
        np.array(least[1], dtype=np.int64)[:, None],
        order,
        [
            Group(
                merges[alike],
                tuple(where for _, where in sorted(row_slices[alike].items())),
                tuple(where for _, where in sorted(tail_slices[alike].items())),
                [_read_of(layout, pairs, len(mine)) for pairs in reads[alike].values()],
            )
            for alike, mine in cells.items()
        ],
    )


def _read_of(layout: ViewLayout, pairs: list[tuple[int, int]], width: int) -> Read:
    first = layout.features[pairs[0][1]]
    cells, features = np.array(pairs, dtype=np.int64).T
    is_all = np.array_equal(cells, np.arange(width))
    return Read(
        first.aggregate, first.window if _depends(first.aggregate) else None, None if is_all else cells, features
    )


def _depends(aggregate: Aggregate) -> bool:
    """Return whether the value depends on the time or the window, besides the partial."""
    return type(aggregate).value_columns is not Aggregate.value_columns


def check_sums(gathered: np.ndarray, least: np.ndarray) -> None:
    """Raise unless every integer that is added up, the first ones gathered, is in [least, least + ``LIMIT``)."""
    added = gathered[..., : len(least), :] - least
    if len(least) and np.maximum.reduce(added.view(np.uint64), axis=None) >= 2 * LIMIT:
        raise UnusualError
