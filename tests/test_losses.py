"""Composed losses, the autoencoder, scalers and the best checkpoint: trained, continued, inverted, on two ranks."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import arguments, assert_equal, finish, python_train, weights

from fwi_i2sb.data.spec import OPENFWI_SPEC
from fwi_i2sb.inference.run import load_run
from fwi_i2sb.inference.validation_data import validation_records
from fwi_i2sb.methods.losses import Judged, LOSS_PRESETS, MAP_LOSSES, parse_losses
from fwi_i2sb.methods.options import ModelOptions
from fwi_i2sb.methods.registry import build_method
from fwi_i2sb.training.checkpoint import checkpoints, read_checkpoint
from fwi_i2sb.training.run_dir import read_config, read_metrics, write_config
from fwi_i2sb.training.validate import METRICS

pytestmark = pytest.mark.usefixtures("one_thread")


VAE = ("--model", "vae_unet", "--batch-size", 2, "--microbatch", 2)


def rows(run): return [row for row in read_metrics(run) if "loss" in row]


@pytest.mark.parametrize("words", [(), ("--no-pred-x0",), ("--method", "regression"), ("--method", "ddpm"),
    ("--method", "gan", "--n-critic", 1)], ids=lambda words: "-".join(map(str, words)) or "bridge")
def test_the_loss_is_the_weighted_sum_of_its_terms(trained, words):
    loss = "mae:1,ssim:0.2,gradient:0.1,tv:0"
    for row in rows(trained("sum", "--num-itr", 2, "--loss", loss, *words)):
        parts = {name: row[f"loss_{name}"] for name in parse_losses(loss)}
        assert all(value >= 0 for value in parts.values()) and parts["mae"] > 0
        total = parts["mae"] + 0.2 * parts["ssim"] + 0.1 * parts["gradient"]
        if "gan" not in words: np.testing.assert_allclose(row["loss"], total, rtol=1e-5)
        else: assert abs(row["loss"] - 100 * total) < 5  # less the critic's score


def test_presets_are_the_recipes_of_the_seeds(trained):
    assert dict(LOSS_PRESETS) == dict(seed000="mae:1,ssim:0,perceptual:0,kl:0",
        seed001="mape:1,l2:0.5,gradient:0.3,physics:0.2", seed002="mape:1,l2:0.3,gradient:0.2,tv:0.1,physics:0.1")
    for name, given in (("bridge", ()), ("regression", ("--method", "regression")), ("vae", VAE)):
        for preset in LOSS_PRESETS:
            row, *_ = rows(trained(f"{name}-{preset}", "--num-itr", 1, *given, "--loss", preset))
            terms = {term: weight for term, weight in parse_losses(preset).items() if weight or f"loss_{term}" in row}
            assert ("kl" in terms) == (name == "vae" and preset == "seed000")
            np.testing.assert_allclose(row["loss"], sum(weight * row[f"loss_{term}"] for term, weight in terms.items()),
                rtol=1e-5)


def test_a_map_loss_of_the_bridge_is_that_of_its_estimate():
    torch.manual_seed(0)
    maps = torch.rand(2, 1, 70, 70) - 0.5
    batch = dict(x0=maps, x1=maps.flip(-1), noise=torch.randn_like(maps), seismic=torch.randn(2, 5, 250, 70),
        t_index=torch.tensor([10, 800]), keep=torch.ones(2))
    for options in (dict(pred_x0=False), dict(precondition=True)):
        spec = replace(OPENFWI_SPEC, moments=(0.3, 0.2, 0.1))
        method = build_method(ModelOptions("tiny", loss="mape", **options), spec)
        loss = method.loss_modules["net"](batch)  # a new network predicts zero
        bridge, zero = method.bridge, torch.zeros_like(maps)
        xt = bridge.q_sample(batch["t_index"], maps, batch["x1"], noise=batch["noise"])
        estimate = bridge.predict_x0(batch["t_index"], xt, zero)
        expected = MAP_LOSSES["mape"](Judged(estimate, maps, maps, spec))
        torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("words, saying", [
    (("--loss", "maee:1"), "did you mean 'mae'"), (("--loss", "mae:-1"), "must be a number of 0 or more"),
    (("--loss", "l1,l1"), "named twice"), (("--loss", "mae:0"), "nothing would be learnt"),
    (("--loss", "mae,kl:1"), "needs a latent Gaussian"), (("--kl-anneal", 5), "has no effect with the method bridge"),
    (("--loss", "mae", "--adaptive-loss", 0.9), "has no effect with a single loss"),
    (("--model", "vae_unet", "--loss", "mae", "--kl-start", 3), "has no effect without a weight of the loss kl"),
    (("--method", "ddpm", "--no-pred-x0", "--loss", "ssim"), "looks at maps"),
    (("--method", "vae"), "cannot learn the method vae"), (("--patience", 2), "--best METRIC"),
    (("--adaptive-loss", 2, "--loss", "l1,l2"), "1 or less")],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else None)
def test_what_cannot_be_is_refused(refused, data, tmp_path, words, saying):
    refused("train", *arguments(data, tmp_path, "no", *words), saying=(saying,))
    assert not (tmp_path / "no").exists()


ADAPTIVE = ("--loss", "mae:1,gradient:1", "--adaptive-loss", 0.5, "--batch-size", 4, "--microbatch", 2)


def test_adaptive_terms_count_by_their_weights_and_continue(trained):
    whole = trained("whole", "--num-itr", 4, *ADAPTIVE)
    trained("halves", "--num-itr", 2, *ADAPTIVE)
    halves = trained("halves", "--num-itr", 4, *ADAPTIVE)
    assert_equal(weights(whole), weights(halves))
    averages = {}
    for row in rows(whole):
        parts = {name: row[f"loss_{name}"] for name in ("mae", "gradient")}
        np.testing.assert_allclose(row["loss"], sum(v / averages.get(k, 1.0) for k, v in parts.items()), rtol=1e-4)
        for k, v in parts.items(): averages[k] = (averages.get(k, v) + v) / 2
    np.testing.assert_allclose(row["loss"], 2, rtol=0.7)  # two terms, each near one
    saved = read_checkpoint(checkpoints(whole)[0]).state["loss_averages"]
    np.testing.assert_allclose([saved[k] for k in averages], list(averages.values()), rtol=1e-5)


def test_two_ranks_stop_at_the_same_step_and_learn_what_one_does(data, tmp_path):
    words = (*ADAPTIVE, "--microbatch", 2, "--num-itr", 40, "--val-every", 1, "--best", "ssim", "--patience", 3, "--lr",
        0.05, "--save-every", 100)
    two = ("--num-proc-node", 1, "--node-rank", 0, "--proc-per-node", 2, "--master-port", 6137)
    said = [finish(python_train(*arguments(data, tmp_path, name, *words, *more)))
        for name, more in (("one", ()), ("two", two))]
    ends, best, first = [], [], []
    for name, text in zip(("one", "two"), said):
        run = tmp_path / name
        seen = [row for row in read_metrics(run) if "val_ssim" in row]
        top = max(range(len(seen)), key=lambda k: seen[k]["val_ssim"])
        first.append([seen[0][f"val_{name}"] for name in METRICS])
        assert len(seen) == top + 4 and len(seen) < 40  # three more after the best
        assert f"ssim has not improved since step {seen[top]['step']}" in text
        best.append(json.loads((run / "best.json").read_text()))
        assert best[-1]["step"] == seen[top]["step"] and best[-1]["value"] == seen[top]["val_ssim"]
        kept = {int(path.name[5:]) for path in checkpoints(run)}
        assert {best[-1]["step"], seen[-1]["step"]} <= kept and len(kept) <= 3
        ends.append(seen[-1]["step"])
    assert ends[0] == ends[1]
    np.testing.assert_allclose(*first, rtol=1e-3)
    np.testing.assert_allclose(*([row["loss"] for row in rows(tmp_path / name)] for name in ("one", "two")), rtol=1e-3)


def test_the_best_checkpoint_is_a_run(trained, fwi, refused, tmp_path):
    words = ("--val-every", 1, "--best", "mae", "--keep", 1, "--lr", 0.05)
    run = trained("run", "--num-itr", 6, *words)
    seen = {row["step"]: row["val_mae"] for row in read_metrics(run) if "val_mae" in row}
    step = min(seen, key=seen.get)
    assert load_run(run / "checkpoints" / "best", device="cpu").step == step
    assert {path.name for path in checkpoints(run)} == {f"step-{step}", "step-6"}
    assert fwi("invert", run / "checkpoints" / "best", "--records", 1, "--out", tmp_path / "out").code == 0
    trained("tuned", "--num-itr", 1, "--fine-tune", run / "checkpoints" / "best")
    again = trained("run", "--num-itr", 6, *words)  # finished: nothing changes
    assert load_run(again / "checkpoints" / "best", device="cpu").step == step
    early = trained("early", "--num-itr", 9, *words, "--patience", 1)
    length = len(rows(early))
    assert len(rows(trained("early", "--num-itr", 9, *words, "--patience", 1))) == length  # over stays over
    refused("invert", trained("plain", "--num-itr", 1) / "checkpoints" / "best", "--records", 1, "--out",
        tmp_path / "no", saying=("was trained without --best",))


def test_an_autoencoder_continues_inverts_and_draws(trained, fwi, refused, tmp_path):
    words = (*VAE, "--kl-anneal", 4)
    whole = trained("whole", "--num-itr", 4, *words)
    trained("halves", "--num-itr", 2, *words)
    assert_equal(weights(whole), weights(trained("halves", "--num-itr", 4, *words)))
    for k, row in enumerate(rows(whole), 1):
        np.testing.assert_allclose(row["loss"], row["loss_mae"] + 1e-4 * k / 4 * row["loss_kl"], rtol=1e-5)
    run = load_run(whole, device="cpu")
    seismic, truth, numbers = validation_records(run, 2)
    mean = run.invert(seismic, record_ids=numbers)
    assert mean.samples.shape[1] == 1 and torch.equal(mean.mean, run.invert(seismic, record_ids=numbers, seed=3).mean)
    drawn = run.invert(seismic, record_ids=numbers, sampler="draws", samples=4)
    assert (drawn.std > 0).any() and drawn.mean.shape == truth.shape
    torch.testing.assert_close(drawn.samples, run.invert(seismic, record_ids=numbers, sampler="draws", samples=4,
        batch_size=3).samples, rtol=1e-4, atol=0.5)
    refused("invert", whole, "--records", 1, "--samples", 4, "--out", tmp_path / "no", saying=("samples",))


@pytest.mark.parametrize("kind", ["zscore", "robust"])
def test_a_scaler_is_measured_on_training_records_and_stored(trained, data, kind):
    run = trained(kind, "--num-itr", 2, "--scaler", kind)
    options, spec = read_config(run)
    assert options.data.scaler == spec.scaler.kind == kind
    restored = load_run(run, device="cpu")
    seismic, truth, numbers = validation_records(restored, 2)
    inside = spec.input_scale.normalize(seismic)
    torch.testing.assert_close(spec.input_scale.denormalize(inside), seismic, rtol=1e-5, atol=1e-5)
    if kind == "zscore": assert abs(inside.std().item() - 1) < 0.5
    raw = np.load(data / "data" / "data1.npy")[:, :, ::4].astype(np.float64)
    expected = ((raw.mean(), raw.std()) if kind == "zscore"
        else (np.median(raw), 1.4826 * np.median(abs(raw - np.median(raw)))))
    np.testing.assert_allclose((spec.scaler.centre, spec.scaler.width), expected, rtol=0.05, atol=0.02)
    assert restored.invert(seismic, "linear", record_ids=numbers).mean.isfinite().all()
    assert rows(run)[1]["loss"] != rows(trained("usual", "--num-itr", 2))[1]["loss"]  # the first answers are zero


def test_a_gan_of_before_goes_on_with_its_loss(trained):
    run = trained("old", "--num-itr", 1, "--method", "gan", "--n-critic", 1)
    options, spec = read_config(run)
    assert options.model.loss == "l1,l2"
    write_config(run, replace(options, model=replace(options.model, loss="l2")), spec)
    config = json.loads((run / "config.json").read_text())
    config.pop("checksum"), config.update(format=2)
    (run / "config.json").write_text(json.dumps(config))
    assert read_config(run)[0].model.loss == "l1,l2"
    trained("new", "--num-itr", 2, "--method", "gan", "--n-critic", 1, "--ckpt", run)


def test_a_loss_by_waves_moves_a_network(trained):
    row, = rows(trained("waves", "--num-itr", 1, "--batch-size", 1, "--microbatch", 1, "--method", "regression",
        "--loss", "mae:1,misfit:0.5"))
    assert 0 < row["loss_misfit"] < math.inf
    np.testing.assert_allclose(row["loss"], row["loss_mae"] + 0.5 * row["loss_misfit"], rtol=1e-5)


def test_what_has_a_name_is_listed(fwi):
    listed = fwi("models").out
    for kind, some in (("loss", ("mape", "misfit", "kl", "log_cosh")), ("loss preset", ("seed000", "seed002")),
            ("sampler", ("draws", "sde")), ("starting model", ("linear", "first-guess")), ("method", ("vae",))):
        row = next(line for line in listed.splitlines() if line.startswith(f"{kind}  "))
        assert {*some} <= {*row.removeprefix(kind).replace(",", " ").split()}
    shown = " ".join(fwi("train", "--help").out.replace("│", "").split())
    assert "hard_fraction" in shown and "vae_mamba" in shown
