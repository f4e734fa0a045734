"""The exact operator against a second implementation written from the scheme's description, and deepwave against it."""
import math

import numpy as np
import pytest
import torch

from fwi_i2sb.core.errors import InputError
from fwi_i2sb.data.geology import sample_velocity
from fwi_i2sb.data.openfwi import FAMILIES
from fwi_i2sb.physics.wave import simulate, surface_survey


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reference(v, survey):
    "Plain float64 numpy: one map, one shot at a time, periodic neighbours by np.roll, damping cell by cell."
    nz, nx = v.shape
    dx, dt, n = survey.dx, survey.dt, 120
    big = np.pad(v, n, mode="edge")
    a = (n - 1) * dx
    top = 3 * v.min() * math.log(1e7) / (2 * a)
    d = [top * (i * dx / a) ** 2 for i in range(n)]
    damping = np.zeros_like(big)
    for i in range(n):
        damping[n - 1 - i, n:n + nx] = damping[n + nz + i, n:n + nx] = d[i]
    for i in range(n):
        damping[:, n - 1 - i] = damping[:, n + nx + i] = d[i]
    alpha, k = (big * dt / dx) ** 2, damping * dt
    half = math.floor(math.floor(2.2 / (survey.freq * dt)) / 2)
    w = [(1 - 2 * x) * math.exp(-x) for x in ((math.pi * survey.freq * dt * i) ** 2 for i in range(-half, half + 1))]
    receivers = [(n + round(z / dx), n + round(x / dx)) for x, z in survey.receivers]
    record = np.zeros((len(survey.sources), survey.nt, len(receivers)))
    for shot, (x, z) in enumerate(survey.sources):
        source = n + round(z / dx), n + round(x / dx)
        old, now = np.zeros_like(big), np.zeros_like(big)
        for t in range(survey.nt):
            near = sum(np.roll(now, s, axis) for s in (1, -1) for axis in (0, 1))
            far = sum(np.roll(now, s, axis) for s in (2, -2) for axis in (0, 1))
            new = (2 - 5 * alpha - k) * now - (1 - k) * old + alpha * (4 / 3 * near - far / 12)
            if t < len(w):
                new[source] += (big[source] * dt) ** 2 * w[t]
            old, now = now, new
            for r, node in enumerate(receivers):
                record[shot, t, r] = now[node]
    return record


def relative(a, b):
    return float(np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b))


@pytest.mark.parametrize("shape, survey", [
    ((70, 70), surface_survey(70, 2, nt=600)),                             # long enough for the wrap to arrive
    ((24, 33), surface_survey(33, 3, dx=12.5, dt=1.5e-3, nt=200, freq=11., depth=25.)),
])
def test_exact_operator_equals_an_independent_implementation(shape, survey):
    v = sample_velocity("FlatVel_B", 1, shape=shape, seed=3).double().round() + 200.
    v = torch.cat([v, v.flip(-2).clamp(max=4000.)])                        # two maps: batching must not mix them
    expected = [reference(one[0].numpy(), survey) for one in v]
    double, single = simulate(v, survey, engine="openfwi"), simulate(v.float(), survey, engine="openfwi")
    assert single.dtype == torch.float32 and double.shape == (2, len(survey.sources), survey.nt, shape[1])
    for i in range(2):
        assert relative(double[i], expected[i]) < 1e-9
        assert relative(single[i], expected[i]) < 1e-4


def test_deepwave_agrees_with_the_exact_operator_on_every_family():
    v = torch.cat([sample_velocity(name, 1, seed=11) for name in FAMILIES])
    survey = surface_survey(70, nt=500)
    exact, fast = simulate(v, survey, engine="openfwi"), simulate(v, survey)
    error = (fast - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert error.max() <= 4e-3, dict(zip(FAMILIES, error.tolist()))


@pytest.mark.parametrize("engine", ["openfwi", "deepwave"])
@pytest.mark.parametrize("change", [lambda v: v / 1000, lambda v: 1 / v,
    lambda v: torch.cat([v[:, :, 1:], v[:, :, :1] / 1000], 2)])
def test_another_unit_is_refused(engine, change):
    velocity = change(torch.full((1, 1, 70, 70), 2500.))
    with pytest.raises(InputError, match="not in m/s"): simulate(velocity, engine=engine)
