"""Models on the command line: registered, promoted, served, rolled back under a running service, and logged."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time

import httpx
import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from deltalake import DeltaTable

from featurestore.store import FeatureStore

pytestmark = pytest.mark.thorough


@pytest.fixture
def project(tmp_path, monkeypatch, run, online_url):
    """An applied project, and files of models trained on its features."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    monkeypatch.setenv("FEATURESTORE_ONLINE__TIMEOUT", "5s")
    assert run("init", "shop")[0] == 0
    monkeypatch.chdir(tmp_path / "shop")
    assert run("apply", "--yes")[0] == 0
    ids = FeatureStore.open().definitions().service("shop_v1").feature_ids
    random = np.random.default_rng(4)
    rows = pd.DataFrame(random.normal(size=(300, len(ids))).astype("float32"), columns=list(ids))
    rows.iloc[::9] = np.nan
    labels = (rows.iloc[:, 0].fillna(0) + random.normal(size=300) > 0).astype(int)
    rows.to_parquet("rows.parquet")
    for seed, name in ((1, "first.txt"), (2, "second.txt")):
        booster = lightgbm.train(
            {"objective": "binary", "verbose": -1, "seed": seed, "feature_fraction": 0.5, "num_threads": 1},
            lightgbm.Dataset(rows, labels),
            5 * seed,
        )
        booster.save_model(name)
    xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, labels), 3).save_model("third.json")
    (tmp_path / "shop" / "model.pkl").write_bytes(pickle.dumps([1]))
    return tmp_path / "shop"


def register(run, file, *more):
    return run("models", "register", "churn", file, "--service", "shop_v1", "--sample", "rows.parquet", *more)


def test_models_are_registered_promoted_served_and_rolled_back_while_they_serve(project, run):
    code, out, err = register(run, "first.txt")
    assert (code, err) == (0, "")
    assert out.startswith("churn:1 (challenger), at most ")
    assert run("models", "promote", "churn") == (0, "churn: champion is version 1, was none\n", "")
    code, out, _ = register(run, "second.txt", "--json")
    assert (code, json.loads(out)["version"], json.loads(out)["parity"]["rows"]) == (0, 2, 300)
    assert register(run, "third.json", "--alias", "")[0] == 0
    code, out, _ = run("models", "list", "churn")
    lines = [line.split()[:5] for line in out.splitlines()[1:]]
    assert lines == [
        ["churn", "1", "champion", "shop_v1", "yes"],
        ["churn", "2", "challenger", "shop_v1", "yes"],
        ["churn", "3", "-", "shop_v1", "yes"],
    ]

    command = [sys.executable, "-m", "featurestore.cli", "serve", "--port", "0", "--follow", "20ms"]
    command += ["--challenger", "shadow", "--prediction-log", "delta"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split()[-1]
            with httpx.Client(base_url=url, trust_env=False, timeout=20) as http:

                def served() -> int:
                    answer = http.post("/score/churn", json={"keys": {"customer_id": "c1"}})
                    assert answer.status_code == 200, answer.text
                    return answer.json()["version"]

                def becomes(version: int) -> None:
                    deadline = time.monotonic() + 60
                    while served() != version:
                        assert time.monotonic() < deadline

                assert served() == 1
                assert json.loads(run("models", "promote", "churn", "--json")[1])["before"] == 1
                becomes(2)
                assert run("models", "rollback", "churn")[:2] == (0, "churn: champion is version 1, was 2\n")
                becomes(1)
        finally:
            process.terminate()
            assert process.wait(30) == 0
    logged = DeltaTable(str(project / ".featurestore/offline/predictions")).to_pyarrow_table()
    assert {(one["version"], one["role"]) for one in logged.select(["version", "role"]).to_pylist()} >= {
        (1, "champion"),
        (2, "champion"),
    }
    assert len(set(logged["prediction_id"].to_pylist())) > 3


def test_a_changed_definition_refuses_the_promotion_and_the_list_says_so(project, run):
    assert register(run, "first.txt")[0] == 0
    text = (project / "features.py").read_text()
    assert text.count('"1h"') >= 1
    (project / "features.py").write_text(text.replace('"1h"', '"2h"'))
    assert run("apply", "--yes")[0] == 0
    code, _, err = run("models", "promote", "churn")
    assert code == 4
    assert "was trained on feature service 'shop_v1'" in err
    assert "no alias was moved" in err
    assert run("models", "list")[1].splitlines()[1].split()[2:5] == ["challenger", "shop_v1", "no"]


def test_what_cannot_be_registered_is_one_line(project, run):
    for file, more, words in (
        ("model.pkl", (), "is a pickle"),
        ("none.onnx", (), "cannot be read"),
        ("rows.parquet", (), "not an ONNX model"),
        ("first.txt", ("--inputs", "a,b"), "sample rows.parquet cannot be read"),
    ):
        code, _, err = register(run, file, *more)
        assert code == 4, err
        assert len(err.splitlines()) == 1
        assert words in err
    assert run("models", "promote", "nobody")[0] == 4
    assert run("models", "list")[1].splitlines() == ["model  version  aliases  service  fits  registered"]
    code, _, err = run("serve", "--prediction-log", "redis")
    assert code == 4
