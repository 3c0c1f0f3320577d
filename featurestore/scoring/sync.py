"""Keeps a machine's folder of models in step with the registry, in a process that serves nothing.

It is ``featurestore models sync --every``, and what ``serve`` starts beside itself: MLflow is imported here, so that no scorer
spends seconds or memory on it, or waits for a registry that hangs.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from featurestore.errors import ModelError, ModelRegistryUnavailableError
from featurestore.timeline import SECOND, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from featurestore.scoring.registry import ModelRegistry

_LOG = logging.getLogger("featurestore.scoring")


def keep_in_step(
    registry: ModelRegistry,
    *,
    every: str,
    show: Callable[[dict[str, dict[str, int]]], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Sync again and again. What fails is logged, left as it was, and tried again.

    Args:
        registry: The registry and the folder.
        every: Pause between two rounds, for example "10s".
        show: Called with the aliases by model whenever they changed.
        sleep: Waits so many seconds.
        until: Asked before every round; True ends it.
    """
    seconds = parse_duration(every) / SECOND
    known: dict[str, dict[str, int]] | None = None
    while not until():
        try:
            found = registry.sync()
        except (ModelError, ModelRegistryUnavailableError) as error:
            _LOG.warning("models are not in step with the registry: %s", error)
        else:
            if found != known:
                show(found)
                known = found
        sleep(seconds)
