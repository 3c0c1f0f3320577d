from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from featurestore.errors import ModelError
from featurestore.scoring.model import OnnxModel
from featurestore.scoring.onnxfile import check_onnx
from tests.unit.scoring.support import INPUTS, WEIGHTS, build_onnx, onnx_bytes


def load(content: bytes, **options):
    return OnnxModel(content, **{"name": "m", "version": 1, "inputs": INPUTS} | options)


def external(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    return tensor


def test_a_model_gives_one_float32_score_per_row():
    matrix = np.array([[1, 2, 3], [np.nan, 0, -1]], np.float32)
    scores = load(onnx_bytes()).predict(matrix)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-np.nan_to_num(matrix) @ np.array(WEIGHTS))), rtol=1e-6)


def test_a_binary_classifier_is_read_as_its_positive_class():
    matrix = np.array([[1, 2, 3]], np.float32)
    model = load(onnx_bytes(two_classes=True))
    assert model.output == "score"
    np.testing.assert_allclose(model.predict(matrix), load(onnx_bytes()).predict(matrix), rtol=1e-6)


@pytest.mark.parametrize("two_classes", [False, True])
def test_a_row_alone_has_the_score_it_has_among_others_whichever_thread_asks(two_classes):
    model = load(onnx_bytes(two_classes=two_classes))
    matrix = np.random.default_rng(1).normal(size=(400, len(INPUTS))).astype(np.float32)
    matrix[::7, 1] = np.nan
    together = model.predict(matrix)
    with ThreadPoolExecutor(4) as threads:
        alone = list(threads.map(model.predict, [row[None] for row in matrix]))
    assert {(each.shape, each.dtype) for each in alone} == {((1,), np.dtype(np.float32))}
    np.testing.assert_array_equal(np.concatenate(alone), together)
    np.testing.assert_array_equal(model.predict(matrix.T.copy().T[:1]), together[:1])  # however it lies in memory
    assert len(set(together.tolist())) > 300
    for wrong in (matrix[:1, :1], matrix[:1].astype(np.float64)):  # neither is spread out nor converted in silence
        with pytest.raises(ModelError, match="the run failed"):
            model.predict(wrong)


def test_other_bytes_than_the_manifest_names_are_refused():
    with pytest.raises(ModelError, match="its manifest says 000"):
        load(onnx_bytes(), sha256="0" * 64)


def _zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.onnx", onnx_bytes())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no ir_version"),
        (pickle.dumps([1]), "a pickle"),
        (_zipped(), "a zip archive"),
        (gzip.compress(b"x", mtime=0), "a gzip file"),
        (b"tree\nversion=v4", "a LightGBM text model"),
        (b'{"a": 1}', "a JSON file"),
        (b"\xff" * 50, "not an ONNX model"),
        (b"\x00" * 50, "not an ONNX model"),
        (onnx_bytes()[:-3], "not an ONNX model"),
        (onnx_bytes() + b"\x3a\xff", "not an ONNX model"),
        (b"\x08\x09", "no graph"),
        (b"\x3a" + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "more than 64 bits"),
    ],
)
def test_what_is_no_onnx_file_is_refused_and_named(content, words):
    with pytest.raises(ModelError, match=words):
        load(content)


def test_an_oversized_file_is_refused():
    with pytest.raises(ModelError, match="more than the 100 allowed"):
        load(onnx_bytes(), max_bytes=100)


def _in_initializer(model):
    external(model.graph.initializer[0])


def _in_sparse_initializer(model):
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(external(numpy_helper.from_array(np.ones(2, np.float32), "s")))
    sparse.dims.append(3)


def _in_attribute(model):
    tensor = external(numpy_helper.from_array(np.ones(2, np.float32), "t"))
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def _in_subgraph(model):
    branch = helper.make_graph(
        [],
        "branch",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [2])],
        [external(numpy_helper.from_array(np.ones(2, np.float32), "t"))],
    )
    model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch))


def _in_function(model):
    tensor = external(numpy_helper.from_array(np.ones(2, np.float32), "t"))
    function = model.functions.add(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def _in_training(model):
    model.training_info.add().initialization.initializer.append(
        external(numpy_helper.from_array(np.ones(2, np.float32), "t"))
    )


@pytest.mark.parametrize(
    "hide", [_in_initializer, _in_sparse_initializer, _in_attribute, _in_subgraph, _in_function, _in_training]
)
def test_external_data_is_found_wherever_it_hides(hide):
    model = build_onnx()
    hide(model)
    with pytest.raises(ModelError, match="another file"):
        check_onnx(model.SerializeToString(), name="m")


def test_deep_nesting_ends_in_a_refusal():
    content = b""
    for _ in range(200):  # graph -> node -> attribute -> graph ...
        attribute = b"\x32" + _length(content) + content
        node = b"\x2a" + _length(attribute) + attribute
        content = b"\x0a" + _length(node) + node
    with pytest.raises(ModelError, match="nested deeper"):
        check_onnx(b"\x08\x09\x3a" + _length(content) + content, name="m")


def _length(content: bytes) -> bytes:
    number, out = len(content), b""
    while number >= 128:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (onnx_bytes(), {"inputs": ("a", "b")}, "the graph takes 3 columns, the manifest names 2"),
        (onnx_bytes(rows=1), {}, "exactly 1 rows"),
        (onnx_bytes(), {"output": "nope"}, "has no output 'nope'"),
        (onnx_bytes(two_classes=True), {"output": "label"}, "not a tensor of floats"),
    ],
)
def test_a_graph_of_another_shape_is_refused(content, options, words):
    with pytest.raises(ModelError, match=words):
        load(content, **options)


def test_an_unknown_operator_is_refused_with_a_hint():
    model = build_onnx()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match=r"onnxruntime .* refuses it .*Hint"):
        load(model.SerializeToString())
