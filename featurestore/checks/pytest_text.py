"""A case as the source of a pytest: ready to be kept next to the definitions it is about."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from featurestore.checks.case import Case, Crash, Drain, Probe, Send
from featurestore.datatypes import DataType
from featurestore.definitions.registry import Definitions
from featurestore.timeline import format_instant, to_instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.definitions.view import FeatureView
    from featurestore.testing.judge import Difference


def pytest_text(
    case: Case, found: Sequence[Difference], *, origin: str, imported: tuple[str, str] | None = None
) -> str:
    """Return the case as a test that fails as long as the paths differ.

    Args:
        case: The case.
        found: What differed; told in a comment.
        origin: The command that found it.
        imported: Module and name from which the view can be imported; it is written out as data when None.
    """
    view = case.view
    lines = [f'"""Found by {origin}."""', ""]
    if imported is None:
        text = json.dumps(Definitions.of([view]).to_dict())
        lines += [
            "import json",
            "",
            "from featurestore.definitions.registry import Definitions",
            "from featurestore.testing.replay import replay",
            "",
            f"DEFINITIONS = {text!r}",
            f"{_name(view)} = Definitions.from_dict(json.loads(DEFINITIONS)).view({_text(view.name)})",
        ]
        name = _name(view)
    else:
        module, name = imported
        lines += ["from featurestore.testing.replay import replay", "", f"from {module} import {name}"]
    lines += ["", "", f"def test_{view.name}_is_the_same_on_every_path():"]
    lines += [f"    # {difference}" for difference in found[:3]]
    lines += [f"    with replay({name}, tail_cap={case.tail_cap}) as run:"]
    lines += [f"        {line}" for step in case.steps for line in _step(view, step)]
    judged = isinstance(case.steps[-1], Probe) if case.steps else False
    lines += [] if judged else [f"        {_quarantine(case)}"]
    return "\n".join(lines) + "\n"


def _name(view: FeatureView) -> str:
    return view.name


def _step(view: FeatureView, step: Any) -> list[str]:
    if isinstance(step, Drain):
        return ["run.drain()"]
    if isinstance(step, Crash):
        lost = ", lost_checkpoint=True" if step.lost_checkpoint else ""
        return [f"run.crash(after={step.after}{lost})"]
    if isinstance(step, Probe):
        keys = ", ".join(
            f"{_text(name)}: {_value(value, kind)}"
            for (name, kind), value in zip(view.layout.keys, step.keys, strict=True)
        )
        seen = "" if step.visible_at is None else f", visible_at={_instant(step.visible_at)}"
        return [f"run.assert_equal({{{keys}}}, at={_instant(step.at)}{seen})"]
    return [_send(view, step)]


def _send(view: FeatureView, step: Send) -> str:
    source = view.source
    partition = f", partition={step.partition}" if step.partition else ""
    arrival = f", arrival={_instant(step.arrival)}"
    if isinstance(step.event, bytes):
        return f"run.send({_text(source.name)}, {step.event!r}{arrival}{partition})"
    happened = step.event[source.event_time]
    nullable = {field.name for field in source.contract.fields if field.nullable}
    row = ", ".join(
        f"{_text(name)}: {_value(value, source.contract.columns[name])}"
        for name, value in step.event.items()
        if name != source.event_time and not (value is None and name in nullable)
    )
    when = "" if step.arrival == happened else arrival
    return f"run.send({_text(source.name)}, {{{row}}}, at={_instant(happened)}{when}{partition})"


def _quarantine(case: Case) -> str:
    """Return the assertion about a case whose records are taken or refused wrongly."""
    from featurestore.checks.case import is_event

    count = sum(1 for step in case.steps if isinstance(step, Send) and not is_event(case.view, step))
    return f"assert len(run.quarantine) == {count}, run.quarantine"


def _instant(instant: int) -> str:
    text = format_instant(instant)
    return _text(text) if text[-1] == "Z" and _readable(text, instant) else repr(instant)


def _readable(text: str, instant: int) -> bool:
    return to_instant(text) == instant


def _value(value: Any, kind: DataType) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({_text(str(value))})"
    if kind == DataType.TIMESTAMP and isinstance(value, int):
        return _instant(value)
    return _text(value) if isinstance(value, str) else repr(value)


def _text(text: str) -> str:
    """Return a text as Python source in double quotes."""
    return json.dumps(text)
