"""Networks, methods, samplers and wave physics together: what has to hold for every baseline when the modules meet."""

from dataclasses import replace

import pytest
import torch

from fwi_i2sb import load_run
from fwi_i2sb.physics.waveform_inversion import descend
from fwi_i2sb.models.inversionnet import InversionNet
from fwi_i2sb.metrics.accuracy import misfit
from fwi_i2sb.models.registry import MODELS
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.methods.options import ModelOptions
from fwi_i2sb.data.spec import OPENFWI_SPEC
from fwi_i2sb.data.starting_models import linear_velocity
from fwi_i2sb.methods.registry import build_method, methods_of
from fwi_i2sb.inference.validation_data import validation_records
from fwi_i2sb.physics.filters import decimate
from fwi_i2sb.physics.wave import simulate, surface_survey

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = replace(OPENFWI_SPEC, survey=surface_survey(24, 3, nt=280), time_samples=70, map_size=(24, 26))
PAIRS = [(model, method) for model in ("tiny", "compact", "inversionnet", "velocitygan", "vae_unet", "vae_mamba",
        "speed-structure")
    for method in methods_of(MODELS[model]) if method != "vector"]  # which learns from other data
SEEDS = [3, (3, 1), (3, 2)]


@pytest.fixture(scope="module")
def methods():
    "Every model with every method that it can learn, its weights random so that no answer is zero by initialisation."
    methods = {(model, method): build_method(ModelOptions(model, method=method), SPEC) for model, method in PAIRS}
    torch.manual_seed(0)
    for method in methods.values():
        for p in method.nets["net"].parameters(): p.data += 0.02 * torch.randn_like(p)
    return methods


@pytest.fixture(scope="module")
def batch():
    "Three samples of nothing in particular."
    g = torch.Generator().manual_seed(1)
    maps = [torch.randn(3, 1, 24, 26, generator=g) for _ in range(3)]
    return dict(zip(("x0", "x1", "noise"), maps)) | dict(
        seismic=torch.randn(3, 3, 70, 24, generator=g), t_index=torch.tensor([3, 500, 990]),
        keep=torch.tensor([1.0, 1.0, 0.0]), mix=torch.tensor([0.2, 0.5, 0.8]), key=torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_losses_of_every_method_are_one_per_sample_and_reach_every_weight(pair, methods, batch):
    method = methods[pair]
    for name, loss_module in method.loss_modules.items():
        loss = loss_module(batch)
        assert loss.shape == (3,) and loss.dtype == torch.float32 and loss.isfinite().all()
        gradients = torch.autograd.grad(loss.sum(), list(method.nets[name].parameters()), allow_unused=True)
        assert all(g is not None and g.isfinite().all() for g in gradients)
        order = [2, 0, 1]
        torch.testing.assert_close(loss_module({key: value[order] for key, value in batch.items()}), loss[order],
            rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_trajectory_is_its_own_whatever_the_batch(pair, methods, batch):
    method = methods[pair]
    net = method.net.eval()
    for sampler in method.samplers:
        settings = method.sampling_settings(sampler=sampler, nfe=3 if pair[1] in ("bridge", "ddpm") else None)
        before = torch.random.get_rng_state()
        trajectory = lambda rows: list(method.sample(net, net.encode(batch["seismic"][rows]), batch["x1"][rows],
            seeds=SEEDS[rows], **settings))
        states, alone = trajectory(slice(0, 3)), trajectory(slice(1, 2))
        assert len(states) == settings["nfe"] and states[-1].t_index == 0 and states[-1].xt.shape == batch["x1"].shape
        for one, of_three in zip(alone, states):
            assert one.t_index == of_three.t_index
            torch.testing.assert_close(one.xt, of_three.xt[1:2], rtol=1e-3, atol=1e-3)
        assert torch.equal(before, torch.random.get_rng_state())
    net.train()


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not MODELS[pair[0]].reads_map], ids="-".join)
def test_a_network_that_reads_the_seismic_alone_does_not_see_the_start(pair, methods, batch):
    method = methods[pair]
    net = method.net.eval()
    with torch.inference_mode():
        cond = net.encode(batch["seismic"])
        maps = [list(method.sample(net, cond, x1, seeds=SEEDS, **method.sampling_settings()))[-1].xt
            for x1 in (batch["x1"], batch["noise"])]
    assert torch.equal(*maps)
    with pytest.raises(InputError, match="guidance"): method.sampling_settings(w=0.5)
    net.train()


@pytest.fixture(scope="module")
def stored(mini):
    "A run, and two records of its store: pressure and maps in m/s."
    run = load_run(mini)
    return run, *validation_records(run, 2)[:2]


def test_inversionnet_reads_records_as_the_store_keeps_them(stored):
    run, seismic, truth = stored
    net = InversionNet(*run.spec.gathers, run.spec.map_size).eval()
    with torch.inference_mode(): answer = net(truth, None, net.encode(run.pressure.normalize(seismic)))
    assert answer.shape == truth.shape and answer.isfinite().all()


def test_the_misfit_of_a_descent_is_that_of_the_metrics(stored):
    run, seismic, truth = (part[:1] if torch.is_tensor(part) else part for part in stored)
    start, factor = linear_velocity(truth.shape[-2:], 1800.0, 3800.0).expand_as(truth), run.spec.factor
    result = descend(seismic, start, run.survey, factor=factor, iterations=2)
    for maps, found in ((start, result.misfit[:, 0]), (result.velocity, result.misfit[:, -1])):
        again = decimate(simulate(maps, run.survey), factor)
        torch.testing.assert_close(found.double(), misfit(again, seismic), rtol=1e-5, atol=0)
    assert result.misfit[0, -1] < result.misfit[0, 0] and result.wave_solves == 5
