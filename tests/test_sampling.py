"""Start, bridge, network, sampler and metrics together: what has to hold when the modules meet."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from fwi_i2sb.diffusion.bridge import Bridge
from fwi_i2sb.metrics.accuracy import mae, rmse, ssim
from fwi_i2sb.models.unet import build_network
from fwi_i2sb.data.scale import OPENFWI_SCALE
from fwi_i2sb import load_run
from fwi_i2sb.diffusion.ddpm import denoise, Diffusion
from fwi_i2sb.diffusion.sampling import predictor, run_sampler, sample, sampler_settings, SAMPLERS, t_sequence
from fwi_i2sb.data.starting_models import fit_linear, parse_start, Start
from fwi_i2sb.inference.validation_data import validation_records

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.fixture(scope="module")
def maps():
    "Six layered maps (6, 1, 32, 30) in m/s."
    rng = np.random.default_rng(0)
    rows = np.sort(rng.uniform(1500, 4500, (6, 4)), axis=1).repeat(8, axis=1)
    return torch.tensor(rows[:, None, :, None].repeat(30, axis=3), dtype=torch.float32)


def network(**kind):
    "A tiny network with random weights everywhere, so that nothing is zero by initialisation."
    torch.manual_seed(0)
    net = build_network("tiny", map_size=(32, 30), **kind).eval().requires_grad_(False)
    for p in net.parameters(): p.add_(0.02 * torch.randn_like(p))
    return net


def published_variances(beta_max=0.3, n=1000):
    "Variance gathered from the clean end at every step of the published schedule."
    root = np.linspace(np.sqrt(1e-4), np.sqrt(beta_max / n), n)[: n // 2]
    return np.cumsum(np.concatenate([root, root[::-1]]) ** 2)


def published_trajectory(x1, oracle, nfe, n=1000):
    "The deterministic trajectory of arXiv 2302.05872 in NumPy, from its equations, without the package."
    fwd = published_variances()
    steps = [int(np.rint(k * (n - 1) / nfe)) for k in range(nfe, -1, -1)]
    x = x1.astype(np.float64)
    for here, there in zip(steps, steps[1:]):
        between = fwd[here] - fwd[there]
        x = between / (between + fwd[there]) * oracle(x, here) + fwd[there] / (between + fwd[there]) * x
    return x


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nfe", [1, 2, 5, 10, 999])
def test_deterministic_sampler_is_the_published_one(nfe, device):
    x1 = np.random.default_rng(1).uniform(-1, 1, (2, 1, 6, 5))
    curve = lambda x, t_index: 0.3 * np.tanh(x) + t_index / 2000
    mine = run_sampler(Bridge(), lambda x, t_index: 0.3 * x.tanh() + t_index / 2000, torch.tensor(x1, device=device),
        nfe=nfe, ot_ode=True)
    np.testing.assert_allclose(mine.cpu(), published_trajectory(x1, curve, nfe), atol=1e-12)
    single = run_sampler(Bridge(), lambda x, t_index: 0.3 * x.tanh() + t_index / 2000,
        torch.tensor(x1, dtype=torch.float32, device=device), nfe=nfe, ot_ode=True)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.cpu(), published_trajectory(x1, curve, nfe), atol=1e-6)


def implicit_trajectory(x1, oracle, steps, eta, order, noises):
    "The trajectory of arXiv 2405.15885 in NumPy: y = (x - a x1) / c integrated over kappa = b / c, with given noise."
    u = published_variances()
    a, kappa = u / u[-1], np.sqrt(1 / u - 1 / u[-1])
    x, before = x1, None
    for here, there, noise in zip(steps, steps[1:], [*noises, None]):
        guess = first = oracle(x, here)
        if order == 2 and before is not None:
            line = (first - before[0]) / np.log(u[here] / u[before[1]])
            fine = np.geomspace(u[here], u[there], 200_001)
            k = np.sqrt(np.maximum(1 / fine - 1 / u[-1], 0))
            mean = np.trapezoid(np.log(fine / u[here]), k) / (k[-1] - k[0]) if there else np.log(u[there] / u[here])
            guess = first + mean * line
        before = first, here
        c, c_there = np.sqrt(u[here] * (1 - a[here])), np.sqrt(u[there] * (1 - a[there]))
        if there == 0 and eta == 1: x = (1 - u[0] / u[here]) * guess + u[0] / u[here] * x  # the posterior's mean
        elif there == 0: x = a[0] * x1 + (1 - a[0]) * guess
        elif here == steps[0]: x = a[there] * x1 + c_there * (noise + kappa[there] * guess)
        else:
            old = (x - a[here] * x1) / c - kappa[here] * guess
            rho = eta * np.sqrt((u[here] - u[there]) * u[there] / u[here])
            x = a[there] * x1 + c_there * kappa[there] * guess + np.sqrt(c_there**2 - rho**2) * old + rho * noise
    return x


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("eta, order, spacing",
    [(0, 1, "even"), (0.4, 1, "log"), (1, 1, "even"), (0, 2, "log"), (0, 2, "even")])
def test_implicit_trajectory_is_that_of_its_equations(eta, order, spacing, device):
    x1 = np.random.default_rng(1).uniform(-1, 1, (1, 1, 6, 5))
    generator = np.random.default_rng((4, 2))
    noises = [generator.standard_normal(x1.shape[1:], dtype=np.float32)[None] for _ in range(4)]
    mine = run_sampler(Bridge(), lambda x, t_index: 0.3 * x.tanh() + t_index / 2000,
        torch.tensor(x1, device=device), nfe=5, eta=eta, order=order, spacing=spacing, seeds=[(4, 2)])
    expected = implicit_trajectory(x1, lambda x, t_index: 0.3 * np.tanh(x) + t_index / 2000,
        t_sequence(1000, 5, spacing), eta, order, noises)
    np.testing.assert_allclose(mine.cpu(), expected, atol=1e-6)


@pytest.mark.parametrize("encoder", ["resize", "patch"])
@pytest.mark.parametrize("w, calls", [(1, 1), (0, 1), (0.5, 2)])
def test_guidance_with_a_real_network(maps, encoder, w, calls):
    net, bridge, seismic = network(encoder=encoder), Bridge(), torch.randn(6, 5, 250, 30)
    xt, cond, seen = OPENFWI_SCALE.normalize(maps), net.encode(seismic), []
    net.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    x0 = predictor(bridge, net, cond, w=w)(xt, 500)
    assert sum(seen) == calls * len(maps) and len(seen) == 1
    time = torch.full((6,), float(bridge.time[500]))
    with_, without = net(xt, time, cond), net(xt, time, torch.zeros_like(cond))
    assert not torch.allclose(with_, without)
    torch.testing.assert_close(x0, without + w * (with_ - without), rtol=0, atol=1e-5)
    if calls == 1: assert torch.equal(x0, with_ if w else without)


def test_unconditional_network_samples_without_seismic(maps):
    net = network(conditional=False)
    states = list(sample(Bridge(), predictor(Bridge(), net, None), OPENFWI_SCALE.normalize(maps), nfe=3,
        seeds=range(6)))
    assert [s.t_index for s in states] == t_sequence(1000, 3)[1:]
    assert states[-1].xt.shape == maps.shape and states[-1].xt.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampler, pred_x0", [*((name, True) for name in SAMPLERS), ("sde", False)])
def test_chain_does_not_depend_on_batches(maps, sampler, pred_x0, device):
    "Start, network, sampler and metrics of six records at once, and in two unequal parts."
    net, bridge, seismic = network().to(device), Bridge(), torch.randn(6, 5, 250, 30, device=device)
    start = Start(parse_start("blur-openfwi_custom:0.5,linear:0.5"), scale=OPENFWI_SCALE, linear=fit_linear([maps]))

    def invert(rows):
        keys = [(0, r) for r in range(6)][rows]
        x1 = start(OPENFWI_SCALE.normalize(maps[rows]).to(device), [(*key, 3) for key in keys])
        predict_x0 = predictor(bridge, net, net.encode(seismic[rows]), w=1.0, pred_x0=pred_x0, clip_denoise=True)
        return run_sampler(bridge, predict_x0, x1, nfe=4, seeds=[(*key, 5) for key in keys],
            **sampler_settings(sampler))

    whole, parts = invert(slice(0, 6)), [invert(slice(0, 4)), invert(slice(4, 6))]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-4 if device == "cuda" else 1e-5)
    for metric in (mae, rmse, ssim):
        one = metric(OPENFWI_SCALE.denormalize(whole.cpu()), maps)
        two = torch.cat([metric(OPENFWI_SCALE.denormalize(part.cpu()), true)
            for part, true in zip(parts, (maps[:4], maps[4:]))])
        torch.testing.assert_close(one, two, rtol=1e-3 if device == "cuda" else 1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_start_is_the_same_on_every_device(maps, device):
    start = Start(parse_start("blur-openfwi_custom:2,blur-openfwi_benchmark:1,linear:1"), scale=OPENFWI_SCALE,
        linear=(1600, 4000))
    x0, keys = OPENFWI_SCALE.normalize(maps), [(1, r) for r in range(6)]
    x1 = start(x0.to(device), keys)
    assert x1.device.type == device
    torch.testing.assert_close(x1.cpu(), start(x0, keys), rtol=0, atol=1e-6)


def test_torch_generator_is_left_alone(maps):
    "Keyed draws must not move the global random state, or resuming a training would."
    before = torch.random.get_rng_state()
    x1 = Start(parse_start("blur-openfwi_custom"), scale=OPENFWI_SCALE)(OPENFWI_SCALE.normalize(maps), range(6))
    run_sampler(Bridge(), lambda xt, t_index: xt, x1, nfe=3, seeds=range(6))
    assert torch.equal(before, torch.random.get_rng_state())


def test_seeds_give_the_same_maps_in_another_process(maps):
    "Nothing hangs on the process: no hash, no global state."
    code = ("import torch; from fwi_i2sb.diffusion.bridge import Bridge; from fwi_i2sb.diffusion.sampling import "
            "run_sampler; from fwi_i2sb.data.starting_models import Start, parse_start; "
            "from fwi_i2sb.data.scale import OPENFWI_SCALE\n"
            "x0 = torch.linspace(-1, 1, 96).reshape(2, 1, 8, 6)\n"
            "x1 = Start(parse_start('blur-openfwi_custom:0.5,linear:1500:4000:0.5'), "
            "scale=OPENFWI_SCALE)(x0, [(0, 1), 7])\n"
            "x = run_sampler(Bridge(), lambda xt, t_index: x0, x1, nfe=5, seeds=[(0, 2), 8])\n"
            "print(x.double().sum().item().hex())")
    answers = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)}  # real interpreters: each hashes differently
    assert len(answers) == 1 and answers.pop().strip()


@pytest.mark.parametrize("w, size", [(1, 1), (0, 1), (1.5, 2)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inversion_encodes_a_record_once_and_guides_in_one_batch(mini, sampler, w, size):
    run, encoded, called = load_run(mini, device="cpu"), [], []
    seismic = validation_records(run, 3)[0]
    run.net.encoder.register_forward_hook(lambda module, given, out: encoded.append(len(out)))
    run.net.register_forward_hook(lambda module, given, out: called.append(len(out)))
    run.invert(seismic, "linear", samples=4, nfe=3, w=w, sampler=sampler, batch_size=32)
    assert sum(encoded) == 3 and called == [3 * 4 * size] * 3


def test_samplers_by_name(mini):
    run = load_run(mini, device="cpu")
    seismic = validation_records(run, 2)[0]
    answer = lambda **how: run.invert(seismic, "linear", samples=2, nfe=3, **how).samples
    trained = answer()
    assert torch.equal(trained, answer(sampler="sde")) and torch.equal(trained, answer(sampler="dbim", eta=1.0))
    assert (not torch.equal(trained, answer(sampler="dbim", eta=0.5))
        and torch.equal(answer(sampler="dbim", eta=0.0), answer(sampler="dbim")))
    for name in ("ode", "ode2"): torch.testing.assert_close(*answer(sampler=name).unbind(1), rtol=0, atol=0.01)


def test_samplers_on_the_command_line(fwi, refused, mini, data, tmp_path):
    words = ["invert", mini, "--records", "1", "--samples", "1", "--nfe", "2", "--out", tmp_path]
    done = fwi(*words, "--sampler", "dbim", "--eta", "0.5", "--clip-denoise", "on")
    with np.load(tmp_path / "validation-1.npz", allow_pickle=False) as result:
        provenance = json.loads(str(result["provenance"]))
    assert (done.code == 0 and "(dbim)" in done.out
        and (provenance["sampler"], provenance["eta"], provenance["clip_denoise"]) == ("dbim", 0.5, True))
    refused(*words, "--sampler", "dbmi", saying=("unknown sampler 'dbmi'", "'dbim'"))
    refused(*words, "--eta", "0.5", saying=("sde has no eta",))
    refused(*words, "--sampler", "dbim", "--eta", "1.5", saying=("--eta must be 1 or less (got 1.5)",))
    card = ["evaluate", mini, "--records", "2", "--samples", "1", "--nfe", "2", "--misfit-records", "1", "--starts",
        "linear", "--out", tmp_path]
    assert fwi(*card, "--sampler", "dbim2", "--dataset-dir", data, "--store-dir", tmp_path / "store").code == 0
    rows = json.loads((tmp_path / "card.json").read_text())["rows"]
    assert rows[1]["sampler"] == "dbim2" and (tmp_path / "store" / "val" / "manifest.json").exists()


def test_an_update_rule_of_ones_own_serves_ddpm_too():
    def half(jump): return (jump.xt + jump.x0) / 2 + (jump.eta * jump.noise() if jump.t_prev else 0)

    *_, end = denoise(Diffusion(), lambda xt, t_index: 0.1 * xt + 1e-3 * t_index, torch.zeros(2, 1, 3, 3), nfe=3,
        eta=0.5, step=half, seeds=[(1, 0), (1, 1)])
    for row in range(2):
        rng = np.random.default_rng((1, row))
        draw = lambda: rng.standard_normal((1, 3, 3), dtype=np.float32)
        xt = draw()  # it starts from noise
        for t_index in (999, 666, 333):
            xt = (xt + 0.1 * xt + 1e-3 * t_index) / 2 + (0.5 * draw() if t_index > 333 else 0)
        np.testing.assert_allclose(end.xt[row], xt, rtol=1e-5, atol=1e-6)
