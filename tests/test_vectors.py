"Data sets of arrays: prepared, trained on by one process and by two, continued, judged, and what is refused."
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import torch
from processes import assert_equal, finish, free_port, losses, own_network, python_train, weights

from fwi_i2sb import load_run
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.data.prepare_targets import prepare_targets
from fwi_i2sb.data.target_store import TargetStore
from fwi_i2sb.examples import plates_data, plates_run
from fwi_i2sb.metrics.accuracy import structural_similarity
from fwi_i2sb.training.run_dir import read_metrics

TEMPLATE = own_network()
pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["--batch-size", "4", "--microbatch", "2", "--log-every", "1", "--val-every", "2", "--device", "cpu",
    "--precision", "fp32", "--lr", "1e-3", "--log-writer", "none", "--import", str(TEMPLATE), "--model", "mine"]


@pytest.fixture
def arrays(tmp_path) -> dict:
    "Inputs of one axis and two targets, 35 records: 28 for training and 7, an odd number, for validation."
    rng = np.random.default_rng(7)
    y = np.stack([rng.uniform(1, 3, 35), rng.uniform(2000, 4000, 35)], 1)
    x = np.sin(y[:, :1] * np.arange(40)) * y[:, 1:] / 3000 + 0.1 * rng.standard_normal((35, 40))
    np.savez(tmp_path / "waves.npz", x=x, y=y)
    return dict(x=x, y=y)


def words(data, root, name, *more):
    return ["--result-dir", str(root), "--dataset-dir", str(data), "--name", name, *SMALL, *map(str, more)]


def test_every_kind_of_file_gives_the_same_records(tmp_path, arrays):
    with h5py.File(tmp_path / "waves.h5", "w") as file: file["x"], file["y"] = arrays["x"], arrays["y"]
    with h5py.File(tmp_path / "waves.mat", "w", userblock_size=512) as file:
        file["x"], file["y"] = arrays["x"].T, arrays["y"].T
    with open(tmp_path / "waves.mat", "r+b") as file: file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    (tmp_path / "folder").mkdir()
    for key, values in arrays.items(): np.save(tmp_path / "folder" / f"{key}.npy", np.asfortranarray(values))
    for name in ("waves.npz", "waves.h5", "waves.mat", "packed.npz", "folder"):
        root = prepare_targets(tmp_path / name, tmp_path / "stores" / name)
        stores = [TargetStore(root, split) for split in ("train", "val")]
        split = np.loadtxt(root / "split.csv", delimiter=",", skiprows=1, dtype=str)
        for store in stores:
            own = [int(record) for record, where in split if where == store.folder.name]
            assert len(own) == len(store)
            for k, record in enumerate(own):
                for found, truth in zip(store.physical(k), (arrays["y"], arrays["x"])):
                    np.testing.assert_array_equal(found.numpy().ravel(), truth[record].astype(np.float32))


def test_the_scaling_knows_the_training_records_only(tmp_path, arrays):
    before = TargetStore(prepare_targets(tmp_path / "waves.npz", tmp_path / "a"), "train")
    held = [int(line.split(",")[0]) for line in (tmp_path / "a/split.csv").read_text().split() if line.endswith("val")]
    for values in arrays.values(): values[held] *= 100
    np.savez(tmp_path / "changed.npz", **arrays)
    after = TargetStore(prepare_targets(tmp_path / "changed.npz", tmp_path / "b"), "val")
    assert after.inputs == before.inputs and after.target == before.target
    manifest = json.loads((tmp_path / "b/train/manifest.json").read_text())
    assert manifest["target"]["mean"] == list(after.target.mean)  # plain JSON


KILLED = """import os, signal, sys
from pathlib import Path
from fwi_i2sb.data import prepare_targets as module
module._BLOCK, seen = 400, []
def kill(done, total):
    seen.append(done)
    if len(seen) == 8: os.kill(os.getpid(), signal.SIGKILL)
module.prepare_targets(Path(sys.argv[1]), Path(sys.argv[2]), progress=kill)"""


def test_a_preparation_that_was_killed_goes_on(fwi, tmp_path, arrays):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "waves.npz", tmp_path / "store"])
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="unfinished|no manifest"): TargetStore(tmp_path / "store", "train")
    outcome = fwi("prepare", tmp_path / "waves.npz", "--out", tmp_path / "store")
    assert outcome.code == 0 and "28 training and 7 validation records" in outcome.out
    whole = prepare_targets(tmp_path / "waves.npz", tmp_path / "whole")
    for split in ("train", "val"):
        assert TargetStore(whole, split).fingerprint == TargetStore(tmp_path / "store", split).fingerprint


PEAK = """import resource, sys
from pathlib import Path
from fwi_i2sb.data.prepare_targets import prepare_targets
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare_targets(Path(sys.argv[1]), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"""


def test_memory_stays_below_the_size_of_the_data(tmp_path):
    size = 120 * 2**20
    x = np.random.default_rng(0).standard_normal((240, size // 240 // 4), dtype=np.float32)
    np.savez(tmp_path / "large.npz", x=x, y=x[:, :2])
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "large.npz", tmp_path / "store"],
        stdout=subprocess.PIPE, check=True, text=True)
    assert int(done.stdout) * 1024 < size / 2, done.stdout


def test_a_run_that_was_stopped_ends_as_one_that_was_not(fwi, tmp_path, arrays):
    for name, steps in (("whole", 6), ("parts", 2), ("parts", 6)):
        outcome = fwi("train", *words(tmp_path / "waves.npz", tmp_path / "runs", name, "--num-itr", steps))
        assert outcome.code == 0, outcome.err
    whole, parts = (tmp_path / "runs" / name for name in ("whole", "parts"))
    assert losses(whole) == losses(parts) and len(losses(parts)) == 6
    assert_equal(weights(whole), weights(parts))
    rows = [row["step"] for row in read_metrics(parts) if "val_r2" in row]
    assert rows == [2, 4, 6] and not list(whole.rglob("*.pkl"))


def test_two_processes_learn_as_one(fwi, tmp_path, arrays):
    done = fwi("train", *words(tmp_path / "waves.npz", tmp_path / "runs", "one", "--num-itr", 4))
    assert done.code == 0, done.err
    shutil.copy(tmp_path / "waves.npz", tmp_path / "again.npz")
    finish(python_train(*words(tmp_path / "again.npz", tmp_path / "runs", "two", "--num-itr", 4, "--proc-per-node", 2,
        "--master-port", free_port())))
    one, two = (tmp_path / "runs" / name for name in ("one", "two"))
    np.testing.assert_allclose(losses(one), losses(two), rtol=1e-5)
    first, second = ([row for row in read_metrics(run) if "val_r2" in row][-1] for run in (one, two))
    assert first["val_records"] == second["val_records"] == 7
    for name, value in first.items():
        if name.startswith("val_"): np.testing.assert_allclose(second[name], value, rtol=1e-4, err_msg=name)


def test_an_edited_file_is_prepared_again_and_is_not_the_data_of_the_run(fwi, refused, tmp_path, arrays):
    data = tmp_path / "waves.npz"
    assert fwi("train", *words(data, tmp_path / "runs", "a", "--num-itr", 1)).code == 0
    np.savez(data, x=arrays["x"], y=arrays["y"] + 1)
    refused("train", *words(data, tmp_path / "runs", "a", "--num-itr", 2), saying=("trained on other data",))
    assert fwi("train", *words(data, tmp_path / "runs", "b", "--num-itr", 1)).code == 0
    configs = [json.loads((tmp_path / "runs" / name / "config.json").read_text()) for name in "ab"]
    means = [config["data_spec"]["target"]["mean"] for config in configs]
    np.testing.assert_allclose(np.subtract(*means[::-1]), 1, rtol=1e-3)


@pytest.mark.parametrize("change, saying", [
    (dict(z=1), ("holds x, y, z", "--input-key")), (dict(y=None), ("holds x", "--output-key")),
    ("nan", ("record 17", "not finite")), ("short", ("35 records", "34", "as many")),
    ("pickled", ("pickled", "never read")), ("complex", ("complex numbers", "two channels")),
    ("flat", ("y1 is 7", "nothing to learn")), ("text", ("not real numbers",)),
    ("names", ("--param-names names 1 target",)), ("channels", ("--input-channels 3",)),
    ("same", ("x of", "cannot be the inputs and the targets")), ("second", ("key x", "more than its header promises")),
])
def test_what_cannot_be_learnt_from_is_refused_in_a_sentence(refused, tmp_path, arrays, change, saying):
    more = []
    if change == dict(z=1): arrays["z"], more = arrays["x"], ["--input-key", "waves"]
    elif change == dict(y=None): del arrays["y"]
    elif change == "nan": arrays["x"][17, 3] = np.nan
    elif change == "short": arrays["y"] = arrays["y"][:34]
    elif change == "pickled": arrays["y"] = np.array([{}] * 35, dtype=object)
    elif change == "complex": arrays["x"] = arrays["x"] * 1j
    elif change == "flat": arrays["y"][:, 1] = 7
    elif change == "text": arrays["y"] = np.array(["a"] * 35)
    elif change == "same": more = ["--output-key", "x"]
    elif change == "names": more = ["--param-names", "thickness"]
    elif change == "channels": more = ["--input-channels", "3"]
    np.savez(tmp_path / "bad.npz", **arrays)
    if change == "second":
        with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
            for name, copies in (("x", 2), ("y", 1)):
                with archive.open(f"{name}.npy", "w") as file:
                    for _ in range(copies): np.save(file, arrays[name])
    refused("prepare", tmp_path / "bad.npz", "--out", tmp_path / "store", "--name", "", saying=("--name must be a",))
    refused("prepare", tmp_path / "bad.npz", "--out", tmp_path / "store", *more, saying=saying)
    assert not list((tmp_path / "store").rglob("*.lmdb")) and not list((tmp_path / "store").rglob("manifest.json"))


def test_the_name_of_a_data_set_is_no_path(fwi, refused, tmp_path, arrays):
    np.savez(tmp_path / "waves.npz", **arrays)
    words = ("prepare", tmp_path / "waves.npz", "--out", tmp_path / "store", "--name")
    for name in ("", "..", "a/b", "a\\b"):
        refused(*words, name, saying=("--name must be a name of a data set", repr(name)))
    for name in ("ü" * 101, "two\nlines"): refused(*words, name, saying=("--name must be printable, and 200 bytes",))
    for option, kind in (("--input-scaler", "trace9"), ("--target-scaler", "power")):
        refused(*words, "w", option, kind, saying=(f"{option} must be one of", repr(kind)))
    assert not (tmp_path / "store").exists()
    assert fwi(*words, "ü" * 100).code == 0


def test_a_store_that_was_cut_or_is_of_another_file_is_not_used(refused, tmp_path, arrays):
    root = prepare_targets(tmp_path / "waves.npz", tmp_path / "store")
    np.savez(tmp_path / "other.npz", x=arrays["x"] + 1, y=arrays["y"])
    refused("prepare", tmp_path / "other.npz", "--out", root, saying=("is the store of waves.npz", "another folder"))
    database = root / "train" / "database.lmdb"
    with open(database, "r+b") as file: file.truncate(database.stat().st_size // 2)
    for command in (["prepare", tmp_path / "waves.npz", "--out", root],
            ["train", *words(root, tmp_path / "runs", "cut", "--num-itr", 1)]):
        refused(*command, saying=("was cut short",))
    assert not (tmp_path / "runs" / "cut" / "config.json").exists()


def test_an_edit_that_keeps_size_and_time_is_noticed(tmp_path, arrays):
    data, root = tmp_path / "waves.npz", tmp_path / "store"
    first = TargetStore(prepare_targets(data, root), "train").physical(0)[0]
    seen, arrays["y"] = data.stat(), arrays["y"] + 1
    np.savez(data, **arrays)
    os.utime(data, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert (data.stat().st_size, data.stat().st_mtime_ns) == (seen.st_size, seen.st_mtime_ns)
    with pytest.warns(UserWarning, match="the file has changed"): prepare_targets(data, root)
    np.testing.assert_allclose(TargetStore(root, "train").physical(0)[0], first + 1)


def test_a_folder_and_the_channels_of_a_file_are_trained_on_without_preparing(fwi, refused, tmp_path, arrays):
    (tmp_path / "waves").mkdir()
    for key, values in (("input_test", arrays["x"].reshape(35, 2, 20)), ("output_test", arrays["y"])):
        np.save(tmp_path / "waves" / f"{key}.npy", values)
    refused("train", "--result-dir", tmp_path, "--dataset-dir", tmp_path / "waves", "--dataset-name", "FlatVel_A",
        "--input-key", "x", saying=("--input-key has no effect with velocity maps",))
    given = words(tmp_path / "waves", tmp_path, "run", "--num-itr", 1, "--input-channels", 2, "--param-names", "h", "c")
    done = fwi("train", *given)
    assert done.code == 0, done.err
    spec = TargetStore(tmp_path / "waves.store", "train").spec
    assert spec.inputs.shape == (2, 20) and spec.target.names == ("h", "c")
    refused("train", *given[:-1], "d", saying=("another --param-names",))
    refused("train", *words(tmp_path / "waves", tmp_path, "new", "--input-channels", 3), saying=("--input-channels 3",))
    refused("train", *words(tmp_path / "waves.store", tmp_path, "new", "--units", "m", "s"), saying=("--units has no "
        "effect", "prepared already"))


def test_maps_from_arrays(fwi, refused, tmp_path):
    rng = np.random.default_rng(0)
    y = rng.uniform(1500, 4500, (12, 1, 1)) + np.arange(9)[:, None] * np.ones((9, 11))
    np.savez(tmp_path / "maps.npz", x=rng.standard_normal((12, 2, 32, 40)), y=y)
    assert fwi("prepare", tmp_path / "maps.npz", "--out", tmp_path / "store", "--input-channels", 2, "--param-names",
        "vp", "--units", "m/s").code == 0
    given = [word for word in words(tmp_path / "store", tmp_path / "runs", "maps", "--num-itr", 2, "--method", "vector")
        if word not in ("--import", str(TEMPLATE), "mine", "--model")]
    done = fwi("train", *given, "--model", "timm:test_resnet")
    assert done.code == 0, done.err
    assert load_run(tmp_path / "runs" / "maps").predict(np.zeros((3, 2, 32, 40))).shape == (3, 1, 9, 11)
    given = ["own" if word == "maps" else word for word in given] + ["--model", "compact", "--loss"]
    done = fwi("train", *given, "mse:1,ssim:0.1,mape:0.1,perceptual:0,ms_gradient:0.1,misfit:0", "--constraint",
        "depth_gradient(vp) >= 0", "--constraint-weight", 1e-6, "--best", "ssim_vp")
    assert done.code == 0, done.err
    run = load_run(tmp_path / "runs" / "own")
    row = next(row for row in read_metrics(run.path) if "loss_ssim" in row)
    own = row["loss_mse"] + 0.1 * sum(row[f"loss_{name}"] for name in ("ssim", "mape", "ms_gradient"))
    np.testing.assert_allclose(row["loss"], own + 1e-6 * row["loss_constraint"], rtol=1e-4)
    said = fwi("evaluate-targets", run.path, "--out", tmp_path / "card", "--save-predictions")
    assert said.code == 0 and "SSIM" in said.out and "m/s" in said.out and (tmp_path / "card" / "maps.png").exists()
    with np.load(tmp_path / "card" / "predictions.npz", allow_pickle=False) as saved:
        pair = [(torch.from_numpy(saved[name]).double() - run.target.mean[0]) / run.target.std[0] for name in ("answer",
            "truth")]
    card, = json.loads((tmp_path / "card" / "card.json").read_text())["targets"]
    similar = structural_similarity(*((values + 3) / 6 for values in pair)).mean()
    np.testing.assert_allclose(card["ssim"], similar, rtol=1e-4)
    refused("train", *given, "mse:1,misfit:1", saying=("the loss misfit simulates the waves",))


def test_the_folder_one_is_in_is_looked_at(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for here, said in (("", "--dataset-dir must be the name"), (".", ". holds no FlatVel_A files")):
        refused("train", "--result-dir", "runs", "--dataset-dir", here, "--dataset-name", "FlatVel_A", "--num-itr", 1,
            "--model", "tiny", saying=(said,))
    assert not list(tmp_path.iterdir())


def test_networks_are_listed_and_the_template_trains(fwi, refused, tmp_path, arrays):
    own = tmp_path / "nets" / "own.py"
    assert f"--import {own} --model mine" in fwi("models", "ratenet", "--template", own).out
    assert own.read_bytes() == TEMPLATE.read_bytes()
    refused("models", "--template", own, saying=("is there already",))
    refused("models", "--template", tmp_path / "own", saying=("ends in .py",))
    assert [path.name for path in own.parent.iterdir()] == ["own.py"]
    listed = fwi("models", "--import", TEMPLATE).out
    assert "ratenet" in listed and "mine" in listed and "timm:NAME" in listed
    assert fwi("train", *words(tmp_path / "waves.npz", tmp_path / "runs", "own", "--num-itr", 1)).code == 0
    run = load_run(tmp_path / "runs" / "own", plugin=TEMPLATE)
    groups = run.net.parameter_groups(0.1)
    assert {weight.ndim for weight in groups[1]["params"]} == {1} and groups[1]["weight_decay"] == 0
    for name, near in (("timm:resnet18", "two axes"), ("ratenett", "ratenet")):
        given = words(tmp_path / "waves.npz", tmp_path / "runs", "x", "--num-itr", 1, "--method", "vector")
        refused("train", *(name if word == "mine" else word for word in given), saying=(near,))


def test_a_run_on_arrays_is_judged_in_units_and_no_command_of_maps_takes_it(fwi, refused, mini, tmp_path):
    run = plates_run()
    done = fwi("evaluate-targets", run, "--out", tmp_path / "card", "--plot-format", "svg", "--save-predictions")
    assert done.code == 0 and "dB/wavelength" in done.out
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    with np.load(tmp_path / "card" / "predictions.npz", allow_pickle=False) as saved:
        error = saved["answer"].astype(float) - saved["truth"]
    np.testing.assert_allclose([row["mae"] for row in card["targets"]], np.abs(error).mean(0), rtol=1e-5)
    assert len(list((tmp_path / "card").glob("*.svg"))) == 10
    assert card["seen_in_training"] == 0 and "warning" not in done.out
    refused("invert", run, saying=("from arrays", "evaluate-targets"))
    refused("invert", mini, "--records", 1, "--start", f"first-guess:{run}", "--out", tmp_path / "out",
        saying=("learnt from arrays",))
    refused("evaluate-targets", mini, saying=("velocity maps",))
    refused("train", "--result-dir", tmp_path, "--dataset-dir", plates_data(), "--model", "tiny", "--num-itr", 1,
        saying=("--method vector",))
