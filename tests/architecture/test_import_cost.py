"""``import featurestore`` is cheap, and the request path never loads an engine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from source_tree import ROOT

ENGINES = {
    "pyspark",
    "delta",
    "deltalake",
    "kafka",
    "py4j",
    "pandas",
    "onnxruntime",
    "uvicorn",
    "starlette",
    "hypothesis",
    "datasketches",
    "numba",
}


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after a statement."""
    code = (
        f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        ("import featurestore", ENGINES | {"redis", "hiredis", "pyarrow"}),
        (
            "from featurestore import Count, Entity, EventSource, FeatureService, FeatureView",
            ENGINES | {"redis", "hiredis"},
        ),
        ("from featurestore import FeatureClient", ENGINES | {"pyarrow", "sqlglot"}),
        (
            "import featurestore.scoring.service, featurestore.scoring.follow, featurestore.scoring.registry",
            {
                "mlflow",
                "sqlalchemy",
                "alembic",
                "onnxmltools",
                "skl2onnx",
                "sklearn",
                "lightgbm",
                "xgboost",
                "deltalake",
            },
        ),
        ("import featurestore.algebra, featurestore.testing.laws", ENGINES | {"redis", "pyarrow", "sqlglot"}),
        ("import featurestore.online.codec, featurestore.online.fold", ENGINES | {"redis", "pyarrow", "sqlglot"}),
    ],
)
def test_importing_loads_no_engine(statement, never):
    assert not loaded_by(statement) & never
