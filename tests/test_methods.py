"Every method trains, continues, inverts and is refused in the same way; models of one's own; starts without truth."
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from forkserver import run as python
from processes import arguments, assert_equal, finish, losses, python_train, weights

from fwi_i2sb.training import trained as trained_runs
from fwi_i2sb.inference.run import load_run, stable_range
from fwi_i2sb.metrics.accuracy import mae
from fwi_i2sb.core import registry
from fwi_i2sb.core.commands import parse
from fwi_i2sb.core.config_file import command_words
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.data.spec import OPENFWI_SPEC
from fwi_i2sb.diffusion.samplers import Sampler
from fwi_i2sb.diffusion.sampling import SAMPLERS, STREAMS
from fwi_i2sb.methods.options import ModelOptions
from fwi_i2sb.training.run_dir import read_metrics
from fwi_i2sb.methods.base import Method
from fwi_i2sb.methods.vae import VAE_SAMPLERS
from fwi_i2sb.training.conditions import network_input
from fwi_i2sb.inference.widget import explore
from fwi_i2sb.methods.registry import build_method, METHODS, register_method
from fwi_i2sb.models.registry import MODELS
from fwi_i2sb.inference.validation_data import validation_records
from fwi_i2sb.sweeps.spaces import with_values
from fwi_i2sb.training.options import by_name, TrainOptions

pytestmark = pytest.mark.usefixtures("names_leave")

LARGE = ("--batch-size", 2, "--microbatch", 2, "--val-batches", 1)
VARIANTS = {
    "precondition": ("--precondition",),
    "base-noise": ("--base-noise", 0.1),
    "ddpm": ("--method", "ddpm"),
    "ddpm-noise": ("--method", "ddpm", "--no-pred-x0"),
    "regression": ("--method", "regression", "--corrupt", "linear", "--loss", "l1"),
    "gan": ("--method", "gan", "--n-critic", 2),
    "inversionnet": ("--model", "inversionnet", *LARGE),
    "velocitygan": ("--model", "velocitygan", "--n-critic", 2, *LARGE),
}
PLUGIN = """
from torch import nn
from fwi_i2sb.models.registry import register

class Loudness(nn.Module):
    conditional = True
    def __init__(self, size):
        super().__init__()
        self.size, self.line = size, nn.Linear(1, 1)
    def encode(self, seismic): return seismic.abs().mean((1, 2, 3), keepdim=True)
    def forward(self, xt, t, cond): return self.line(cond).expand(-1, 1, *self.size)

@register("loudness{tag}", methods=("regression",), about="mean loudness, one line", reads_map=False)
def build(shapes, options): return Loudness(shapes.map_size)
"""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_method_continues_as_if_nothing_had_happened_and_inverts(trained, name):
    half = 1 if name == "inversionnet" else 2  # its steps are the slowest
    whole = trained("whole", "--num-itr", 2 * half, *VARIANTS[name])
    halves = trained("halves", "--num-itr", half, *VARIANTS[name])
    trained("halves", "--num-itr", 2 * half, *VARIANTS[name])
    one, two = weights(whole), weights(halves)
    assert one.keys() == two.keys() and ("critic" in one) == ("gan" in name)
    assert_equal(one, two)
    run = load_run(whole, device="cpu")
    seismic, truth, numbers = validation_records(run, 2)
    result = run.invert(seismic, "linear", record_ids=numbers)
    assert result.mean.shape == truth.shape and result.mean.isfinite().all()
    assert result.samples.shape[1] == (8 if run.method.stochastic(run.method.samplers[0], run.method.nfe) else 1)
    assert (result.provenance["method"] == run.method.name
        and result.provenance["network_calls"] == result.samples.shape[1] * run.method.nfe)
    end = run.states(seismic, "linear", record_ids=numbers)[-1].xt.clamp(*stable_range(run.scale))
    assert torch.allclose(end, result.samples[:, 0], atol=0.5)


@pytest.mark.parametrize("words", [("--method", "ddpm"), ("--method", "gan", "--n-critic", 1)],
    ids=lambda words: words[1])
def test_two_processes_learn_what_one_does(data, tmp_path, words):
    common = ("--num-itr", 3, "--microbatch", 2, "--batch-size", 4, "--precision", "fp32", "--log-every", 1, *words)
    finish(python_train(*arguments(data, tmp_path, "one", *common)))
    finish(python_train(*arguments(data, tmp_path, "two", *common, "--num-proc-node", 1, "--node-rank", 0,
        "--proc-per-node", 2, "--master-port", 6131)))
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    critic = [[row["loss_critic"] for row in read_metrics(tmp_path / name) if "loss_critic" in row]
        for name in ("one", "two")]
    assert bool(critic[0]) == ("gan" in words)
    np.testing.assert_allclose(*critic, rtol=1e-4)


def test_options_of_a_method_change_its_training(trained):
    base = {"bridge": losses(trained("bridge", "--num-itr", 2)),
        "gan": read_metrics(trained("gan", "--method", "gan", "--n-critic", 1, "--num-itr", 2))}
    for flag in (("--loss", "l1"), ("--step-power", 2), ("--precondition",), ("--base-noise", 0.2)):
        assert losses(trained("bridge" + flag[0], "--num-itr", 2, *flag)) != base["bridge"], flag
    for flag, key in ((("--gp-weight", 1), "loss_critic"), (("--pixel-weight", 10), "loss")):
        rows = read_metrics(trained("gan" + flag[0], "--method", "gan", "--n-critic", 1, "--num-itr", 2, *flag))
        assert rows[0][key] != base["gan"][0][key], flag
    late = [row["loss"] for row in read_metrics(trained("late", "--method", "gan", "--n-critic", 2, "--num-itr", 2))
        if "loss" in row]
    assert late[0] is None and late[1] is not None  # the critic plays alone in the first step


def test_what_a_method_would_ignore_is_refused(refused, data, tmp_path):
    for words, saying in ((("--method", "regression", "--beta-max", 0.2),
            "--beta-max has no effect with the method regression: remove it"),
                          (("--method", "ddpm", "--ot-ode"), "--ot-ode has no effect"),
                          (("--n-critic", 3), "--n-critic has no effect with the method bridge"),
                          (("--model", "inversionnet", "--corrupt", "linear"),
                              "--corrupt has no effect with inversionnet"),
                          (("--model", "inversionnet", "--encoder", "patch"),
                              "--encoder has no effect with inversionnet"),
                          (("--model", "inversionnet", "--drop-cond", 0.5), "--drop-cond"),
                          (("--no-conditional", "--drop-cond", 0.5), "never sees seismic"),
                          (("--no-conditional", "--drop-shots", 0.5), "never sees seismic"),
                          (("--residual-engine", "openfwi"), "--residual-engine has no effect without --condition"),
                          (("--method", "gan", "--num-itr", 2), "it would never learn"),
                          (("--model", "inversionnet", "--method", "bridge"), "cannot learn the method bridge"),
                          (("--method", "brigde"), "did you mean 'bridge'"),
                          (("--loss", "12"), "unknown loss '12'; did you mean 'l2'"),
                          (("--model", "inversionet"), "did you mean 'inversionnet'"),
                          (("--precondition", "--no-pred-x0"), "--precondition"),
                          (("--method", "regression", "--val-nfe", 5), "one network call"),
                          (("--step-power", -1), "--step-power"),
                          (("--model", "inversionnet", "--batch-size", 1, "--microbatch", 1),
                              "normalises over the samples")):
        refused("train", *arguments(data, tmp_path, "no", *words), saying=(saying,))
    assert not (tmp_path / "no").exists()


def test_what_a_run_cannot_do_is_refused(trained, refused):
    run = trained("regression", "--num-itr", 1, "--method", "regression")
    refused("invert", run, "--nfe", 5, saying=("makes one network call",))
    refused("invert", run, "--sampler", "sde", saying=("unknown sampler 'sde'",))
    refused("invert", run, "--eta", 0.5, saying=("draws no noise",))
    refused("invert", run, "--fwi-iterations", 2, "--nfe", 3, saying=("--nfe", "--fwi-iterations"))
    alone = trained("alone", "--num-itr", 1, "--model", "inversionnet", *LARGE)
    refused("invert", alone, "--w", 0, saying=("without seismic",))
    with pytest.raises(InputError, match="has no bridge"): load_run(run).bridge


def test_an_answer_without_seismic_must_have_been_trained(trained, refused):
    refused("invert", trained("always", "--num-itr", 1, "--drop-cond", 0), "--w", 0, saying=("has not learnt one",))


def test_a_run_without_any_seismic_inverts_without_it(trained, fwi, refused):
    with pytest.warns(UserWarning, match="will invert at w = 0"):
        run = trained("blind", "--num-itr", 1, "--drop-cond", 1)
    with pytest.warns(UserWarning, match="was trained without seismic"): loaded = load_run(run)
    start, found = np.full((70, 70), 2500, np.float32), []
    for seismic in torch.randn(2, *loaded.spec.gathers):  # two records, one answer
        found.append(loaded.invert(seismic, start, samples=1, nfe=2))
    assert torch.equal(found[0].mean, found[1].mean) and found[0].provenance["w"] == 0
    refused("invert", run, "--w", 2, saying=("drop_cond 1", "remove w"))
    assert fwi("invert", run, "--records", 1, "--samples", 1, "--nfe", 1).code == 0


def test_the_preconditioned_target_has_unit_size_from_disturbed_starts_too():
    method = build_method(ModelOptions("tiny", precondition=True, base_noise=0.3),
        replace(OPENFWI_SPEC, moments=(0.2, 0.1, 0.1)))
    rng = np.random.default_rng(0)
    x0, x1 = torch.from_numpy(rng.multivariate_normal([0, 0], [[0.2, 0.1], [0.1, 0.1]], size=100_000).T)
    x1 = x1 + 0.3 * torch.from_numpy(rng.standard_normal(len(x1)))
    for step in (0, 500, 999):
        assert abs(method.bridge.target(step, x0, method.bridge.q_sample(step, x0, x1)).std() - 1) < 0.02


def test_while_the_critic_learns_the_generator_holds_still():
    method = build_method(ModelOptions("velocitygan"), OPENFWI_SPEC)
    maps = torch.zeros(2, 1, 70, 70)
    batch = dict(x0=maps, x1=maps, seismic=torch.randn(2, 5, 250, 70), keep=torch.ones(2), mix=torch.rand(2))
    before = {name: value.clone() for name, value in method.net.state_dict().items()}
    method.loss_modules["critic"](batch).sum().backward()
    assert (all(torch.equal(value, before[name]) for name, value in method.net.state_dict().items())
        and all(p.grad is None for p in method.net.parameters()))
    method.loss_modules["net"](batch).sum().backward()
    assert any(not torch.equal(value, before[name])
        for name, value in method.net.state_dict().items() if "running" in name)


def test_a_failing_step_of_the_critic_leaves_the_generator_as_it_was(monkeypatch):
    method = build_method(ModelOptions("velocitygan"), OPENFWI_SPEC)
    maps = torch.zeros(2, 1, 70, 70)
    batch = dict(x0=maps, x1=maps, seismic=torch.randn(2, 5, 250, 70), keep=torch.ones(2), mix=torch.rand(2))
    before = {name: value.clone() for name, value in method.net.state_dict().items()}
    real, moved = method.net.forward, []

    def failing(*given):
        real(*given)
        moved.append(any(not torch.equal(v, before[k]) for k, v in method.net.state_dict().items()))
        raise MemoryError

    monkeypatch.setattr(method.net, "forward", failing)
    with pytest.raises(MemoryError): method.loss_modules["critic"](batch)
    assert moved == [True] and all(torch.equal(v, before[k]) for k, v in method.net.state_dict().items())
    monkeypatch.setattr(method.net, "forward", real)
    monkeypatch.setattr(method.critic, "forward", failing)
    with pytest.raises(RuntimeError): method.loss_modules["net"](batch | dict(x0=maps[:, :, :5]))
    assert all(p.requires_grad for p in method.critic.parameters())


def test_the_average_of_a_generator_counts_its_own_updates(trained):
    run = trained("gan", *VARIANTS["gan"], "--num-itr", 2)  # one update of two steps
    options = ModelOptions("tiny", method="gan", n_critic=2)
    parts, fresh = weights(run), build_method(options, OPENFWI_SPEC).net.state_dict()
    fresh = {name: value.numpy() for name, value in fresh.items()}
    for name, value in parts["ema"].items():
        np.testing.assert_allclose(value, fresh[name] + 0.9 * (parts["weights"][name] - fresh[name]),
            rtol=1e-4, atol=1e-6)


def test_every_encoder_serves_every_method(trained):
    for encoder in ("patch", "conv"):
        for method in ("ddpm", "regression", "gan"):
            run = load_run(trained(f"{encoder}-{method}", "--num-itr", 1, "--encoder", encoder, "--method", method,
                *(("--n-critic", 1) if method == "gan" else ())), device="cpu")
            assert run.net.encoder.channels > 5


def test_a_file_of_ones_own_adds_a_model(fwi, trained, refused, data, tmp_path):
    file = tmp_path / "my_model.py"
    file.write_text(PLUGIN.replace("{tag}", ""))
    refused("train", *arguments(data, tmp_path, "mine", "--model", "loudness"),
        saying=("unknown model 'loudness'", "--import"))
    assert re.search(r"^loudness +regression +2 ", fwi("models", "--import", file).out, re.M)
    run = trained("mine", "--model", "loudness", "--import", file, "--num-itr", 1)
    finish(python_train(*arguments(data, tmp_path, "again", "--model", "loudness", "--num-itr", 1, "--import", file)))
    assert fwi("invert", run, "--records", 2, "--import", file).code == 0
    broken, silent, same, idle, leaving = ((tmp_path / f"{name}.py"
        for name in ("broken", "silent", "same", "idle", "leaving")))
    broken.write_text("raise RuntimeError('no')"), silent.write_text("x = 1"), same.write_text(PLUGIN.replace(
        "loudness{tag}", "tiny"))
    idle.write_text(PLUGIN.replace("{tag}", "3").replace('("regression",)', "()")), leaving.write_text(
        "import sys; sys.exit(3)")
    typed = tmp_path / "typed.py"
    typed.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Width:\n"
        "    cells: int = 3\n" + PLUGIN.replace("{tag}", "-typed"))
    assert fwi("models", "--import", typed).code == 0
    for path, saying in (((broken, "RuntimeError: no"), (idle, "names no method"), (leaving, "SystemExit: 3"),
            (silent, "registers nothing: decorate"), (same, "there is a model 'tiny' already"),
            (tmp_path / "none.py", "is not a Python file"))):
        refused("models", "--import", path, saying=(saying,))
    looking = tmp_path / "looking.py"
    looking.write_text(
        PLUGIN.replace("{tag}", "-looking").replace("nn.Linear(1, 1)", "nn.Linear(1, 1); float(self.line.weight)"))
    assert fwi("models", "--import", looking).code == 0  # it cannot be built without memory
    late = tmp_path / "late.py"
    late.write_text(PLUGIN.replace("{tag}", "-late") + "raise RuntimeError('too late')")
    refused("models", "--import", late, saying=("too late",))
    assert "loudness-late" not in MODELS
    # a process of its own: the file brings the first import of the registry
    subprocess.run([sys.executable, "-c", "import sys; from fwi_i2sb.core.registry import import_plugin as add; "
        "add(sys.argv[1]); from fwi_i2sb.models.registry import MODELS; assert 'loudness' in MODELS", file], check=True)


KINDS = """
from torch import nn
from fwi_i2sb.data.starting_models import register_starting_model
from fwi_i2sb.diffusion.samplers import Sampler
from fwi_i2sb.diffusion.sampling import SAMPLERS
from fwi_i2sb.methods.base import Method
from fwi_i2sb.methods.losses import LOSSES, MAP_LOSSES
from fwi_i2sb.methods.registry import register_method
from fwi_i2sb.methods.vae import VAE_SAMPLERS
from fwi_i2sb.models.encoders import ENCODERS
from fwi_i2sb.models.registry import register
from fwi_i2sb.models.unet import build_network
from fwi_i2sb.models.vae_unet import VAE_ENCODERS

@ENCODERS.register("mean-trace")
class MeanTrace(nn.Module):
    channels, cell = 1, 1
    def __init__(self, shots, samples, size, grid, cell):
        super().__init__()
        self.size = size
    def forward(self, seismic): return nn.functional.interpolate(seismic.mean(1, keepdim=True), size=self.size)

@LOSSES.register("cubic")
def cubic(difference): return difference.abs() ** 3

@MAP_LOSSES.register("top")
def top(judged): return (judged.map - judged.truth)[..., :5, :].abs().flatten(1).mean(1)

SAMPLERS.register("late-ode")(Sampler(stochastic=False, spacing="log"))
VAE_SAMPLERS.register("always-drawn")(Sampler())

def straight(jump):
    ahead = jump.x0 if jump.before is None else 1.5 * jump.x0 - 0.5 * jump.before[1]
    left = jump.t_prev / jump.t_index
    state = left * jump.xt + (1 - left) * ahead
    return state + jump.eta * left * jump.noise() if jump.t_prev else state

SAMPLERS.register("straight")(Sampler(straight, eta=0.0, takes_eta=True))

@VAE_ENCODERS.register("pooled")
class Pooled(nn.Module):
    def __init__(self, shots, samples, receivers):
        super().__init__()
        self.layer, self.shapes = nn.Conv2d(shots, 8, 1), [(shots, 6, 4), (8, 3, 2)]
    def forward(self, seismic):
        fine, coarse = (nn.functional.adaptive_avg_pool2d(seismic, size[1:]) for size in self.shapes)
        return fine, self.layer(coarse)

@register_starting_model("flat", number=lambda word, dx: float(word))
def flat(start, args, x0, generators): return 0 * x0

@register_method
class Residual(Method):
    name, about = "residual", "one call, what the starting model lacks"
    def loss(self, denoise_, batch):
        answer = denoise_(batch["x1"], self.network_time(0, batch["x1"]), batch["seismic"], batch["keep"])
        return self.judge(batch, answer)

@register("narrow", about="tiny, of one's own", methods=("residual", "bridge"))
def build(shapes, options):
    assert options.interval == 1000  # the full options, whoever asks
    return build_network("tiny", shots=shapes.shots, map_size=shapes.map_size, encoder=options.encoder)
"""


def _a_sampler_of_ones_own(fwi, refused, mini, file, tmp_path):
    "Its update rule from python and by the command; what it takes is what it says; where it cannot go is told."
    run = load_run(mini, device="cpu")
    seismic, _, ids = validation_records(run, 2)
    result = run.invert(seismic, "linear", sampler="straight", eta=0.3, nfe=3, samples=2, seed=4, record_ids=ids)
    cond = run.net.encode(network_input(run.options.model, run.spec.input_scale, torch.as_tensor(seismic)))
    for row, number in enumerate(ids):
        for k in range(2):
            rng, xt, last = np.random.default_rng((4, number, k, STREAMS["sample"])), result.start[row][None], None
            xt = run.scale.normalize(xt)
            for t_index, t_prev in ((999, 666), (666, 333), (333, 0)):
                time = run.method.bridge.network_time(t_index, xt)
                with torch.no_grad(): x0 = run.net(xt, time, cond[row:row + 1])
                if run.method.clips: x0 = x0.clamp(-1, 1)
                ahead, left = x0 if last is None else x0 + 0.5 * (x0 - last), t_prev / t_index
                xt, last = left * xt + (1 - left) * ahead, x0
                if t_prev: xt = xt + 0.3 * left * torch.from_numpy(rng.standard_normal(xt.shape[1:], np.float32))
            expected = run.scale.denormalize(xt[0]).clamp(*stable_range(run.scale))
            torch.testing.assert_close(torch.as_tensor(result.samples[row, k]), expected, rtol=0, atol=0.5)
    assert result.provenance["eta"] == 0.3
    words = ("invert", mini, "--records", 1, "--start", "linear", "--nfe", 2, "--import", file, "--out")
    assert fwi(*words, tmp_path / "s", "--sampler", "straight", "--eta", 0.5).code == 0
    words = (*words, tmp_path / "no")
    refused(*words, "--sampler", "late-ode", "--eta", 0.5, saying=("has no eta", "dbim or straight"))
    refused(*words, "--sampler", "late-ode", "--samples", 2, saying=("would be equal",))
    refused("export", mini, "--onnx", tmp_path / "net.onnx", "--import", file, "--sampler", "straight",
        saying=("sampler straight has an update rule of its own",))
    with pytest.raises(InputError, match="'bare' must be a Sampler"): SAMPLERS.register("bare")(lambda jump: jump.xt)
    with pytest.raises(InputError, match="sets step, which has no effect"):
        VAE_SAMPLERS.register("bare")(Sampler(lambda jump: jump.xt))


def test_one_file_adds_one_of_each(fwi, trained, refused, data, mini, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(KINDS)
    mine = ("--model", "narrow", "--method", "residual", "--encoder", "mean-trace", "--corrupt", "flat",
        "--loss", "cubic:1,top:0.5")
    flags, names = mine[::2], mine[1::2]
    for flag, name in zip(flags, names):
        kind = flag.replace("corrupt", "starting model").strip("-")
        refused("train", *arguments(data, tmp_path, "no", flag, name), saying=(f"unknown {kind} {name.split(':')[0]!r}",
            "--import"))
    listed = fwi("models", "--import", file, "--encoder", "mean-trace").out
    assert re.search(r"^narrow +residual, bridge +\d+ ", listed, re.M)
    assert re.search(r"^tiny +bridge, ddpm, regression, gan, residual ", listed, re.M)  # every U-Net can learn it
    for kind, name in (("encoder", "mean-trace"), ("loss", "cubic"), ("loss", "top"), ("starting model", "flat"),
            ("sampler", "late-ode"), ("sampler", "straight"), ("sampler", "always-drawn")):
        assert re.search(rf"^{kind} .*\b{name}\b", listed, re.M)
    assert re.search(r"^vae_pooled +vae +\d+ ", listed, re.M)
    shown = " ".join(fwi("train", "--import", file, "--help").out.replace("│", "").split())
    for ours, name in zip(("vae_pooled", "vector", "conv", "first-guess", "misfit"), (*names[:-1], "top")):
        assert f"{ours}, {name})" in shown
    run = trained("mine", *mine, "--import", file, "--num-itr", 2)
    assert len(losses(run)) == 2 and losses(run) != losses(trained("l2", *mine[:-2], "--import", file, "--num-itr", 2))
    with pytest.raises(InputError, match="has no effect with the method residual"):
        build_method(ModelOptions("tiny", method="residual", n_critic=3), OPENFWI_SPEC)
    assert fwi("invert", run, "--records", 1, "--import", file, "--start", "flat", "--out", tmp_path).code == 0
    seismic, truth, numbers = validation_records(load_run(run, device="cpu", plugin=file), 1)
    explorer = explore(run, plugin=file, device="cpu", n_records=1, samples=1, nfe=1)
    assert "flat" in explorer.control["start"].options.values()
    box = explore(mini, n_records=1, samples=1, nfe=2)
    assert {"late-ode", "straight"} < set(box.control["sampler"].options)
    box.control["sampler"].value = "straight"
    assert box.status.value == "" and "(straight, NFE 2)" in box.report.value
    assert "straight" in fwi("invert", "--help").out
    _a_sampler_of_ones_own(fwi, refused, mini, file, tmp_path)
    vae = load_run(trained("vae", "--model", "vae_pooled", "--import", file, "--num-itr", 1, *LARGE), device="cpu")
    assert vae.method.samplers == ("mean", "draws", "always-drawn")
    assert (vae.invert(seismic, record_ids=numbers, sampler="always-drawn", samples=2).std > 0).any()
    again = load_run(run, device="cpu").invert(seismic, truth, record_ids=numbers)
    assert again.mean.shape == truth.shape and again.provenance["method"] == "residual"


OWN_FLAGS = """
from fwi_i2sb.core.commands import NonNegative, option_group
from fwi_i2sb.methods.base import Method
from fwi_i2sb.methods.registry import register_method

@option_group
class ShiftSettings:
    "Settings of the method shifted."
    my_weight: NonNegative = 1.0  # weight of what is mine
    my_layers: tuple[int, ...] = ()  # layers of mine
    my_way: bool = True  # whether it is done my way

@register_method
class Shifted(Method):
    name, about, settings = "shifted", "one call, weighted", ShiftSettings
    uses = (*Method.uses, "my_weight")
    def loss(self, denoise_, batch): return self.settings.my_weight * super().loss(denoise_, batch)
"""


def test_a_method_of_ones_own_brings_flags(fwi, trained, refused, data, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN_FLAGS)
    mine = ("--method", "shifted", "--import", file, "--num-itr", 1)
    assert "--my-weight" not in fwi("train", "--help").out
    refused("train", *arguments(data, tmp_path, "no", "--my-weight", 2), saying=("--my-weight is no option",))
    shown = " ".join(fwi("train", "--import", file, "--help").out.replace("│", "").split())
    assert "Settings of the method shifted." in shown and "weight of what is mine (default: 1.0)" in shown
    one = trained("one", *mine)
    two = trained("two", *mine, "--my-weight", 2, "--my-layers", 1, "--my_layers", 2, "--no-my-way")
    np.testing.assert_allclose(losses(two), 2 * np.array(losses(one)), rtol=1e-5)
    # kept, sealed, and what tells one run from another
    kept = json.loads((two / "config.json").read_text())
    assert kept["model"]["settings"] == dict(my_weight=2.0, my_layers=[1, 2], my_way=False)
    run = load_run(two, device="cpu", plugin=file)
    assert run.method.settings.my_layers == (1, 2) and run.options.model.settings == kept["model"]["settings"]
    refused("train", *arguments(data, tmp_path, "two", *mine, "--my-weight", 2, "--no-my-way"),
        saying=("exists with another --my-layers ([1, 2], now [])",))
    again = trained("again", "--config", two / "config.json", "--name", "again", "--num-itr", 1)  # names the plug-in
    assert losses(again) == losses(two)
    kept["model"]["settings"]["my_weight"] = 3.0
    (again / "config.json").write_text(json.dumps(kept))
    with pytest.raises(InputError, match="not what was written"): load_run(again)
    # one sentence each
    (tmp_path / "a.yaml").write_text("model: {my_weight: -1}")
    for words, saying in ((("--my-weight", -1), "--my-weight must be 0 or more (got -1"),
            (("--config", tmp_path / "a.yaml"), "my_weight must be 0 or more"),
            (("--my-wieght", 1), "did you mean --my-weight"),
            (("--method", "regression", "--no-my-way"), "--no-my-way has no effect with the method regression")):
        refused("train", *arguments(data, tmp_path, "no", *mine, *words), saying=(saying,))
    assert not (tmp_path / "no").exists()
    options = ModelOptions("tiny", method="shifted", settings=dict(my_weight=0.5))
    assert build_method(options, OPENFWI_SPEC).settings.my_weight == 0.5
    with pytest.raises(InputError, match="did you mean 'my_weight'"):
        build_method(replace(options, settings=dict(my_wieght=1)), OPENFWI_SPEC)
    found = with_values(run.options, dict(my_weight=0.25, lr=1e-3))
    assert found.model.settings == kept["model"]["settings"] | dict(my_weight=0.25) and found.optim.lr == 1e-3
    assert by_name(parse(TrainOptions, command_words(found))) == by_name(found)


def test_settings_that_cannot_be_flags_are_refused(refused, data, tmp_path):
    for number, (old, new, saying) in enumerate((("my_weight: NonNegative = 1.0", "lr: NonNegative = 1.0",
            "has a setting 'lr', and --lr is an option already"),
            ("my_weight: NonNegative = 1.0", "encoder: str = 'a'", "there is an option 'encoder' already"),
            ("NonNegative = 1.0", "NonNegative", "must have a default"),
            ("@option_group\n", "", "must be a class decorated"))):
        file = tmp_path / f"bad{number}.py"
        file.write_text(OWN_FLAGS.replace('    uses = (*Method.uses, "my_weight")\n', "").replace(old, new))
        refused("train", *arguments(data, tmp_path, "no", "--import", file), saying=(saying,))
        for kind in registry.Registry.every: kind.own.pop("shifted", None)


def test_a_method_says_which_options_it_uses_and_a_name_is_taken_once():
    class Wrong(Method): name, uses = "wrong", ("beta_min",)

    with pytest.raises(InputError, match="unknown option 'beta_min'; did you mean 'beta_max'"): register_method(Wrong)
    with pytest.raises(InputError, match="there is a method 'regression' already"): register_method(Method)
    assert "wrong" not in METHODS


def test_a_network_that_cannot_learn_is_refused_before_anything_is_written(refused, data, tmp_path):
    for tag, old, new, saying in (("4", "nn.Linear(1, 1)", "nn.Linear(2, 1)", "fails on a batch of two records"),
                                  ("5", "def encode", "def read", "has no 'encode'"),
                                  ("6", "def build(shapes, options)", "def build(shapes)", "cannot be built"),
                                  ("7", "return Loudness(shapes.map_size)", "raise ValueError('no such size')",
                                      "ValueError: no such size"),
                                  ("8", "return Loudness(shapes.map_size)", "return None", "not a torch.nn.Module")):
        file = tmp_path / f"faulty{tag}.py"
        file.write_text(PLUGIN.replace("{tag}", tag).replace(old, new))
        refused("train", *arguments(data, tmp_path, "no", "--model", f"loudness{tag}", "--import", file),
            saying=(saying,))
    assert not (tmp_path / "no").exists()


def test_opening_a_run_executes_nothing_that_belongs_to_it(data, tmp_path):
    file = tmp_path / "my_model.py"
    file.write_text(PLUGIN.replace("{tag}", "2"))
    finish(python_train(*arguments(data, tmp_path, "mine", "--model", "loudness2", "--num-itr", 1, "--import", file)))
    code = (f"from fwi_i2sb import load_run\ntry: load_run({str(tmp_path / 'mine')!r})\n"
        f"except ValueError as error: print(error)\nload_run({str(tmp_path / 'mine')!r}, plugin={str(file)!r})")
    said = python([sys.executable, "-c", code], check=True).stdout
    assert "unknown model 'loudness2'" in said and f"was trained with --import {file}" in said


def test_a_first_guess_is_a_start_that_has_not_seen_the_truth(fwi, trained, refused, mini, tmp_path):
    bridge = trained("bridge", "--num-itr", 1)
    refused("invert", bridge, "--start", "first-guess", saying=("first-guess:RUN",))
    refused("invert", bridge, "--start", f"first-guess:{mini}", saying=("answers in one call",))
    blind = trained("blind", "--num-itr", 1, "--method", "regression", "--no-conditional", "--drop-cond", 0,
        "--corrupt", "linear")
    refused("invert", bridge, "--start", f"first-guess:{blind}", saying=("without seismic",))
    seeing = trained("seeing", "--num-itr", 1, "--method", "regression")
    refused("invert", bridge, "--start", f"first-guess:{seeing}", saying=("has seen the truth",))
    trained("first-guess", "--method", "regression", "--corrupt", "linear", "--num-itr", 2)
    assert fwi("invert", bridge, "--start", "first-guess", "--records", 2, "--samples", 1).code == 0
    run = load_run(bridge, device="cpu")
    seismic, truth, numbers = validation_records(run, 3)
    result = run.invert(seismic, "first-guess", samples=1, record_ids=numbers)
    alone = run.invert(seismic[1:2], f"first-guess:{tmp_path / 'first-guess'}", samples=1, record_ids=numbers[1:2])
    torch.testing.assert_close(alone.start[0], result.start[1], atol=0.5, rtol=0)
    rough = load_run(tmp_path / "first-guess", device="cpu").invert(seismic, "linear", record_ids=numbers).mean
    smoother = replace(run,
        options=replace(run.options, model=replace(run.options.model, corrupt="blur-openfwi_benchmark:3")))
    # smoothed as that run's training smooths
    assert (smoother.invert(seismic, "first-guess", samples=1, record_ids=numbers).start - result.start).abs().max() > 5
    read = trained_runs._read_once.cache_info().misses
    again = run.invert(seismic, "first-guess", samples=1, record_ids=numbers)
    assert trained_runs._read_once.cache_info().misses == read and torch.equal(again.start, result.start)
    trained("first-guess", "--method", "regression", "--corrupt", "linear", "--num-itr", 3)  # trained on: another guess
    assert not torch.equal(run.invert(seismic, "first-guess", samples=1, record_ids=numbers).start, result.start)
    assert (result.start.diff(dim=-1).abs().mean() < 0.7 * rough.clamp(1500, 4500).diff(dim=-1).abs().mean() + 1
        and (mae(result.start, truth) < 1500).all())


def test_classical_inversion_from_the_same_start(fwi, mini, tmp_path):
    outcome = fwi("invert", mini, "--records", 1, "--fwi-iterations", 3, "--out", tmp_path)
    assert outcome.code == 0 and "classical" in outcome.out, outcome.err
    with np.load(tmp_path / "validation-1-classical.npz", allow_pickle=False) as back:
        assert back["std"].max() == 0 and back["samples"].shape[1] == 1


def _listed(fwi, tmp_path, *words):
    assert fwi("models", "--json", tmp_path / "others.json", *words).code == 0
    return (tmp_path / "others.json").read_text()


def test_the_published_sizes_are_listed(fwi, tmp_path):
    shown = fwi("models", "--json", tmp_path / "models.json").out
    assert json.loads((tmp_path / "models.json").read_text())[0]["weights"] != json.loads(_listed(fwi, tmp_path,
        "--encoder", "patch"))[0]["weights"]
    assert (re.search(r"^inversionnet .* 24409123 ", shown, re.M)
        and re.search(r"^velocitygan .* 24409123 .*critic 1180003", shown, re.M))
