"Optimisers, learning rates, averages, judging, fresh starts and configuration files, as trainings use them."
import csv
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from processes import arguments, assert_equal, finish, python_train, weights
from safetensors.numpy import load_file

from fwi_i2sb.core.commands import options_to_dict
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.training.checkpoint import checkpoints, read_checkpoint
from fwi_i2sb.training.optimisers import build_optimizer, OPTIMIZERS
from fwi_i2sb.training.options import OptimOptions
from fwi_i2sb.training.run_dir import read_config, read_metrics
from fwi_i2sb.training.schedules import learning_rate, SCHEDULERS

pytestmark = pytest.mark.usefixtures("one_thread")
TWO = ("--num-proc-node", 1, "--node-rank", 0, "--proc-per-node", 2)


def rates(run): return [row["lr"] for row in read_metrics(run) if "lr" in row]


def history(run): return list(csv.DictReader((run / "history.csv").open()))


def test_all_that_the_seed_has_is_there():
    assert set(OPTIMIZERS) == {"adamw", "adam", "sgd", "nadam", "radam", "rmsprop"}
    assert set(SCHEDULERS) == {"plateau", "cosine", "cosine_restarts", "onecycle", "step", "multistep", "exponential",
        "linear_warmup"}


def test_the_default_is_what_it_was():
    torch.manual_seed(0)
    nets = [torch.nn.Linear(4, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optim = OptimOptions(lr=1e-3, lr_step=2, lr_gamma=0.5, warmup=3)
    ours = build_optimizer(nets[0], optim)
    plain = torch.optim.AdamW(nets[1].parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    for step in range(6):
        before = 1e-3 * min(1.0, (step + 1) / 3) * 0.5 ** (step // 2)  # as released before
        assert learning_rate(optim, step) == before
        for net, optimizer in zip(nets, (ours, plain)):
            optimizer.param_groups[0]["lr"] = before
            net(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(nets[0].weight, nets[1].weight) and torch.equal(nets[0].bias, nets[1].bias)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_continues_bit_for_bit(name, trained):
    words = ("--optimizer", name, "--lr", 1e-4, "--scheduler", "exponential", "--lr-step", 3, "--save-every", 1)
    whole = trained("whole", "--num-itr", 2, *words)
    trained("halves", "--num-itr", 1, *words)
    halves = trained("halves", "--num-itr", 2, *words)
    assert_equal(weights(whole), weights(halves))
    assert rates(whole) == rates(halves)
    np.testing.assert_allclose(rates(whole), [1e-4 * 0.99 ** (k / 3) for k in range(2)], rtol=1e-12)


def test_two_ranks_have_the_learning_rates_of_torchs_table_and_stop_together(data, tmp_path):
    words = ("--num-itr", 30, "--scheduler", "plateau", "--lr-patience", 0, "--lr-factor", 0.5, "--warmup", 2,
        "--val-every", 1, "--best", "rmse_norm", "--patience", 4, "--lr", 0.05, "--optimizer", "sgd", "--save-every", 9)
    began = time.monotonic()
    finish(python_train(*arguments(data, tmp_path, "two", *words, *TWO, "--master-port", 6139)))
    assert time.monotonic() - began < 60
    judged = [row["val_rmse_norm"] for row in read_metrics(tmp_path / "two") if "val_rmse_norm" in row]
    assert len(judged) == int(np.nanargmin(judged)) + 5 <= 30  # four more than the best, on both ranks
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    scheduler, table = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5), []
    for k, value in enumerate(judged):
        table.append(optimizer.param_groups[0]["lr"] * min(1, (k + 1) / 2))
        optimizer.step()
        scheduler.step(value)
    np.testing.assert_allclose(rates(tmp_path / "two"), table, rtol=1e-12)


def test_a_plateau_is_remembered_by_the_checkpoint(trained, refused, data, tmp_path):
    words = ("--scheduler", "plateau", "--lr-patience", 0, "--lr-factor", 0.5, "--val-every", 1, "--lr", 0.05,
        "--best", "ssim", "--save-every", 3)
    whole = trained("whole", "--num-itr", 6, *words)
    trained("halves", "--num-itr", 3, *words)
    halves = trained("halves", "--num-itr", 6, *words)
    assert rates(whole) == rates(halves) and len(set(rates(whole))) > 1
    seen = read_checkpoint(checkpoints(whole)[0]).state["validations"]
    assert [-value for _, value in seen] == [row["val_ssim"] for row in read_metrics(whole) if "val_ssim" in row]
    refused("train", *arguments(data, tmp_path, "halves", "--num-itr", 8, *words, "--val-every", 2),
        saying=("--val-every",))


def test_averages_from_a_step_on_are_the_mean_of_the_weights(trained, fwi, tmp_path):
    run = trained("swa", "--num-itr", 5, "--swa-from", 2, "--save-every", 1, "--keep", 9)
    at = lambda step, part: load_file(run / "checkpoints" / f"step-{step}" / f"{part}.safetensors")
    mean = {name: np.mean([at(step, "weights")[name] for step in (3, 4, 5)], 0) for name in at(5, "ema")}
    for name, value in at(5, "ema").items(): np.testing.assert_allclose(value, mean[name], rtol=1e-4, atol=1e-7)
    assert fwi("invert", run, "--records", 1, "--nfe", 1, "--out", tmp_path / "out").code == 0


def test_history_has_every_step_once(data, tmp_path):
    words = arguments(data, tmp_path, "run", "--num-itr", 6, "--val-every", 2, "--save-every", 4)
    finish(python_train(*words, interrupted=(5, signal.SIGKILL)), -signal.SIGKILL)
    finish(python_train(*words))
    rows = history(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [bool(row["val_mae"]) for row in rows] == [False, True] * 3
    logged = {row["step"]: row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row}
    assert [float(row["loss"]) for row in rows] == list(logged.values())


def test_a_fresh_start_keeps_the_old_run(trained, data, refused, fwi, tmp_path):
    old = trained("run", "--num-itr", 2)
    before = weights(old)
    refused("train", *arguments(data, tmp_path, "run", "--num-itr", 2, "--lr", 0.5), saying=("--lr (0.001, now 0.5)",))
    run = trained("run", "--num-itr", 1, "--lr", 0.5, "--fresh", *TWO, "--master-port", 6141, "--batch-size", 4)
    assert [path.name for path in checkpoints(run)] == ["step-1"] and {row["step"] for row in read_metrics(run)} == {1}
    assert not read_config(run)[0].run.fresh
    assert_equal(before, weights(tmp_path / "run-archived-1"))
    assert fwi("invert", tmp_path / "run-archived-1", "--records", 1, "--nfe", 1, "--out", tmp_path / "out").code == 0
    refused("train", *arguments(data, tmp_path, "run", "--fresh", "--ckpt", run), saying=("--fresh", "--ckpt"))
    trained("run", "--num-itr", 1, "--lr", 0.5)  # goes on with the new one
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run", "run-archived-1"]


def test_a_file_gives_options_and_the_command_line_wins(trained, data, refused, fwi, tmp_path):
    first = trained("first", "--num-itr", 2, "--optimizer", "radam", "--betas", 0.8, 0.9)
    again = fwi("train", "--config", first / "config.json", "--name", "again")
    assert again.code == 0, again.err
    assert_equal(weights(first), weights(tmp_path / "again"))
    file = tmp_path / "train.yaml"
    values = options_to_dict(read_config(first)[0])
    values["run"] |= dict(name="third")
    values["optim"] |= dict(lr="2e-3", scheduler="onecycle")
    del values["optim"]["lr_schedule"]
    file.write_text(yaml.safe_dump(values))
    assert fwi("train", "--config", file, "--num-itr", 3, "--no-pred-x0").code == 0
    saved, _ = read_config(tmp_path / "third")
    assert (saved.optim.lr, saved.optim.lr_schedule, saved.optim.num_itr) == (2e-3, "onecycle", 3)
    assert saved.optim.betas == (0.8, 0.9) and not saved.model.pred_x0
    for text, words in (("learning_rate: 1", ("unknown option 'learning_rate'", "did you mean")), ("lr: [1]", ("lr",)),
            ("lr: -1", ("lr must be 0 or more",)), ("optim: {name: a}", ("name is an option of run",))):
        file.write_text(text)
        refused("train", "--config", file, saying=("train.yaml", *words))
    refused("train", "--config", tmp_path / "none.yaml", saying=("none.yaml",))


def test_deterministic_runs_repeat_bit_for_bit(trained):
    runs = [trained(name, "--num-itr", 2, "--deterministic") for name in "ab"]
    assert_equal(*map(weights, runs))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("words, saying", [(("--optimizer", "lion"), ("unknown optimizer 'lion'",)),
    (("--scheduler", "cosin"), ("unknown scheduler 'cosin'",)), (("--momentum", 0.5), ("--momentum", "adamw")),
    (("--optimizer", "sgd", "--betas", 0.5, 0.9), ("--betas", "sgd")), (("--best", "acuracy"), ("unknown metric",)),
    (("--betas", 0.5, 1.0), ("--betas must be less than 1",)), (("--scheduler", "multistep"), ("--milestones",)),
    (("--scheduler", "linear_warmup"), ("--warmup",)), (("--min-lr", 1, "--scheduler", "cosine"), ("--min-lr", "--lr")),
    (("--lr-patience", 3), ("--lr-patience has no effect",)), (("--swa-from", 9, "--num-itr", 9), ("--swa-from",)),
    (("--fold", "1/3", "--part", "1/2"), ("--part and --fold",)), (("--fold", "0/3"), ("fold '0/3'",))])
def test_what_cannot_be_is_refused_at_the_start(words, saying, data, refused, tmp_path):
    refused("train", *arguments(data, tmp_path, "run", *words), saying=saying)
    assert not (tmp_path / "run").exists()


def test_a_learning_rate_needs_nothing_but_the_step():
    base = OptimOptions(num_itr=50, lr=0.3, lr_gamma=0.7, lr_step=3)
    for name in SCHEDULERS:
        optim = replace(base, lr_schedule=name, warmup=5, milestones=(4, 9) if name == "multistep" else (),
            lr_restart=6 if name == "cosine_restarts" else 10_000)
        seen = [(k, 1.0 + k) for k in range(1, 50)]
        there = [learning_rate(optim, k, seen) for k in range(50)]
        back = [learning_rate(optim, k, seen[:k]) for k in reversed(range(50))]
        assert there == back[::-1] and 0 <= min(there) and max(there) <= 0.3, name
    with pytest.raises(InputError, match="unknown scheduler"): learning_rate(replace(base, lr_schedule="x"), 0)
