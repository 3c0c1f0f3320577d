"""Model files made to crash, hang, read other files or take all memory: each is refused, and this process lives on."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from featurestore.errors import ModelError
from featurestore.scoring.model import OnnxModel
from featurestore.scoring.onnxfile import _NUMBERS, check_onnx
from featurestore.scoring.trial import try_model
from tests.effort import tries
from tests.unit.scoring.support import INPUTS, build_onnx, onnx_bytes

pytestmark = pytest.mark.thorough

GOOD = onnx_bytes()


def graph_of(nodes, initializers=(), *, outputs=1, domain="", functions=()) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])
    y = helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, outputs])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(nodes, "g", [x], [y], list(initializers))
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions).SerializeToString()


def constant(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def endless() -> bytes:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("Identity", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [None, 3]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [None, 3]),
        ],
    )
    always = numpy_helper.from_array(np.array(True), "always")
    loop = helper.make_node("Loop", ["", "always", "x"], ["score"], body=body)
    return graph_of([loop], [always], outputs=3)


def huge_tensor() -> bytes:
    """A graph that fills 16 GB and adds them up."""
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=1),
        helper.make_node("Add", ["total", "sum"], ["score"]),
    ]
    return graph_of(nodes, [constant("size", 4_000_000_000), constant("axis", 1)])


def promised_dims() -> bytes:
    model = build_onnx()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1_000_000_000, 1_000_000_000])
    return model.SerializeToString()


def cyclic() -> bytes:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "a"], ["b"])]
    return graph_of([*nodes, helper.make_node("ReduceSum", ["b"], ["score"])])


def recursive_function() -> bytes:
    node = helper.make_node("again", ["x"], ["score"], domain="d")
    function = helper.make_function(
        "d", "again", ["x"], ["score"], [node], [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    )
    return graph_of([node], domain="d", functions=[function])


def other_domain() -> bytes:
    return graph_of([helper.make_node("Gelu", ["x"], ["score"], domain="com.microsoft")], domain="com.microsoft")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (endless(), "operator 'Loop' is not allowed"),
        (other_domain(), r"operator 'com\.microsoft\.Gelu' is not allowed"),
        (recursive_function(), r"operator 'd\.again' is not allowed"),
        (promised_dims(), "refuses it"),
        (cyclic(), "refuses it"),
    ],
)
def test_a_hostile_graph_is_refused_before_it_runs(content, words):
    with pytest.raises(ModelError, match=words):
        OnnxModel(content, name="m", version=1, inputs=INPUTS)


def test_an_endless_loop_in_a_branch_is_found():
    inner = onnx.load_from_string(endless())
    inner.graph.name = "branch"
    del inner.graph.input[:]
    flag = numpy_helper.from_array(np.array(True), "flag")
    content = graph_of(
        [helper.make_node("If", ["flag"], ["score"], then_branch=inner.graph, else_branch=inner.graph)], [flag]
    )
    with pytest.raises(ModelError, match="'Loop' is not allowed"):
        check_onnx(content, name="m")


def test_a_graph_that_wants_all_memory_fails_in_its_trial():
    with pytest.raises(ModelError, match=r"the run failed|its trial"):
        try_model(huge_tensor(), np.zeros((0, 3), np.float32), name="m", inputs=INPUTS)


def test_a_trial_that_takes_too_long_or_dies_is_a_refusal():
    with pytest.raises(ModelError, match=r"exceeded 1 s of CPU|SIGKILL"):
        try_model(_slow(), np.zeros((1, 3), np.float32), name="m", inputs=INPUTS, cpu_seconds=1)
    with pytest.raises(ModelError, match="its trial"):  # not even the interpreter fits
        try_model(GOOD, np.zeros((0, 3), np.float32), name="m", inputs=INPUTS, memory_bytes=40 * 1024**2)


def _slow() -> bytes:
    """Multiply a matrix of 1,500 x 1,500 by itself two thousand times: within the rules, and much too slow."""
    side = numpy_helper.from_array(np.array([1500, 1500], np.int64), "side")
    ones = helper.make_node("ConstantOfShape", ["side"], ["m0"], value=numpy_helper.from_array(np.ones(1, np.float32)))
    squares = [helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(2000)]
    end = [
        helper.make_node("ReduceMax", ["m2000"], ["max"], keepdims=0),
        helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=1),
        helper.make_node("Add", ["total", "max"], ["score"]),
    ]
    return graph_of([ones, *squares, *end], [side, constant("axis", 1)])


def test_a_trial_gives_the_scores_that_the_scorer_would():
    matrix = np.random.default_rng(5).normal(size=(5000, 3)).astype(np.float32)
    matrix[::7] = np.nan
    here = OnnxModel(GOOD, name="m", version=1, inputs=INPUTS).predict(matrix)
    assert np.array_equal(try_model(GOOD, matrix, name="m", inputs=INPUTS), here)


def test_external_data_behind_many_numbers_of_an_attribute_is_found():
    model = build_onnx()
    node = helper.make_node("Constant", [], ["c"], value_floats=[1.0] * 1000)
    attribute = node.attribute[0]
    attribute.ints.extend([-1, 2**62] * 100)
    attribute.strings.extend([b"BRANCH_LEQ", b"x" * 500, b""] * 100)
    tensor = attribute.tensors.add()
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(node)
    with pytest.raises(ModelError, match="another file"):
        check_onnx(model.SerializeToString(), name="m")
    del attribute.tensors[:]
    del model.graph.node[-1]
    model.graph.node.append(node)
    check_onnx(model.SerializeToString(), name="m")


@settings(max_examples=tries(300), deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
@example(0, 0, 0)
def test_any_bytes_are_accepted_or_refused_and_nothing_else_happens(position, byte, length):
    content = bytearray(GOOD)
    content[position] = byte
    for mutated in (bytes(content), bytes(content[:length]), bytes(content[length:])):
        with contextlib.suppress(ModelError):  # any other error fails the test
            check_onnx(mutated, name="m")


def test_a_run_of_numbers_of_any_length_is_passed_over_in_bounded_steps():
    """One step lets no other thread run: a scorer that loads a large model would not answer meanwhile."""
    for field in (b"\x3d\x00\x00\x80\x3f", b"\x40\xff\xff\x03", b"\x4a\x05BRANC"):
        step = _NUMBERS.match(field * 1_000_000)
        assert step is not None
        assert 1_000 * len(field) < step.end() < 10_000 * len(field)
        assert step.end() % len(field) == 0
