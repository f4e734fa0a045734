"Training over several families, and gradients that are not finite."
import json
from functools import partial

import numpy as np
import pytest
import torch
from processes import arguments, assert_equal, losses, weights

from fwi_i2sb.data.generate import generate
from fwi_i2sb.inference.run import load_run
from fwi_i2sb.training.checkpoint import checkpoints
from fwi_i2sb.training.run_dir import read_config, read_metrics


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    "A folder with two families of different size."
    root = tmp_path_factory.mktemp("families")
    for name, count in (("CurveVel_A", 12), ("FlatVel_B", 6)):
        generate(root, name, n_train=count, n_val=4, shard_size=count, workers=1)
    return root


def joint(families, root, name, *more):
    words = arguments(families, root, name, "--num-itr", 3, "--val-batches", 2, *more)
    words[words.index("CurveVel_A")] = "CurveVel_A,FlatVel_B"
    return words


def test_two_families_are_one_run(fwi, families, tmp_path):
    assert fwi("train", *joint(families, tmp_path, "joint")).code == 0
    spec = read_config(tmp_path / "joint")[1]
    assert spec.family == "CurveVel_A,FlatVel_B" and spec.records == 18
    row = next(r for r in read_metrics(tmp_path / "joint") if "val_mae" in r)
    assert (row["val_records"] == 8
        and np.isclose((row["val_mae_CurveVel_A"] + row["val_mae_FlatVel_B"]) / 2, row["val_mae"]))
    assert load_run(tmp_path / "joint").pressure == spec.pressure
    for command in ((["invert", tmp_path / "joint", "--records", 3, "--samples", 1, "--nfe", 1],
            ["evaluate", tmp_path / "joint", "--records", 3, "--samples", 1, "--nfe", 1, "--misfit-records", 1])):
        outcome = fwi(*command)
        assert outcome.code == 0, outcome.err


def test_uniform_balance_trains_another_order_and_stores_may_lie_elsewhere(fwi, families, tmp_path):
    assert fwi("train", *joint(families, tmp_path, "size")).code == 0
    assert fwi("train", *joint(families, tmp_path, "uniform", "--balance", "uniform", "--store-dir",
        tmp_path / "stores", "--in-memory", "--loader-workers", 1)).code == 0
    assert losses(tmp_path / "size") != losses(tmp_path / "uniform")
    assert {p.name for p in (tmp_path / "stores").iterdir()} >= {"CurveVel_A", "FlatVel_B"}


def test_memory_and_reading_processes_change_nothing(fwi, data, tmp_path):
    changes = "flip,noise:0.02,gain:0.8:1.2,shift:0.004,drop-traces:0.1,drop-shots:0.3,band-pass:4:30,velocity:0.9:1.1"
    for name, words in (("plain", []), ("memory", ["--in-memory"]), ("workers", ["--loader-workers", 2])):
        done = fwi("train", *arguments(data, tmp_path, name, "--num-itr", 3, "--augment", changes, *words))
        assert done.code == 0, done
    for name in ("memory", "workers"): assert_equal(weights(tmp_path / name), weights(tmp_path / "plain"))


def test_all_needs_all_ten_and_says_which_is_missing(refused, families, tmp_path):
    words = joint(families, tmp_path, "ten")
    words[words.index("CurveVel_A,FlatVel_B")] = "all"
    refused("train", *words, saying=("FlatVel_A",))
    words[words.index("all")] = "CurveVel_A,FlatVel"
    refused("train", *words, saying=("unknown family 'FlatVel'",))
    assert not (tmp_path / "ten").exists()


@pytest.fixture
def poisoned(monkeypatch):
    "Make the loss of some optimiser steps not finite."
    from fwi_i2sb.methods.bridge import BridgeMethod

    def poison(bad):
        count = iter(range(10**6))
        real = BridgeMethod.loss
        # two microbatches per step
        monkeypatch.setattr(BridgeMethod, "loss",
            lambda *args: real(*args) * (float("nan") if next(count) // 2 in bad else 1.0))
    return poison


def test_a_gradient_that_is_not_finite_is_skipped_counted_and_told(fwi, data, tmp_path, poisoned):
    poisoned({1})
    assert fwi("train", *arguments(data, tmp_path, "nan", "--num-itr", 3)).code == 0
    rows = [r for r in read_metrics(tmp_path / "nan") if "skipped" in r]
    assert [r["skipped"] for r in rows] == [0, 1, 1] and [r["loss"] is None for r in rows] == [False, True, False]
    assert all(np.isfinite(v).all() for v in weights(tmp_path / "nan")["ema"].values())
    assert json.loads((checkpoints(tmp_path / "nan")[0] / "state.json").read_text())["skipped"] == 1


def test_too_many_of_them_end_the_run_with_a_sentence(refused, data, tmp_path, poisoned):
    poisoned({1, 2, 3, 4})
    refused("train", *arguments(data, tmp_path, "nan", "--num-itr", 6, "--max-skipped", 2, "--save-every", 1),
        saying=("not finite in 3 of 4 steps", "--max-skipped"))
    assert np.isfinite(weights(tmp_path / "nan")["weights"]["head.last.weight"]).all()


def test_a_compiled_network_gives_the_same_losses(fwi, data, tmp_path, monkeypatch):
    # traced and differentiated as ever, but not translated to C++, which takes minutes and is not ours
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    for name, words in (("plain", []), ("compiled", ["--compile"])):
        outcome = fwi("train", *arguments(data, tmp_path, name, "--num-itr", 3, *words))
        assert outcome.code == 0, outcome.err
    np.testing.assert_allclose(losses(tmp_path / "compiled"), losses(tmp_path / "plain"), rtol=1e-3)
    assert weights(tmp_path / "compiled")["weights"].keys() == weights(tmp_path / "plain")["weights"].keys()
