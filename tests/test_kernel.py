"The exact operator's kernel for GPUs, by Triton's interpreter against the eager scheme, and compiled without a GPU."
import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from fwi_i2sb.data.geology import sample_velocity
from fwi_i2sb.physics import wave
from fwi_i2sb.physics.wave import simulate, surface_survey

# a wheel of 286 MB, which torch for CPUs does not bring
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

SETTING = """import torch
from fwi_i2sb.data.geology import sample_velocity
from fwi_i2sb.physics import wave
from fwi_i2sb.physics.wave import Survey, simulate
wave.NBC = 12
# receivers share a node, one lies at the edge, another at the source
survey = Survey(12.5, 1.5e-3, 60, 45.0, ((0.0, 25.0), (250.0, 50.0)), ((250.0, 50.0), (250.0, 50.0), (400.0, 0.0)))
maps = sample_velocity("FlatVel_B", 2, shape=(24, 33), seed=3)
maps = torch.cat([maps[:1], maps[1:].clamp(max=3000.0)])
"""
COMPARED = """from fwi_i2sb.physics import kernel
calls, real = [], kernel.run_steps
def run_steps(**given):
    calls.append(given)
    return real(**given, tile=(64, 64))
kernel.run_steps = run_steps
ours, eager = simulate(maps, survey, engine="openfwi"), wave.simulate_exact(maps, survey)
assert calls and ours.shape == eager.shape == (2, 2, 60, 3) and ours.dtype == torch.float32
for a, b in zip(ours, eager): assert (a - b).norm() < 1e-4 * b.norm() and b.norm() > 0, (a - b).norm() / b.norm()
"""
TO_PTX = """from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from fwi_i2sb.physics.kernel import time_step
kinds = dict.fromkeys(("past", "now", "stencil", "kappa", "push", "wavelet", "record"), "*fp32")
kinds |= dict.fromkeys(("sources", "receivers"), "*i32") | dict.fromkeys(("n", "nt", "samples", "shots", "ears"), "i32")
fixed = dict(depth=70, width=70, frame=120, stride=320, high=16, wide=64, tiles=100, many=128)
source = ASTSource(time_step, {name: kinds.get(name, "constexpr") for name in time_step.arg_names},
    {(time_step.arg_names.index(name),): value for name, value in fixed.items()})
ptx = compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
assert "ld.local" not in ptx and "st.local" not in ptx  # all in registers
"""


def python(program: str, **env):
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_triton
def test_the_kernel_is_the_eager_scheme(): python(SETTING + COMPARED, TRITON_INTERPRET="1")


@needs_triton
def test_the_kernel_compiles_without_a_gpu(): python(TO_PTX, TRITON_INTERPRET="0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("family", ["FlatVel_B", "Style_B"])
def test_the_gpu_gives_what_the_cpu_gives(family):
    maps = sample_velocity(family, 3, seed=5)
    expected, given = wave.simulate_exact(maps, surface_survey(70)), simulate(maps.cuda(), engine="openfwi").cpu()
    for a, b in zip(given, expected): assert (a - b).norm() < 1e-4 * b.norm()


def test_numbers_of_the_kernels_are_those_of_the_scheme(monkeypatch):
    "Without Triton too: a plain step from these numbers alone gives the eager record's first samples."
    monkeypatch.setattr(wave, "NBC", 12)
    maps, survey = sample_velocity("CurveVel_A", 2, shape=(30, 20)).double(), surface_survey(20, 2, nt=2)
    terms = wave.exact_terms(maps, survey)
    (rows, cols), w = terms["sources"], terms["wavelet"]
    assert terms["nt"] == len(w) == 2 and terms["kappa"].shape == (2,) and int(rows[0]) == 13
    v = maps[:, 0, rows - 12, cols - 12] * survey.dt
    torch.testing.assert_close(terms["push"], v**2)
    # the source's own cell after two steps, undamped
    s, first = terms["stencil"][:, rows - 12, cols - 12], terms["push"] * w[0]
    ears = terms["receivers"].T.tolist()
    at_source = [ears.index(node) for node in terms["sources"].T.tolist()]
    expected = (2 - 3.75 * s) * first + terms["push"] * w[1]
    torch.testing.assert_close(wave.simulate_exact(maps, survey)[:, range(2), 1, at_source], expected)
