"Every launch option of the published scripts does what it says: one effect each, none missing."
import json
import math
import re
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from processes import arguments, finish, free_port, losses, python_train, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_project import PUBLISHED

from fwi_i2sb.training import options as opt, validate
from fwi_i2sb.inference.run import load_run, prepare_start
from fwi_i2sb.data.openfwi import FAMILIES
from fwi_i2sb.data.scale import PressureRange
from fwi_i2sb.core.config_file import option_fields
from fwi_i2sb.core.commands import option_table, options_to_dict, parse
from fwi_i2sb.training.options import TrainOptions
from fwi_i2sb.training.checkpoint import checkpoints
from fwi_i2sb.training.run_dir import open_store, read_config, read_metrics

EFFECTS = {}


def effect(*names):
    def register(function):
        for name in names: EFFECTS[name] = function
        return function
    return register


@pytest.fixture
def trained(fwi, data, tmp_path):
    "Train four steps with the options given (zero-initialised layers hide most effects for two); the run directory."
    def train(name, *words):
        outcome = fwi("train",
            *arguments(data, tmp_path, name, *([] if "--num-itr" in words else ["--num-itr", 4]), *words))
        assert outcome.code == 0, outcome.err
        return tmp_path / name
    return train


@pytest.fixture
def given(trained, four, data, tmp_path, monkeypatch, fwi, refused):
    return SimpleNamespace(trained=trained, plain=four, data=data, tmp=tmp_path, monkeypatch=monkeypatch, fwi=fwi,
        refused=refused)


@effect("result-dir", "name", "seed")
def place_and_seed(g):
    words = arguments(g.data, g.tmp / "elsewhere", "x", "--num-itr", 1)
    words[words.index("--name"):words.index("--name") + 2] = ["--seed", "3"]
    assert g.fwi("train", *words).code == 0 and checkpoints(g.tmp / "elsewhere" / "3")
    assert losses(g.trained("other", "--seed", 4)) != losses(g.plain)
    assert losses(g.trained("same")) == losses(g.plain)


@effect("dataset-dir")
def the_data_come_from_there(g):
    g.refused("train", *arguments(g.tmp / "nowhere", g.tmp, "no"), saying=(str(g.tmp / "nowhere"),))
    assert read_config(g.plain)[0].data.dataset_dir == g.data


@effect("dataset-name", "json-data-config")
def the_range_is_the_familys_or_the_configs(g):
    spec = read_config(g.plain)[1]
    assert (spec.family, spec.pressure) == ("CurveVel_A", PressureRange(-27.11, 55.10))
    config = g.tmp / "ranges.json"
    config.write_text(json.dumps({"curvevel-a": {"data_min": -30.0, "data_max": 70.0}}))
    run = g.trained("range", "--json-data-config", config, "--store-dir", g.tmp / "store")
    assert read_config(run)[1].pressure == PressureRange(-30.0, 70.0) and losses(run) != losses(g.plain)
    common = dict(label_min=1500, label_max=4500, file_size=500, nbc=120, dx=10, nt=1000, dt=1e-3, f=15, n_grid=70,
        ns=5, ng=70, sz=10, gz=10)
    table = {name.lower().replace("_", "-"): common | dict(data_min=family.data_min, data_max=family.data_max)
        for name, family in FAMILIES.items()}
    config.write_text(json.dumps(table | {"flatvel-tutorial": common, "kimberlina-3d": {}, "full-field": None}))
    words = arguments(g.data, g.tmp, "published", "--num-itr", 4, "--json-data-config", config)
    with pytest.warns(UserWarning, match="no family has these names: flatvel-tutorial, kimberlina-3d, full-f") as told:
        assert g.fwi("train", *words).code == 0
    assert losses(g.tmp / "published") == losses(g.plain)
    assert len([w for w in told if "passed over" in str(w.message)]) == 1
    other = arguments(g.data, g.tmp, "other", "--json-data-config", config, "--store-dir", g.tmp / "store")
    g.refused("train", *other, saying=("pressure range -30 to 70, not -27.11 to 55.1", "--store-dir", "remove this"))
    table["curvevel-a"]["label_max"] = 5000
    config.write_text(json.dumps(table))
    g.refused("train", *words, "--name", "wide", saying=("velocity range 1500 to 4500, not 1500 to 5000",))
    g.refused("train", *["CurveVelA" if w == "CurveVel_A" else w for w in arguments(g.data, g.tmp, "no")],
        saying=("is a store of CurveVel_A, not of CurveVelA",))


@effect("ckpt")
def weights_average_optimiser_and_step_come_from_there(g):
    checkpoint = checkpoints(g.plain)[1]
    assert checkpoint.name == "step-2"
    resumed = g.trained("resumed", "--ckpt", checkpoint)
    np.testing.assert_allclose(losses(resumed), losses(g.plain)[2:], rtol=1e-5)
    found = weights(resumed)
    for part, tensors in weights(g.plain).items():
        for key, value in tensors.items(): np.testing.assert_allclose(found[part][key], value, rtol=1e-3, atol=1e-5)


@effect("gpu")
def one_device_is_used(g):
    from fwi_i2sb.training import processes

    g.refused("train", *[w for w in arguments(g.data, g.tmp, "gpu", "--gpu", 7) if w not in ("--device", "cpu")],
        saying=("--gpu 7", "torch sees"))
    seen = {}
    g.monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    g.monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.update(device=device))
    g.monkeypatch.setattr(processes, "Accelerator", lambda **how: seen.update(processes.os.environ))
    with processes.open_accelerator(opt.DeviceOptions(gpu=1), g.tmp): pass
    assert seen["ACCELERATE_TORCH_DEVICE"] == "cuda:1" and seen["device"] == 1


@effect("model")
def the_network_is_another(g):
    sizes = {name: sum(p.numel() for p in load_run(g.trained(name, "--model", name, "--batch-size", 1, "--num-itr",
        1)).net.parameters()) for name in ("unet_ch16", "unet_ch32")}
    assert sizes["unet_ch32"] > 10 * sizes["unet_ch16"]
    assert (parse(TrainOptions, ["--result-dir", "r", "--dataset-dir", "d", "--dataset-name", "Style_A"]).model.model
        == "unet_ch32")


@effect("image-size")
def the_network_works_on_that_size(g):
    run, sizes = load_run(g.trained("size", "--image-size", 36)), []
    run.net.unet.register_forward_hook(lambda unet, inputs, out: sizes.append(inputs[0].shape[-2:]))
    assert run.net(torch.zeros(1, 1, 70, 70), torch.zeros(1)).shape == (1, 1, 70, 70)
    assert sizes == [(36 // run.net.preset.patch,) * 2]


@effect("corrupt")
def the_start_is_another(g):
    run = load_run(g.plain)
    truth = torch.stack([open_store(run.options)[1].physical(i)[0] for i in range(4)])
    rough = {kind: (prepare_start(run, kind, range(4), truth=truth) - truth).abs().mean()
        for kind in ("blur-openfwi_custom", "blur-openfwi_benchmark")}
    assert rough["blur-openfwi_custom"] > 1.5 * rough["blur-openfwi_benchmark"]
    assert losses(g.trained("benchmark", "--corrupt", "blur-openfwi_benchmark")) != losses(g.plain)


@effect("val-batches", "microbatch")
def validation_is_bounded_and_accumulation_changes_nothing(g):
    with g.monkeypatch.context() as patch:
        patch.setattr(validate, "VAL_BATCH", 3)
        for microbatch in (3, 1):  # which records are judged does not depend on it
            run = g.trained(f"by{microbatch}", "--microbatch", microbatch, "--batch-size", 3, "--val-batches", 2)
            assert {r["val_records"] for r in read_metrics(run) if "val_records" in r} == {6}
    calls = []
    from fwi_i2sb.methods.bridge import BridgeMethod
    g.monkeypatch.setattr(BridgeMethod, "loss",
        lambda *args, real=BridgeMethod.loss: calls.append(len(args[2]["x0"])) or real(*args))
    quiet = []
    g.monkeypatch.setattr(Accelerator, "no_sync",
        lambda self, model, real=Accelerator.no_sync: quiet.append(1) or real(self, model))
    run = g.trained("one", "--microbatch", 1)
    assert calls == [1, 1, 1, 1] * 4
    assert len(quiet) == 3 * 4  # gradients are exchanged with the last microbatch of a step only
    np.testing.assert_allclose(losses(run), losses(g.plain), rtol=1e-5)


@effect("t0", "T", "interval", "beta-max")
def the_bridge_is_another(g):
    run = g.trained("bridge", "--t0", 0.01, "--T", 0.9, "--interval", 500, "--beta-max", 0.2)
    bridge, usual = load_run(run).bridge, load_run(g.plain).bridge
    assert len(bridge.time) == 500 and math.isclose(bridge.time[0], 5) and math.isclose(bridge.time[-1], 450)
    assert len(usual.time) == 1000 and math.isclose(usual.time[0], 0.1) and math.isclose(usual.time[-1], 1000)
    assert bridge.std_sb.max() < 0.9 * usual.std_sb.max()
    for flag, value in (("--t0", 0.01), ("--T", 0.9), ("--beta-max", 0.2)):
        assert losses(g.trained(flag[2:], flag, value)) != losses(g.plain)


@effect("drop_cond")
def that_share_is_trained_without_seismic(g):
    from fwi_i2sb.methods.bridge import BridgeMethod
    keeps = []
    g.monkeypatch.setattr(BridgeMethod, "loss",
        lambda *args, real=BridgeMethod.loss: keeps.append(args[2]["keep"]) or real(*args))
    for drop, low, high in ((0, 1, 1), (0.5, 0.25, 0.75), (1, 0, 0)):
        keeps.clear()
        g.trained(f"drop{drop}", "--drop_cond", drop)
        assert low <= torch.cat(keeps).mean() <= high


@effect("pred-x0")
def the_target_is_another(g):
    run = g.trained("noise", "--no-pred-x0")
    assert losses(g.trained("x0", "--pred-x0")) == losses(g.plain) and losses(run) != losses(g.plain)


@effect("ot-ode")
def sampling_becomes_deterministic(g):
    start, seismic = torch.full((1, 1, 70, 70), 2500.0), torch.zeros(1, 5, 250, 70)
    spread = {name: load_run(run).invert(seismic, start, samples=2, nfe=3).std.max()
        for name, run in (("sde", g.plain), ("ode", g.trained("ode", "--ot-ode")))}
    assert spread["ode"] == 0 and spread["sde"] > 0
    assert losses(g.tmp / "ode") != losses(g.plain)


@effect("clip-denoise")
def guesses_are_clipped(g):
    start, seismic = torch.full((1, 1, 70, 70), 2500.0), torch.zeros(1, 5, 250, 70)
    for run, clipped in ((g.plain, False), (g.trained("clip", "--clip-denoise"), True)):
        run = load_run(run)
        run.net.head.last.bias.data.fill_(5.0)
        assert (run.invert(seismic, start, samples=1, nfe=2).mean.max() < 4510) == clipped


@effect("batch-size", "num-itr")
def so_many_samples_and_steps(g):
    state = json.loads(
        (checkpoints(g.trained("six", "--batch-size", 6, "--microbatch", 3))[0] / "state.json").read_text())
    assert (state["step"], state["next_sample"]) == (4, 24)


@effect("lr", "lr-gamma")
def the_rate_is_that_and_decays(g):
    run = g.trained("rate", "--lr", 3e-4, "--lr-gamma", 0.5, "--lr-step", 1)
    assert [r["lr"] for r in read_metrics(run) if "lr" in r] == [3e-4, 1.5e-4, 0.75e-4, 0.375e-4]
    before, after = ((weights(g.trained(name, "--num-itr", 1, "--lr", lr, "--weight-decay", 0))["weights"]
        for name, lr in (("zero", 0), ("some", 1e-3))))
    moved = max(np.abs(after[k] - before[k]).max() for k in before)
    assert 0.9e-3 < moved < 1.1e-3  # AdamW's first step is the rate times the gradient's sign


@effect("clip_grad_norm")
def the_gradient_has_at_most_that_norm(g):
    moments = weights(g.trained("clipped", "--num-itr", 1, "--clip_grad_norm", 1e-3))["optimizer"]
    norm = math.sqrt(sum(float((v.astype(np.float64) ** 2).sum()) for k, v in moments.items() if k.endswith("exp_avg")))
    assert math.isclose(norm, 0.1 * 1e-3, rel_tol=1e-3)  # after one step the moment is a tenth of the gradient


@effect("ema")
def the_average_follows_at_that_rate(g):
    at_once, slow = (weights(g.trained(f"ema{rate}", "--num-itr", 1, "--ema", rate)) for rate in (0, 0.999))
    first = weights(g.trained("first", "--num-itr", 1, "--lr", 0, "--weight-decay", 0))["weights"]
    for key, value in at_once["weights"].items():
        np.testing.assert_array_equal(at_once["ema"][key], value)
        # warmed up: min(rate, 1/10) at the first step
        np.testing.assert_allclose(slow["ema"][key], 0.1 * first[key] + 0.9 * value, atol=1e-6)


@effect("log-writer")
def the_numbers_reach_the_tracker(g):
    for writer in ("tensorboard", "mlflow", "wandb"):
        g.monkeypatch.setenv("WANDB_MODE", "offline")
        g.monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
        run = g.trained(writer, "--log-writer", writer, "--val-maps", 1)
        rows = [r["loss"] for r in read_metrics(run) if "loss" in r]
        np.testing.assert_allclose(TRACKED[writer](run), rows, rtol=1e-6)
        assert g.fwi("train", *arguments(g.data, g.tmp, writer, "--num-itr", 5, "--log-writer", writer)).code == 0
        if writer == "mlflow":
            assert len(TRACKED[writer](run)) == 5  # continued in the same MLflow run
            from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY
            assert MLFLOW_DISABLE_TELEMETRY.get()
    for writer in ("none", "None"):  # the published scripts' default is None
        run = g.trained(f"silent-{writer}", "--log-writer", writer)
        assert not (run / "logs").exists() and read_config(run)[0].log.log_writer == "none"
    g.monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    g.refused("train", *arguments(g.data, g.tmp, "missing", "--log-writer", "wandb"), saying=("fwi_i2sb[track]",))


def in_tensorboard(run):
    [folder] = {p.parent for p in (run / "logs").rglob("events.out.*")}
    return [e.value for e in EventAccumulator(str(folder)).Reload().Scalars("loss")]


def in_mlflow(run):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{(run / 'logs' / 'mlflow.db').resolve()}")
    known = (run / "logs" / "mlflow.id").read_text()
    assert (client.get_run(known).data.params["model.model"] == "tiny"
        and list((run / "logs" / "mlflow").rglob("step-4.png")))
    return [m.value for m in sorted(client.get_metric_history(known, "loss"), key=lambda m: m.step)]


def in_wandb(run):
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = (run / "logs" / "wandb").glob("offline-run-*/*.wandb")
    items = [item for raw in wandb_records(file.read_bytes()) for item in Record.FromString(raw).history.item]
    return [float(item.value_json) for item in items if "loss" in (item.key, *item.nested_key)]


def wandb_records(data: bytes):
    "The records of an offline run's file: LevelDB's log format after a header of 7 bytes."
    place, record = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7: place += left; continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record, place = record + data[place + 7:place + 7 + length], place + 7 + length
        if kind in (1, 4): yield record; record = b""


TRACKED = {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}


@effect("master-port", "num-proc-node", "node-rank", "master-address")
def nodes_meet_there(g):
    words = arguments(g.data, g.tmp, "nodes", "--num-itr", 4, "--num-proc-node", 2, "--master-address", "127.0.0.1",
        "--master-port", free_port())
    second = python_train(*words, "--node-rank", "1")
    first = python_train(*words, "--node-rank", "0")
    for process in (first, second): finish(process)
    np.testing.assert_allclose(losses(g.tmp / "nodes"), losses(g.plain), rtol=1e-5)


@pytest.mark.parametrize("function", dict.fromkeys(EFFECTS.values()), ids=lambda function: function.__name__)
def test_effect(function, given): function(given)


def test_no_published_option_is_missing(): assert set(EFFECTS) == set(PUBLISHED)


def test_the_options_table_is_made_from_the_dataclass():
    table = option_table(TrainOptions)
    for name in PUBLISHED: assert f"| `--{name.replace('_', '-')}` |" in table
    assert table.count("\n| `--") == len(list(option_fields(TrainOptions)))


def test_the_preset_published_is_every_default_of_the_published_scripts():
    needed = ["--result-dir", "runs", "--dataset-dir", "data", "--dataset-name", "CurveVel_A", "--preset", "published"]
    found = {f: v for group in options_to_dict(parse(TrainOptions, needed)).values() for f, v in group.items()}
    published = dict(name=None, seed=0, ckpt=None, gpu=None, model="unet_ch32", image_size=256, val_batches=100,
        t0=1e-4, corrupt="blur-openfwi_custom", T=1.0, interval=1000, beta_max=0.3, drop_cond=0.25, pred_x0=False,
        ot_ode=False, clip_denoise=False, batch_size=256, microbatch=2, num_itr=1_000_000, lr=5e-5, lr_gamma=0.99,
        clip_grad_norm=None, ema=0.99, log_writer="none", json_data_config=None)
    assert {flag: found[flag] for flag in published} == published


def test_a_preset_sets_what_belongs_together_and_given_options_win(refused, data, tmp_path):
    needed = ["--result-dir", "runs", "--dataset-dir", "data", "--dataset-name", "CurveVel_A"]
    for name, values in TrainOptions.PRESETS.items():
        groups = options_to_dict(parse(TrainOptions, [*needed, "--preset", name])).values()
        found = {flag: value for group in groups for flag, value in group.items()}
        assert {flag: found[flag] for flag in values} == values
        plain = {f: v for g in options_to_dict(parse(TrainOptions, needed)).values() for f, v in g.items()}
        assert {f for f in found if found[f] != plain[f]} <= set(values)
    for words in (["--preset", "published", "--pred-x0"], ["--pred_x0", "--preset=published"]):
        assert parse(TrainOptions, [*needed, *words]).model.pred_x0
    refused("train", *arguments(data, tmp_path, "no", "--preset", "smal"), saying=("did you mean 'small'",))
    table = option_table(TrainOptions)
    assert "| option | default | small | medium | speed-structure | published | meaning |" in table
    assert re.search(r"`--cond-weight` \| `1.0` \|.*\| `11.0` \|", table)
