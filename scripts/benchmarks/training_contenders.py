"""Who takes part in ``scripts/bench training-set``; each reads the same files and writes the same answer as Parquet.

Run as a process of its own for one measurement: NAME FOLDER OUT SETTINGS. Starting it (the JVM, imports, a first run on next to
nothing) is not measured; reading, computing and writing are. Prints the cost as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scripts.benchmarks.measure import Meter
from scripts.benchmarks.training_data import WINDOWS, log_files, make, service

if TYPE_CHECKING:
    from collections.abc import Callable

    from featurestore.algebra import Window

Run = "Callable[[Path, Path], None]"


def windows() -> dict[str, Window]:
    """Return label to window."""
    return {feature.window.label: feature.window for feature in service().views[0].layout.features}


def _session(memory: str) -> Any:
    from featurestore.engines.session import build_session

    return build_session("bench", master="local[2]", conf={"spark.driver.memory": memory})


def ours(settings: dict[str, Any]) -> Callable[[Path, Path], None]:
    """The library's own training set."""
    from featurestore.offline.training import training_set

    session = _session(settings.get("memory", "2g"))

    def run(folder: Path, out: Path) -> None:
        made = training_set(session, service(), str(folder / "spine.parquet"), offline=str(folder), event_time="t")
        made.frame.write.parquet(str(out))
        made.release()

    return run


def spark(settings: dict[str, Any]) -> Callable[[Path, Path], None]:
    """Spark's own range join: one join over the longest window, the others as conditions of the aggregates."""
    session = _session(settings.get("memory", "4g"))
    session.conf.set("spark.sql.shuffle.partitions", "8")

    def run(folder: Path, out: Path) -> None:
        session.read.format("delta").load(str(folder / "events" / "payments")).createOrReplaceTempView("events")
        session.read.parquet(str(folder / "spine.parquet")).selectExpr(
            "*", "unix_micros(t) et"
        ).createOrReplaceTempView("spine")
        session.sql(
            _join_sql("first(label)", "max_by(amount, CASE WHEN INSIDE THEN struct(_event_time, _offset) END)")
        ).write.parquet(str(out))

    return run


def _start(window: Window, t: str = "et") -> str:
    """Return lo(t) in SQL; times here are positive, so that % is the remainder of the floor."""
    return f"({t} - {window.length} - ({t} - {window.length}) % {window.hop})"


def _join_sql(label: str, last: str) -> str:
    made = windows()
    longest = made["30d"]
    columns = []
    for name, window in made.items():
        inside = f"e._event_time >= {_start(window, 's.et')}"
        columns += [
            f"count(CASE WHEN {inside} THEN 1 END) AS n_{name}",
            f"sum(CASE WHEN {inside} THEN amount END) AS sum_{name}",
            f"min(CASE WHEN {inside} THEN amount END) AS min_{name}",
            f"max(CASE WHEN {inside} THEN amount END) AS max_{name}",
            f"{last} AS last_{name}".replace("INSIDE", inside),
        ]
    return (
        f"SELECT s.number, {label} AS label, {', '.join(columns)} FROM spine s LEFT JOIN events e ON s.card_id = e.card_id "
        f"AND e._event_time < s.et AND e._event_time >= {_start(longest, 's.et')} GROUP BY s.number"
    )


def _duckdb(sql: Callable[[], str]) -> Callable[[dict[str, Any]], Callable[[Path, Path], None]]:
    def prepare(settings: dict[str, Any]) -> Callable[[Path, Path], None]:
        import duckdb

        def run(folder: Path, out: Path) -> None:
            base = duckdb.connect()
            base.execute("SET threads = 2; SET preserve_insertion_order = false; SET TimeZone = 'UTC'")
            base.execute(
                f"SET memory_limit = '{settings.get('duckdb_memory', '12GB')}'; SET temp_directory = '{out}.tmp'"
            )
            base.execute(f"CREATE VIEW events AS SELECT * FROM read_parquet({log_files(folder)!r})")
            base.execute(
                f"CREATE VIEW spine AS SELECT *, epoch_us(t) AS et FROM read_parquet('{folder / 'spine.parquet'}')"
            )
            out.mkdir()
            base.execute(f"COPY ({sql()}) TO '{out / 'all.parquet'}' (FORMAT parquet)")
            base.close()

        return run

    return prepare


def _over(window: Window) -> str:
    """A RANGE frame that begins at lo(t) and ends before t."""
    return f"OVER (PARTITION BY card_id ORDER BY et RANGE BETWEEN (et - {_start(window)}) PRECEDING AND 1 PRECEDING)"


_BOTH = (
    "SELECT card_id, _event_time AS et, _offset AS place, amount, NULL::BIGINT AS number, NULL::BIGINT AS label FROM events "
    "UNION ALL SELECT card_id, et, NULL, NULL, number, label FROM spine"
)


def _window_sql() -> str:
    """One window per length over events and spine together."""
    columns = []
    for name, window in windows().items():
        columns += [f"{what}(amount) {_over(window)} AS {what}_{name}" for what in ("count", "sum", "min", "max")]
        columns.append(f"last_value(amount ORDER BY et, place IGNORE NULLS) {_over(window)} AS last_{name}")
    out = ", ".join(f"count_{name} AS n_{name}, sum_{name}, min_{name}, max_{name}, last_{name}" for name in windows())
    inner = f"SELECT number, label, {', '.join(columns)} FROM ({_BOTH})"
    return f"SELECT number, label, {out} FROM ({inner}) WHERE number IS NOT NULL"


def _totals_sql() -> str:
    """Counts and sums as differences of running totals found by ASOF joins; extremes by RANGE frames."""
    made = windows()
    edges = {"end": "et", **{name: _start(window) for name, window in made.items()}}
    joins = " ".join(
        f"ASOF LEFT JOIN totals x_{name} ON s.card_id = x_{name}.card_id AND s.e_{name} > x_{name}.et" for name in edges
    )
    sums = ", ".join(
        f"coalesce(x_end.n, 0) - coalesce(x_{name}.n, 0) AS n_{name}, "
        f"coalesce(x_end.total, 0) - coalesce(x_{name}.total, 0) AS total_{name}, "
        f"CASE WHEN x_end.et >= s.e_{name} THEN x_end.last END AS last_{name}"
        for name in made
    )
    extremes = ", ".join(
        f"{what}(amount) {_over(window)} AS {what}_{name}" for name, window in made.items() for what in ("min", "max")
    )
    out = ", ".join(
        f"n_{name}, CASE WHEN n_{name} > 0 THEN total_{name} END AS sum_{name}, min_{name}, max_{name}, last_{name}"
        for name in made
    )
    running = "OVER (PARTITION BY card_id ORDER BY _event_time, _offset ROWS UNBOUNDED PRECEDING)"
    return (
        "WITH totals AS (SELECT card_id, et, max(n) AS n, arg_max(total, n) AS total, arg_max(amount, n) AS last "
        f"FROM (SELECT card_id, _event_time AS et, amount, count(*) {running} AS n, sum(amount) {running} AS total FROM events) "
        "GROUP BY card_id, et), "
        f"s AS (SELECT *, {', '.join(f'{edge} AS e_{name}' for name, edge in edges.items())} FROM spine), "
        f"sums AS (SELECT s.number, s.label, {sums} FROM s {joins}), "
        f"extremes AS (SELECT * FROM (SELECT number, {extremes} FROM ({_BOTH})) WHERE number IS NOT NULL) "
        f"SELECT number, label, {out} FROM sums JOIN extremes USING (number)"
    )


_PARTS = (
    "sum(n)::BIGINT AS n, sum(sum) AS sum, min(min) AS min, max(max) AS max, "
    "arg_max(last, (et, place)) AS last, max(et) AS et, arg_max(place, (et, place)) AS place"
)
"""The merge of partials in SQL; et and place say which event is the last."""


def _tiles_sql() -> str:
    """Partials per key and hop, and a window as the hops it covers: an equality join, so no key makes it explode.

    The part of a window in its newest hop is cut into hops of the 24-hour window where those are finer, and events after that.
    """
    fine = windows()["24h"].hop or 1
    single = "1 AS n, amount AS sum, amount AS min, amount AS max, amount AS last, _event_time AS et, _offset AS place"
    made, parts = [], []
    for name, window in windows().items():
        hop = window.hop or 1
        made.append(
            f"tiles_{name} AS MATERIALIZED (SELECT card_id, _event_time // {hop} AS tile, {_PARTS} FROM "
            f"(SELECT card_id, _event_time, {single} FROM events) GROUP BY ALL)"
        )
        own = "t.n, t.sum, t.min, t.max, t.last, t.et, t.place"
        begin, end, rest = f"{_start(window)} // {hop}", f"et // {hop}", hop
        body = f"SELECT number, card_id, unnest(range({begin}, {end})) AS tile FROM spine"
        pieces = [f"SELECT s.number, {own} FROM ({body}) s JOIN tiles_{name} t USING (card_id, tile)"]
        if hop > fine:
            rest = fine
            pieces.append(
                f"SELECT s.number, {own} FROM (SELECT number, card_id, unnest(range(et // {hop} * {hop // fine}, "
                f"et // {fine})) AS tile FROM spine) s JOIN tiles_24h t USING (card_id, tile)"
            )
        pieces.append(
            f"SELECT s.number, e.* EXCLUDE (card_id, tile) FROM (SELECT number, card_id, et AS t, et // {rest} AS tile FROM "
            f"spine) s JOIN (SELECT card_id, _event_time // {rest} AS tile, {single} FROM events) e USING (card_id, tile) "
            f"WHERE e.et < s.t"
        )
        made.append(f"w_{name} AS (SELECT number, {_PARTS} FROM ({' UNION ALL '.join(pieces)}) GROUP BY number)")
        parts.append(name)
    out = ", ".join(
        f"coalesce(w_{name}.n, 0) AS n_{name}, w_{name}.sum AS sum_{name}, w_{name}.min AS min_{name}, "
        f"w_{name}.max AS max_{name}, w_{name}.last AS last_{name}"
        for name in parts
    )
    joins = " ".join(f"LEFT JOIN w_{name} ON s.number = w_{name}.number" for name in parts)
    return f"WITH {', '.join(made)} SELECT s.number, s.label, {out} FROM spine s {joins}"


def numpy_floor(settings: dict[str, Any]) -> Callable[[Path, Path], None]:  # noqa: ARG001
    """Running totals for counts and sums, sparse tables for extremes, over events sorted once; one thread, no store."""

    def run(folder: Path, out: Path) -> None:
        events = pa.concat_tables(
            pq.read_table(file, columns=["card_id", "_event_time", "amount"]) for file in log_files(folder)
        )
        spine = pq.read_table(folder / "spine.parquet")
        both = pa.chunked_array(events.column("card_id").chunks + spine.column("card_id").chunks)
        code = both.dictionary_encode().combine_chunks().indices.to_numpy().astype(np.int64)
        time, t = events.column("_event_time").to_numpy(), spine.column("t").cast(pa.int64()).to_numpy()
        begin = int(time.min())
        bits = (int(max(time.max(), t.max())) - begin).bit_length()
        packed = (code[: len(time)] << bits) + (time - begin)
        order = np.argsort(packed)
        packed, amount = packed[order], events.column("amount").to_numpy()[order]
        point = code[len(time) :] << bits
        asked = np.argsort(point + t - begin)
        point, t = point[asked], t[asked]
        total = np.concatenate(([0.0], np.cumsum(amount)))
        end = np.searchsorted(packed, point + (t - begin))
        columns: dict[str, Any] = {
            "number": spine.column("number").take(asked),
            "label": spine.column("label").take(asked),
        }
        lows = {}
        for name, window in windows().items():
            start = (t - window.length) // window.hop * window.hop
            lows[name] = low = np.searchsorted(packed, point + np.maximum(start - begin, 0))
            n = end - low
            columns[f"n_{name}"] = n
            sums = np.where(n > 0, total[end] - total[low], np.nan)
            columns[f"sum_{name}"] = pa.array(sums, from_pandas=True)
            last = np.where(n > 0, amount[end - 1], np.nan)
            columns[f"last_{name}"] = pa.array(last, from_pandas=True)
        for what, merge in (("min", np.minimum), ("max", np.maximum)):
            for name, found in _sparse(merge, amount, lows, end).items():
                columns[f"{what}_{name}"] = pa.array(found, from_pandas=True)
        out.mkdir()
        pq.write_table(pa.table(columns), out / "all.parquet")

    return run


def _sparse(merge: Any, values: np.ndarray, lows: dict[str, np.ndarray], end: np.ndarray) -> dict[str, np.ndarray]:
    """Return min or max of all ranges: two overlapping blocks each, level by level."""
    found = {name: np.full(len(end), np.nan) for name in lows}
    level, size = values, 1
    longest = max(int((end - low).max()) for low in lows.values())
    while size <= longest:
        for name, low in lows.items():
            length = end - low
            rows = np.flatnonzero((length >= size) & (length < 2 * size))
            found[name][rows] = merge(level[low[rows]], level[end[rows] - size])
        level = merge(level[:-size], level[size:])
        size *= 2
    return found


CONTENDERS: dict[str, Callable[[dict[str, Any]], Callable[[Path, Path], None]]] = {
    "ours": ours,
    "spark-join": spark,
    "duckdb-window": _duckdb(_window_sql),
    "duckdb-join": _duckdb(
        lambda: _join_sql("any_value(label)", "arg_max(amount, CASE WHEN INSIDE THEN (_event_time, _offset) END)")
    ),
    "duckdb-totals": _duckdb(_totals_sql),
    "duckdb-tiles": _duckdb(_tiles_sql),
    "numpy": numpy_floor,
}


def answer(out: Path) -> pa.Table:
    """Return a contender's answer by row number, under the same names for all."""
    table = pa.concat_tables(
        (pq.read_table(file) for file in sorted(out.glob("*.parquet"))), promote_options="permissive"
    )
    table = table.rename_columns([name.removeprefix("card.") for name in table.column_names])
    names = [f"{what}_{window}" for what in ("n", "sum", "min", "max", "last") for window in WINDOWS]
    return table.take(pc.sort_indices(table.column("number"))).select(["number", *names])


def main() -> None:
    """Measure one contender once."""
    name, folder, out, settings = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    run = CONTENDERS[name](settings)
    tiny = make(out.parent, events=2000, keys=100, rows=100)
    run(tiny, Path(f"{out}-warm"))
    with Meter() as meter:
        run(folder, out)
    print(json.dumps(meter.cost.to_dict()))


if __name__ == "__main__":
    main()
