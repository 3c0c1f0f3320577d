"""Follows the aliases in the folder of models: a scorer serves what is champion, without a restart and without a failed request.

::

    aliases.json ──poll──► changed? ──► trial process ──► load ──► bind to the store ──► one assignment
                                │            │             │            │
                                └── no       └─────────────┴────────────┴── refused: logged, counted, the old model stays

Rules:
    1. The registry is not asked: ``models promote`` writes the file, and so does ``models sync`` where the registry is a server.
    2. A version is loaded beside the one that is served and takes its place between two batches.
    3. What is refused is not tried again until the aliases change; a store that is away is asked again.
    4. A challenger that is refused leaves the champion without one. Only the models without a fixed version follow.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import ModelError, OnlineStoreTimeoutError, OnlineStoreUnavailableError, UnknownNameError
from featurestore.scoring.folder import read_aliases
from featurestore.scoring.manifest import LoadedModel, find_model, load_model, read_model
from featurestore.scoring.runtimes import ONNX
from featurestore.scoring.served import ServedModel
from featurestore.scoring.trial import try_model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path
    from typing import Any

    from featurestore.scoring.served import ModelSet

_LOG = logging.getLogger("featurestore.scoring")
_AWAY = (OnlineStoreUnavailableError, OnlineStoreTimeoutError)


@dataclass(frozen=True)
class Change:
    """What the aliases of a model say, and what is not served yet."""

    name: str
    champion: int
    challenger: int | None


class Follower:
    """Keeps a set of served models at what the aliases say.

    Args:
        root: The folder of models.
        models: What is served.
        names: The models that follow.
        swapped: Called after a change with the model's name and "swapped" or "refused".
        try_first: Whether a version is loaded in a process of its own before.
    """

    def __init__(
        self,
        root: str | Path,
        models: ModelSet,
        names: Iterable[str],
        *,
        swapped: Callable[[str, str], None] = lambda _name, _outcome: None,
        try_first: bool = True,
    ) -> None:
        self._root = root
        self._models = models
        self._names = tuple(names)
        self._swapped = swapped
        self._try_first = try_first
        self._refused: set[Change] = set()

    def changes(self) -> list[Change]:
        """Return what the aliases say and is not served; reads one small file per model."""
        wanted = self._models.company is not None and self._models.company.challenge is not None
        found = []
        for name in self._names:
            served = self._models.find(name)
            try:
                aliases = read_aliases(self._root, name)
            except ModelError as error:
                _LOG.warning("model %s: %s", name, error)
                continue
            if served is None or "champion" not in aliases:
                continue
            challenger = aliases.get("challenger") if wanted else None
            if challenger == aliases["champion"]:
                challenger = None
            has = served.challenger.version if served.challenger is not None else None
            change = Change(name, aliases["champion"], challenger)
            if (change.champion, change.challenger) != (served.manifest.version, has) and change not in self._refused:
                found.append(change)
        return found

    async def step(self, on_worker: Callable[[Callable[[], Any]], Awaitable[Any]]) -> list[Change]:
        """Make every change that is due, and return those that were made.

        Args:
            on_worker: Runs a call on the thread that may use the client.
        """
        due = await asyncio.to_thread(self.changes)
        return [change for change in due if await self._change(change, on_worker)]

    async def run(
        self,
        on_worker: Callable[[Callable[[], Any]], Awaitable[Any]],
        *,
        every_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self.step(on_worker)
            except Exception:  # noqa: BLE001 - a bug here must not end the following, nor the service
                _LOG.exception("following the aliases failed")
            await sleep(every_s)

    async def _change(self, change: Change, on_worker: Callable[[Callable[[], Any]], Awaitable[Any]]) -> bool:
        try:
            served = await asyncio.to_thread(self._prepare, change)
            await on_worker(served.scorer)
        except _AWAY:
            _LOG.warning("model %s:%d waits for the online store", change.name, change.champion)
            return False
        except (ModelError, UnknownNameError) as error:
            _LOG.error("model %s:%d is refused, the old one stays: %s", change.name, change.champion, error)
            self._refused.add(change)
            self._swapped(change.name, "refused")
            if change.challenger is not None:  # it may be to blame; the champion alone may be fine
                return await self._alone(change, on_worker)
            return False
        before = self._models.replace(served)
        self._refused.clear()
        _LOG.warning(
            "model %s: version %d is served, was %s",
            change.name,
            change.champion,
            before.manifest.version if before is not None else None,
        )
        self._swapped(change.name, "swapped")
        return True

    async def _alone(self, change: Change, on_worker: Callable[[Callable[[], Any]], Awaitable[Any]]) -> bool:
        served = self._models.find(change.name)
        if served is not None and served.challenger is None and served.manifest.version == change.champion:
            return False
        refused = set(self._refused)
        made = await self._change(Change(change.name, change.champion, None), on_worker)
        self._refused |= refused
        return made

    def _prepare(self, change: Change) -> ServedModel:
        """Load what is to be served; it is bound to the store afterwards."""
        champion = self._load(change.name, change.champion)
        challenger = None if change.challenger is None else self._load(change.name, change.challenger)
        return ServedModel(champion, self._models.client, challenger=challenger, company=self._models.company)

    def _load(self, name: str, version: int) -> LoadedModel:
        return load_tried(self._root, name, version) if self._try_first else load_model(self._root, name, version)


def load_tried(root: str | Path, name: str, version: int) -> LoadedModel:
    """Return a version that was loaded in a process of its own before.

    Raises:
        ModelError: It is not there, or was refused.
    """
    found = find_model(root, name, version)
    if found.manifest.runtime == ONNX:
        inputs = found.manifest.inputs
        nothing = np.empty((0, len(inputs)), np.float32)
        try_model(read_model(found), nothing, name=name, version=version, inputs=inputs, output=found.manifest.output)
    return load_model(root, name, version)
