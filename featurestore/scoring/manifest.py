"""What a stored model is, and where: ``<root>/<name>/<version>/model.onnx`` beside its ``manifest.json``.

Rules:
    1. A version is a directory that appears whole or not at all (written aside, flushed, renamed) and never changes
       afterwards. Versions are 1, 2, 3, ...; two writers at once get two versions.
    2. A name matches ``[a-z][a-z0-9_-]{0,62}`` and a version is an integer, so no name can leave the root. Links are
       not followed, and only regular files of a bounded size are read.
    3. The manifest binds the model to the feature service it was trained on by the service's fingerprint, and to its
       bytes by their sha256.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from featurestore.datatypes import SCALARS, DataType
from featurestore.errors import ModelError, did_you_mean
from featurestore.scoring.folder import MAX_MANIFEST_BYTES, NAME, check_model_name, read_file, write_version
from featurestore.scoring.onnxfile import MAX_MODEL_BYTES
from featurestore.scoring.runtimes import ONNX, open_model
from featurestore.timeline import SystemClock, format_instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from featurestore.scoring.model import Model

FORMAT = 1
"""The manifest layout this version writes, and the only one it reads."""

MANIFEST_FILE = "manifest.json"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """One version's facts; valid by construction.

    Every input is either sent by the caller (``request_inputs``) or looked up (``feature_inputs``), never both.

    Raises:
        ModelError: A name, hash or list breaks the rules; the message names the field.
    """

    name: str
    version: int
    service: str
    service_fingerprint: str
    keys: dict[str, DataType]
    """The entity keys the caller sends, with their types."""
    inputs: tuple[str, ...]
    """The model's columns, in order."""
    request_inputs: tuple[str, ...] = ()
    feature_inputs: tuple[str, ...] = ()
    request_values: dict[str, DataType] = field(default_factory=dict)
    """What the service's request features take of the caller, with the types; the model may take the same names as inputs."""
    output: str
    """The graph's output that holds the score."""
    sha256: str
    created_at: str
    metrics: dict[str, Any] = field(default_factory=dict)
    training_set: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    runtime: str = ONNX
    """What runs the bytes: "onnx", or a plug-in's name."""
    format: int = FORMAT

    def __post_init__(self) -> None:
        where = f"manifest of model {self.name!r}"
        if self.format != FORMAT:
            raise ModelError(
                f"{where}: format {self.format} is not the {FORMAT} this version reads.",
                hint="upgrade featurestore, or store the model again.",
            )
        check_model_name(self.name)
        if self.version < 1:
            raise ModelError(f"{where}: version {self.version} is not 1 or more.")
        if not _SHA256.fullmatch(self.sha256):
            raise ModelError(f"{where}: sha256 {self.sha256!r} is not 64 lower-case hexadecimal digits.")
        for label, value in (("service", self.service), ("service_fingerprint", self.service_fingerprint)):
            if not value:
                raise ModelError(f"{where}: {label} is empty.")
        if not self.keys:
            raise ModelError(f"{where}: keys is empty.", hint='name the entity keys, like {"card_id": "string"}.')
        if not self.inputs:
            raise ModelError(f"{where}: inputs is empty.")
        sources = (*self.request_inputs, *self.feature_inputs)
        for label, names in (("inputs", self.inputs), ("request_inputs and feature_inputs", sources)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ModelError(f"{where}: {label} name {twice[0]!r} more than once.")
        adrift = sorted(set(self.inputs) ^ set(sources))
        if adrift:
            raise ModelError(
                f"{where}: {', '.join(map(repr, adrift))} is not in both inputs and one of request_inputs and "
                "feature_inputs.",
                hint="inputs is the order of the columns; each is sent by the caller or looked up.",
            )
        clash = sorted(set(self.keys) & {*self.request_inputs, *self.request_values})
        if clash:
            raise ModelError(f"{where}: {clash[0]!r} is both a key and a request input.", hint="rename the input.")
        numbers = (DataType.INT64, DataType.FLOAT64, DataType.BOOL)
        texts = [name for name in self.request_inputs if self.request_values.get(name, DataType.BOOL) not in numbers]
        if texts:
            raise ModelError(f"{where}: request input {texts[0]!r} is {self.request_values[texts[0]]}, and no number.")

    @property
    def file(self) -> str:
        """The name of the file with the bytes, beside the manifest."""
        return "model.onnx" if self.runtime == ONNX else "model.bin"

    @property
    def sent(self) -> tuple[str, ...]:
        """The names a caller sends besides keys: the model's request inputs, then what only request features take."""
        return tuple(dict.fromkeys((*self.request_inputs, *self.request_values)))

    @property
    def label(self) -> str:
        """``name:version``, as messages show it."""
        return f"{self.name}:{self.version}"

    def to_json(self) -> bytes:
        """Return the file's bytes: indented UTF-8 JSON, the same for the same facts."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_json(cls, content: bytes, *, where: str) -> Self:
        """Return the manifest in a file; unknown fields are ignored, so that later versions may add some."""
        try:
            return msgspec.json.decode(content, type=cls, strict=True)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(
                f"{where}: the manifest is unreadable ({error}).", hint="store the model again; don't edit the file."
            ) from None


@dataclass(frozen=True)
class ModelVersion:
    """One stored version: its manifest and its directory."""

    manifest: ModelManifest
    directory: Path

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """The version, counted from 1."""
        return self.manifest.version


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with its manifest."""

    model: Model
    manifest: ModelManifest


def save_model(
    root: str | Path,
    name: str,
    onnx_bytes: bytes,
    *,
    service: str,
    service_fingerprint: str,
    keys: Mapping[str, str | DataType],
    inputs: Iterable[str],
    request_inputs: Iterable[str] = (),
    feature_inputs: Iterable[str] = (),
    request_values: Mapping[str, str | DataType] | None = None,
    output: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    training_set: Mapping[str, Any] | None = None,
    parity: Mapping[str, Any] | None = None,
    runtime: str = ONNX,
    version: int | None = None,
) -> ModelVersion:
    """Store a model as the next version of its name, and return that version.

    The bytes are loaded and run once before anything is written: what cannot be served is not stored.

    Args:
        root: The directory of all models; made if missing.
        name: Lower-case letters, digits, ``_`` and ``-``.
        onnx_bytes: The whole file, self-contained.
        service: The feature service it was trained on.
        service_fingerprint: That service's fingerprint; a scorer refuses the model where another one is applied.
        keys: The entity keys a caller sends, by type: ``{"card_id": "string"}``.
        inputs: The columns of the training matrix, in order.
        request_inputs: Those of ``inputs`` that the caller sends.
        feature_inputs: Those of ``inputs`` that are feature ids of the service.
        request_values: ``request_values`` of the service: what its request features take, by type.
        output: The graph's output with the score; None takes the only float one.
        metrics: Whatever was measured, as JSON.
        training_set: What it was trained on: Delta versions, times, digest.
        parity: How the converted model was compared with the original.
        runtime: What runs the bytes; a plug-in's name when they are not ONNX.
        version: Its number, where something else counts them; None takes the next.

    Raises:
        ModelError: The name, the lists or the model are refused, the version is taken, or the root cannot be written.
    """
    check_model_name(name)
    columns = tuple(inputs)
    home = Path(root) / name
    try:
        home.mkdir(parents=True, exist_ok=True)
        while True:
            number = max(_version_numbers(home), default=0) + 1 if version is None else version
            manifest = ModelManifest(
                name=name,
                version=number,
                created_at=format_instant(SystemClock().now()),
                service=service,
                service_fingerprint=service_fingerprint,
                keys={key: _key_type(kind, key, name) for key, kind in keys.items()},
                inputs=columns,
                request_inputs=tuple(request_inputs),
                feature_inputs=tuple(feature_inputs),
                request_values={each: _key_type(kind, each, name) for each, kind in (request_values or {}).items()},
                output=output or "",
                runtime=runtime,
                sha256=hashlib.sha256(onnx_bytes).hexdigest(),
                metrics=dict(metrics or {}),
                training_set=dict(training_set or {}),
                parity=dict(parity or {}),
            )
            model = open_model(onnx_bytes, manifest)
            manifest = dataclasses.replace(manifest, output=getattr(model, "output", manifest.output))
            if write_version(home, number, {manifest.file: onnx_bytes, MANIFEST_FILE: manifest.to_json()}):
                return ModelVersion(manifest, home / str(number))
            if version is not None:
                raise ModelError(f"model {name} has a version {version} already.", hint="versions never change.")
    except OSError as error:
        raise ModelError(f"model {name}: {home} cannot be written ({error.strerror}).") from error


def list_models(root: str | Path) -> list[ModelVersion]:
    """Return every stored version, by name and then version. A root that does not exist holds none.

    Raises:
        ModelError: A manifest is unreadable.
    """
    base = Path(root)
    if not base.is_dir():
        return []
    names = sorted(
        one.name for one in os.scandir(base) if NAME.fullmatch(one.name) and one.is_dir(follow_symlinks=False)
    )
    return [_read_version(base, name, version) for name in names for version in sorted(_version_numbers(base / name))]


def find_model(root: str | Path, name: str, version: int | None = None) -> ModelVersion:
    """Return a stored version, by default the newest.

    Raises:
        ModelError: There is no such model or version, or its manifest is unreadable.
    """
    check_model_name(name)
    base = Path(root)
    known = sorted(_version_numbers(base / name))
    if not known:
        names = {one.name for one in list_models(base)}
        raise ModelError(f"model {name!r} is not stored in {base}.", hint=did_you_mean(name, names, what="models"))
    if version is None:
        version = known[-1]
    if version not in known:
        raise ModelError(
            f"model {name!r} has no version {version}.", hint=f"stored versions: {', '.join(map(str, known))}."
        )
    return _read_version(base, name, version)


def load_model(
    root: str | Path, name: str, version: int | None = None, *, max_bytes: int = MAX_MODEL_BYTES
) -> LoadedModel:
    """Return a stored version ready to run, by default the newest.

    Raises:
        ModelError: There is no such version, its bytes are not those of the manifest, or the model is refused.
    """
    found = find_model(root, name, version)
    return LoadedModel(open_model(read_model(found, max_bytes=max_bytes), found.manifest), found.manifest)


def read_model(found: ModelVersion, *, max_bytes: int = MAX_MODEL_BYTES) -> bytes:
    """Return the bytes of a stored version; they are not checked yet.

    Raises:
        ModelError: The file is missing, no regular file, or too large.
    """
    return read_file(found.directory / found.manifest.file, max_bytes)


def adopt_version(root: str | Path, name: str, version: int, folder: Path) -> ModelVersion:
    """Copy a version that was stored elsewhere into its place, whole; return it. One that is there already is left as it is.

    Raises:
        ModelError: The files are unreadable, are another version's, or their hash is not the manifest's.
    """
    content = read_file(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    manifest = ModelManifest.from_json(content, where=str(folder / MANIFEST_FILE))
    if (manifest.name, manifest.version) != (check_model_name(name), version):
        raise ModelError(f"the files of model {name}:{version} say that they are {manifest.label}.")
    model = read_file(folder / manifest.file, MAX_MODEL_BYTES)
    open_model(model, manifest)
    home = Path(root) / name
    try:
        home.mkdir(parents=True, exist_ok=True)
        write_version(home, version, {manifest.file: model, MANIFEST_FILE: content})
    except OSError as error:
        raise ModelError(f"model {name}: {home} cannot be written ({error.strerror}).") from error
    return _read_version(Path(root), name, version)


def _key_type(kind: str | DataType, key: str, name: str) -> DataType:
    if kind not in SCALARS:
        allowed = ", ".join(one for one in DataType if one in SCALARS)
        raise ModelError(f"model {name}: key {key!r} has type {kind!r}.", hint=f"allowed: {allowed}.")
    return DataType(kind)


def _version_numbers(home: Path) -> list[int]:
    try:
        entries = list(os.scandir(home))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [int(one.name) for one in entries if _VERSION.fullmatch(one.name) and one.is_dir(follow_symlinks=False)]


def _read_version(base: Path, name: str, version: int) -> ModelVersion:
    directory = base / name / str(version)
    where = str(directory / MANIFEST_FILE)
    manifest = ModelManifest.from_json(read_file(directory / MANIFEST_FILE, MAX_MANIFEST_BYTES), where=where)
    if (manifest.name, manifest.version) != (name, version):
        raise ModelError(
            f"{where}: it says {manifest.label}, its place says {name}:{version}.",
            hint="versions are not moved or copied by hand; store the model again.",
        )
    return ModelVersion(manifest, directory)
