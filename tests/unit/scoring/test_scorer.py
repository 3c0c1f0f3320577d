from __future__ import annotations

import pytest

from featurestore.errors import ModelError, ModelInputError, OnlineStoreUnavailableError, UnknownNameError
from featurestore.scoring.inputs import ModelInputs, ScoreRequest
from featurestore.scoring.manifest import load_model
from featurestore.scoring.scorer import Scorer
from tests.unit.scoring.support import AS_OF, COMPLETE_THROUGH, MemoryReader, expected_score

VALUES = {"c1": [10.0, 2, 5.0], "c2": [8.0, 1, None], "huge": [1e300, 1, 0.0]}


@pytest.fixture(scope="module")
def loaded(models_root):
    return load_model(models_root, "fraud")


def make(loaded, **options):
    reader = MemoryReader(VALUES, **options)
    return Scorer(loaded.model, loaded.manifest, reader), reader


def test_rows_come_back_in_order_from_one_lookup(loaded):
    scorer, reader = make(loaded)
    requests = [ScoreRequest({"card_id": card}, {"amount": 1.5}) for card in ("c2", "c1", "nobody")]
    predictions = scorer.score(requests, now=77, explain=True)
    assert reader.batches == [(77, 3)]
    for card, one in zip(("c2", "c1", "nobody"), predictions, strict=True):
        assert one.score == pytest.approx(expected_score(1.5, VALUES.get(card)), rel=1e-6)
        assert (one.model, one.version, one.at) == ("fraud", 2, 77)
    assert predictions[0].statuses == {"card_spend.spend_1h": "present", "card_spend.mean_1h": "null"}
    assert predictions[0].vector == {"card_spend.spend_1h": 8.0, "card_spend.mean_1h": None}
    assert predictions[1].as_of == {"card_spend": AS_OF}
    assert predictions[1].complete_through == COMPLETE_THROUGH
    assert set(predictions[2].statuses.values()) == {"missing"}
    assert predictions[2].as_of == {"card_spend": None}


def test_no_rows_need_no_lookup(loaded):
    scorer, reader = make(loaded)
    assert scorer.score([]) == []
    assert reader.batches == []


def test_the_vector_is_left_out_unless_asked_for(loaded):
    assert make(loaded)[0].score([ScoreRequest({"card_id": "c1"}, {"amount": 1})])[0].vector is None


def test_a_null_request_input_is_nan_to_the_model(loaded):
    (one,) = make(loaded)[0].score([ScoreRequest({"card_id": "c1"}, {"amount": None})])
    assert one.score == pytest.approx(expected_score(None, VALUES["c1"]), rel=1e-6)


def test_a_double_beyond_float32_becomes_infinite_without_a_warning(loaded):
    (one,) = make(loaded)[0].score([ScoreRequest({"card_id": "huge"}, {"amount": 0})])
    assert one.score == 1.0


def test_another_definition_is_refused_at_load_and_later(loaded):
    with pytest.raises(ModelError, match=r"fingerprint f{16}, the store serves other"):
        make(loaded, fingerprint="other")
    scorer, reader = make(loaded)
    reader.fingerprint = "newer"
    with pytest.raises(ModelError, match="the store serves newer"):
        scorer.score([ScoreRequest({"card_id": "c1"}, {"amount": 1})])
    assert reader.batches == []


def test_a_failed_lookup_raises_and_gives_no_score(loaded):
    scorer, reader = make(loaded)
    reader.down = OnlineStoreUnavailableError
    with pytest.raises(OnlineStoreUnavailableError):
        scorer.score([ScoreRequest({"card_id": "c1"}, {"amount": 1})])


def test_an_unapplied_service_is_named(loaded):
    import dataclasses

    manifest = dataclasses.replace(loaded.manifest, service="nope")
    with pytest.raises(UnknownNameError, match="nope"):
        Scorer(loaded.model, manifest, MemoryReader())


@pytest.mark.parametrize(
    ("keys", "request_inputs", "words"),
    [
        ({}, {"amount": 1}, "row 0: model fraud:2: key 'card_id' is missing"),
        ({"card_id": "c", "x": 1}, {"amount": 1}, "key 'x' is unknown"),
        ({"card_di": "c"}, {"amount": 1}, "key 'card_id' is missing"),
        ({"card_id": 5}, {"amount": 1}, "key 'card_id' is 5, not of type string"),
        ({"card_id": "é" * 2049}, {"amount": 1}, "more than 4096 bytes"),
        ({"card_id": "c"}, {}, "request input 'amount' is missing"),
        ({"card_id": "c"}, {"amount": 1, "amuont": 1}, "'amuont' is unknown. Hint: did you mean 'amount'"),
        ({"card_id": "c"}, {"amount": "12"}, "request input 'amount' is '12', not a number"),
        ({"card_id": "c"}, {"amount": [1]}, "not a number"),
        ({"card_id": "c"}, {"amount": 1e39}, "outside the range of float32"),
        ({"card_id": "c"}, {"amount": 10**400}, "an integer of more than 64 bits"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_before_any_lookup(loaded, keys, request_inputs, words):
    scorer, reader = make(loaded)
    with pytest.raises(ModelInputError, match=words):
        scorer.score([ScoreRequest(keys, request_inputs)])
    assert reader.batches == []


@pytest.mark.parametrize(
    ("kind", "good", "stored", "bad"),
    [
        ("string", "a", "a", [1, True, 1.5]),
        ("int64", 2**63 - 1, 2**63 - 1, [True, 1.0, "1", 2**63]),
        ("bool", True, True, [1, "true"]),
        ("timestamp", "1970-01-01T00:00:01Z", 1_000_000, ["1970-01-01", True, "soon"]),
        ("float64", 1, 1.0, ["1", True]),
    ],
)
def test_keys_are_typed_and_null_is_a_key(loaded, kind, good, stored, bad):
    import dataclasses

    from featurestore.datatypes import DataType

    inputs = ModelInputs(dataclasses.replace(loaded.manifest, keys={"k": DataType(kind)}))
    assert inputs.check(ScoreRequest({"k": good}, {"amount": 1})).keys == {"k": stored}
    assert inputs.check(ScoreRequest({"k": None}, {"amount": True})).keys == {"k": None}
    for value in bad:
        with pytest.raises(ModelInputError, match="'k'"):
            inputs.check(ScoreRequest({"k": value}, {"amount": 1}))
