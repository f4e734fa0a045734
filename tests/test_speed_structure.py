"The Speed & Structure challenge: its folders, their store, submissions killed and continued, and the cloud app."
import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forkserver import run as run_python
from processes import assert_equal, finish, free_port, losses, python_train, SMALL as QUICK, weights

from fwi_i2sb.core.errors import InputError
from fwi_i2sb.core.formats import recognise
from fwi_i2sb.data import prepare
from fwi_i2sb.data.check import inspect_folder
from fwi_i2sb.data.generate_samples import generate_samples
from fwi_i2sb.data.manifest import default_time_samples
from fwi_i2sb.data.speed_structure import (
    challenge_facts, challenge_survey, list_samples, read_gathers, read_map, source_columns, write_sample)
from fwi_i2sb.data.store import convert, StoreDataset
from fwi_i2sb.evaluation import submit as submit_module
from fwi_i2sb.evaluation.submission import check_submission, score_submission
from fwi_i2sb.physics.coarse_grid import coarse_step, simulate_coarse
from fwi_i2sb.physics.filters import decimate
from fwi_i2sb.physics.wave import OPENFWI, ricker, simulate, Survey
from fwi_i2sb.training.run_dir import open_store, read_config, read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")
CELLS, FAMILY = (40, 24), "speed-structure"
CHANGES = "flip,noise:0.05,gain:0.8:1.2@0.9,shift:0.01,drop-shots:0.4,drop-traces:0.2"
SMALL = challenge_survey(CELLS, dx=10.0, dt=1e-3, nt=301)
APP = Path(__file__).parents[1] / "docker" / "modal_app.py"


def test_a_sample_that_has_lost_its_gathers_is_named(tmp_path):
    for k in (1, 2): write_sample(tmp_path / "test" / f"sample_{k}", np.zeros((5, 9, 5)), columns=(1, 2, 3, 4, 5))
    (tmp_path / "test" / "notes").mkdir()
    assert len(list_samples(tmp_path)["test"]) == 2
    for file in (tmp_path / "test" / "sample_1").iterdir(): file.unlink()
    with pytest.raises(InputError, match="sample_1 holds no receiver.* as sample_2 does"): list_samples(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "Generated samples of a small size, in the challenge's layout, with their store."
    torch.set_num_threads(1)
    root = generate_samples(tmp_path_factory.mktemp("challenge") / "data", n_train=10, n_test=3, shape=CELLS,
        survey=SMALL, layers=(3, 6), workers=1)
    return convert(root, FAMILY, workers=0)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    "Two steps of a bridge."
    from fwi_i2sb import cli
    root = tmp_path_factory.mktemp("runs")
    cli.main(["train", "--result-dir", str(root), "--name", "speed", "--dataset-dir", str(folder), "--dataset-name",
        FAMILY, "--model", "tiny", "--batch-size", "4", "--num-itr", "2", "--save-every", "1", "--val-nfe", "1",
        "--val-maps", "0", "--log-writer", "none", "--device", "cpu", "--lr", "1e-3", "--best", "mae"])
    return root / "speed"


def original(root, name="sample_001", split="train", turned=False) -> Path:
    "A sample as the challenge wrote it, by numpy alone; every value tells where it is."
    sample = root / split / name
    sample.mkdir(parents=True)
    time, receiver = np.arange(10001)[:, None], np.arange(31)
    for number in (300, 1, 75, 225, 150):
        wave = np.sin(2 * np.pi * 15 * 1e-4 * (time - 100 * receiver))
        np.save(sample / f"receiver_data_src_{number}.npy", (number * wave / 1e4).astype(np.float32))
    x, depth = np.arange(300)[:, None], np.arange(1259)
    vp = 1.5 + depth / 1000 + x / 1000
    if split == "train": np.save(sample / "vp_model.npy", vp.T if turned else vp)
    return sample


def test_the_survey_is_the_challenges():
    survey = challenge_survey()
    assert survey.sources == ((0, 20), (74, 20), (149, 20), (224, 20), (299, 20))
    assert survey.receivers == tuple((10.0 * k, 10.0) for k in range(31)) and survey.margin == 1
    assert (survey.dx, survey.dt, survey.nt, survey.freq) == (1, 1e-4, 10001, 15)
    assert Survey.from_dict(json.loads(json.dumps(survey.to_dict()))) == survey
    assert "margin" not in OPENFWI.to_dict()  # and nothing changes for other data


def test_a_folder_is_read_as_it_is(tmp_path):
    sample = original(tmp_path)
    original(tmp_path, "sample_101", "test")
    gathers, velocity = read_gathers(sample), read_map(sample / "vp_model.npy")
    assert gathers.shape == (5, 10001, 31) and velocity.shape == (1, 1259, 300) and velocity.dtype == np.float32
    peaks = gathers.max((1, 2)) * 1e4
    np.testing.assert_allclose(peaks, (1, 75, 150, 225, 300), rtol=1e-3)  # by number, not by letters
    assert velocity[0, 700, 20] == np.float32(1000 * (1.5 + 0.7 + 0.02))
    assert challenge_facts(tmp_path)[0].difference(challenge_survey()) is None
    assert recognise(tmp_path) == recognise(sample) == "challenge"
    write_sample(tmp_path / "again", gathers, velocity)
    assert np.array_equal(read_map(tmp_path / "again/vp_model.npy"), velocity)  # what is kept is float32 of m/s
    np.testing.assert_allclose(np.load(tmp_path / "again/vp_model.npy"), np.load(sample / "vp_model.npy"), rtol=1e-7)
    name = "receiver_data_src_75.npy"
    assert (tmp_path / "again" / name).read_bytes() == (sample / name).read_bytes()


def test_a_map_turned_by_another_hand_shows(tmp_path, refused):
    original(tmp_path, turned=True), original(tmp_path, "sample_002")
    saying = "vp_model.npy has shape (1259, 300)", "(300, depth) is expected", "depth and x are exchanged"
    refused("check", tmp_path, saying=saying)
    refused("convert", tmp_path, saying=saying)
    assert not list(tmp_path.rglob("*.lmdb")) and not list(tmp_path.rglob("manifest.json"))


def test_the_check_names_what_is_wrong(tmp_path, folder):
    assert not inspect_folder(folder).problems
    vp = np.full((24, 40), 2.0)
    for k, v in enumerate((vp, 1000 * vp + np.arange(40), vp * np.nan)):
        write_sample(tmp_path / "train" / f"sample_{k}", np.ones((5, 301, 25)), np.ones((1, 40, 24)))
        np.save(tmp_path / "train" / f"sample_{k}" / "vp_model.npy", v)
    (tmp_path / "train/sample_0/receiver_data_src_12.npy").unlink()
    (tmp_path / "train/sample_2/receiver_data_src_1.npy").write_bytes(b"\x93NUMPY")
    found = "\n".join(inspect_folder(tmp_path).problems)
    assert "sample_0 has sources (1, 6, 18, 24)" in found and "is truncated" in found
    assert "a thousand times m/s" in found


def test_the_store_is_the_ordinary_one(folder):
    store = StoreDataset(folder, "val", family=FAMILY)
    source = store.manifest["sources"][0]["seismic"]
    velocity, seismic = store.physical(0)
    np.testing.assert_array_equal(velocity, read_map(folder / source / "vp_model.npy"))
    thin = decimate(torch.from_numpy(read_gathers(folder / source)), store.factor)
    torch.testing.assert_close(seismic, thin, atol=6e-8, rtol=1e-3)  # float16
    assert store.survey == SMALL and store.velocity.low == 1500 and "low-pass" in store.manifest["filter"]
    assert len(StoreDataset(folder, "train")) == 9 and len(store) == 1
    path = folder / source / "receiver_data_src_1.npy"
    os.utime(path); assert convert(folder, FAMILY, workers=0) == folder  # touched, with the same content
    d = np.load(path); np.save(path, 1.01 * d)
    with pytest.warns(UserWarning, match="changed since"): convert(folder, FAMILY, workers=0)
    assert not torch.equal(StoreDataset(folder, "val").physical(0)[1], seismic)
    np.save(path, d)
    assert torch.equal(StoreDataset(convert(folder, FAMILY, workers=0), "val").physical(0)[1], seismic)


def test_a_sample_every_4_ms_loses_less_than_half_a_per_cent():
    survey = challenge_survey()
    assert default_time_samples(survey) == 251 and default_time_samples(OPENFWI) == 250
    wave, trace = ricker(survey), torch.zeros(10001, 1, dtype=torch.float64)
    for begin, size in ((0, 1.0), (2500, -0.3), (5031, 0.1), (8200, 0.05)):
        trace[begin:begin + len(wave), 0] += size * wave
    thin = decimate(trace, 40)[:, 0]
    assert thin.shape == (251,)
    spectrum = torch.fft.rfft(torch.cat([thin, thin.flip(0)[1:-1]]))  # back to 0.1 ms, without a filter of ours
    fine = torch.fft.irfft(F.pad(spectrum, (0, 10000 - 250)), 20000)[:10001] * 40
    assert (fine - trace[:, 0]).norm() / trace.norm() < 5e-3


def test_memory_does_not_grow_with_the_number_of_samples(monkeypatch):
    sizes = []
    monkeypatch.setattr(prepare, "DataLoader", lambda records, size, **_: sizes.append(size) or [])
    monkeypatch.setattr(prepare, "read_ahead", lambda loader: loader)
    for value in (200_000, 1_600_000, 10**8):
        records = type("Records", (), dict(bytes=value, place=range(10_000)))()
        list(prepare.prepared_batches(records, 0, 0))
    assert sizes[0] == 64 and all(size * value < 2**25 or size == 1 for size, value in zip(sizes, (2e5, 1.6e6, 1e8)))


def test_a_margin_continues_the_map(refused, tmp_path):
    survey = replace(SMALL, nt=60)
    velocity = torch.full((1, 1, *CELLS), 2000.0)
    velocity[..., 12:, :] = 3000
    velocity[..., -1] += 200
    wider = F.pad(velocity, (0, 1, 0, 0), mode="replicate")
    for engine in ("deepwave", "openfwi"):
        torch.testing.assert_close(simulate(velocity, survey, engine=engine),
            simulate(wider, replace(survey, margin=0.0), engine=engine))
    with pytest.raises(InputError, match="x=240 m.*outside the map"): simulate(velocity, replace(survey, margin=0.0))
    with pytest.raises(InputError, match="whole cells"): replace(survey, margin=3.0)
    assert coarse_step(SMALL, 1500) == 1 and coarse_step(challenge_survey(), 1500) == 5
    error = simulate_coarse(velocity, survey, 1) - simulate(velocity, survey)
    assert error.norm() < 0.05 * simulate(velocity, survey).norm()


def test_generating_refuses_and_continues(folder, tmp_path, refused):
    words = "generate", tmp_path / "new", "--layout", FAMILY, "--shape", *CELLS, "--survey", tmp_path / "small.json"
    (tmp_path / "small.json").write_text(json.dumps(SMALL.to_dict()))
    refused(*words, "--val", 3, saying=("--val has no effect with --layout speed-structure",))
    refused(*words, "--shape", 40, 25, saying=("named after the columns of the sources",))
    refused("generate", folder, *words[2:], "--seed", 5, saying=("was generated with",))
    refused("generate", tmp_path, *words[2:], saying=("was not made by generate",))
    refused("generate", tmp_path / "new", "--train", 1, saying=("--family is needed",))
    refused("generate", tmp_path / "new", "--family", "CurveVel_A", "--test", 1, saying=("--test has no effect",))
    assert not (tmp_path / "new").exists()


def command(*words) -> list[str]:
    return [sys.executable, "-m", "fwi_i2sb", *map(str, words)]


def test_four_commands_and_a_kill(folder, run, tmp_path, fwi, refused):
    words = "submit", run, folder / "test", "--nfe", 2, "--samples", 2, "--device", "cpu"
    told = fwi(*words, "-o", tmp_path / "whole.npz")
    assert told.code == 0 and all(f"{stage} 3/3" in told.err for stage in ("digest", "submit", "write", "check"))
    env = os.environ | dict(OMP_NUM_THREADS="1")
    killed = subprocess.Popen(command(*words, "-o", tmp_path / "killed.npz"), env=env, stderr=subprocess.DEVNULL)
    parts = tmp_path / "killed.npz.parts"
    while not list(parts.glob("sample*.npy")) and killed.poll() is None: time.sleep(0.005)
    killed.send_signal(signal.SIGKILL); killed.wait()
    if killed.returncode:  # a fast machine may have finished
        assert not (tmp_path / "killed.npz").exists()
        first = sorted(parts.glob("sample*.npy"))[0]
        first.write_bytes(first.read_bytes()[:-9])  # what a power cut may leave is made again
        refused(*words, "--seed", 1, "-o", tmp_path / "killed.npz", saying=("other seed (0, now 1)",))
        assert fwi(*words, "-o", tmp_path / "killed.npz").code == 0
    assert (tmp_path / "killed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes() and not parts.exists()
    told = fwi("submission-check", tmp_path / "whole.npz", "--test-dir", folder, "--truth", folder / "test_truth")
    truth = {p.parent.name: np.load(p) for p in (folder / "test_truth").glob("*/vp_model.npy")}
    with np.load(tmp_path / "whole.npz", allow_pickle=False) as maps:
        assert sorted(maps) == sorted(truth)
        assert all(v.shape == CELLS[::-1] and v.dtype == np.float64 for v in maps.values())
        score = np.mean([np.mean(np.abs(truth[n] - maps[n]) / (np.abs(truth[n]) + 1e-8)) for n in truth])
    assert abs(score_submission(tmp_path / "whole.npz", folder / "test_truth")[0] - score) < 1e-12
    assert told.code == 0 and f"MAPE {score:.6f}" in told.out and "score 3/3" in told.err
    refused(*words, "-o", tmp_path / "whole.npz", saying=("is there already",))
    refused("submission-check", tmp_path / "whole.npz", saying=("it holds 3 maps, not 150",))


@pytest.mark.parametrize("ended", ["check_submission", "print"])
def test_a_submission_that_was_ended_when_its_file_was_there_is_finished(folder, run, tmp_path, fwi, refused,
        monkeypatch, ended):
    words = "submit", run, folder, "--nfe", 1, "--samples", 1, "--device", "cpu", "-o", tmp_path / "s.npz"
    def interrupted(*given, **named): raise KeyboardInterrupt
    with monkeypatch.context() as change:
        change.setattr(submit_module, ended, interrupted, raising=False)
        assert fwi(*words).code == 128 + signal.SIGINT
    begun, parts = (tmp_path / "s.npz").read_bytes(), tmp_path / "s.npz.parts"
    if ended == "print":  # and killed when half of the finished maps were removed
        parts.mkdir()
        np.save(parts / f"{sorted((folder / 'test').iterdir())[0].name}.npy", np.ones((1, *CELLS), np.float32))
    else: refused(*words, "--seed", 1, saying=("other seed (0, now 1)",))
    assert fwi(*words).code == 0 and not parts.exists()
    assert (tmp_path / "s.npz").read_bytes() == begun


def test_a_submission_depends_on_no_other_sample(folder, run, tmp_path, fwi):
    words = "submit", run, "--nfe", 2, "--samples", 1, "--device", "cpu"
    (tmp_path / "one").mkdir()
    sample = sorted((folder / "test").iterdir())[-1]
    (tmp_path / "one" / sample.name).symlink_to(sample)
    (tmp_path / "speed_structure.json").write_bytes((folder / "speed_structure.json").read_bytes())
    for place, out in ((tmp_path / "one", "one.npz"), (folder, "all.npz")):
        assert fwi(*words[:2], place, *words[2:], "-o", tmp_path / out).code == 0
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "all.npz") as all_:
        np.testing.assert_array_equal(one[sample.name], all_[sample.name])


def test_checkpoints_names_and_post_processing(folder, run, tmp_path, fwi, refused):
    words = "submit", run, folder, "--nfe", 1, "--samples", 1, "--device", "cpu", "-o", tmp_path / "s.npz"
    told = fwi(*words, "--checkpoint", "step-1", "--stamp", "epoch", "--post-process", "--bounds", 2000, 2500,
        "--sigma", 1, "--truth", folder / "test_truth", "--count", 3)
    assert told.code == 0 and "MAPE after post-processing" in told.out and "score 3/3" in told.err
    with np.load(tmp_path / "s-epoch-0.npz") as maps:
        assert all(2 <= v.min() and v.max() <= 2.5 + 1e-6 for v in maps.values())
    assert json.loads((tmp_path / "s-epoch-0.json").read_text())["step"] == 1
    assert fwi(*words, "--checkpoint", "best", "--stamp", "step").code == 0
    assert (tmp_path / "s-step-2.npz").exists()  # validated at the end alone
    asked_twice = (*words[:-1], tmp_path / "t.npz", "--tta", "noise:0.1:1")
    assert fwi(*asked_twice).code == 0
    with np.load(tmp_path / "t.npz") as changed, np.load(tmp_path / "s-step-2.npz") as plain:
        assert all(0 < np.abs(changed[name] - plain[name]).max() < 3 for name in plain)
    for more, saying in ((("--checkpoint", "best-ever"), "unknown checkpoint"),
            (("--tta", "nois"), "did you mean 'noise'"),
            (("--count", 4), "holds 3 samples, not 4"),
            (("--bounds", 1, 2), "--bounds has no effect without --post-process"),
            (("--post-process", "--bounds", 3000, 2000), "the smaller first"),
            (("--truth", folder / "train"), "has no true map of")): refused(*words, *more, saying=(saying,))
    assert not (tmp_path / "s.npz.parts").exists() and not (tmp_path / "s.npz").exists()
    refused("submit", run, tmp_path, saying=("and one of the Speed & Structure challenge is wanted",))


@pytest.mark.parametrize("change, saying", [
    (lambda m: {k: v.T for k, v in m.items()}, "depth and x are exchanged"),
    (lambda m: {k: v.astype(np.float32) for k, v in m.items()}, "float32, not float64"),
    (lambda m: {k: np.where(v == v.max(), np.nan, v) for k, v in m.items()}, "NaN or infinite"),
    (lambda m: {k + "x": v for k, v in m.items()}, "lacks 'a'"),
    (lambda m: dict(list(m.items())[1:]), "holds 1 maps, not 2"),
    (lambda m: {k: 1000 * v for k, v in m.items()}, "not in km/s"),
    (lambda m: m | dict(b=np.where(m["b"] == m["b"].min(), 5000, m["b"])), "b holds 5000, which is not in km/s"),
    (lambda m: m | dict(a=np.array([[None] * 5] * 4)), "is no array of numbers")])
def test_a_wrong_submission_is_refused(change, saying, tmp_path, refused):
    right = {name: 1.5 + np.random.default_rng(0).random((4, 5)) for name in "ab"}
    np.savez(tmp_path / "truth.npz", **right)
    np.savez(tmp_path / "wrong.npz", **change(right))
    refused("submission-check", tmp_path / "wrong.npz", "--truth", tmp_path / "truth.npz", saying=(saying,))


def test_a_damaged_submission_is_refused(tmp_path, refused):
    path = tmp_path / "bits.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).random((4, 5)) + 2)
    bits = path.read_bytes()
    for place in range(70, 180, 9):
        path.write_bytes(bits[:place] + bytes(255 - bit for bit in bits[place:place + 7]) + bits[place + 7:])
        refused("submission-check", path, "--count", 1, "--shape", 4, 5, saying=("bits.npz",))


@pytest.mark.parametrize("damage, saying", [
    (lambda file: np.save(file, np.load(file) * np.nan), "not finite"), (lambda file: file.unlink(), "has shape (4, "),
    (lambda file: (file.unlink(), os.mkfifo(file)), "is a pipe"),
    (lambda file: shutil.rmtree(file.parents[1]), "train/"), (lambda file: os.truncate(file, 200), "truncated")],
    ids=["nan", "lost", "pipe", "none", "cut"])
def test_a_test_folder_that_cannot_be_inverted_leaves_nothing(folder, run, tmp_path, refused, damage, saying):
    shutil.copytree(folder, root := tmp_path / "data", ignore=shutil.ignore_patterns("database.lmdb"))
    damage(next(iter(sorted(root.glob("test/*/receiver_data_src_1.npy")))))
    refused("submit", run, root, "--nfe", 1, "--samples", 1, "--device", "cpu", "-o", tmp_path / "s.npz",
        saying=(saying,))
    refused("submit", run, root, "-o", tmp_path / "s.npy", saying=("-o must name a .npz file",))
    refused("submit", run, root, "--checkpoint", "", saying=("unknown checkpoint ''",))
    assert {p.name for p in tmp_path.iterdir()} == {"data"}


def test_two_maps_of_one_name_are_refused_and_150_are_expected(tmp_path, refused):
    right = np.full((4, 5), 2.0)
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as file, pytest.warns(UserWarning, match="Duplicate name"):
        for v in (np.nan * right, right):
            with file.open("a.npy", "w") as member: np.lib.format.write_array(member, v)
    np.savez(tmp_path / "truth.npz", a=right)
    refused("submission-check", tmp_path / "twice.npz", "--truth", tmp_path / "truth.npz", saying=("'a' twice",))
    with pytest.raises(InputError, match="'a' twice"): score_submission(tmp_path / "truth.npz", tmp_path / "twice.npz")
    assert check_submission(tmp_path / "truth.npz", None, (4, 5)) == ["it holds 1 maps, not 150"]


def test_two_processes_a_kill_and_restarts_in_epochs(folder, tmp_path, fwi, refused):
    words = lambda name, *more: ["--result-dir", str(tmp_path), "--dataset-dir", str(folder), "--dataset-name", FAMILY,
        "--name", name, *QUICK, "--num-itr", "4", "--save-every", "1", "--lr-schedule", "cosine_restarts",
        "--lr-restart-epochs", "1", "--warmup-epochs", "1", "--augment", CHANGES, *map(str, more)]
    assert fwi("train", *words("alone")).code == 0
    finish(python_train(*words("both", "--proc-per-node", 2, "--master-port", free_port())))
    np.testing.assert_allclose(losses(tmp_path / "both"), losses(tmp_path / "alone"), rtol=1e-5)
    finish(python_train(*words("killed"), interrupted=(3, signal.SIGKILL)), -signal.SIGKILL)
    assert len(list((tmp_path / "killed/checkpoints").glob("step-*"))) == 2
    assert fwi("train", *words("killed")).code == 0
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "alone"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "alone")
    rates = [row["lr"] for row in read_metrics(tmp_path / "killed") if "lr" in row]
    np.testing.assert_allclose(rates, [5e-4, 5e-4, 1e-3, 5e-4])  # 9 records in batches of 4: two steps
    optim = read_config(tmp_path / "killed")[0].optim
    assert (optim.lr_restart, optim.lr_restart_epochs, optim.warmup, optim.warmup_epochs) == (2, None, 2, None)
    refused("train", *words("no", "--simulate", "all"), saying=("no meaning with --simulate",))
    for more in (("--lr-restart", 5), ("--warmup", 5)):
        refused("train", *words("no", *more), saying=(more[0], "give one of them"))
    assert not (tmp_path / "no").exists()


def test_folds_have_slow_and_fast_maps_alike(folder, tmp_path, fwi, refused, forked_trainings):
    data = ("--dataset-dir", folder, "--dataset-name", FAMILY)
    words = lambda *more: [*map(str, ("--result-dir", tmp_path, *data, "--name", "cv", *QUICK, "--num-itr", 1,
        "--lr-schedule", "cosine_restarts", "--lr-restart-epochs", 2, *more))]
    said = fwi("kfold", *words("--folds", 3, "--fold-by", "velocity"))
    assert said.code == 0, said.err
    rows = list(csv.DictReader((tmp_path / "cv/folds.csv").open()))
    means = {row["file"]: read_map(folder / "train" / row["file"] / "vp_model.npy").mean() for row in rows}
    np.testing.assert_allclose([float(row["velocity"]) for row in rows], list(means.values()), atol=0.06)
    slow_first = sorted(rows, key=lambda row: means[row["file"]])
    for k in (0, 3, 6): assert {row["fold"] for row in slow_first[k:k + 3]} == {"1", "2", "3"}
    for k in (1, 2, 3):
        options, _ = read_config(tmp_path / f"cv/fold-{k}")
        train, val = open_store(options)
        assert val.numbers[0].tolist() == [i for i, row in enumerate(rows) if row["fold"] == str(k)]
        assert not np.intersect1d(train.numbers[0], val.numbers[0]).size and len(train) == 6
        assert options.optim.lr_restart == 3  # twice six records in batches of four
    refused("train", *words("--fold-by", "velocity"), saying=("--fold-by has no effect without folds",))
    refused("kfold", *words("--folds", 3, "--fold-bins", 2), saying=("--fold-bins has no effect",))
    refused("train", *words("--name", "fold-1", "--result-dir", tmp_path / "cv", "--fold", "1/3"),
        saying=("--fold-by (velocity, now size)",))
    refused("kfold", *words("--folds", 10, "--fold-by", "velocity"), saying=("10 folds need 10 source files",))


PEAK = """import re, sys
from pathlib import Path
from fwi_i2sb import cli
cli.main(["convert", "data"])
cli.main(["train", *sys.argv[1:]])
cli.main(["submit", "runs/full", "data/test", "--device", "cpu"])
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])"""


def test_the_challenges_own_size_stays_below_three_gigabytes(tmp_path):
    gathers = np.sin(0.01 * (np.arange(10001.0)[:, None] - 50 * np.arange(31))) * np.ones((5, 1, 1))
    velocity = np.linspace(1500, 4400, 1259)[None, :, None].repeat(300, 2)
    for name in ("train/a", "train/b", "train/c", "test/d"):
        write_sample(tmp_path / "data" / name, gathers, None if name == "test/d" else velocity, source_columns(300))
    done = run_python([sys.executable, "-c", PEAK, "--result-dir", "runs", "--name", "full", "--dataset-dir", "data",
        "--dataset-name", FAMILY, "--preset", "speed-structure", "--batch-size", "2", "--num-itr", "2", "--log-writer",
        "none", "--device", "cpu", "--val-maps", "0"], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"peak (\d+)", done.stdout)[1]) * 1024 < 3e9
    assert check_submission(tmp_path / "submission.npz", ["d"], (300, 1259)) == []


def app(name, monkeypatch, **environment):
    "The module of the cloud app, with settings."
    for key, value in environment.items(): monkeypatch.setenv(f"FWI_MODAL_{key.upper()}", str(value))
    spec = importlib.util.spec_from_file_location(name, APP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cloud_app_runs_here(folder, tmp_path, monkeypatch):
    pytest.importorskip("modal")
    for name in ("train", "val", "test"): (tmp_path / "vol" / name).parent.mkdir(exist_ok=True)
    for name in ("train", "val", "test", "speed_structure.json"): (tmp_path / "vol" / name).symlink_to(folder / name)
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))  # no credentials
    cloud = app("modal_here", monkeypatch, mount=tmp_path / "vol", gpu="T4", volume="other", timeout=600)
    assert "[track,signal,modal]" in APP.read_text()  # --augment band-pass needs signal
    assert cloud.settings.gpu == "T4" and cloud.app.name == "fwi-i2sb" and cloud.settings.volume == "other"
    assert cloud.analyse.local() == str(tmp_path / "vol")
    options = "--name a --model tiny --batch-size 4 --num-itr 1 --val-nfe 1 --val-maps 0 --log-writer none --device cpu"
    assert Path(cloud.train.local(options)) == tmp_path / "vol/runs/a" == Path(cloud.resume.local("a"))
    out = Path(cloud.submit.local("a", "--nfe 1 --samples 1 --device cpu"))
    cloud.save(cloud.pieces.local("submissions/a.npz"), str(tmp_path / "fetched.npz"))
    assert (tmp_path / "fetched.npz").read_bytes() == out.read_bytes()
    with pytest.raises(InputError, match="leads out of the volume"): list(cloud.fetch_here("../secret"))
    with pytest.raises(InputError, match="is there already"): cloud.save(iter(()), str(tmp_path / "fetched.npz"))
    with pytest.raises(InputError, match="FWI_MODAL_TIMEOUT"): app("modal_wrong", monkeypatch, timeout=5)


def test_the_cloud_app_says_what_it_lacks(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "modal" else found(name))
    with pytest.warns(UserWarning, match=r"modal is not installed.*fwi_i2sb\[modal\]"):
        alone = app("modal_alone", monkeypatch)
    assert alone.app is None and set(alone.HERE) == {"analyse", "train", "resume", "submit", "fetch"}
