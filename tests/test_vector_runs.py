"Runs on arrays: folds, early end, search, constraints, weights of targets, several runs together, and export."
import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from forkserver import behind, start
from processes import (MPIRUN, assert_equal, finish, free_port, killed_search, losses, own_network, wait_for, weights)
from torch.optim import lr_scheduler

from fwi_i2sb.core.commands import parse
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.data.array_options import ArrayOptions
from fwi_i2sb.data.folds import Fold
from fwi_i2sb.data.prepare_targets import prepare_targets
from fwi_i2sb.data.target_folds import fold_stores
from fwi_i2sb.data.target_store import TargetStore
from fwi_i2sb.inference.onnx_parts import module_of
from fwi_i2sb.inference.run import load_run
from fwi_i2sb.methods.losses import LOSSES
from fwi_i2sb.methods.options import ModelOptions
from fwi_i2sb.methods.registry import build_method
from fwi_i2sb.metrics.vector import TargetErrors
from fwi_i2sb.sweeps.study import open_study
from fwi_i2sb.training.checkpoint import checkpoints
from fwi_i2sb.training.options import TrainOptions
from fwi_i2sb.training.run_dir import read_config, read_metrics
from fwi_i2sb.training.trained import restore

TEMPLATE = own_network()
pytestmark = pytest.mark.usefixtures("one_thread")
NAMES, UNITS = ("thickness", "speed"), ("mm", "m/s")


@pytest.fixture(scope="module")
def arrays() -> dict:
    rng = np.random.default_rng(7)
    y = np.stack([rng.gamma(1.0, size=40) + 1, rng.uniform(2000, 4000, 40)], 1).astype("f4")
    x = np.sin(y[:, :1] * np.arange(40)) * y[:, 1:] / 3000 + 0.1 * rng.standard_normal((40, 40))
    return dict(x=x.astype("f4"), y=y)


@pytest.fixture(scope="module")
def store(arrays, tmp_path_factory) -> Path:
    "Thirty-two training and eight validation records."
    folder = tmp_path_factory.mktemp("arrays")
    np.savez(folder / "waves.npz", **arrays)
    return prepare_targets(folder / "waves.npz", folder / "store", ArrayOptions(param_names=NAMES, units=UNITS))


def words(store, root, name, *more):
    return ["--result-dir", str(root), "--dataset-dir", str(store), "--name", name, "--batch-size", "8", "--microbatch",
        "8", "--log-every", "1", "--device", "cpu", "--precision", "fp32", "--lr", "1e-3", "--log-writer", "none",
        "--import", str(TEMPLATE), "--model", "mine", *map(str, more)]


@pytest.fixture
def learnt(fwi, store, tmp_path):
    "Train a run by the command; the run directory."
    def train(name, *more):
        done = fwi("train", *words(store, tmp_path, name, *more))
        assert done.code == 0, done.err
        return tmp_path / name
    return train


def table(path): return list(csv.DictReader(path.open()))


def test_folds_of_arrays_are_scaled_by_what_they_learn_from(fwi, refused, forked_trainings, store, arrays, tmp_path):
    given = ["kfold", *words(store, tmp_path, "cv", "--num-itr", 2, "--folds", 2)]
    process = start([sys.executable, "-m", "fwi_i2sb", *given], env=os.environ | {"OMP_NUM_THREADS": "1"})
    wait_for((tmp_path / "cv/fold-2.log").exists, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = checkpoints(first := tmp_path / "cv/fold-1")[0].stat().st_mtime_ns
    said = fwi(*given)
    assert said.code == 0 and "2 folds" in said.out, said.err
    assert checkpoints(first)[0].stat().st_mtime_ns == before  # finished: not trained again
    held, rows = table(tmp_path / "cv/folds.csv"), table(tmp_path / "cv/cv_results.csv")
    split = {int(row["record"]): row["split"] for row in table(store / "split.csv")}
    assert [int(row["record"]) for row in held] == [record for record, where in split.items() if where == "train"]
    ranks, means = arrays["y"].argsort(0).argsort(0).mean(1), []
    for k, row in enumerate(rows, 1):
        out, learn = (np.array([int(r["record"]) for r in held if (r["fold"] == str(k)) == there])
            for there in (True, False))
        assert len(out) == len(learn) == int(row["records"]) == 16
        run = load_run(tmp_path / f"cv/fold-{k}", plugin=TEMPLATE)
        for scaling, values in ((run.target, arrays["y"]), (run.spec.inputs, arrays["x"][:, None])):
            axes = tuple(a for a in range(values.ndim) if a != 1)
            np.testing.assert_allclose(scaling.mean, values[learn].mean(axes), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(scaling.std, values[learn].std(axes), rtol=1e-4)
        error = np.abs(run.predict(arrays["x"][out]).numpy() - arrays["y"][out]).mean(0)
        np.testing.assert_allclose([float(row[f"mae_{name}"]) for name in NAMES], error, rtol=1e-4)
        means.append(ranks[out].mean())
    kept = json.loads((tmp_path / "cv/cv_summary.json").read_text())
    maes = [float(row["mae"]) for row in rows]
    np.testing.assert_allclose([kept["metrics"]["mae"][name] for name in ("mean", "sd")],
        [np.mean(maes), np.std(maes, ddof=1)])
    assert abs(means[0] - means[1]) < 2  # of forty ranks: stratified
    both = [tmp_path / "cv" / f"fold-{k}" for k in (1, 2)]
    refused("evaluate-targets", *both, "--import", TEMPLATE, saying=("different records", "--data"))
    card = fwi("evaluate-targets", *both, "--import", TEMPLATE, "--data", store, "--no-plots")
    assert card.code == 0 and "8 records" in card.out and "coverage" in card.out
    refused(*given, "--fold-bins", 3, saying=("--fold-bins",))  # other folds are other runs


def test_inputs_are_changed_in_training_alone(refused, learnt, store, tmp_path):
    changed = "noise:0.5@1,gain:0.8:1.2"
    plain, one = learnt("plain", "--num-itr", 2), learnt("one", "--num-itr", 2, "--augment", changed)
    assert learnt("two", "--num-itr", 1, "--augment", changed) and learnt("two", "--num-itr", 2, "--augment", changed)
    assert losses(plain) != losses(one) == losses(tmp_path / "two")  # what is drawn belongs to the step
    fresh, same = (next(row for row in read_metrics(learnt(name, "--num-itr", 1, "--lr", 0, *more)) if "val_mae" in row)
        for name, more in (("fresh", ()), ("same", ("--augment", changed))))
    assert fresh["val_mae"] == same["val_mae"]
    for text, saying in (("flip", "one of noise, gain, drop-channels"), ("drop-channels:0.5", "two channels or more"),
            ("", "has no name")):
        refused("train", *words(store, tmp_path, "no", "--augment", text), saying=(saying,))


def test_arrays_are_not_simulated(refused, store, tmp_path):
    refused("train", *words(store, tmp_path, "x", "--simulate", 4), saying=("--simulate has no effect with",))
    assert not (tmp_path / "x").exists()


def test_folds_that_cannot_be_are_refused(refused, data, store, tmp_path):
    refused("kfold", *words(store, tmp_path, "cv", "--folds", 33), saying=("32 training records", "33 folds"))
    refused("train", *words(store, tmp_path, "cv", "--fold", "1/33"), saying=("33 folds",))
    refused("train", *words(store, tmp_path, "cv", "--fold", "3/2"), saying=("written like 1/5",))
    refused("train", *words(store, tmp_path, "cv", "--fold-bins", 3), saying=("--fold-bins has no effect",))
    refused("kfold", "--result-dir", tmp_path, "--dataset-dir", data, "--dataset-name", "CurveVel_A", "--fold-bins", 3,
        saying=("--fold-bins has no effect",))
    assert not list(tmp_path.iterdir())


def resident() -> int:
    "Kilobytes of this process that are no mapped file."
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def test_memory_is_flat_over_folds(tmp_path):
    size = 48 * 2**20
    x = np.random.default_rng(0).standard_normal((192, size // 192 // 4), dtype=np.float32)
    np.savez(tmp_path / "large.npz", x=x, y=x[:, :2])
    root, used = prepare_targets(tmp_path / "large.npz", tmp_path / "store"), []
    del x
    for k in (1, 2, 3, 4) * 2:
        train, val = fold_stores(TargetStore(root, "train"), Fold(k, 4))
        for i in range(len(val)): val.physical(i)
        used.append(resident())
    # the first folds may raise what malloc keeps for the next ones
    assert max(used[4:]) - used[3] < size / 1024 / 8 and max(used) - used[0] < size / 1024, used


def test_a_run_ends_by_a_metric_of_one_target_and_writes_every_step_once(fwi, refused, learnt, store, tmp_path):
    given = ("--lr", 0, "--val-every", 1, "--best", "r2_speed", "--patience", 2)
    run = learnt("early", "--num-itr", 50, *given)
    rows = table(run / "history.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3"] and len({row["val_r2_speed"] for row in rows}) == 1
    assert "r2_speed has not improved since step 1" in fwi("train", *words(store, tmp_path, "early", "--num-itr", 60,
        *given)).err
    assert table(run / "history.csv") == rows
    run = learnt("parts", "--num-itr", 2, "--save-every", 1)
    learnt("parts", "--num-itr", 4, "--save-every", 1)
    assert [row["step"] for row in table(run / "history.csv")] == ["1", "2", "3", "4"]
    refused("train", *words(store, tmp_path, "none", "--best", "r2_width"), saying=("r2_speed",))


AS_RANK = """import json, os, sys
from fwi_i2sb import train
from fwi_i2sb.data import prepare_targets as module
real = module._build
def build(root, *given, **named):
    with open(f"{root}.built", "a") as file: file.write("x")
    return real(root, *given, **named)
module._build = build
for words in json.loads(sys.argv[1]): train.main(words)"""
LR, STEPS = 0.01, 8
RATES = {
    "step": (("--lr-step", 2, "--lr-gamma", 0.5), lambda sgd: lr_scheduler.StepLR(sgd, 2, 0.5)),
    "multistep": (("--milestones", 2, 5, "--lr-gamma", 0.5), lambda sgd: lr_scheduler.MultiStepLR(sgd, [2, 5], 0.5)),
    "exponential": (("--lr-step", 3, "--lr-gamma", 0.5), lambda sgd: lr_scheduler.ExponentialLR(sgd, 0.5 ** (1 / 3))),
    "cosine": ((), lambda sgd: lr_scheduler.CosineAnnealingLR(sgd, STEPS)),
    "cosine_restarts": (("--lr-restart", 3, "--lr-restart-factor", 1),
        lambda sgd: lr_scheduler.CosineAnnealingWarmRestarts(sgd, 3)),
    "onecycle": ((), lambda sgd: lr_scheduler.OneCycleLR(sgd, LR, STEPS)),
    "linear_warmup": (("--warmup", 4), lambda sgd: lr_scheduler.LinearLR(sgd, 1 / 4, total_iters=3)),
    "plateau": (("--lr-patience", 0, "--lr-factor", 0.5, "--val-every", 1, "--best", "rmse_y1"),
        lambda sgd: lr_scheduler.ReduceLROnPlateau(sgd, patience=0, factor=0.5)),
}


def test_two_ranks_prepare_once_take_the_rates_of_torch_and_end_together(arrays, tmp_path):
    np.savez(tmp_path / "waves.npz", **arrays)
    plan = {name: ("--num-itr", STEPS, "--lr", LR, "--scheduler", name, *more) for name, (more, _) in RATES.items()}
    plan["early"] = "--num-itr", 50, "--lr", 0, "--val-every", 1, "--best", "r2_y1", "--patience", 2
    given = [words(tmp_path / "waves.npz", tmp_path, name, *more, "--microbatch", 4, "--master-port", free_port())
        for name, more in plan.items()]
    ranks = [start([sys.executable, "-c", AS_RANK, json.dumps(given)], stderr=subprocess.PIPE, text=True,
        env=os.environ | dict(OMP_NUM_THREADS="1", RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")) for rank in (0, 1)]
    for process in ranks: finish(process)
    assert (tmp_path / "waves.npz.store.built").read_text() == "x"
    for name, (_, build) in RATES.items():
        rows = read_metrics(tmp_path / name)
        judged, found = ([row[key] for row in rows if key in row] for key in ("val_rmse_y1", "lr"))
        optimizer, known = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR), []
        scheduler = build(optimizer)
        for k in range(STEPS):
            known.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step(*judged[k:k + 1] if name == "plateau" else ())
        np.testing.assert_allclose(found, known, rtol=1e-9, atol=1e-12, err_msg=name)
        assert len(set(found)) > 1 or name == "plateau", name
    assert [row["step"] for row in table(tmp_path / "early/history.csv")] == ["1", "2", "3"]


def test_a_killed_search_on_arrays_continues_and_prints_what_trains_the_best(fwi, forked_trainings, store, tmp_path):
    given = ["tune", *words(store, tmp_path, "search", "--num-itr", 100, "--val-every", 50, "--trials", 2, "--best",
        "rmse_thickness", "--losses", "huber", "mae")]
    interrupted, = killed_search(given, folder := tmp_path / "search", 1)
    said = fwi(*given)
    assert said.code == 0, said.err
    rows = table(folder / "trials.csv")
    assert [row["state"] for row in rows] == ["complete"] * 2 and interrupted.name == rows[0]["run"]
    for row in rows:  # interrupted or not
        judged = {line["step"]: line["val_rmse_thickness"] for line in read_metrics(folder / row["run"])
            if "val_rmse_thickness" in line}
        assert [*judged] == [50, 100] and float(row["value"]) == min(judged.values())
    best = json.loads((folder / "best.json").read_text())
    assert best["command"] in said.out and best["metric"] == "rmse_thickness"
    assert fwi(*shlex.split(best["command"])[1:]).code == 0
    assert_equal(weights(folder / best["run"]), weights(tmp_path / "search-best"))


def test_records_that_were_trained_on_are_counted_wherever_they_lie(fwi, learnt, store, arrays, tmp_path):
    run, held = learnt("run", "--num-itr", 1), store.parent / "waves.npz"
    fold = learnt("fold", "--num-itr", 1, "--fold", "1/2")
    again = prepare_targets(held, tmp_path / "again", ArrayOptions(param_names=NAMES, units=UNITS, split_seed=1))
    split = {int(row["record"]): row["split"] for row in table(store / "split.csv")}
    other = [int(row["record"]) for row in table(again / "split.csv") if row["split"] == "val"]
    own = sum(split[record] == "train" for record in other)
    np.savez(tmp_path / "part.npz", x=arrays["x"][::-4].astype(float), y=arrays["y"][::-4])
    part = sum(split[record] == "train" for record in range(40)[::-4])
    assert 0 < own < 8 and 0 < part < 10
    for k, (runs, data, count) in enumerate((([run], held, 32), ([run], again, own), ([run], tmp_path / "part.npz",
            part), ([fold], held, 16), ([fold, run], held, 32))):
        done = fwi("evaluate-targets", *runs, "--data", data, "--import", TEMPLATE, "--no-plots", "--out",
            tmp_path / f"card-{k}")
        assert done.code == 0 and f"warning: {count} of these" in done.out, done.err
        assert json.loads((tmp_path / f"card-{k}/card.json").read_text())["seen_in_training"] == count
        assert f"{count} of these" in (tmp_path / f"card-{k}/card.md").read_text()


def test_two_processes_judge_as_one(fwi, learnt, arrays, tmp_path):
    runs = [learnt(f"run-{seed}", "--num-itr", 1, "--seed", seed) for seed in (0, 1)]
    x, y = (np.concatenate([values] * 4)[:150] for values in arrays.values())  # batches of 64, 64 and 22
    np.savez(tmp_path / "many.npz", x=x, y=y)
    bad = x.copy()
    bad[70, 3] = np.nan  # of the second process
    np.savez(tmp_path / "bad.npz", x=bad, y=y)

    def two(*given, code=0):
        program = behind([sys.executable, "-m", "fwi_i2sb", *map(str, given)])
        return finish(start([*MPIRUN, "-np", "2", *program], stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}), code)

    # `evaluate` has eight records, and so nothing for the second process
    plain, written = ["--import", TEMPLATE, "--no-plots"], ["card.json", "card.md"]
    many = [*runs, "--data", tmp_path / "many.npz", "--save-predictions"]
    for command, given, files in (("evaluate-targets", [*many, "--no-plots"], [*written, "predictions.npz"]),
            ("evaluate", runs[:1], written)):
        one, both = tmp_path / f"one-{command}", tmp_path / f"two-{command}"
        assert fwi("evaluate-targets", *given, *plain, "--out", one).code == 0
        two(command, *given, *plain[:2], "--out", both)
        for name in files: assert (one / name).read_bytes() == (both / name).read_bytes(), name
    said = two("evaluate-targets", runs[0], "--data", tmp_path / "bad.npz", "--import", TEMPLATE, "--out",
        tmp_path / "bad", code=2)
    assert said.count("error: ") == 1 and "record 70 of" in said and not (tmp_path / "bad").exists()


def test_evaluate_judges_runs_on_arrays_too(fwi, refused, learnt, tmp_path):
    run = learnt("run", "--num-itr", 1)
    for command, *more in (("evaluate",), ("evaluate-targets", "--no-plots")):
        said = fwi(command, run, "--import", TEMPLATE, "--out", tmp_path / command, *more)
        assert said.code == 0 and "8 records of waves" in said.out and "warning" not in said.out, said.err
    card, same = (json.loads((tmp_path / command / "card.json").read_text()) for command in ("evaluate",
        "evaluate-targets"))
    assert card == same and card["seen_in_training"] == 0
    assert "5 records" in fwi("evaluate", run, "--import", TEMPLATE, "--records", 5).out
    for given in (("--nfe", 2), ("--snr", 10), ("--published",), ("--jobs", 2), ("--mem-gb", 3), ("--seed", 1),
            ("--tta", "flip")):
        refused("evaluate", run, "--import", TEMPLATE, *given, saying=(f"{given[0]} has no effect with",
            "learnt from arrays"))


PLUGIN = """import os, time
from pathlib import Path
from fwi_i2sb.core.registry import import_plugin
from fwi_i2sb.methods.losses import LOSSES
import_plugin(Path(TEMPLATE))
here, calls = Path(__file__).parent, []

@LOSSES.register("meets")
def meets(difference):
    (here / f"{os.getpid()}.here").touch()
    for _ in range(30_000):
        if not (here / "search/search.json").exists() or len(list(here.glob("*.here"))) > 2: return difference.square()
        time.sleep(0.02)
    raise TimeoutError

@LOSSES.register("wrong")
def wrong(difference):
    calls.append(1)
    if len(calls) > 6: time.sleep(0.5)
    return -difference.square()"""


def test_a_trial_that_is_worse_is_given_up_and_every_validation_is_told(fwi, refused, forked_trainings, store,
        tmp_path):
    plugin, folder = tmp_path / "losses.py", tmp_path / "search"
    plugin.write_text(PLUGIN.replace("TEMPLATE", repr(str(TEMPLATE))))
    given = ["hpo", *words(store, tmp_path, "search", "--num-itr", 40, "--val-every", 4, "--ema", 0.5, "--losses",
        "meets", "wrong")]
    given[given.index(str(TEMPLATE))] = str(plugin)
    folder.mkdir()
    study = open_study(folder, "mae")
    for k, loss in enumerate(("meets",) * 5 + ("wrong",)):
        study.enqueue_trial(dict(lr=1e-3 * (k + 1), weight_decay=0.01, loss=loss))
    said = fwi(*given, "--trials", 5, "--jobs", 2)  # this process and two trainings were there at once
    assert said.code == 0 and [row["state"] for row in table(folder / "trials.csv")] == ["complete"] * 5, said.err
    assert fwi(*given, "--trials", 6).code == 0
    *_, worse = rows = table(folder / "trials.csv")
    assert [row["state"] for row in rows] == ["complete"] * 5 + ["pruned"] and worse["loss"] == "wrong"
    maes = lambda run: {row["step"]: row["val_mae"] for row in read_metrics(folder / run) if "val_mae" in row}
    for trial, row in zip(open_study(folder, "mae").trials, rows): assert trial.intermediate_values == maes(row["run"])
    assert 4 in maes(worse["run"]) and 40 not in maes(worse["run"]) and len(maes(rows[0]["run"])) == 10
    # what a kill leaves between the end of a training and the word about it
    (folder / "journal.log").rename(tmp_path / "journal.log")
    study = open_study(folder, "mae")
    study.enqueue_trial({name: float(rows[0][name]) for name in ("lr", "weight_decay")} | dict(loss="meets"))
    trial, before = study.ask(), checkpoints(folder / rows[0]["run"])[0].stat().st_mtime_ns
    for name, low, high in (("lr", 1e-5, 1e-2), ("weight_decay", 1e-5, 1e-1)):
        trial.suggest_float(name, low, high, log=True)
    trial.suggest_categorical("loss", ["meets", "wrong"])
    assert fwi(*given, "--trials", 1).code == 0 and table(folder / "trials.csv") == [rows[0] | dict(trial="1")]
    assert open_study(folder, "mae").trials[1].intermediate_values == maes(rows[0]["run"])
    assert checkpoints(folder / rows[0]["run"])[0].stat().st_mtime_ns == before  # not trained again


def test_every_choice_of_a_search_is_tried_on_the_data_before_it_begins(refused, store, tmp_path):
    for more, saying in ((("--method", "vector", "--models", "mine", "timm:test_resnet"), "reads arrays of two axes"),
            (("--losses", "mse", "ssim"), "the loss ssim looks at maps")):
        refused("hpo", *words(store, tmp_path, "search", "--num-itr", 2, *more), saying=(saying,))
    assert not list(tmp_path.iterdir())


def test_every_scaler_knows_its_training_records_only(refused, store, arrays, tmp_path):
    chosen = ArrayOptions(param_names=NAMES, units=UNITS, target_scaler=("log", "robust"), input_scaler="log1p")
    root = prepare_targets(store.parent / "waves.npz", tmp_path / "scaled", chosen)
    learnt = np.array([row["split"] == "train" for row in table(root / "split.csv")])
    whole = TargetStore(root, "train")
    folds = fold_stores(whole, Fold.parse("2/2"))
    for own, rows in ((whole, np.flatnonzero(learnt)), (folds[0], np.flatnonzero(learnt)[folds[0].numbers])):
        (h, c), x = arrays["y"][rows].astype(float).T, arrays["x"][rows]
        middle = np.median(c)
        np.testing.assert_allclose(own.target.centre, [np.log(h).mean(), middle], rtol=1e-5)
        np.testing.assert_allclose(own.target.width, [np.log(h).std(), 1.4826 * np.median(np.abs(c - middle))],
            rtol=1e-5)
        np.testing.assert_allclose(own.target.mean, [h.mean(), c.mean()], rtol=1e-5)
        bent = np.copysign(np.log1p(np.abs(x.astype(float))), x)
        np.testing.assert_allclose([own.inputs.centre[0], own.inputs.width[0]], [bent.mean(), bent.std()],
            rtol=1e-5, atol=1e-9)
    target, truth = whole.target, torch.from_numpy(arrays["y"]).double()
    found, answer = TargetErrors(target), target.denormalize(target.normalize(truth) + 0.1)
    found.add(target.normalize(answer), target.normalize(truth))
    for k, name in enumerate(NAMES):
        e = (answer - truth)[:, k].numpy()
        np.testing.assert_allclose([found.each()[name][m] for m in ("mae", "rmse", "r2")], [np.abs(e).mean(),
            np.sqrt((e**2).mean()), 1 - (e**2).mean() / arrays["y"][:, k].astype(float).var()], rtol=1e-6)
    refused("prepare", store.parent / "waves.npz", "--out", tmp_path / "no", "--target-scaler", "log", "log", "log",
        saying=("--target-scaler names 3 scalers",))
    arrays = dict(arrays, y=arrays["y"] - [5, 0])
    np.savez(tmp_path / "signs.npz", **arrays)
    refused("prepare", tmp_path / "signs.npz", "--out", tmp_path / "no", "--target-scaler", "log", saying=("the target "
        "y0 is -", "no logarithm"))
    refused("train", *words(store, tmp_path, "no", "--scaler", "robust"), saying=("--target-scaler",))


def test_amplitudes_of_traces_do_not_matter_where_they_mean_nothing(fwi, refused, arrays, tmp_path):
    x = np.stack([arrays["x"], arrays["x"][::-1]], 2)  # (records, time, receivers)
    np.savez(tmp_path / "waves.npz", x=x, y=arrays["y"])
    refused("prepare", tmp_path / "waves.npz", "--out", tmp_path / "no", "--input-scaler", "trace3",
        saying=("trace3 needs axis 3 behind the channels",))
    refused("prepare", tmp_path / "waves.npz", "--out", tmp_path / "no", "--target-scaler", "trace1",
        saying=("--target-scaler",))
    root = prepare_targets(tmp_path / "waves.npz", tmp_path / "store", ArrayOptions(input_scaler="trace1"))
    given = ["ratenet" if word == "mine" else word for word in words(root, tmp_path, "run", "--num-itr", 1)]
    refused("train", *given, "--constraint", "y0 < x", saying=("--input-scaler trace1 leaves no amplitudes",))
    assert fwi("train", *given).code == 0
    run, gain = load_run(tmp_path / "run"), np.random.default_rng(1).uniform(0.1, 10, (5, 1, 2)).astype("f4")
    inputs = run.spec.inputs
    assert inputs.scaler == ("trace1",)
    torch.testing.assert_close(run.predict(gain * x[:5]), run.predict(x[:5]), rtol=1e-4, atol=1e-4)
    few = torch.from_numpy(x[:5, None].copy())
    torch.testing.assert_close(inputs.normalize(few) * inputs.trace_sizes(few), few, rtol=1e-5, atol=1e-7)
    assert fwi("export", tmp_path / "run", "--onnx", tmp_path / "net.onnx").code == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    answer, = session.run(None, {"input": 3 * x[:5, None]})
    assert (np.abs(answer - run.predict(x[:5]).numpy()) / run.target.std).max() <= 1e-4


def test_every_loss_of_targets_can_be_chosen(store):
    spec = TargetStore(store, "train").spec
    answer, truth = torch.tensor([[0.5, -3.0]]), torch.zeros(1, 2)
    for name, value in dict(mse=4.625, mae=1.75, huber=1.3125, smooth_l1=1.3125, log_cosh=np.mean(np.log(np.cosh(
            [0.5, 3.0])))).items():
        method = build_method(ModelOptions("ratenet", loss=name), spec)
        found = method.judge(dict(x0=truth, seismic=torch.zeros(1, 1, 40), keep=torch.ones(1)), answer)
        np.testing.assert_allclose(found, [value], rtol=1e-6)
    small = np.logspace(-12, 2, 60).astype("f4")
    np.testing.assert_allclose(LOSSES["log_cosh"](torch.from_numpy(small)), np.log1p(2 * np.sinh(small.astype(float) /
        2) ** 2), rtol=1e-6)
    for name in ("ssim", "tv", "mape"):
        with pytest.raises(InputError, match="looks at maps, and thickness, speed are numbers"):
            build_method(ModelOptions("ratenet", loss=name), spec)


def test_targets_are_weighed_in_their_order(refused, learnt, store, tmp_path):
    plain, = losses(learnt("plain", "--num-itr", 1, "--loss", "mse"))
    weigh = lambda name, *w: losses(learnt(name, "--num-itr", 1, "--loss", "weighted_mse", "--loss-weights", *w))[0]
    first, second = weigh("first", 2, 0), weigh("second", 0, 2)
    np.testing.assert_allclose(first + second, 2 * plain, rtol=1e-5)
    assert abs(first - second) > 1e-3
    for wrong in ((), ("--loss-weights", 1), ("--loss-weights", 1, 2, 3)):
        refused("train", *words(store, tmp_path, "wrong", "--loss", "weighted_mse", *wrong),
            saying=("--loss-weights must be 2 numbers", "thickness, speed"))
    refused("train", *words(store, tmp_path, "wrong", "--loss", "weighted_mse", "--loss-weights", 0, 0),
        saying=("must not all be 0",))
    refused("train", *words(store, tmp_path, "wrong", "--loss-weights", 1, 1), saying=("weighted_mse",))


def test_a_file_of_options_names_the_model_and_every_constraint(tmp_path):
    given = ["--config", str(tmp_path / "a.yaml"), "--result-dir", "runs", "--dataset-dir", "plates"]
    for text in ("model: ratenet\nloss: mae\nconstraint: [y0 > 0]",
            "model: {model: ratenet, loss: mae, constraint: [y0 > 0]}"):
        (tmp_path / "a.yaml").write_text(text)
        options = parse(TrainOptions, given).model
        assert (options.model, options.loss, options.constraint) == ("ratenet", "mae", ("y0 > 0",))
    both = parse(TrainOptions, [*given, "--constraint", "y1 > 0", "--lr", "1e-3", "--constraint", "y1 < 9"]).model
    assert both.constraint == ("y1 > 0", "y1 < 9")  # the command line wins, and loses nothing of itself


def test_constraints_on_targets_are_learnt_in_their_units(refused, learnt, store, tmp_path):
    given = ("--num-itr", 1, "--constraint-weight", 1e-6, "--loss", "mse", "--constraint")
    run = learnt("known", *given, "y1 < y0", "--constraint", "thickness > -1e6")
    row = next(row for row in read_metrics(run) if "loss" in row)
    np.testing.assert_allclose(row["loss"], row["loss_mse"] + 1e-6 * row["loss_constraint"], rtol=1e-4)
    assert 1e6 < row["loss_constraint"] < 1e8  # the square of some 3000 m/s
    assert read_config(run)[0].model.constraint == ("y1 < y0", "thickness > -1e6")
    for text, saying in (("__import__('os')", "__import__"), ("y2 > 0", "unknown name 'y2'"), ("v > 0", "thickness"),
            ("depth_gradient(y0) > 0", "does not fit"), ("x[7, 0] > 0", "(1, 40)"), ("y0", "must compare")):
        refused("train", *words(store, tmp_path, "bad", *given, text), saying=(saying,))
    assert not (tmp_path / "bad").exists()
    free, bound = (load_run(learnt(name, "--num-itr", 40, "--lr", 1e-2, "--ema", 0.5, *more), plugin=TEMPLATE)
        for name, more in (("free", ()), ("bound", ("--constraint", "y1 < 2500", "--constraint-weight", 1e-3))))
    x = np.stack([TargetStore(store, "val").physical(i)[1].numpy() for i in range(8)])
    assert bound.predict(x)[:, 1].mean() < free.predict(x)[:, 1].mean() - 200


def test_several_runs_give_mean_spread_and_coverage(fwi, refused, learnt, store, arrays, tmp_path):
    runs = [learnt(f"run-{seed}", "--num-itr", 4, "--seed", seed) for seed in (0, 1)]
    done = fwi("evaluate-targets", *runs, "--import", TEMPLATE, "--out", tmp_path / "card", "--save-predictions",
        "--no-plots")
    assert done.code == 0, done.err
    card = json.loads((tmp_path / "card/card.json").read_text())
    with np.load(tmp_path / "card/predictions.npz", allow_pickle=False) as kept: kept = dict(kept)
    # of two, the halves of the range are the spread over the root of two
    inside = np.abs(kept["truth"] - kept["answer"]) <= kept["spread"] / np.sqrt(2)
    np.testing.assert_allclose([row["coverage"] for row in card["targets"]], inside.mean(0))
    assert {row["coverage_expected"] for row in card["targets"]} == {1 / 3}
    np.savez(tmp_path / "new.npz", x=arrays["x"][:5])
    given = ["predict", runs[0], tmp_path / "new.npz", "--import", TEMPLATE, "--out", tmp_path / "found.npz", "--also"]
    assert fwi(*given, runs[1]).code == 0
    with np.load(tmp_path / "found.npz", allow_pickle=False) as found: found = dict(found)
    each = np.stack([load_run(run, plugin=TEMPLATE).predict(arrays["x"][:5]) for run in runs])
    np.testing.assert_allclose(found["answer"], each.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["spread"], each.std(0, ddof=1), rtol=1e-3, atol=1e-4)
    given[given.index("--out") + 1] = tmp_path / "again.npz"
    refused(*given, runs[0], saying=("is named twice",))
    np.savez(tmp_path / "other.npz", x=arrays["x"], y=arrays["y"])  # without names and units
    assert fwi("train", *words(tmp_path / "other.npz", tmp_path, "other", "--num-itr", 1)).code == 0
    given[given.index("--out") + 1] = tmp_path / "more.npz"
    refused(*given, tmp_path / "other", saying=("cannot be averaged",))
    assert not (tmp_path / "more.npz").exists()


def test_an_exported_run_answers_in_units_for_any_batch(fwi, refused, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, 3, (12, 2, 32, 40)).astype("f4"), rng.normal((3, 5000), (0.1, 400), (12, 2)).astype("f4")
    np.savez(tmp_path / "pairs.npz", x=x, y=y)
    prepare_targets(tmp_path / "pairs.npz", tmp_path / "store", ArrayOptions(input_channels=2, param_names=NAMES,
        units=UNITS, target_scaler=("log", "log1p"), input_scaler="log1p"))
    given = words(tmp_path / "store", tmp_path, "run", "--num-itr", 1, "--method", "vector")
    assert fwi("train", *["ratenet" if word == "mine" else word for word in given]).code == 0
    out = tmp_path / "net.onnx"
    said = fwi("export", tmp_path / "run", "--onnx", out)
    assert said.code == 0 and "of a target's standard deviation" in said.out, said.err
    about, run = json.loads(out.with_suffix(".json").read_text()), load_run(tmp_path / "run")
    assert run.target.scaler == ("log", "log1p") and run.spec.inputs.scaler == ("log1p",) * 2
    assert about["names"] == list(NAMES) and about["units"] == list(UNITS) and about["input"] == [2, 32, 40]
    session = onnxruntime.InferenceSession(str(out))
    for batch in (1, 5, 12):
        answer, = session.run(None, {"input": x[:batch]})
        assert (np.abs(answer - run.predict(x[:batch]).numpy()) / run.target.std).max() <= 1e-4
        with torch.no_grad(): ours = module_of(restore(tmp_path / "run", device="cpu"))(torch.from_numpy(x[:batch]))
        assert (np.abs(answer - ours.numpy()) / run.target.std).max() <= 1e-4
    refused("export", tmp_path / "run", "--onnx", tmp_path / "b.onnx", "--nfe", 3, saying=("--nfe has no effect",))
