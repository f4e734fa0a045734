"""Start, bridge, network, sampler and metrics together: what has to hold when the rooms meet."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from fwi_i2sb.bridge import Bridge
from fwi_i2sb.metrics import Summary
from fwi_i2sb.network import build_network
from fwi_i2sb.openfwi import denormalize_velocity, normalize_velocity
from fwi_i2sb.sampler import predictor, run_sampler, sample, step_sequence
from fwi_i2sb.start import Start, fit_linear, parse_start

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Small tensors are faster on one thread."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def published_walk(x1, oracle, nfe, beta_max=0.3, n=1000):
    "The deterministic walk of arXiv 2302.05872 in NumPy, from its equations, without the package."
    root = np.linspace(np.sqrt(1e-4), np.sqrt(beta_max / n), n)[: n // 2]
    betas = np.concatenate([root, root[::-1]]) ** 2
    fwd = np.cumsum(betas)
    steps = [int(np.rint(k * (n - 1) / nfe)) for k in range(nfe, -1, -1)]
    x = x1.astype(np.float64)
    for here, there in zip(steps, steps[1:]):
        between = fwd[here] - fwd[there]
        x = between / (between + fwd[there]) * oracle(x, here) + fwd[there] / (between + fwd[there]) * x
    return x


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nfe", [1, 2, 5, 10, 999])
def test_deterministic_walk_is_the_published_one(nfe, device):
    x1 = np.random.default_rng(1).uniform(-1, 1, (2, 1, 6, 5))
    curve = lambda x, step: 0.3 * np.tanh(x) + step / 2000
    mine = run_sampler(Bridge(), lambda x, step: 0.3 * x.tanh() + step / 2000, torch.tensor(x1, device=device), nfe=nfe, ot_ode=True)
    np.testing.assert_allclose(mine.cpu(), published_walk(x1, curve, nfe), atol=1e-12)
    single = run_sampler(Bridge(), lambda x, step: 0.3 * x.tanh() + step / 2000, torch.tensor(x1, dtype=torch.float32, device=device), nfe=nfe, ot_ode=True)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.cpu(), published_walk(x1, curve, nfe), atol=1e-6)


@pytest.mark.parametrize("encoder", ["resize", "patch"])
@pytest.mark.parametrize("w, calls", [(1, 1), (0, 1), (0.5, 2)])
def test_guidance_with_a_real_network(maps, encoder, w, calls):
    net, bridge, seismic = network(encoder=encoder), Bridge(), torch.randn(6, 5, 250, 30)
    xt, cond, seen = normalize_velocity(maps), net.encode(seismic), []
    net.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    x0 = predictor(bridge, net, cond, w=w)(xt, 500)
    assert sum(seen) == calls * len(maps) and len(seen) == 1
    time = torch.full((6,), float(bridge.time[500]))
    with_, without = net(xt, time, cond), net(xt, time, torch.zeros_like(cond))
    assert not torch.allclose(with_, without)
    torch.testing.assert_close(x0, without + w * (with_ - without), rtol=0, atol=1e-5)
    if calls == 1: assert torch.equal(x0, with_ if w else without)


def test_unconditional_network_walks_without_seismic(maps):
    net = network(conditional=False)
    states = list(sample(Bridge(), predictor(Bridge(), net, None), normalize_velocity(maps), nfe=3, seeds=range(6)))
    assert [s.step for s in states] == step_sequence(1000, 3)[1:]
    assert states[-1].xt.shape == maps.shape and states[-1].xt.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ot_ode, pred_x0", [(False, True), (True, True), (False, False)])
def test_chain_does_not_depend_on_batches(maps, ot_ode, pred_x0, device):
    "Start, network, walk and metrics of six records at once, and in two unequal parts."
    net, bridge, seismic = network().to(device), Bridge(), torch.randn(6, 5, 250, 30, device=device)
    start = Start(parse_start("blur-openfwi_custom:0.5,linear:0.5"), linear=fit_linear([maps]))

    def invert(rows):
        keys = [(0, r) for r in range(6)][rows]
        x1 = start(normalize_velocity(maps[rows]).to(device), [(*key, 3) for key in keys])
        guess = predictor(bridge, net, net.encode(seismic[rows]), w=1.0, pred_x0=pred_x0, clip_denoise=True)
        return run_sampler(bridge, guess, x1, nfe=4, ot_ode=ot_ode, seeds=[(*key, 5) for key in keys])

    whole, parts = invert(slice(0, 6)), [invert(slice(0, 4)), invert(slice(4, 6))]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-4 if device == "cuda" else 1e-5)
    one, two = Summary(), Summary()
    one.add(denormalize_velocity(whole.cpu()), maps)
    for part, true in zip(parts, (maps[:4], maps[4:])): two.add(denormalize_velocity(part.cpu()), true)
    assert one.result() == pytest.approx(two.result(), rel=1e-3 if device == "cuda" else 1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_start_is_the_same_on_every_device(maps, device):
    start = Start(parse_start("blur-openfwi_custom:2,blur-openfwi_benchmark:1,linear:1"), linear=(1600, 4000))
    x0, keys = normalize_velocity(maps), [(1, r) for r in range(6)]
    x1 = start(x0.to(device), keys)
    assert x1.device.type == device
    torch.testing.assert_close(x1.cpu(), start(x0, keys), rtol=0, atol=1e-6)


def test_torch_generator_is_left_alone(maps):
    "Keyed draws must not move the global random state, or resuming a training would."
    before = torch.random.get_rng_state()
    x1 = Start(parse_start("blur-openfwi_custom"))(normalize_velocity(maps), range(6))
    run_sampler(Bridge(), lambda xt, step: xt, x1, nfe=3, seeds=range(6))
    assert torch.equal(before, torch.random.get_rng_state())


def test_seeds_give_the_same_maps_in_another_process(maps):
    "Nothing hangs on the process: no hash, no global state."
    code = ("import torch; from fwi_i2sb.bridge import Bridge; from fwi_i2sb.sampler import run_sampler; from fwi_i2sb.start import Start, parse_start\n"
            "x0 = torch.linspace(-1, 1, 96).reshape(2, 1, 8, 6)\n"
            "x1 = Start(parse_start('blur-openfwi_custom:0.5,linear:1500:4000:0.5'))(x0, [(0, 1), 7])\n"
            "x = run_sampler(Bridge(), lambda xt, step: x0, x1, nfe=5, seeds=[(0, 2), 8])\n"
            "print(x.double().sum().item().hex())")
    answers = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(answers) == 1 and answers.pop().strip()
