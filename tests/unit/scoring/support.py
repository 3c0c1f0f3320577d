"""A feature reader in memory, with knobs, and small real ONNX models."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featurestore.errors import OnlineStoreTimeoutError, OnlineStoreUnavailableError, PastLookupError, UnknownNameError

SERVICE = "fraud_v1"
FINGERPRINT = "f" * 16
NAMES = ("card_spend.spend_1h", "card_spend.count_1h", "card_spend.mean_1h")
INPUTS = ("amount", "card_spend.mean_1h", "card_spend.spend_1h")
WEIGHTS = (0.5, -0.25, 0.125)
COMPLETE_THROUGH = 1_700_000_000_000_000
AS_OF = 1_699_999_000_000_000


@dataclass
class Row:
    names: tuple[str, ...]
    row: list[Any]
    status: dict[str, str]
    as_of: dict[str, int | None]
    complete_through: int | None
    at: int

    def to_list(self) -> list[Any]:
        return list(self.row)


@dataclass
class Table:
    names: tuple[str, ...]
    rows: list[Row]

    def to_numpy(self) -> np.ndarray:
        return np.array([row.row for row in self.rows], dtype=np.float64).reshape(len(self.rows), len(self.names))

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    @property
    def at(self) -> int:
        return self.rows[0].at

    @property
    def complete_through(self) -> int | None:
        return self.rows[0].complete_through

    def tally(self, row: int) -> dict[str, int]:
        return Counter(self.rows[row].status.values())


@dataclass
class MemoryReader:
    """Serves ``values[card_id]``; can be down, slow to answer (``gate``) or applied with another definition."""

    values: dict[str, list[Any]] = field(default_factory=dict)
    fingerprint: str = FINGERPRINT
    down: type[Exception] | None = None
    gate: threading.Event | None = None
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[tuple[int | None, int]] = field(default_factory=list)
    closed: bool = False
    threads: set[int] = field(default_factory=set)

    def _answer_or_fail(self) -> None:
        if self.down is not None:
            raise self.down("redis://secret-host:6379 is away", hint="look at 10.0.0.7")

    def get_many(
        self, service: str, keys: list[dict[str, Any]], *, now: int | None = None, request: Any = None
    ) -> Table:
        self.threads.add(threading.get_ident())
        self.batches.append((now, len(keys)))
        self.entered.release()
        if self.gate is not None:
            assert self.gate.wait(10)
        self._answer_or_fail()
        if any(key["card_id"] == "past" for key in keys):
            raise PastLookupError("card_id 'past': 5 is before what is folded.")
        if any(key["card_id"] == "bug" for key in keys):
            raise ZeroDivisionError("secret detail")
        at = COMPLETE_THROUGH + 1 if now is None else now
        return Table(NAMES, [self._row(key["card_id"], at) for key in keys])

    def _row(self, card: str, at: int) -> Row:
        row = self.values.get(card)
        if row is None:
            status, as_of, row = dict.fromkeys(NAMES, "missing"), {"card_spend": None}, [None] * len(NAMES)
        else:
            status = {name: "null" if value is None else "present" for name, value in zip(NAMES, row, strict=True)}
            as_of = {"card_spend": AS_OF}
        return Row(NAMES, list(row), status, as_of, COMPLETE_THROUGH, at)

    def service_fingerprint(self, service: str) -> str:
        self._answer_or_fail()
        if service != SERVICE:
            raise UnknownNameError(f"no service {service!r}.")
        return self.fingerprint

    def request_values(self, service: str) -> dict[str, Any]:
        return {}

    def ping(self) -> None:
        self._answer_or_fail()

    def close(self) -> None:
        self.closed = True


UNAVAILABLE, TIMEOUT = OnlineStoreUnavailableError, OnlineStoreTimeoutError


def build_onnx(*, columns: int = 3, weights: tuple[float, ...] = WEIGHTS, two_classes: bool = False, rows: Any = None):
    """Return sigmoid(x @ weights) with null as 0, as an ONNX graph."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, columns])
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, [rows, 2 if two_classes else 1])]
    w = numpy_helper.from_array(np.array(weights, np.float32).reshape(columns, 1), "w")
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    one = numpy_helper.from_array(np.array(1, np.float32), "one")
    nodes = [
        helper.make_node("IsNaN", ["x"], ["isnan"]),
        helper.make_node("Where", ["isnan", "zero", "x"], ["filled"]),
        helper.make_node("MatMul", ["filled", "w"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["p" if two_classes else "score"]),
    ]
    if two_classes:
        nodes.append(helper.make_node("Sub", ["one", "p"], ["q"]))
        nodes.append(helper.make_node("Concat", ["q", "p"], ["score"], axis=1))
        label = helper.make_tensor_value_info("label", TensorProto.BOOL, [rows, columns])
        nodes.append(helper.make_node("Identity", ["isnan"], ["label"]))
        outputs.insert(0, label)
    graph = helper.make_graph(nodes, "g", [x], outputs, [w, zero, one])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def onnx_bytes(**options: Any) -> bytes:
    model: onnx.ModelProto = build_onnx(**options)
    return model.SerializeToString()


FIELDS: dict[str, Any] = {
    "service": SERVICE,
    "service_fingerprint": FINGERPRINT,
    "keys": {"card_id": "string"},
    "inputs": INPUTS,
    "request_inputs": ["amount"],
    "feature_inputs": ["card_spend.spend_1h", "card_spend.mean_1h"],
    "metrics": {"auc": 0.7},
}


def expected_score(amount: float | None, values: list[Any] | None) -> float:
    """Return what the model gives for one row."""
    spend, _, mean = values or [None] * 3
    parts = zip((amount, mean, spend), WEIGHTS, strict=True)
    logit = sum(np.float32(weight) * np.float32(value) for value, weight in parts if value is not None)
    return float(1 / (1 + np.exp(-np.float32(logit))))


INFER = "/v2/models/fraud/infer"
SCORE = "/score/fraud"
GOOD = b'{"keys": {"card_id": "c1"}, "request": {"amount": 1}}'


def tensor(name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def infer_body(cards: Any = ("c1",), amounts: Any = (1.5,), **more: Any) -> dict[str, Any]:
    return {"inputs": [tensor("card_id", "BYTES", list(cards)), tensor("amount", "FP64", list(amounts))], **more}


def raw(http: Any, path: str, content: Any, content_type: str = "application/json", **headers: str) -> Any:
    return http.post(path, content=content, headers={"content-type": content_type, **headers})
