"""The verbs, and what they have in common: options, output, errors.

Data goes to standard output, everything else to standard error. ``--json`` prints one JSON document. An error is one
line, ``error: ... Hint: ...``, and never a traceback unless ``--debug`` asks for it.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli import exits
from featurestore.cli.output import STATE
from featurestore.errors import FeatureStoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 broker or store unreachable, 4 invalid config, definition, name or "
    "input, 5 Java or a server is missing."
)

app = typer.Typer(
    name="featurestore",
    help="A streaming feature store: declare features once; train on and serve the same values.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
jobs_app = typer.Typer(help="Submit, list, watch and stop streaming jobs.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(jobs_app, name="jobs")
quarantine_app = typer.Typer(
    help="Look at what was no event, and send it again once its contract is mended.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(quarantine_app, name="quarantine")
models_app = typer.Typer(
    help="Register, promote, roll back and list models.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(models_app, name="models")
predictions_app = typer.Typer(
    help="Take the prediction log from its topic to Delta.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(predictions_app, name="predictions")


def _print_version(wanted: bool) -> None:
    if wanted:
        from featurestore.cli.project import installed_versions

        typer.echo(f"featurestore {installed_versions()['featurestore']}")
        raise typer.Exit


@app.callback()
def options(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="featurestore.toml or its folder; also FEATURESTORE_CONFIG.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Remember what all verbs share."""
    STATE.config = config
    STATE.debug = STATE.debug or debug


def add_verbs() -> None:
    """Give the app all its verbs."""
    from featurestore.cli import (  # noqa: F401 - importing them adds their verbs
        checks,
        jobs,
        maintenance,
        models,
        predictions,
        project,
        quarantine,
        serving,
        stack,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit code."""
    add_verbs()
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    STATE.debug = "--debug" in own
    arguments = [each for each in own if each != "--debug"] + arguments[len(own) :]
    command = typer.main.get_command(app)
    try:
        result: Any = command.main(args=arguments, prog_name="featurestore", standalone_mode=False)
    except FeatureStoreError as error:
        return _end(error, exits.exit_code(error))
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("stopped\n")
        return exits.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return exits.FAILED
    except Exception as error:  # noqa: BLE001 - the outer boundary
        usage = getattr(error, "format_message", None)
        if usage is None:
            return _end(error, exits.FAILED)
        return _usage(error, str(usage()))
    return result if isinstance(result, int) else exits.OK


def _usage(error: Any, message: str) -> int:
    if not message:  # no arguments: the help has been printed
        return exits.USAGE
    path = getattr(getattr(error, "ctx", None), "command_path", "featurestore")
    end = "" if message.endswith((".", "?")) else "."
    sys.stderr.write(f"error: {' '.join(message.split())}{end} Hint: see {path} --help.\n")
    return exits.USAGE


def _end(error: BaseException, code: int) -> int:
    if STATE.debug:
        traceback.print_exception(error)
    sys.stderr.write(exits.error_line(error) + "\n")
    return code
