from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurestore.errors import ModelError
from featurestore.scoring.manifest import find_model, list_models, load_model, save_model
from featurestore.scoring.served import load_models
from tests.unit.scoring.support import FIELDS, INPUTS, onnx_bytes


def save(root, name="fraud", **changes):
    return save_model(root, name, onnx_bytes(), **FIELDS | changes)


def test_versions_count_up_and_the_newest_is_loaded_by_default(tmp_path):
    assert [save(tmp_path).version for _ in range(3)] == [1, 2, 3]
    assert load_model(tmp_path, "fraud").manifest.version == 3
    assert load_model(tmp_path, "fraud", 2).model.version == 2
    assert [(one.name, one.version) for one in list_models(tmp_path)] == [("fraud", 1), ("fraud", 2), ("fraud", 3)]


def test_the_manifest_on_disk_is_plain_json(tmp_path):
    stored = save(tmp_path)
    facts = json.loads((stored.directory / "manifest.json").read_text())
    assert facts["format"] == 1
    assert facts["inputs"] == list(INPUTS)
    assert facts["keys"] == {"card_id": "string"}
    assert facts["output"] == "score"
    assert facts["created_at"].endswith("Z")
    assert find_model(tmp_path, "fraud").manifest == stored.manifest
    assert sorted(one.name for one in stored.directory.iterdir()) == ["manifest.json", "model.onnx"]


def test_writers_at_once_get_versions_of_their_own(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        versions = sorted(one.version for one in pool.map(lambda _: save(tmp_path), range(8)))
    assert versions == list(range(1, 9))
    assert sorted(one.name for one in (tmp_path / "fraud").iterdir()) == sorted(map(str, range(1, 9)))


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "a\0", ".hidden", "1st", "x" * 64, "a.b", "..", "a\n"])
def test_a_name_cannot_leave_the_root(tmp_path, name):
    with pytest.raises(ModelError, match="is not allowed"):
        save(tmp_path, name)
    with pytest.raises(ModelError, match="is not allowed"):
        load_model(tmp_path, name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": ("amount", "amount", "x")}, "'amount' more than once"),
        ({"request_inputs": []}, "'amount' is not in both"),
        ({"feature_inputs": ["a.b", "card_spend.spend_1h", "card_spend.mean_1h"]}, "'a.b' is not in both"),
        ({"keys": {}}, "keys is empty"),
        ({"keys": {"amount": "string"}}, "both a key and a request input"),
        ({"keys": {"card_id": "text"}}, "has type 'text'"),
        ({"service_fingerprint": ""}, "service_fingerprint is empty"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_and_nothing_is_stored(tmp_path, changes, words):
    with pytest.raises(ModelError, match=words):
        save(tmp_path, **changes)
    assert list_models(tmp_path) == []


def test_a_changed_model_file_is_refused(tmp_path):
    path = save(tmp_path).directory / "model.onnx"
    path.write_bytes(onnx_bytes(weights=(9, 9, 9)))
    with pytest.raises(ModelError, match="sha256"):
        load_model(tmp_path, "fraud")


def test_links_pipes_and_large_files_are_not_read(tmp_path):
    path = save(tmp_path).directory / "model.onnx"
    with pytest.raises(ModelError, match="10 are allowed"):
        load_model(tmp_path, "fraud", max_bytes=10)
    path.rename(tmp_path / "elsewhere.onnx")
    path.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ModelError, match="it is a link"):
        load_model(tmp_path, "fraud")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ModelError, match="not a regular file"):
        load_model(tmp_path, "fraud")
    path.unlink()
    with pytest.raises(ModelError, match="No such file"):
        load_model(tmp_path, "fraud")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda facts: facts | {"format": 2}, "format 2"),
        (lambda facts: facts | {"version": 7}, "it says fraud:7"),
        (lambda facts: facts | {"inputs": "amount"}, "unreadable"),
        (lambda facts: facts | {"sha256": "AB"}, "sha256"),
        (lambda facts: [facts], "unreadable"),
    ],
)
def test_an_edited_manifest_is_refused(tmp_path, edit, words):
    path = save(tmp_path).directory / "manifest.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path, "fraud")


def test_a_missing_model_or_version_is_named_with_what_there_is(tmp_path):
    with pytest.raises(ModelError, match="there are no models yet"):
        load_model(tmp_path / "nowhere", "fraud")
    save(tmp_path)
    with pytest.raises(ModelError, match="did you mean 'fraud'"):
        load_model(tmp_path, "frad")
    with pytest.raises(ModelError, match="stored versions: 1"):
        load_model(tmp_path, "fraud", 2)
    with pytest.raises(ModelError, match="is not a version"):
        load_models(tmp_path, ["fraud:x"])
