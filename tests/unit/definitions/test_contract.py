"""Contracts: which schemas are understood, how the others are refused, and which changes break."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featurestore.datatypes import DataType
from featurestore.definitions.contract import Contract, breaking_changes
from featurestore.errors import ContractError

SCHEMAS = Path(__file__).parents[3] / "schemas"


def contract(properties, required=(), **more):
    schema = {"type": "object", "properties": properties, "required": list(required), **more}
    return Contract.from_json(json.dumps(schema), "payment")


def test_types_nullability_and_bounds_are_read():
    read = contract(
        {
            "id": {"type": "string", "minLength": 1, "title": "a note"},
            "at": {"type": "string", "format": "date-time"},
            "amount": {"type": ["number", "null"], "minimum": 0},
            "count": {"type": "integer"},
            "approved": {"type": "boolean", "default": False},
        },
        required=["id", "at", "amount"],
    )
    assert read.columns == {
        "id": DataType.STRING,
        "at": DataType.TIMESTAMP,
        "amount": DataType.FLOAT64,
        "count": DataType.INT64,
        "approved": DataType.BOOL,
    }
    assert [one.nullable for one in read.fields] == [False, False, True, True, True]
    assert read.fields[0].bounds == {"minLength": 1}
    assert Contract.from_dict(json.loads(json.dumps(read.to_dict()))) == read


@pytest.mark.parametrize("path", sorted(SCHEMAS.rglob("*.json")), ids=lambda path: path.parent.name)
def test_every_schema_of_the_project_is_a_contract(path):
    read = Contract.load(path)
    assert read.name == path.parent.name
    assert f"v{read.version}.json" == path.name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "must be"),
        ('{"type": "object"}', "must be"),
        ('{"type": "object", "properties": []}', "must be"),
        ('{"type": "object", "properties": {}}', "must be"),
        ('{"type": "array", "properties": {"a": {"type": "string"}}}', "must be"),
    ],
)
def test_a_text_that_is_no_schema_of_an_object_is_refused(text, said):
    with pytest.raises(ContractError, match=f"schema payment.*{said}"):
        Contract.from_json(text, "payment")


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"type": "object"}, "'object' is not supported"),
        ({"type": ["string", "integer"]}, "not supported"),
        ({"type": [["string"]]}, "not supported"),
        ({"type": {}}, "not supported"),
        ({}, "has no type"),
        ("string", "has no type"),
        ({"type": "string", "format": "email"}, "format 'email'"),
        ({"type": "integer", "format": "date-time"}, "format 'date-time'"),
        ({"type": "integer", "multipleOf": 5}, "keyword 'multipleOf'"),
        ({"type": "boolean", "enum": [True]}, "keyword 'enum'"),
        ({"type": "string", "$ref": "#/x"}, "keyword '\\$ref'"),
        ({"type": "integer", "minimum": "1"}, "minimum is '1'"),
        ({"type": "number", "maximum": True}, "maximum is True"),
        ({"type": "string", "minLength": -1}, "minLength is -1"),
        ({"type": "string", "pattern": "("}, "pattern is '\\('"),
        ({"type": "string", "enum": []}, "enum is \\[\\]"),
        ({"type": "string", "enum": [1]}, "enum is \\[1\\]"),
        ({"type": "string", "enum": ["a"], "minLength": 1}, "say the same twice"),
    ],
)
def test_a_property_that_is_not_understood_is_refused_by_name(node, said):
    with pytest.raises(ContractError, match=f"property 'amount': .*{said}"):
        contract({"id": {"type": "string"}, "amount": node})


@pytest.mark.parametrize("required", [5, "id", [1], ["other"]])
def test_required_must_name_properties(required):
    with pytest.raises(ContractError, match="required"):
        Contract.from_json(
            json.dumps({"type": "object", "properties": {"id": {"type": "string"}}, "required": required}), "p"
        )


def test_a_closed_object_is_refused_because_it_could_never_grow():
    with pytest.raises(ContractError, match="additionalProperties"):
        contract({"id": {"type": "string"}}, additionalProperties=False)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ContractError, match=r"none\.json cannot be read"):
        Contract.load(tmp_path / "none.json")
    (tmp_path / "v1.json").write_bytes(b"\xff")
    with pytest.raises(ContractError, match="not UTF-8"):
        Contract.load(tmp_path / "v1.json")


TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (({"a": TEXT}, ["a"]), ({"a": TEXT, "b": TEXT}, ["a"]), None),
        (({"a": TEXT}, ["a"]), ({"a": TEXT}, []), None),
        (({"a": WHOLE}, ["a"]), ({"a": NUMBER}, ["a"]), "from int64 to float64"),
        (({"a": {**TEXT, "enum": ["x"]}}, []), ({"a": {**TEXT, "enum": ["y", "x"]}}, []), None),
        (({"a": {**TEXT, "enum": ["x", "y"]}}, []), ({"a": {**TEXT, "enum": ["x"]}}, []), "other bounds"),
        (({"a": TEXT}, []), ({"a": {**TEXT, "enum": ["x"]}}, []), "other bounds"),
        (({"a": {**TEXT, "minLength": 2}}, ["a"]), ({"a": TEXT}, ["a"]), None),
        (({"a": TEXT}, ["a"]), ({"a": TEXT, "b": TEXT}, ["a", "b"]), "new field 'b' is required"),
        (({"a": TEXT, "b": TEXT}, []), ({"a": TEXT}, []), "'b' was removed"),
        (({"a": NUMBER}, []), ({"a": WHOLE}, []), "from float64 to int64"),
        (({"a": TEXT}, []), ({"a": TEXT}, ["a"]), "no longer nullable"),
        (({"a": TEXT}, []), ({"a": {**TEXT, "maxLength": 2}}, []), "other bounds"),
    ],
)
def test_only_additive_changes_are_compatible(old, new, said):
    found = breaking_changes(contract(*old), contract(*new))
    assert (found == []) if said is None else (len(found) == 1 and said in found[0])
