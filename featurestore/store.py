"""FeatureStore: a project's settings, definitions, jobs and training sets behind one object; each lives elsewhere.

Importing this module loads neither Spark nor Redis; what a method needs is imported when it is called.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from featurestore.config import Settings
from featurestore.definitions.registry import ApplyResult, Change, Definition, Definitions, collect, diff, refuse_breaks
from featurestore.modules import load_module

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from featurestore.checks.explain_derived import DerivedExplanation
    from featurestore.checks.explanation import Explanation
    from featurestore.checks.verify import VerifyResult
    from featurestore.jobs.job import Job
    from featurestore.offline.registry import DeltaRegistry
    from featurestore.offline.training import TrainingSet
    from featurestore.online.client import FeatureClient
    from featurestore.scoring.registry import ModelRegistry

STORE_TIMEOUT_S = 5.0


class FeatureStore:
    """A project: its settings and what can be done with them.

    Args:
        settings: The resolved settings; ``FeatureStore.open()`` finds them.

    Example:
        store = FeatureStore.open()
        store.apply(fraud_v1)
        job = store.submit("materialize", service="fraud_v1")
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._session: Any = None

    @classmethod
    def open(cls, path: Path | str | None = None, **overrides: Any) -> FeatureStore:
        """Return the store of a project.

        Args:
            path: featurestore.toml or its folder; found as :meth:`Settings.load` says when None.
            overrides: Settings by name, over file and variables.

        Raises:
            ConfigError: The settings are not usable.
        """
        return cls(Settings.load(path, **overrides))

    @property
    def registry(self) -> DeltaRegistry:
        """What has been applied, and its history."""
        from featurestore.offline.registry import DeltaRegistry

        return DeltaRegistry(self.settings.offline)

    def definitions(self) -> Definitions:
        """Return the applied definitions."""
        return self.registry.load()

    def plan(self, *what: Definition | Definitions | ModuleType, prune: bool | None = None) -> tuple[Change, ...]:
        """Return what ``apply`` of the same would change. Touches nothing."""
        applied = self.definitions()
        return diff(applied, self._wanted(applied, what, prune))

    def apply(
        self,
        *what: Definition | Definitions | ModuleType,
        create_topics: bool = False,
        partitions: int = 2,
        prune: bool | None = None,
    ) -> ApplyResult:
        """Make definitions the applied ones: record them, and publish the lookup plan of every service.

        Applying the same again changes nothing in the registry, and restores the plans of an emptied online store.

        Args:
            what: Services, views and so on, or a module of definitions; the one the settings name when empty.
            create_topics: Whether Kafka topics that do not exist are created.
            partitions: Partitions of those topics.
            prune: Whether applied definitions that are not among these are removed. By default a module is all there is
                and prunes, while single definitions are added to what is there.

        Raises:
            DefinitionError: A definition is invalid.
            BreakingChangeError: A source's contract does not only add to the applied one.
            OnlineStoreUnavailableError: The online store cannot be reached; nothing was changed.
            OfflineError: Somebody else applied at the same moment; nothing was changed.
        """
        from featurestore.online.lookup import LookupPlan
        from featurestore.online.redis_store import RedisOnlineStore

        registry = self.registry
        applied = registry.load()
        wanted = self._wanted(applied, what, prune)
        online = RedisOnlineStore(self.settings.online.url, self.settings.project, timeout_s=STORE_TIMEOUT_S)
        try:
            online.ping()
            topics: list[str] = []
            if create_topics:
                from featurestore.events.broker import ensure_topics

                names = {source.topic for source in wanted.sources.values()}
                topics = ensure_topics(self.settings.kafka, dict.fromkeys(sorted(names), partitions))
            changes = registry.apply(wanted)
            for service in wanted.services.values():
                online.publish_plan(LookupPlan.of(service))
            for name in set(applied.services) - set(wanted.services):
                online.remove_plan(name)
        finally:
            online.close()
        return ApplyResult(changes, tuple(wanted.services), tuple(topics))

    def _wanted(
        self,
        applied: Definitions,
        what: tuple[Definition | Definitions | ModuleType, ...],
        prune: bool | None,  # noqa: FBT001
    ) -> Definitions:
        modules = [each for each in what if isinstance(each, ModuleType)]
        if not what:
            modules = [load_module(self.settings)]
        found = [definition for module in modules for definition in collect(module)]
        for each in what:
            if isinstance(each, Definitions):
                found += each
            elif not isinstance(each, ModuleType):
                found.append(each)
        wanted = Definitions.of(found)
        prune = bool(modules) if prune is None else prune
        wanted = wanted if prune else applied.updated(wanted)
        refuse_breaks(applied, wanted)
        return wanted

    @property
    def models(self) -> ModelRegistry:
        """The registered models: register, promote, roll back. Its methods need the ``registry`` extra."""
        from featurestore.scoring.registry import ModelRegistry

        return ModelRegistry(self.settings.registry, self.settings.models)

    def client(self, *, timeout: str | None = None) -> FeatureClient:
        """Return a client of the project's online store.

        Args:
            timeout: Longest wait for the store; ``online.timeout`` of the settings when None.
        """
        from featurestore.online.client import FeatureClient

        online = self.settings.online
        return FeatureClient(online.url, project=self.settings.project, timeout=timeout or online.timeout)

    def submit(
        self,
        job: str = "materialize",
        *,
        service: str,
        master: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Job:
        """Start a streaming job and return its handle; the job outlives this process.

        Args:
            job: "materialize", which keeps the views of a service, or "score", which scores events with its model.
            service: The service; it has to be applied.
            master: Spark's master, as spark-submit takes it.
            name: Name of the job; the same name goes on from the same checkpoint. ``JOB-SERVICE`` when None.
            options: Fields of :class:`~featurestore.jobs.submit.SubmitOptions`.

        Raises:
            UnknownNameError: No such service is applied.
            SubmitError: The job runs already, or spark-submit cannot be started.
        """
        from featurestore.jobs.submit import SubmitOptions, submit

        found = self.definitions().service(service)
        return submit(job, self.settings, found, name=name, options=SubmitOptions(master=master, **options))

    def jobs(self) -> list[Job]:
        """Return the jobs submitted from this project's folder, by name."""
        from featurestore.jobs.job import jobs_in

        return jobs_in(self.settings.home / "jobs")

    def job(self, name: str) -> Job:
        """Return one job.

        Raises:
            UnknownNameError: There is none of this name.
        """
        from featurestore.jobs.job import find_job

        return find_job(self.settings.home / "jobs", name)

    def training_set(
        self,
        service: str,
        spine: Any,
        *,
        event_time: str = "event_time",
        as_served: bool | str = False,
        leak_report: bool = False,
    ) -> TrainingSet:
        """Return a spine with the features of a service, each row as of its own time.

        Args:
            service: Whose features.
            spine: pandas or Polars frame, Arrow table, Spark frame, or the path of Parquet files, a Delta table or a .csv.
            event_time: The spine's time column; events at or after it do not count.
            as_served: True also hides what had not arrived by then; the name of a column of times, by that.
            leak_report: Whether the set's ``leaks`` can be asked for.

        Raises:
            UnknownNameError: No such service is applied.
            SpineError: A key or time column is missing or not usable.
            OfflineStoreUnavailableError: A source has no event log yet.
        """
        from featurestore.offline.training import training_set

        found = self.definitions().service(service)
        return training_set(
            self.session(), found, spine, offline=self.settings.offline, event_time=event_time, as_served=as_served,
            leak_report=leak_report,
        )  # fmt: skip

    def rebuild_training_set(self, manifest: Mapping[str, Any], spine: Any) -> TrainingSet:
        """Return the training set that a ``TrainingSet.manifest`` describes, made again from the same spine, of any kind.

        Raises:
            SpineError: The spine is not the one it was made from.
            OfflineError: A table no longer has its version, or the result differs; the message says what changed.
        """
        from featurestore.offline.training import rebuild

        return rebuild(self.session(), manifest, spine, offline=self.settings.offline)

    def snapshot(
        self,
        name: str,
        *,
        at: Any = None,
        start: Any = None,
        end: Any = None,
        every: str | None = None,
        path: Path | str | None = None,
    ) -> str:
        """Write the features of all keys at an instant, or at every step of a range, to a Delta table; return its path.

        Columns: keys, ``at``, features. Keys without an event before an instant are left out there. Rows that the table has
        from the first to the last instant are replaced.

        Args:
            name: A view, or a service whose views share their key columns.
            at: The instant, as :func:`~featurestore.timeline.to_instant` takes it.
            start: First instant of a range.
            end: Its last possible instant.
            every: Its step, for example "1h".
            path: The table; ``snapshots/NAME`` in the offline store when None.

        Raises:
            UnknownNameError: Neither a service nor a view of this name is applied.
            OfflineError: The instants are not stated, or views have different keys.
        """
        from featurestore.offline.snapshot import instants_of, snapshot

        instants = instants_of(at, start=start, end=end, every=every)
        applied = self.definitions()
        found = applied.services.get(name) or applied.view(name)
        made = snapshot(self.session(), found, instants, offline=self.settings.offline)
        return made.write(str(path) if path is not None else f"{self.settings.offline}/snapshots/{name}")

    def verify(
        self,
        *what: Definition | Definitions | ModuleType,
        service: str | None = None,
        view: str | None = None,
        seconds: float = 20.0,
        seed: int | None = None,
        engines: Sequence[str] | None = None,
        progress: Callable[[VerifyResult], None] | None = None,
    ) -> VerifyResult:
        """Return whether every path computes the same on these definitions, as far as hostile cases can show.

        Args:
            what: Services, views and so on, or a module of definitions; the one the settings name when empty.
            service: Only the views of this service.
            view: Only this view.
            seconds: How long to look; every view gets at least one case.
            seed: Chooses the cases; random when None, and part of the result.
            engines: "memory" and "redis", the online stores to run on, and "spark", the training sets of production on a local
                Spark session, which needs Java. The first two when None, where a server can be started.
            progress: Called after every case.

        Raises:
            DefinitionError: A definition is invalid, or there is no view.
            UnknownNameError: There is no such service, view or engine.
            StackError: "redis" is asked for and no server can be started, or "spark" and there is no Java.
        """
        from featurestore.checks.run import verify_definitions

        wanted = self._wanted(Definitions(), what, prune=True)
        return verify_definitions(
            wanted, self.settings, service=service, view=view, seconds=seconds, seed=seed, engines=engines,
            progress=progress,
        )  # fmt: skip

    def explain(
        self,
        feature: str,
        keys: Mapping[str, Any],
        *,
        at: Any = None,
        request: Mapping[str, Any] | None = None,
        as_served: bool = False,
        shown: int = 20,
    ) -> Explanation | DerivedExplanation:
        """Return where one value comes from, online and offline side by side, and if they differ, why. Starts no JVM.

        Args:
            feature: ``VIEW.FEATURE``, or with the service before it: ``SERVICE.VIEW.FEATURE``; a request feature is
                ``SERVICE.FEATURE``.
            keys: The entity's key columns and values.
            at: The time, as :func:`~featurestore.timeline.to_instant` takes it; events at or after it do not count. Now by
                default.
            request: Request values by name, where the feature is computed from some.
            as_served: Whether events that arrived after ``at`` are left out of the offline side.
            shown: How many events and tiles to keep, the newest.

        Raises:
            UnknownNameError: No such feature is applied, or a key column or request value is missing.
            DefinitionError: The time or a key value is not usable.
            OfflineStoreUnavailableError: The source has no event log yet.
        """
        from featurestore.checks.explain import explain
        from featurestore.checks.explain_derived import NamedDerived, explain_derived, find
        from featurestore.definitions.keys import key_values
        from featurestore.online.redis_store import RedisOnlineStore
        from featurestore.timeline import SystemClock, to_instant

        named = find(self.definitions(), feature)
        columns = tuple(named.keys.items()) if isinstance(named, NamedDerived) else named.view.layout.keys
        values = key_values(keys, columns, where=f"feature {named.id}")
        typed = dict(zip(dict(columns), values, strict=True))
        t = SystemClock().now() if at is None else to_instant(at, name="at")
        online = RedisOnlineStore(self.settings.online.url, self.settings.project, timeout_s=STORE_TIMEOUT_S)
        offline = self.settings.offline
        try:
            if isinstance(named, NamedDerived):
                return explain_derived(
                    named, typed, t, offline=offline, store=online, request=request, as_served=as_served, shown=shown
                )
            return explain(named, typed, t, offline=offline, store=online, as_served=as_served, shown=shown)
        finally:
            online.close()

    def session(self) -> Any:
        """Return the Spark session of training sets; one per store, started when first needed."""
        if self._session is None:
            from featurestore.engines.session import build_session

            spark = self.settings.spark
            self._session = build_session(f"featurestore-{self.settings.project}", master=spark.master, conf=spark.conf)
        return self._session

    def __repr__(self) -> str:
        return f"FeatureStore(project={self.settings.project!r}, root={str(self.settings.root)!r})"
