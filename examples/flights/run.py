"""The whole demo, in order: servers, definitions, streaming job, history, training, scorer, live days, checks."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from examples.flights import data, equality, freshness, model
from examples.flights.features import flight_delay
from examples.flights.live import KEYS, HttpScorer, LiveResult, ScoringServer, latency, run_live
from examples.flights.model import LABEL
from examples.flights.replay import PARTITIONS, SOURCES, Replay, archived, quarantine_rows, wait_archived
from examples.flights.stream import build_stream
from featurestore import FeatureClient, FeatureStore
from featurestore.errors import OfflineError
from featurestore.events.broker import ensure_topics
from featurestore.stack.local import LocalStack
from featurestore.timeline import DAY, format_instant, to_instant

if TYPE_CHECKING:
    from pathlib import Path

    from examples.flights.report import Console
    from examples.flights.stream import Stream
    from featurestore.jobs.job import Job

PROJECT = "flights"
ARCHIVE_EVERY = "30 seconds"
"""A Delta commit costs half a second of these two cores; the online store does not wait for it."""
MODEL, STATIC_MODEL = "flight_late", "flight_late_static"


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        start: First instant of the history.
        history_days: Days replayed at full speed; the model is trained on them.
        live_days: Days stepped by the virtual clock.
        tick: Step of that clock.
        freshness_s: Seconds of the freshness measurement; 0 leaves it out.
        rate: Events per second of the freshness measurement.
        freshness: How the streaming job's hot query runs: "micro-batch" or "realtime".
    """

    start: str = data.START
    history_days: int = data.HISTORY_DAYS
    live_days: int = data.LIVE_DAYS
    tick: str = data.TICK
    freshness_s: float = 15.0
    rate: int = 1_000
    freshness: str = "micro-batch"


def run(options: Options, folder: Path, out: Console) -> dict[str, Any]:
    """Run the demo in a folder and return its figures; everything it started has ended when it returns or raises."""
    began = time.monotonic()
    figures: dict[str, Any] = {"options": asdict(options)}
    start = to_instant(options.start)
    live_from = start + options.history_days * DAY
    end = live_from + options.live_days * DAY
    with ExitStack() as cleanup:
        out.stage("Starting Kafka and the online store")
        stack = cleanup.enter_context(LocalStack(folder / "stack"))
        out.done(f"Kafka on {stack.kafka}, online store on {stack.online}")

        out.stage("Reading the flights of 2013")
        flights = data.load()
        stream = build_stream(flights)
        out.done(
            f"{len(flights.departures):,} departures, {len(flights.arrivals):,} arrivals, {len(flights.weather):,} "
            f"observations; here from {format_instant(start)} to {format_instant(end)}"
        )

        out.stage("Applying the feature definitions")
        config = _write_config(folder, stack)
        store = FeatureStore.open(config)
        kafka = store.settings.kafka
        ensure_topics(kafka, dict.fromkeys(SOURCES, PARTITIONS), config={"retention.ms": "-1"})
        store.apply(flight_delay)
        out.done(
            f"{len(flight_delay.feature_ids)} features in {len(flight_delay.views)} views of {len(SOURCES)} topics"
        )

        replay = Replay(kafka, stack.online, PROJECT)
        cleanup.callback(replay.close)
        past = stream.between(start, live_from)
        out.stage(f"Sending {len(past):,} events of history to Kafka")
        sending = time.perf_counter()
        replay.send(past.records())
        out.done(f"{len(past) / (time.perf_counter() - sending):,.0f} per second")

        out.stage("Submitting the streaming job")
        job = store.submit(
            "materialize", service=flight_delay.name, archive_every=ARCHIVE_EVERY, freshness=options.freshness
        )
        cleanup.callback(job.stop)
        job.wait_until("running", timeout=180)
        out.done(f"job {job.name} runs")
        figures["history"] = _history(len(past), replay, job, out)

        out.stage("Waiting until Delta holds the history")
        expected = _expected(replay)
        wait_archived(store.settings.offline, expected, job, 1_800)
        out.done(", ".join(f"{source} {rows:,}" for source, rows in expected.items()))

        # What the timetable knows. Whether a flight was late comes from the arrivals, once they have arrived.
        spine = flights.spine(options.tick, start=_time(start), end=_time(end)).drop(columns=[LABEL, "label_time"])
        spine["visible_us"] = spine["t_us"] - 1
        figures["model"] = _train(store, spine, live_from, out)

        out.stage("Starting the scorer")
        server = ScoringServer(config, folder / "scorer.log")
        cleanup.callback(server.stop)
        scorer = HttpScorer(server.url, MODEL)
        cleanup.callback(scorer.close)
        out.done(f"model {MODEL} on {server.url}")

        ahead = _coded(store, spine[spine["t_us"] >= live_from])
        out.stage(f"Live: {options.live_days} days in steps of {options.tick}")
        live = run_live(
            stream, ahead, start_us=live_from, end_us=end, tick=options.tick, replay=replay, job=job, scorer=scorer,
            progress=out.progress,
        )  # fmt: skip
        figures["live"] = _live_figures(live, options)
        out.done(f"{live.events:,} events, {len(live.scored):,} flights scored in {live.took_s:.0f} s")

        figures["latency"] = _latencies(stack.online, scorer, live, end, out)
        out.stage("Waiting for the last arrivals in Delta, joining the labels")
        wait_archived(store.settings.offline, _expected(replay), job)
        figures["quality"] = _quality(store, live, end)
        out.done(f"{figures['quality']['with_windows']['rows']:,.0f} of {len(live.scored):,} flights have landed")

        out.stage("Comparing what was served with Delta")
        figures["equality"] = _equality(store, live)
        figures["conservation"] = _conservation(store, stream, start, end, replay, job)
        out.done(f"{figures['equality']['as_served']['vectors']:,} vectors")

        if options.freshness_s:
            out.stage(f"Measuring freshness at {options.rate:,} events per second")
            with FeatureClient(stack.online, project=PROJECT, timeout="5s") as client:
                from featurestore.events.broker import producer

                sender = producer(kafka, linger_ms=1)
                measured = freshness.measure(
                    sender, client, flight_delay.name, rate=options.rate, seconds=options.freshness_s
                )
                sender.close()
            figures["freshness"] = asdict(measured)
            out.done(f"p50 {measured.p50_ms:.0f} ms, p99 {measured.p99_ms:.0f} ms")
    figures["took_s"] = time.monotonic() - began
    return figures


def _write_config(folder: Path, stack: LocalStack) -> Path:
    config = folder / "featurestore.toml"
    config.write_text(
        f'project = "{PROJECT}"\n\n[online]\nurl = "{stack.online}"\ntimeout = "5s"\n\n'
        f'[kafka]\n"bootstrap.servers" = "{stack.kafka}"\n\n[spark]\nmaster = "local[4]"\n'
    )
    return config


def _history(events: int, replay: Replay, job: Job, out: Console) -> dict[str, Any]:
    """Wait while the job works off the backlog, from its first batch on a cold JVM to the last event readable."""
    out.stage(f"History: {events:,} events through the streaming job at full speed")
    began = time.perf_counter()
    replay.wait_applied(job, 1_800)
    took = time.perf_counter() - began
    out.done(f"{events / took:,.0f} events per second")
    return {"events": events, "took_s": took, "events_per_s": events / took}


def _expected(replay: Replay) -> dict[str, int]:
    return {SOURCES[topic]: count for topic, count in replay.sent.items() if count}


def _coded(store: FeatureStore, spine: pd.DataFrame) -> pd.DataFrame:
    codes = model.Codes.from_dict(_manifest(store)["codes"])
    return codes.add_to(spine)


def _manifest(store: FeatureStore) -> dict[str, Any]:
    from featurestore.scoring.manifest import find_model

    return dict(find_model(store.settings.models, MODEL).manifest.training_set)


def _train(store: FeatureStore, spine: pd.DataFrame, live_from: int, out: Console) -> dict[str, Any]:
    out.stage("Building the training set from Delta")
    began = time.perf_counter()
    past = _with_labels(store, spine[spine["t_us"] < live_from], live_from)
    past = past[past[LABEL].notna()].reset_index(drop=True)
    made = store.training_set(flight_delay.name, past, event_time="t_us", as_served="visible_us")
    frame = made.to_pandas()
    took = time.perf_counter() - began
    out.done(f"{len(frame):,} rows x {len(flight_delay.feature_ids)} features in {took:.0f} s")

    out.stage("Training, with and without the streaming features")
    codes = model.Codes.of(frame)
    frame = codes.add_to(frame)
    cut = int(frame["t_us"].quantile(0.8))
    earlier, later = frame[frame["t_us"] < cut], frame[frame["t_us"] >= cut]
    metrics = {}
    for name, inputs in (
        (MODEL, (*model.STATIC_FEATURES, *flight_delay.feature_ids)),
        (STATIC_MODEL, model.STATIC_FEATURES),
    ):
        held_out = model.train(earlier, inputs)
        metrics[name] = model.evaluate(later[LABEL], held_out.predict(later))
        model.store(
            store.settings.models,
            name,
            model.train(frame, inputs),
            service=flight_delay,
            codes=codes,
            sample=frame,
            metrics=metrics[name],
            training_set=made.manifest,
        )
    out.done(f"held-out AUC {metrics[MODEL]['auc']:.3f} with, {metrics[STATIC_MODEL]['auc']:.3f} without")
    return {"training_rows": len(frame), "training_set_s": took, "held_out": metrics, "manifest": made.manifest}


def _live_figures(live: LiveResult, options: Options) -> dict[str, Any]:
    steps = np.array(live.step_ms) if live.step_ms else np.array([float("nan")])
    return {
        "events": live.events,
        "flights": len(live.scored),
        "took_s": live.took_s,
        "times_real_time": options.live_days * DAY / 1e6 / live.took_s,
        "step_p50_ms": float(np.quantile(steps, 0.5)),
        "step_p99_ms": float(np.quantile(steps, 0.99)),
    }


def _latencies(url: str, scorer: HttpScorer, live: LiveResult, now: int, out: Console) -> dict[str, Any]:
    out.stage("Measuring lookup and scoring")
    rows = live.scored.tail(200).reset_index(drop=True)
    keys = rows[list(KEYS)].to_dict("records")
    with FeatureClient(url, project=PROJECT, timeout="5s") as client:
        turn = iter(range(10**9))
        lookup = latency(lambda: client.get(flight_delay.name, keys[next(turn) % len(keys)], now=now))
        many = latency(lambda: client.get_many(flight_delay.name, (keys * 2)[:100], now=now), repeats=100, warm_up=10)
    turn = iter(range(10**9))
    parts = [rows.iloc[[index]] for index in range(len(rows))]
    score = latency(lambda: scorer.infer(parts[next(turn) % len(parts)], now))
    out.done(f"lookup p50 {lookup['p50_ms']:.2f} ms, score over HTTP p50 {score['p50_ms']:.2f} ms")
    return {"lookup": lookup, "lookup_100": many, "score": score, "features": len(flight_delay.feature_ids)}


def _with_labels(store: FeatureStore, flights: pd.DataFrame, known_at: int) -> pd.DataFrame:
    """Return the flights with their label, null for those whose arrival had not arrived by ``known_at``."""
    from deltalake import DeltaTable

    log = DeltaTable(f"{store.settings.offline}/events/arrivals").to_pandas(
        columns=["flight_id", "arr_delay", "_arrival"]
    )
    log = log[log["_arrival"] < known_at]
    late = (log["arr_delay"] > data.LATE_AFTER_MINUTES).astype("float64")
    return flights.merge(pd.DataFrame({"flight_id": log["flight_id"], LABEL: late}), on="flight_id", how="left")


def _quality(store: FeatureStore, live: LiveResult, known_at: int) -> dict[str, Any]:
    """Join the labels that came with the arrivals, and judge both models on the same flights."""
    from featurestore.scoring.manifest import load_model

    static = load_model(store.settings.models, STATIC_MODEL).model
    scored = _with_labels(store, live.scored, known_at)
    without = static.predict(model.matrix(scored, model.STATIC_FEATURES))
    return {
        "with_windows": model.evaluate(scored[LABEL], scored["score"]),
        "without_windows": model.evaluate(scored[LABEL], without),
    }


def _equality(store: FeatureStore, live: LiveResult) -> dict[str, Any]:
    spine = live.scored[["flight_id", *KEYS, "t_us", "visible_us"]]
    as_served = store.training_set(flight_delay.name, spine, event_time="t_us", as_served="visible_us").to_pandas()
    by_event_time = store.training_set(flight_delay.name, spine, event_time="t_us").to_pandas()
    same = equality.compare(live.served, as_served, flight_delay)
    drifted = equality.compare(live.served, by_event_time, flight_delay)
    explained = equality.explain_by_late_events(drifted.different, spine, flight_delay, _late_rows(store))
    return {
        "as_served": {
            "vectors": same.vectors,
            "equal_vectors": same.equal_vectors,
            "values": same.compared,
            "different": len(same.different),
            "examples": same.different[:5],
        },
        "event_time": {
            "vectors": drifted.vectors,
            "equal_vectors": drifted.equal_vectors,
            "different": len(drifted.different),
            "explained_by_late_events": explained.by_late_event,
            "unexplained": len(explained.unexplained),
            "late_events": explained.events,
            "example": explained.example,
        },
    }


def _late_rows(store: FeatureStore) -> dict[str, pd.DataFrame]:
    from deltalake import DeltaTable

    logs = {}
    for source in SOURCES.values():
        log = DeltaTable(f"{store.settings.offline}/events/{source}").to_pandas()
        logs[source] = log[log["_arrival"] > log["_event_time"]]
    return logs


def _conservation(
    store: FeatureStore, stream: Stream, start: int, end: int, replay: Replay, job: Job
) -> dict[str, Any]:
    """Every record sent is in the event log or in quarantine, once."""
    sent = stream.between(start, end)
    rows = quarantine_rows(store.settings.offline)
    reasons = pd.Series([row["reason"] for row in rows], dtype=object).value_counts().to_dict()
    held = archived(store.settings.offline)
    if held != _expected(replay):
        raise OfflineError(f"Delta holds {held}, but {_expected(replay)} were sent.")
    totals = job.status().totals
    return {
        "sent": replay.total,
        "in_delta": sum(held.values()),
        "quarantined": len(rows),
        "malformed_sent": len(sent.malformed),
        "reasons": reasons,
        "late_sent": len(sent.late),
        "late_healed": int(totals.get("late", 0)),
    }


def _time(instant: int) -> pd.Timestamp:
    return pd.Timestamp(instant, unit="us", tz="UTC")
