"""Bugs to plant: each is an edit of one function, as a mistake in a review would be, and is made while a test runs.

An edit whose text is no longer in the function fails: the list has to follow the code, or a bug is believed found that was
never made.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class Bug:
    """One edit.

    Attributes:
        name: What is wrong.
        where: "module:function" or "module:Class.method", below the package.
        old: The text to replace; exactly once in the function.
        new: What stands there instead.
    """

    name: str
    where: str
    old: str
    new: str

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        """Make the edit until ``patch`` is undone, wherever the function is referred to by name."""
        module_name, _, path = self.where.partition(":")
        module = importlib.import_module(f"featurestore.{module_name}")
        owner = module
        *outer, name = path.split(".")
        for each in outer:
            owner = getattr(owner, each)
        original = inspect.unwrap(getattr(owner, name))
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.old) == 1, f"{self.where}: {self.old!r} is there {source.count(self.old)} times"
        space: dict[str, object] = {}
        code = "from __future__ import annotations\n" + source.replace(self.old, self.new)
        exec(compile(code, f"<planted: {self.name}>", "exec"), module.__dict__, space)
        changed = space[name]
        if outer:
            patch.setattr(owner, name, changed)
            return
        for each in [m for n, m in sys.modules.items() if n.startswith("featurestore.")]:
            for key, value in list(vars(each).items()):
                if value is original:
                    patch.setattr(each, key, changed)
                elif isinstance(value, dict):  # tables of operations
                    for entry in [entry for entry, kept in value.items() if kept is original]:
                        patch.setitem(value, entry, changed)


_READ, _PART, _PLAIN = (
    "online.reader:ViewReader.read",
    "online.reader:_PartReader",
    "online.reader:_PartReader._read_plain",
)
_MERGE, _FOLD, _BOUNDS = "engines.points:_Sorted", "online.fold", "engines.points:bounds_of"

BUGS = [
    # features of read time
    Bug("derive: a derived feature is not seen by the next, one by one", "engines.derive:derive_row", "value = known[layout.id] =", "value ="),
    Bug("derive: a derived feature is not seen by the next, by columns", "engines.derive:derive_columns", "found[layout.id] = known[layout.id] =", "found[layout.id] ="),
    Bug("derive: a null counts as zero", "engines.derive:derive_row", "known = dict(values)", "known = {name: value or 0 for name, value in values.items()}"),
    Bug("derive: columns of a lookup in the order they are made", "online.lookup:ServiceLookup._with_derived", "[row[name] for name in self.names]", "[row[name] for name in sorted(self.names)]"),
    # the kernel of training sets
    Bug("points: the event at t counts", f"{_MERGE}._edges", "self._key, self._t)", "self._key, self._t + 1)"),
    Bug("points: the event at lo(t) does not count", f"{_MERGE}._edges", "self._key, begin)", "self._key, begin + 1)"),
    Bug("points: lo(t) a hop late", _BOUNDS, "(edge - window.length)", "window.hop + (edge - window.length)"),
    Bug("points: lo(t) a hop early", _BOUNDS, "(edge - window.length)", "-window.hop + (edge - window.length)"),
    Bug(
        "points: lo(t) truncated towards 1970", _BOUNDS,
        "(edge - window.length) // window.hop", "np.fix((edge - window.length) / window.hop).astype(np.int64)",
    ),
    Bug("points: what arrives at the instant is hidden", f"{_MERGE}._merge_seen", "<= visible_at[point]", "< visible_at[point]"),
    Bug("points: what has not arrived is seen", f"{_MERGE}._sure", "self.visible_at - self._usual_delay + 1", "self.visible_at + 1"),
    Bug("points: the last straggler is left out", f"{_MERGE}.merge", "end[rows])", "end[rows] - 1)"),
    Bug("ranges: the last event before a window counts", "algebra.ranges:Ranges._picked", "inside = found >= self.low[asked]", "inside = found >= 0"),
    Bug("ranges: a null hides the last value", "algebra.ranges:Ranges._picked", "np.where(counts, rows, -1)", "rows"),
    Bug("points: a delay is forgotten", _BOUNDS, "edge = t - window.delay", "edge = t"),
    Bug("points: a closed window ends at t", _BOUNDS, "if window.is_closed and window.hop is not None else edge", "if False else edge"),
    Bug("points: the event at the end of a closed window counts", f"{_MERGE}._edges", "self._key, until)", "self._key, until + 1)"),
    # the online reader and the codec
    Bug("reader: a tail record at t counts", _READ, "record[1] < t]", "record[1] <= t]"),
    Bug("reader: the past is answered one microsecond too far", _READ, "if as_of < t:", "if as_of <= t:"),
    Bug("reader: a row one hop late", f"{_PART}.read", "low // hop)", "low // hop + 1)"),
    Bug("reader: a row one hop early", f"{_PART}.read", "low // hop)", "low // hop - 1)"),
    Bug("reader: the oldest tile of the tail is left out", f"{_PART}.read", "bisect_left(starts, low)", "bisect_left(starts, low + 1)"),
    Bug("reader: every tail record is in every window", f"{_PART}.read", "len(tail) if low is None else", "len(tail) if True else"),
    Bug("reader: a tail is merged from its oldest record on", f"{_PART}.read", "tail[-1 - len(merged)]", "tail[len(merged)]"),
    Bug("reader: as_of without the tail", _READ, "*[record[2] for record in tail]", "*[]"),
    Bug("codec: the last tail record is dropped", f"{_PART}.open", "len(blob))", "len(blob))[:-1]"),
    Bug("codec: the row before", f"{_PART}.read", "+ index * words.size", "+ max(index - 1, 0) * words.size"),
    Bug("reader: a closed window reads one row less", _PLAIN, "last = bisect_left(hops, high // hop)", "last = bisect_left(hops, high // hop - 1)"),
    Bug("reader: a closed window reads one row more", _PLAIN, "last = bisect_left(hops, high // hop)", "last = bisect_left(hops, high // hop + 1)"),
    Bug("reader: a closed window begins one row late", _PLAIN, "bisect_left(hops, low // hop)", "bisect_left(hops, low // hop + 1)"),
    Bug("reader: a record at the end of a closed window counts", _PLAIN, "record[0] < high]", "record[0] <= high]"),
    Bug("reader: a record before a closed window counts", _PLAIN, "record[0] >= low)", "record[0] >= low - hop)"),
    Bug("codec: slots shifted in a row", f"{_PART}.__init__", "slice(begin, begin + width)", "slice(0, width)"),
    Bug("codec: slots shifted in a record", f"{_PART}.__init__", "slice(full, full + width)", "slice(3, 3 + width)"),
    # what compiled code is told of a view
    Bug("compiled: a window of the wrong length", "online.compiled:_planned", "(span.length or 0)", "(span.length or 0) // 2"),
    Bug("compiled: the slots of another measure", "online.compiled:_planned", "part.slot_offsets[measure]", "part.slot_offsets[0]"),
    Bug("compiled: a sum for a mean", "online.compiled:_planned", "_READS[type(aggregate)]", "_READS[Sum]"),
    # folding
    Bug("fold: forgets a hop too early", f"{_FOLD}:_first_reachable", "+ 1 - ladder.reach", "+ 1 - ladder.reach + ladder.hop"),
    Bug("fold: events ahead of the clock are folded", f"{_FOLD}:fold", "tail.newest <= clock", "tail.newest <= MAX_INSTANT"),
    Bug("fold: what waits in the tail is lost", f"{_FOLD}:fold", '(np.frombuffer(rests, "<i8"), rest)', '(np.frombuffer(rests, "<i8")[:0], 0 * rest)'),
    Bug("fold: the newest event time stands still", f"{_FOLD}:fold", "np.maximum.at(newest, folded.key", "np.maximum.at(newest.copy(), folded.key"),
    Bug("fold: a wrong suffix", f"{_FOLD}:_merge_suffix", "merge_suffixes(aggregate, both.tail[slots], starts)", "both.tail[slots]"),
    Bug("fold: the old base is lost", f"{_FOLD}:_merge_suffix", "_or_empty(aggregate, both.base[slots], base_at)", "empty_columns(aggregate, len(base_at))"),
    Bug("fold: settled rows are merged a hop too late", f"{_FOLD}:_fold_ladder", "first_open = newest + 1 - ladder.settled", "first_open = newest + 2 - ladder.settled"),
    Bug("fold: plain rows are not merged", f"{_FOLD}:_merge_plain", "columns += reduce_groups(aggregate, together, both.runs)", "columns += take(together, both.runs)"),
    Bug("fold: a late event does not reach older rows", f"{_FOLD}:_find", "high, wanted_hop)", "high, wanted_hop + 1)"),
    Bug("fold: zero stands for nothing", f"{_FOLD}:_or_empty", "column[missing] = value", "column[missing] = 0 * value"),
    # what a batch leaves out
    Bug("reach: rows are dropped a tile too early", f"{_FOLD}:drop_unreachable", "newest[rows.key] - reach", "newest[rows.key] - reach + 2 * part.tile"),
    Bug("reach: an event from the future drops the present", f"{_FOLD}:drop_unreachable", "events.event_time <= events.arrival", "events.event_time == events.event_time"),
    Bug("reach: dropped rows leave no mark", f"{_FOLD}:drop_unreachable", "np.minimum(kept.oldest, back[kept.key])", "kept.oldest"),
    # tiles
    Bug("tiles: truncated towards 1970", "algebra.tiles:tile_events", "event_time - event_time % tile", "np.fix(event_time / tile).astype(np.int64) * tile"),
    Bug("tiles: events ahead of the clock are merged", "algebra.tiles:tile_events", "np.where(apart, np.arange(len(key)), -1)", "np.where(apart, -1, -1)"),
    Bug("tiles: the newest time is the oldest", "algebra.tiles:tile_events", "newest=event_time[last]", "newest=event_time[first]"),
    # rows
    Bug("rows: nulls count", "engines.shape:to_numpy", "valid = pc.is_valid(array).to_numpy(zero_copy_only=False)", "valid = np.ones(len(array), bool)"),
    Bug("rows: NaN is null", "engines.shape:to_numpy", "valid = pc.is_valid(array)", "valid = pc.is_valid(array, nan_is_null=True) if False else pc.invert(array.is_null(nan_is_null=True))"),
    Bug("rows: NaN is zero", "engines.shape:to_numpy", "array.cast(pa.float64()).fill_null(0.0)", "pc.if_else(pc.is_nan(array.cast(pa.float64())), 0.0, array.cast(pa.float64())).fill_null(0.0)"),
    Bug("rows: a condition that is null holds", "engines.shape:_is_true", "fill_null(False)", "fill_null(True)"),
    Bug("rows: the condition of a feature is ignored", "engines.shape:inputs_of", "_is_true(condition, events)", "np.ones(events.num_rows, bool)"),
    Bug("rows: parts of a key run together", "engines.shape:encode_columns", "code * len(part) + of_row", "code + of_row"),
    Bug("rows: less is less or equal", "engines.scalar:_less", "<", "<="),
    # aggregates
    Bug("last: a tie goes to the older event", "algebra.ordered:_Ordered.merge_columns", "a[0], a[1], b[0], b[1]", "a[0], -a[1], b[0], -b[1]"),
    Bug("last: a tie goes to whoever comes last", "algebra.ordered:_Ordered.merge", "a[0], a[1], b[0], b[1]", "a[0], 0, b[0], 0"),
    Bug("sum: not compensated", "algebra.additive:Sum.merge_columns", "np.where(np.isfinite(total), error, 0.0)", "np.zeros(len(total))"),
    # the decoder
    Bug("decoder: an event as far ahead as is allowed is refused", "events.decode:Decoder._refuse_times", "> arrival[rows] + self", ">= arrival[rows] + self"),
    Bug("decoder: event times cut to milliseconds", "events.decode:_instants", "zero_copy_only=False), np.int64)", "zero_copy_only=False), np.int64) // 1000 * 1000"),
    Bug("decoder: a wrong neighbour's arrival", "events.decode:Decoder._some", "np.array(rows, np.int64)[kept]", "begin + np.arange(len(kept))"),
    # the writer
    Bug("writer: the event at the fence is skipped", "online.writer:FencedWriter.apply", ">= fence[of_key[events.key]]", "> fence[of_key[events.key]]"),
    Bug("writer: what the fence covers is applied again", "online.writer:FencedWriter.apply", ">= fence[of_key[events.key]]", ">= 0"),
    Bug("writer: a fence one too low", "online.writer:FencedWriter._send", "fences[bucket][view], until)", "fences[bucket][view], until - 1)"),
    Bug("writer: folds events ahead of the clock", "online.writer:FencedWriter.apply", "clock=arrival", "clock=2**62"),
    Bug("writer: the last record of a batch is cut off", "online.writer:FencedWriter._distribute", "len(data))", "len(data) - 8)"),
]  # fmt: skip
