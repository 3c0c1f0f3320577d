"""Verbs that run servers on this machine: up, demo."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.app import app
from featurestore.cli.output import ConfigOption, JsonOption, example, note, open_store, print_json, print_lines
from featurestore.errors import StackError

if TYPE_CHECKING:
    from featurestore.stack.local import LocalStack, RunningStack


@app.command(epilog=example("featurestore up", "featurestore up --detach", "featurestore up --stop"))
def up(
    detach: Annotated[bool, typer.Option("--detach", help="Leave the servers running and return.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the servers that run.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run Kafka and the online store on this machine; the project uses them where it configures none."""
    from featurestore.engines.class_archive import make_in_background
    from featurestore.stack.local import LocalStack

    folder = open_store(config).settings.home / "stack"
    running = LocalStack.attach(folder)
    if stop:
        if running is not None:
            running.stop()
        _tell({"stopped": running is not None}, "stopped" if running else "nothing runs", as_json=as_json)
        return
    if running is not None:
        _tell(_addresses(running), None, as_json=as_json)
        if not detach:
            note(f"it runs already, in {folder}; featurestore up --stop ends it")
        return
    make_in_background()  # what the project's drivers will start from
    note("starting Kafka and the online store ...")
    stack = LocalStack(folder, appendonly=True)
    if detach:
        stack.start()
        _tell(_addresses(stack.release()), None, as_json=as_json)
        return
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with stack:
        _tell(_addresses(stack), None, as_json=as_json)
        note("Ctrl-C stops them")
        sys.stdout.flush()
        while not ended.wait(1.0):
            _check_alive(stack)
    note("stopped")


def _check_alive(stack: LocalStack) -> None:
    for server in (stack.kafka_server, stack.online_server):
        if server.process is not None and server.pid is None:
            raise StackError(f"{server.process.name} has ended: {server.process.log_tail()}")


def _addresses(stack: LocalStack | RunningStack) -> dict[str, Any]:
    return {"kafka": stack.kafka, "online": stack.online, "directory": str(stack.directory)}


def _tell(content: dict[str, Any], text: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json(content)
    else:
        print_lines([text] if text else [f"{name:<10}{value}" for name, value in content.items()])


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=example("featurestore demo --days 30 --json"),
)
def demo(context: typer.Context) -> int:
    """Run real flights through the whole system; options go to the demo (--json, --days, ...)."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "examples" / "flights" / "__main__.py").is_file():
        raise StackError(
            "the demo is part of the source checkout, not of the installed package.",
            hint="clone the repository and run scripts/demo.",
        )
    return subprocess.run([sys.executable, "-m", "examples.flights", *context.args], cwd=root, check=False).returncode
