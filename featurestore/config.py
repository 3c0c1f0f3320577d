"""Settings of a project: defaults < featurestore.toml < FEATURESTORE_* variables < what the caller passes.

Rules:
    1. The file is ``featurestore.toml`` in the working directory, or the one that ``--config`` or the variable
       FEATURESTORE_CONFIG names. Without a file, defaults and variables do.
    2. A variable is FEATURESTORE_ and the key, ``__`` between levels: FEATURESTORE_ONLINE__URL. For Kafka, whose names
       have dots, FEATURESTORE_KAFKA__BOOTSTRAP_SERVERS means "bootstrap.servers"; FEATURESTORE_KAFKA takes JSON.
    3. Relative paths are relative to the folder of the file, wherever they are written.
    4. An unknown key is refused: a setting that is silently ignored is worse than none.
    5. Where neither an online url nor a broker is set, those of a stack that ``featurestore up`` runs are used.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from featurestore.definitions.entity import check_name
from featurestore.errors import ConfigError, FeatureStoreError, did_you_mean
from featurestore.timeline import parse_duration

FILE_NAME = "featurestore.toml"
PREFIX = "FEATURESTORE_"
FILE_VARIABLE = "FEATURESTORE_CONFIG"
NOT_SETTINGS = {PREFIX + each for each in ("CACHE", "CLASS_ARCHIVE", "COMPILED", "CONFIG", "FAILPOINT", "IVY_SETTINGS")}
"""Variables of ours that are no settings of a project."""

_KUBERNETES = re.compile(r"FEATURESTORE_(.*_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""What Kubernetes sets in every pod beside a service called featurestore."""

_SECRET = re.compile(r"password|secret|token|credential|jaas|access\.?key|private\.?key|\.key$", re.IGNORECASE)
HIDDEN = "***"


def hide_url(url: str) -> str:
    """Return a URL without its password and without options, which can hold one too.

    >>> hide_url("redis://user:pa55@host:6379/0?password=x")
    'redis://user:***@host:6379/0'
    """
    scheme, separator, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}{separator}{user}{colon and ':' + HIDDEN}{at}{place.partition('?')[0]}"


def is_secret(name: str) -> bool:
    """Whether a setting of Kafka or Spark with this name holds a secret."""
    return _SECRET.search(name) is not None


def hide_secrets(values: Mapping[str, str]) -> dict[str, str]:
    """Return settings with the values of secret ones replaced."""
    return {name: HIDDEN if is_secret(name) else value for name, value in values.items()}


def _dotted(value: Any) -> Any:
    """Turn ``bootstrap.servers = "x"``, which TOML reads as a table in a table, into what was meant; values as text."""
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            flat.update({f"{name}.{rest}": inner for rest, inner in _dotted(entry).items()})
        elif isinstance(entry, bool):
            flat[name] = str(entry).lower()
        else:
            flat[name] = str(entry) if isinstance(entry, int | float) else entry
    return flat


def _check_duration(text: str) -> str:
    parse_duration(text)
    return text


Verbatim = Annotated[dict[str, str], BeforeValidator(_dotted)]
_CLOSED = ConfigDict(extra="forbid", frozen=True)


class OnlineSettings(BaseModel):
    """Where the online store is, and how long a lookup may wait for it."""

    model_config = _CLOSED
    url: str = "redis://127.0.0.1:6379/0"
    timeout: Annotated[str, AfterValidator(_check_duration)] = "50ms"

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Return what repr and str show."""
        return [("url", hide_url(self.url)), ("timeout", self.timeout)]


class SparkSettings(BaseModel):
    """Where Spark runs, and its own settings, verbatim."""

    model_config = _CLOSED
    master: str = "local[4]"
    conf: Verbatim = Field(default_factory=dict)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Return what repr and str show."""
        return [("master", self.master), ("conf", hide_secrets(self.conf))]


class ServeSettings(BaseModel):
    """The scoring service, as its guides say; ``limits`` has fields of ``ScorerLimits``, paths are relative to the file."""

    model_config = _CLOSED
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=8081, ge=0, le=65_535)
    workers: int = Field(default=1, ge=1, le=1024)
    api_key_file: Path | None = None
    token_key_file: Path | None = None
    token_algorithm: str = "RS256"  # noqa: S105 - no password
    token_audience: str = ""
    token_issuer: str = ""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    challenger: str = "off"
    follow: Annotated[str, AfterValidator(_check_duration)] = "2s"
    prediction_log: str = ""
    limits: dict[str, float] = Field(default_factory=dict)

    def at(self, root: Path) -> Self:
        """Return the settings with the paths of files below a folder, where they are relative."""
        files = {name: root / value.expanduser() for name, value in self if isinstance(value, Path)}
        return self.model_copy(update=files)


class Settings(BaseSettings):
    """Settings of a project; frozen, paths absolute, secrets hidden in its repr.

    Attributes:
        project: Namespace in the online store.
        home: Folder of jobs, models and the local stack.
        definitions: Module, or .py file, that holds the definitions.
        offline: Folder or URI of the Delta tables; ``home/offline`` by default.
        models: Folder of the models; ``home/models`` by default.
        registry: MLflow's model registry: the URL of a server, or a database; SQLite in ``models`` by default.
        online: The online store.
        kafka: Kafka's settings, verbatim.
        spark: Spark's settings.
        serve: The scoring service.
        root: What relative paths are relative to: the folder of featurestore.toml.
    """

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__", validate_default=True
    )

    project: Annotated[str, AfterValidator(lambda name: check_name(name, "project"))] = "default"
    home: Path = Path(".featurestore")
    definitions: str = "features.py"
    offline: str = ""
    models: Path = Path()
    registry: str = ""
    online: OnlineSettings = Field(default_factory=OnlineSettings)
    kafka: Verbatim = Field(default_factory=dict)
    spark: SparkSettings = Field(default_factory=SparkSettings)
    serve: ServeSettings = Field(default_factory=ServeSettings)
    root: Path = Field(default_factory=Path.cwd)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what the constructor is given and nothing else; ``load`` reads file and variables."""
        return (init_settings,)

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        root = self.root.expanduser().resolve()
        home = root / self.home.expanduser()
        offline = self.offline or str(home / "offline")
        models = root / self.models.expanduser() if "models" in self.model_fields_set else home / "models"
        resolved = {
            "root": root,
            "home": home,
            "models": models,
            "registry": self.registry or f"sqlite:///{models / 'registry.db'}",
            "offline": offline if "://" in offline else str(root / Path(offline).expanduser()),
            "serve": self.serve.at(root),
        }
        self.__dict__.update(resolved)
        return self

    @classmethod
    def load(cls, path: Path | str | None = None, **overrides: Any) -> Settings:
        """Return the settings out of file, variables and overrides.

        Args:
            path: The file; the one FEATURESTORE_CONFIG names, or featurestore.toml in the working directory, when None.
            overrides: Settings by name, over everything else: ``online={"url": "redis://host:6379"}``.

        Raises:
            ConfigError: The file cannot be read, a key is unknown, or a value is not usable.
        """
        named = path or os.environ.get(FILE_VARIABLE)
        file = Path(named).expanduser() if named else Path(FILE_NAME)
        if file.is_dir():
            file = file / FILE_NAME
        text = _read(file, required=named is not None)
        from_file = _parse(file, text)
        from_environment = _environment(cls)
        layers = [
            ("the caller", overrides),
            ("the environment", from_environment),
            (str(file), from_file),
        ]
        merged: dict[str, Any] = {"root": file.parent}
        for _, layer in reversed(layers):
            merged = _merge(merged, layer)
        try:
            settings = cls(**merged)
        except ValidationError as error:
            raise _explain(error, layers, file, text) from None
        return settings._with_running_stack()

    def _with_running_stack(self) -> Settings:
        """Fill in the addresses of a stack that ``up`` runs, where none are configured."""
        wants_url, wants_broker = "url" not in self.online.model_fields_set, "bootstrap.servers" not in self.kafka
        stack = self.home / "stack" / "stack.json"
        if not (wants_url or wants_broker) or not stack.is_file():
            return self
        try:
            running = json.loads(stack.read_text())
            url, broker = str(running["online"]), str(running["kafka"])
        except (OSError, ValueError, KeyError, TypeError):
            return self
        online = self.online.model_copy(update={"url": url}) if wants_url else self.online
        kafka = {**self.kafka, "bootstrap.servers": broker} if wants_broker else self.kafka
        return self.model_copy(update={"online": online, "kafka": kafka})

    @classmethod
    def from_json(cls, path: Path) -> Settings:
        """Return the settings that ``to_json`` wrote, and nothing of this process's environment.

        Raises:
            ConfigError: The file cannot be read or is not one of ours.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path}: the settings of the job cannot be read: {_one_line(error)}.") from error

    def to_json(self, path: Path) -> None:
        """Write the resolved settings, secrets included, readable by the owner only."""
        content = self.model_dump_json(indent=1).encode() + b"\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(content)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Return what repr and str show."""
        shown = {
            "kafka": hide_secrets(self.kafka),
            "offline": hide_url(self.offline),
            "registry": hide_url(self.registry),
        }
        return [(name, shown.get(name, value)) for name, value in self.__dict__.items()]


def _read(file: Path, *, required: bool) -> str:
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        if not required:
            return ""
        raise ConfigError(f"config {file} does not exist.", hint="write one with featurestore init.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {file}: byte {error.start} is not UTF-8.", hint="save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"config {file} cannot be read: {error.strerror}.", hint="check its permissions.") from None


def _parse(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column \d+\)|\(at end of document\)", str(error))
        line = place.group(1) if place and place.group(1) else str(len(text.splitlines()))
        what = str(error)[: place.start()].strip() if place else str(error)
        raise ConfigError(
            f"config {file}, line {line}: not TOML: {what}.", hint='write key = "value", texts in quotes.'
        ) from None


def _environment(cls: type[Settings]) -> dict[str, Any]:
    """Return what FEATURESTORE_* variables set; refuse those that set nothing."""
    for name in os.environ:
        if not name.startswith(PREFIX) or name in NOT_SETTINGS or _KUBERNETES.fullmatch(name):
            continue
        top = name.removeprefix(PREFIX).partition("__")[0].lower()
        if top not in cls.model_fields or top == "root":
            raise ConfigError(
                f"environment variable {name} is no setting.", hint=did_you_mean(name, _variables(), what="variables")
            )
    try:
        read = EnvSettingsSource(cls, env_prefix=PREFIX, env_nested_delimiter="__")()
    except SettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = f"{PREFIX}{field.group(1).upper()}" if field else f"a {PREFIX}* variable"
        raise ConfigError(f"environment variable {name} is not JSON.", hint='write {"key": "value"}.') from None
    read.pop("root", None)
    if isinstance(read.get("kafka"), dict):
        read["kafka"] = {name.replace("_", "."): value for name, value in read["kafka"].items()}
    return read


def _variables() -> list[str]:
    names = []
    for name, field in Settings.model_fields.items():
        inner = _model_of(field.annotation)
        names += (
            [f"{PREFIX}{name}__{sub}".upper() for sub in inner.model_fields] if inner else [f"{PREFIX}{name}".upper()]
        )
    return [*names, f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS", *sorted(NOT_SETTINGS)]


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            if name in {"kafka", "conf"}:
                under, value = _dotted(under), _dotted(value)  # noqa: PLW2901 - dotted names meet dotted names
            merged[name] = _merge(under, value)
        else:
            merged[name] = value
    return merged


def _model_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _explain(error: ValidationError, layers: list[tuple[str, dict[str, Any]]], file: Path, text: str) -> ConfigError:
    """Return the first problem as ours: which key, where it was written, what is allowed."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    holders = (name for end in range(len(path), 0, -1) for name, layer in layers if _holds(layer, path[:end]))
    where = next(holders, "the settings")
    if where == str(file):
        line = next((n for n, each in enumerate(text.splitlines(), 1) if _mentions(each, path[-1])), None)
        where = f"config {file}" + (f", line {line}" if line else "")
    if problem["type"] == "extra_forbidden":
        model: type[BaseModel] | None = Settings
        for part in path[:-1]:
            model = _model_of(model.model_fields[part].annotation) if model and part in model.model_fields else None
        known = [name for name in model.model_fields if name != "root"] if model else []
        return ConfigError(f"{where}: unknown key {key!r}.", hint=did_you_mean(path[-1], known, what="keys"))
    cause = problem.get("ctx", {}).get("error")
    given = HIDDEN if is_secret(key) else hide_url(repr(problem["input"]))
    if isinstance(cause, FeatureStoreError):
        return ConfigError(f"{where}: {key}: {cause.message}", hint=cause.hint)
    return ConfigError(f"{where}: {key} = {given} is not usable: {problem['msg'].lower()}.")


def _holds(layer: Mapping[str, Any], path: list[str]) -> bool:
    value: Any = layer
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def _mentions(line: str, key: str) -> bool:
    return re.match(rf'\s*(\[?"?)([\w".-]+\.)?{re.escape(key)}"?\s*(=|\.|\])', line) is not None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
