"Training as a process: interrupted, continued, refused, and split over ranks."
import shutil
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
from processes import (MPIRUN, arguments, assert_equal, finish, free_port, losses, pristine, python_train,
    weights)

from fwi_i2sb import plot, train as train_module
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.training import journal
from fwi_i2sb.training.checkpoint import checkpoints, newest_checkpoint, read_checkpoint
from fwi_i2sb.training.run_dir import read_config, read_metrics


def test_a_run_directory_holds_what_it_promises(eight):
    options, spec = read_config(eight)
    assert options.optim.num_itr == 8 and spec.family == "CurveVel_A" and spec.map_size == (70, 70)
    assert [p.name for p in checkpoints(eight)] == ["step-8", "step-6"]  # --keep 2
    rows = read_metrics(eight)
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 9))
    assert {r["step"] for r in rows if "val_mae" in r} == {4, 8}
    assert (eight / "samples" / "step-8.png").stat().st_size > 10_000
    assert sorted(p.name for p in (eight / "samples").iterdir()) == ["step-4.npz", "step-8.npz", "step-8.png"]
    with np.load(eight / "samples" / "step-4.npz", allow_pickle=False) as maps:
        assert {name: part.shape for name, part in maps.items()} == dict.fromkeys(("truth", "start", "bridge"),
            (2, 1, 70, 70)) and 1500 <= maps["truth"].min() < maps["truth"].max() <= 4500


def test_the_validation_figure_shows_so_many_records_or_is_not_drawn(fwi, data, four, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plot, "plot_maps", lambda maps, real=plot.plot_maps, **how: (
        shown.append({len(stack) for stack in maps.values()}), real(maps, **how))[1])
    assert fwi("train", *arguments(data, tmp_path, "two", "--num-itr", 1, "--val-maps", 2)).code == 0
    assert shown == [{2}] and (tmp_path / "two" / "samples" / "step-1.png").is_file()
    assert read_config(four)[0].log.val_maps == 0 and not (four / "samples").exists()


def test_the_time_that_is_left_is_told_once_and_days_with_advice(fwi, data, tmp_path, monkeypatch):
    clock = [0.0]
    def slow(*given, real=train_module.train_step):
        clock[0] += 30 * 3600
        return real(*given)
    monkeypatch.setattr(train_module, "train_step", slow)
    monkeypatch.setattr(journal, "time", SimpleNamespace(**vars(time) | dict(monotonic=lambda: clock[0])))
    monkeypatch.setattr(journal, "PACE", 1)
    for steps, told in ((4, "3 d 18 h for the next 3 steps at the pace of the first 1: --preset small or medium"),
            (7, "2 d 12 h for the next 2 steps at the pace of the first 1"), (8, None)):
        done = fwi("train", *arguments(data, tmp_path, "slow", "--num-itr", steps))
        lines = [line for line in done.err.splitlines() if "at the pace of" in line]
        assert done.code == 0 and [line.partition(" sets")[0] for line in lines] == [f"train: {told}"] * bool(told)


def test_tensorboard_gets_scalars_and_figures(mini):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [folder] = {p.parent for p in (mini / "logs").rglob("events.out.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert {"loss", "lr", "val_mae"} <= set(events.Tags()["scalars"]) and "validation" in events.Tags()["images"]
    assert [e.step for e in events.Scalars("loss")] == [r["step"] for r in read_metrics(mini) if "loss" in r]


def test_killed_at_any_moment_the_same_command_ends_in_the_same_weights(data, eight, tmp_path):
    words = arguments(data, tmp_path, "killed", "--num-itr", "8", "--save-every", "2", "--val-every", "4")
    finish(python_train(*words, interrupted=(5, signal.SIGKILL)), -signal.SIGKILL)
    assert checkpoints(tmp_path / "killed")[0].name == "step-4"
    finish(python_train(*words))
    assert_equal(weights(tmp_path / "killed"), weights(eight))
    assert losses(tmp_path / "killed") == losses(eight)


def test_a_signal_saves_and_the_command_continues(data, eight, tmp_path):
    words = arguments(data, tmp_path, "stopped", "--num-itr", "8", "--save-every", "100", "--val-every", "4")
    finish(python_train(*words, interrupted=(3, signal.SIGTERM)), 128 + signal.SIGTERM)
    assert [path.name for path in checkpoints(tmp_path / "stopped")] == ["step-4"]
    finish(python_train(*words))
    assert_equal(weights(tmp_path / "stopped"), weights(eight))


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(data, eight, tmp_path):
    pristine(eight, tmp_path / "eight")
    ema = tmp_path / "eight" / "checkpoints" / "step-8" / "ema.safetensors"
    ema.write_bytes(ema.read_bytes()[:-100])
    err = finish(python_train(*arguments(data, tmp_path, "eight", "--num-itr", "8", "--save-every", "2",
        "--val-every", "4")))
    assert "step-8 is damaged" in err and "trying the previous one" in err
    assert_equal(weights(tmp_path / "eight"), weights(eight))
    assert [p.name for p in checkpoints(tmp_path / "eight")] == ["step-8", "step-6"]


@pytest.mark.parametrize("old, new", [('"step": 8', '"step": 9'), ('"skipped": 0', '"skipped": 1'),
    ('"skipped"', '"skippee"'), ('"checksum"', '"checkrum"'), ('"step": 8', '"step": 1e30'), ("{", "[")])
def test_a_changed_state_falls_back_one_checkpoint(eight, tmp_path, old, new):
    pristine(eight, tmp_path / "eight")
    state = tmp_path / "eight" / "checkpoints" / "step-8" / "state.json"
    assert old in (text := state.read_text()); state.write_text(text.replace(old, new, 1))
    with pytest.warns(UserWarning, match="step-8 is damaged.*; trying the previous one"):
        assert newest_checkpoint(tmp_path / "eight").step == 6


def test_a_checkpoint_under_another_step_is_damaged(eight, tmp_path):
    pristine(eight / "checkpoints" / "step-8", tmp_path / "step-10")
    with pytest.raises(InputError, match="its state is of step 8"): read_checkpoint(tmp_path / "step-10")


def test_a_run_without_a_sound_checkpoint_is_not_started_again(refused, data, eight, tmp_path):
    pristine(eight, tmp_path / "eight")
    for state in (tmp_path / "eight" / "checkpoints").glob("*/state.json"): state.write_text("{}")
    rows = read_metrics(tmp_path / "eight")
    refused("train", *arguments(data, tmp_path, "eight", "--num-itr", "8", "--save-every", "2", "--val-every", "4"),
        saying=("no valid checkpoint",))
    assert read_metrics(tmp_path / "eight") == rows


@pytest.mark.parametrize("left", [("checkpoints",), ("metrics.jsonl",), ("checkpoints", "metrics.jsonl")], ids="+".join)
def test_a_run_that_has_lost_its_options_is_not_continued_with_others(fwi, refused, data, four, tmp_path, left):
    run = pristine(four, tmp_path / "four")
    for path in [*run.iterdir()]:
        if path.name not in left: shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    words = arguments(data, tmp_path, "four", "--num-itr", 4, "--seed", 7)
    refused("train", *words, saying=("four has lost its config.json", "--name"))
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert fwi("train", *words, "--fresh").code == 0  # keeps what was there
    assert sorted(path.name for path in (tmp_path / "four-archived-1").iterdir()) == sorted(left)


def test_another_configuration_under_the_same_name_is_refused(refused, data, eight, tmp_path):
    run = pristine(eight, tmp_path / "eight")
    before = sorted(p.stat().st_mtime_ns for p in run.rglob("*"))
    refused("train", *arguments(data, tmp_path, "eight", "--num-itr", "8", "--drop-cond", "0.5"),
        saying=("--drop-cond", "0.25", "0.5"))
    assert before == sorted(p.stat().st_mtime_ns for p in run.rglob("*"))


def test_who_may_read_a_run_may_read_its_weights(eight):
    assert len({path.stat().st_mode & 0o777
        for path in [eight / "config.json", *checkpoints(eight)[0].iterdir()]}) == 1


def test_fine_tuning_starts_from_the_given_weights(fwi, refused, data, eight, tmp_path):
    words = arguments(data, tmp_path, "tuned", "--num-itr", "1", "--lr", "0", "--weight-decay", "0",
        "--fine-tune", eight)
    assert fwi("train", *words).code == 0
    tuned = weights(tmp_path / "tuned")
    assert_equal({"weights": tuned["weights"]}, {"weights": weights(eight)["ema"]})
    refused("train", *arguments(data, tmp_path / "runs", "other", "--model", "unet_ch16", "--fine-tune", eight),
        saying=("another network",))
    assert not (tmp_path / "runs").exists()


def test_a_run_goes_back_and_what_it_had_beyond_is_set_aside(fwi, data, eight, tmp_path, monkeypatch):
    pristine(eight, tmp_path / "eight")
    before, rows, run = weights(eight), read_metrics(eight), tmp_path / "eight"
    words = arguments(data, tmp_path, "eight", "--num-itr", "8", "--save-every", "2", "--val-every", "4")
    monkeypatch.chdir(tmp_path)
    said = finish(python_train(*words, "--ckpt", "checkpoints/step-6", "--log-every", "2"))
    aside = run / "set-aside" / "after-step-6"
    assert "continues from step 6" in said and str(aside.relative_to(tmp_path)) in said
    assert [path.name for path in checkpoints(aside)] == ["step-8"] and (aside / "samples" / "step-8.png").is_file()
    assert (aside / "samples" / "step-8.npz").is_file() and (run / "samples" / "step-4.npz").is_file()
    assert read_metrics(aside) == [row for row in rows if row["step"] > 6]
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == [1, 2, 3, 4, 5, 6, 8]
    assert_equal(weights(run), before)
    again = fwi("train", *words, "--ckpt", run / "checkpoints" / "step-6")  # as a queue would
    assert again.code == 0 and "finished at step 8" in again.err and len(list(aside.parent.iterdir())) == 1


@pytest.mark.parametrize("place", ["eight", "eight/checkpoints/step-6", "RESULT_DIR/eight/checkpoints/step-6"])
def test_another_run_is_continued_from_any_place_its_path_may_start_from(fwi, refused, data, eight, tmp_path, place):
    place = place.replace("RESULT_DIR", str(eight.parent))
    pristine(eight, tmp_path / "eight")
    words = arguments(data, tmp_path, "on", "--num-itr", "10", "--val-every", "100", "--ckpt", place)
    assert fwi("train", *words).code == 0
    steps = [row["step"] for row in read_metrics(tmp_path / "on") if "loss" in row]
    assert steps == [*range(9 if place == "eight" else 7, 11)]
    if place != "eight": return
    refused("train", *words, "--ckpt", "eight/checkpoints/step-6", saying=("one of another run", "another --name"))
    refused("train", *words, "--ckpt", "nowhere", saying=("--ckpt nowhere is neither a run nor a checkpoint",))
    refused("train", *words, "--fine-tune", "eight", saying=("--ckpt continues", "give one of them"))
    new = arguments(data, tmp_path, "new", "--num-itr", "8", "--ckpt", "eight")
    refused("train", *new, saying=("is of step 8: --num-itr must be more",))
    refused("train", *new, "--num-itr", "9", "--model", "unet_ch16", saying=("another network",))
    assert not (tmp_path / "new").exists()


def test_microbatches_add_up_to_the_whole_batch(fwi, data, eight, tmp_path):
    assert fwi("train", *arguments(data, tmp_path, "micro", "--num-itr", "3", "--microbatch", "4")).code == 0
    np.testing.assert_allclose(losses(tmp_path / "micro"), losses(eight)[:3], rtol=1e-5)


def test_microbatches_and_ranks_give_the_gradient_of_the_whole_batch(fwi, data, tmp_path):
    for name, micro in (("whole", "4"), ("parts", "1")):
        assert fwi("train", *arguments(data, tmp_path, name, "--num-itr", "1", "--microbatch", micro)).code == 0
    launcher = [*MPIRUN, "-np", "2"]
    finish(python_train(*arguments(data, tmp_path, "ranks", "--num-itr", "1", "--master-port", free_port()),
        launcher=launcher))
    whole, *others = (weights(tmp_path / name)["optimizer"] for name in ("whole", "parts", "ranks"))
    moments = [k for k in whole if k.endswith("exp_avg")]  # after one step a tenth of the gradient
    scale = max(np.abs(whole[k]).max() for k in moments)
    for other in others:
        # one thread adds 39200 cells of a bias in float32: 3e-4 were seen
        for k in moments: np.testing.assert_allclose(other[k], whole[k], rtol=1e-3, atol=1e-6 * scale)


@pytest.mark.parametrize("corrupt, extra", [
    ("linear", ["--no-pred-x0"]), ("linear", ["--no-conditional"]),
    ("blur-openfwi_custom:0.5,linear:0.5", ["--ot-ode", "--clip-denoise"]),
    ("blur-openfwi_custom:0.5,linear:0.5", ["--no-conditional"]),
    ("blur-openfwi_benchmark", ["--no-pred-x0"]), ("file:MAP", ["--ot-ode", "--clip-denoise"])])
def test_every_kind_of_start_and_bridge_trains(fwi, data, tmp_path, corrupt, extra):
    np.save(tmp_path / "map.npy", np.full((70, 70), 2500, np.float32))
    corrupt = corrupt.replace("MAP", str(tmp_path / "map.npy"))
    assert fwi("train", *arguments(data, tmp_path, "kind", "--num-itr", "1", "--corrupt", corrupt, *extra)).code == 0
    assert fwi("invert", tmp_path / "kind", "--records", "1", "--samples", "1", "--nfe", "1").code == 0
    assert np.isfinite(read_metrics(tmp_path / "kind")[0]["loss"])
