"""What runs a model's bytes: onnxruntime, or a plug-in found by an entry point of the group ``featurestore.runtimes``.

A plug-in gets bytes whose hash is the manifest's. Only the one that a manifest names is imported. Bytes that are a pickle are
refused whatever the plug-in: loading one runs code of whoever wrote it.
"""

from __future__ import annotations

import hashlib
import hmac
from importlib import metadata
from typing import TYPE_CHECKING, Protocol

from featurestore.errors import ModelError
from featurestore.scoring.model import OnnxModel

if TYPE_CHECKING:
    from featurestore.scoring.manifest import ModelManifest
    from featurestore.scoring.model import Model

GROUP = "featurestore.runtimes"
ONNX = "onnx"


class Runtime(Protocol):
    """Makes models out of bytes; an entry point loads an object of this kind."""

    def load(self, content: bytes, manifest: ModelManifest) -> Model:
        """Return the model, ready to run.

        Args:
            content: The bytes, of the manifest's hash.
            manifest: Its name, version, inputs and output.

        Raises:
            ModelError: The bytes are refused.
        """


def open_model(content: bytes, manifest: ModelManifest) -> Model:
    """Return a model ready to run, by the runtime that its manifest names.

    Raises:
        ModelError: The bytes have another hash than the manifest says, the runtime is not installed, or it refuses them.
    """
    found = hashlib.sha256(content).hexdigest()
    if not hmac.compare_digest(found, manifest.sha256):
        raise ModelError(
            f"model {manifest.label}: the file's sha256 is {found}, its manifest says {manifest.sha256}.",
            hint="the file was changed after it was stored; store the model again.",
        )
    if manifest.runtime == ONNX:
        return OnnxModel(
            content,
            name=manifest.name,
            version=manifest.version,
            inputs=manifest.inputs,
            output=manifest.output or None,
        )
    if content.startswith(b"\x80"):
        raise ModelError(f"model {manifest.label}: the file is a pickle.", hint="no runtime is given one.")
    for entry in metadata.entry_points(group=GROUP, name=manifest.runtime):
        runtime: Runtime = entry.load()
        return runtime.load(content, manifest)
    raise ModelError(
        f"model {manifest.label}: its runtime {manifest.runtime!r} is not installed.",
        hint=f"install the package that has it as an entry point of group {GROUP}.",
    )
