"""Versions of contracts: additive only, several alive at the same time; Avro schemas as contracts."""

from __future__ import annotations

import json

import pytest

from featurestore import DefinitionError
from featurestore.datatypes import DataType
from featurestore.definitions.avro import contract_from_avro
from featurestore.definitions.contract import Contract
from featurestore.definitions.entity import Entity
from featurestore.definitions.registry import Definitions, refuse_breaks
from featurestore.definitions.source import EventSource
from featurestore.errors import BreakingChangeError, ContractError

TEXT = {"type": "string"}
V1 = {"type": "object", "properties": {"id": TEXT, "us": {"type": "integer"}}, "required": ["id", "us"]}
V2 = {**V1, "properties": {**V1["properties"], "shop": TEXT}}


def record(*fields, name="payment"):
    return {"type": "record", "name": name, "fields": [{"name": n, "type": kind} for n, kind in fields]}


def folder(tmp_path, files):
    place = tmp_path / "payment"
    place.mkdir(exist_ok=True)
    for name, content in files.items():
        (place / name).write_text(json.dumps(content))
    return place


def source(path, **options):
    return EventSource("payments", topic="payments", schema=path, event_time="us", **options)


def test_a_version_knows_those_before_it_and_none_after(tmp_path):
    place = folder(tmp_path, {"v1.json": V1, "v2.json": V2})
    newest, oldest = Contract.load(place / "v2.json"), Contract.load(place / "v1.json")
    assert [each.version for each in newest.earlier] == [1]
    assert {name: each.version for name, each in newest.versions_by_id.items()} == {1: 1, 2: 2}
    assert oldest.earlier == ()
    assert Contract.from_dict(json.loads(json.dumps(newest.to_dict()))) == newest


def test_ids_of_a_registry_map_to_versions(tmp_path):
    place = folder(tmp_path, {"v1.json": V1, "v2.json": V2, "ids.json": {"107": 1, "9": 1, "212": 2, "300": 3}})
    newest = Contract.load(place / "v2.json")
    assert {name: each.version for name, each in newest.versions_by_id.items()} == {9: 1, 107: 1, 212: 2}
    assert Contract.from_dict(json.loads(json.dumps(newest.to_dict()))) == newest


@pytest.mark.parametrize("content", [[1], {"x": 1}, {"1": "a"}, {"-1": 1}, {str(2**32): 1}])
def test_ids_that_are_no_ids_are_refused(tmp_path, content):
    place = folder(tmp_path, {"v1.json": V1, "ids.json": content})
    with pytest.raises(ContractError, match=r"ids\.json"):
        Contract.load(place / "v1.json")


@pytest.mark.parametrize(
    ("second", "field"),
    [
        ({**V2, "required": ["id", "us", "shop"]}, "new field 'shop' is required"),
        ({**V1, "properties": {"us": {"type": "integer"}}, "required": ["us"]}, "field 'id' was removed"),
        (
            {**V1, "properties": {**V1["properties"], "us": {"type": "number"}}},
            "field 'us' changed from int64 to float64",
        ),
    ],
)
def test_a_version_that_breaks_is_a_definition_error_that_names_the_field(tmp_path, second, field):
    place = folder(tmp_path, {"v1.json": V1, "v2.json": second, "v3.json": second})
    with pytest.raises(DefinitionError, match=f"contract payment: version 2 .* version 1: {field}.*payment_2"):
        source(place / "v2.json")
    assert source(place / "v1.json").contract.version == 1, "what is broken later does not matter to an earlier reader"


def test_a_version_must_not_change_its_kind_or_be_there_twice(tmp_path):
    avro = record(("id", "string"), ("us", "long"))
    place = folder(tmp_path, {"v1.json": V1, "v2.avsc": avro})
    with pytest.raises(BreakingChangeError, match="it is Avro now"):
        Contract.load(place / "v2.avsc")
    folder(tmp_path, {"v2.json": V2})
    with pytest.raises(ContractError, match="version 2 is there twice"):
        Contract.load(place / "v2.json")


def test_an_avro_record_is_a_contract_and_lives_as_data():
    line = {
        "type": "record",
        "name": "line",
        "fields": [
            {"name": "sku", "type": "string"},
            {"name": "at", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}]},
        ],
    }
    read = contract_from_avro(
        json.dumps(
            record(
                ("id", "string"),
                ("count", "int"),
                ("rate", ["null", "float"]),
                ("ok", "boolean"),
                ("at", {"type": "long", "logicalType": "timestamp-micros"}),
                ("status", {"type": "enum", "name": "Status", "symbols": ["open", "closed"]}),
                ("before", ["Status", "null"]),
                ("tags", {"type": "array", "items": ["null", "string"]}),
                ("lines", ["null", {"type": "array", "items": line}]),
            )
        ),
        "order",
        version=3,
    )
    assert read.columns == {
        "id": DataType.STRING, "count": DataType.INT64, "rate": DataType.FLOAT64, "ok": DataType.BOOL,
        "at": DataType.TIMESTAMP, "status": DataType.STRING, "before": DataType.STRING,
        "tags": DataType.list_of(DataType.STRING), "lines__sku": DataType.list_of(DataType.STRING),
        "lines__at": DataType.list_of(DataType.TIMESTAMP),
    }  # fmt: skip
    nullable = [one.name for one in read.fields if one.nullable]
    assert nullable == ["rate", "before", "lines__sku", "lines__at"]
    assert [one.name for one in read.fields if one.element_nullable] == ["tags", "lines__at"]
    assert read.fields[5].bounds == read.fields[6].bounds == {"enum": ["open", "closed"]}
    assert Contract.from_dict(json.loads(json.dumps(read.to_dict()))) == read


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("bytes", "type 'bytes'"),
        ({"type": "fixed", "name": "f", "size": 4}, "type 'fixed'"),
        ({"type": "map", "values": "string"}, "type 'map'"),
        (record(("a", "string"), name="inner"), "type 'record'"),
        (["string", "long"], "union"),
        (["null"], "union"),
        ({"type": "int", "logicalType": "date"}, "logicalType 'date'"),
        ({"type": "long", "logicalType": "local-timestamp-micros"}, "logicalType 'local-timestamp-micros'"),
        ({"type": "enum", "name": "e", "symbols": []}, "symbols"),
        ({"type": "array", "items": {"type": "array", "items": "int"}}, "type 'array'"),
    ],
)
def test_an_avro_type_that_is_not_understood_is_refused_with_its_field(kind, said):
    with pytest.raises(ContractError, match=f"field 'amount'.*{said}"):
        contract_from_avro(json.dumps(record(("id", "string"), ("amount", kind))), "payment")


@pytest.mark.parametrize(
    "text", ["{", "[]", '"string"', '{"type": "enum"}', '{"type": "record", "name": "x", "fields": []}']
)
def test_a_text_that_is_no_avro_record_is_refused(text):
    with pytest.raises(ContractError, match="schema payment"):
        contract_from_avro(text, "payment")


def test_applying_a_break_of_an_applied_contract_is_refused(tmp_path):
    place = folder(tmp_path, {"v1.json": V1})
    old = Definitions.of([Entity("card", keys={"id": "string"}), source(place / "v1.json")])
    folder(tmp_path, {"v1.json": {**V1, "properties": {"us": {"type": "integer"}}, "required": ["us"]}})
    with pytest.raises(BreakingChangeError, match=r"source payments: contract payment.*field 'id' was removed"):
        refuse_breaks(old, Definitions.of([source(place / "v1.json")]))
    folder(tmp_path, {"v1.json": V1, "v2.json": V2})
    refuse_breaks(old, Definitions.of([source(place / "v2.json")]))


def test_a_reader_of_framed_events_must_keep_the_versions_it_had(tmp_path):
    place = folder(tmp_path, {"v1.json": V1, "v2.json": V2})
    old = Definitions.of([source(place / "v2.json", wire="confluent")])
    (place / "v1.json").unlink()
    with pytest.raises(BreakingChangeError, match="no longer accepts version 1"):
        refuse_breaks(old, Definitions.of([source(place / "v2.json", wire="confluent")]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"wire": "confluence"}, "did you mean 'confluent'"),
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"max_bytes": 10.5}, "whole number"),
        ({"quarantine_limit": 1.5}, "quarantine_limit is 1.5"),
        ({"quarantine_after": True}, "quarantine_after is True"),
    ],
)
def test_settings_of_a_source_are_checked(tmp_path, options, said):
    place = folder(tmp_path, {"v1.json": V1})
    with pytest.raises(DefinitionError, match=said):
        source(place / "v1.json", **options)


def test_settings_that_are_as_usual_do_not_change_the_data_of_a_source(tmp_path):
    place = folder(tmp_path, {"v1.json": V1})
    assert not {"wire", "max_bytes", "quarantine_limit", "quarantine_after"} & set(source(place / "v1.json").to_dict())
    given = source(place / "v1.json", wire="confluent", max_bytes=100, quarantine_limit=0.1, quarantine_after=7)
    assert EventSource.from_dict(json.loads(json.dumps(given.to_dict()))) == given
