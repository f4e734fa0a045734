"Cross-validation: which files a fold holds out, its end by a kill, its tables."
import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from processes import SMALL, wait_for

from fwi_i2sb.data.folds import Fold, fold_records, source_folds, stratified_folds
from fwi_i2sb.data.generate import generate
from fwi_i2sb.inference.make_ensemble import EnsembleOptions, make_ensemble
from fwi_i2sb.inference.run import load_run
from fwi_i2sb.inference.validation_data import validation_data
from fwi_i2sb.training.checkpoint import checkpoints
from fwi_i2sb.training.options import DataOptions
from fwi_i2sb.training.run_dir import open_store, read_config, read_metrics, training_sources

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Three source files of two records each."
    return generate(tmp_path_factory.mktemp("data"), "FlatVel_A", n_train=6, n_val=2, layers=(2, 3), shard_size=2)


def words(files, result_dir, *more):
    return ["kfold", "--result-dir", str(result_dir), "--dataset-dir", str(files), "--dataset-name", "FlatVel_A",
        "--name", "cv", *SMALL, "--num-itr", "2", "--lr-schedule", "cosine_restarts", "--lr-restart-epochs", "3",
        *map(str, more)]


def test_folds_of_files_and_of_values():
    counts = np.random.default_rng(0).integers(1, 50, 40).tolist()
    chosen = source_folds(counts, 5, seed=3)
    sizes = np.bincount(chosen, counts)[1:]
    assert sizes.max() - sizes.min() <= max(counts) and np.array_equal(chosen, source_folds(counts, 5, seed=3))
    parts = [fold_records(counts, Fold(k, 5), seed=3) for k in range(1, 6)]
    assert sorted(np.concatenate([part["val"] for part in parts])) == list(range(sum(counts)))
    assert all(not np.intersect1d(part["train"], part["val"]).size for part in parts)
    fast = np.random.default_rng(2).normal(2900, 300, 40)
    alike = source_folds(counts, 5, seed=3, velocities=fast, bins=8)
    assert np.ptp(np.bincount(alike, counts)[1:]) <= max(counts) and not np.array_equal(alike, chosen)
    for files in np.argsort(fast).reshape(8, 5): assert sorted(alike[files]) == [1, 2, 3, 4, 5]  # of every bin one each
    target = np.random.default_rng(1).exponential(size=(100, 2))
    fold = stratified_folds(target, 4, bins=5, seed=2)
    tops = [(target.mean(1)[fold == k] > np.median(target.mean(1))).mean() for k in range(1, 5)]
    assert np.bincount(fold)[1:].tolist() == [25] * 4 and np.ptp(tops) < 0.2


def test_a_killed_cross_validation_continues(files, fwi, refused, forked_trainings, tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "fwi_i2sb", *words(files, tmp_path, "--folds", 3)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    second = tmp_path / "cv" / "fold-2.log"
    wait_for(second.exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = checkpoints(tmp_path / "cv" / "fold-1")[0].stat().st_mtime_ns
    said = fwi(*words(files, tmp_path, "--folds", 3, "--jobs", 2))
    assert said.code == 0 and "3 folds" in said.out, said.err
    folder = tmp_path / "cv"
    assert read_config(folder / "fold-1")[0].optim.lr_restart == 3 * 4 / 4  # four of six records, batches of four
    assert checkpoints(folder / "fold-1")[0].stat().st_mtime_ns == done  # not trained again
    rows = list(csv.DictReader((folder / "cv_results.csv").open()))
    maes = [[row["val_mae"] for row in read_metrics(folder / f"fold-{k}") if "val_mae" in row][-1] for k in (1, 2, 3)]
    assert [float(row["mae"]) for row in rows] == maes and {row["state"] for row in rows} == {"finished"}
    summary = json.loads((folder / "cv_summary.json").read_text())
    assert summary["folds"] == 3 and summary["records"] == [2, 2, 2] and summary["metrics"]["mae"]["values"] == maes
    np.testing.assert_allclose([summary["metrics"]["mae"][name] for name in ("mean", "sd")],
        [np.mean(maes), np.std(maes, ddof=1)])
    held = list(csv.DictReader((folder / "folds.csv").open()))
    names = [name for name, _ in training_sources(DataOptions(files, "FlatVel_A"))["FlatVel_A"]]
    assert [row["file"] for row in held] == names and sorted(row["fold"] for row in held) == ["1", "2", "3"]
    for k in (1, 2, 3):  # each fold learns from the files that it does not hold out
        options, spec = read_config(folder / f"fold-{k}")
        train, val = open_store(options)
        file = [row["fold"] for row in held].index(str(k))
        assert val.numbers[0].tolist() == [2 * file, 2 * file + 1] and spec.records == len(train) == 4
        judged = validation_data(load_run(folder / f"fold-{k}", device="cpu"))
        assert judged.numbers[0].tolist() == val.numbers[0].tolist()
    (folder / "fold-2" / "metrics.jsonl").rename(tmp_path / "lost.jsonl")
    refused(*words(files, tmp_path, "--folds", 3), saying=("fold-2 is finished", "tells no validation"))
    # together they are fitted to, and judged on, the validation split, which none of them has learnt from
    two = make_ensemble(EnsembleOptions((folder / "fold-1", folder / "fold-2"), tmp_path / "two", "learned", records=1,
        device="cpu"))
    judged = validation_data(load_run(two, device="cpu"))
    assert judged.stores[0].folder.name == "val" and len(judged) == 1


def test_what_cannot_be_divided_is_refused(files, refused, mini, tmp_path):
    refused(*words(files, tmp_path, "--folds", 4), saying=("4 folds need 4 source files", "there are 3"))
    refused(*words(files, tmp_path, "--folds", 1), saying=("--folds must be 2 or more",))
    refused(*words(files, tmp_path, "--fold", "1/3"), saying=("--fold is about a single run",))
    refused(*words(files, tmp_path, "--fresh"), saying=("--fresh",))
    refused(*words(files, tmp_path, "--folds", 3, "--best", "acc"), saying=("unknown metric",))
    refused(*words(files, mini.parent, "--name", mini.name), saying=("is a run",))
    assert not list(tmp_path.iterdir())


def test_a_fold_that_fails_is_told_at_the_end(files, refused, fwi, forked_trainings, tmp_path):
    plugin = tmp_path / "nothing.py"
    plugin.write_text("from fwi_i2sb.methods.losses import LOSSES\n"
        "LOSSES.register('nan_fold')(lambda difference: difference * float('nan'))")
    said = fwi(*words(files, tmp_path, "--folds", 2, "--max-skipped", 0, "--import", plugin, "--loss", "nan_fold"))
    assert said.code == 1 and "2 of 2 folds failed, the first is fold-" in said.err
    assert {row["state"] for row in csv.DictReader((tmp_path / "cv" / "cv_results.csv").open())} == {"unfinished"}
    assert not (tmp_path / "cv" / "cv_summary.json").exists()
