"Exported networks: the same answers without torch, inputs and units in words, and what is refused."
import json
import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from fwi_i2sb.diffusion.sampling import STREAMS
from fwi_i2sb.inference.onnx_parts import module_of, trajectory_plan
from fwi_i2sb.inference.run import load_run
from fwi_i2sb.training.conditions import network_input
from fwi_i2sb.training.trained import restore

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bridge(mini, tmp_path_factory):
    "The exported bridge of the example run, by the command."
    out = tmp_path_factory.mktemp("onnx") / "bridge.onnx"
    subprocess.run([sys.executable, "-m", "fwi_i2sb", "export", mini, "--onnx", out, "--nfe", "4", "--sampler", "dbim",
        "--eta", "0.5"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return out


def records(run, batch, seed=1):
    rng = np.random.default_rng(seed)
    start = 1600 + 2000 * rng.random((batch, 1, *run.spec.map_size), dtype=np.float32)
    return rng.normal(0, 5, (batch, *run.spec.gathers)).astype(np.float32), start


PROGRAM = """import sys
sys.modules["torch"] = sys.modules["fwi_i2sb"] = None  # neither can be imported
sys.path.insert(0, ".")
import numpy as np
from bridge import invert
given = np.load("given.npz")
np.save("answer.npy", invert("bridge.onnx", given["record"], given["start"], given["seeds"].tolist()))"""


def test_a_bridge_needs_numpy_and_onnxruntime_alone(bridge, mini):
    run = load_run(mini, device="cpu")
    seismic, start = records(run, 3)
    seeds = [(5, i, 0, STREAMS["sample"]) for i in range(3)]
    np.savez(bridge.with_name("given.npz"), record=seismic, start=start, seeds=seeds)
    (traces := bridge.parent / "traces").mkdir()
    own = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=bridge.parent, check=True, env=own | dict(
        TMPDIR=str(traces), HOME=str(traces), XDG_CACHE_HOME=str(traces)))
    assert not list(traces.iterdir())  # onnxruntime prepares no report of its use
    cond = run.net.encode(network_input(run.options.model, run.spec.input_scale, torch.from_numpy(seismic)))
    settings = run.method.sampling_settings(nfe=4, sampler="dbim", eta=0.5)
    *_, last = run.method.sample(run.net, cond, run.scale.normalize(torch.from_numpy(start)), seeds=seeds, **settings)
    ours = run.scale.denormalize(last.xt).numpy()
    np.testing.assert_allclose(np.load(bridge.with_name("answer.npy")), ours, atol=1e-4 * 3000, rtol=0)
    assert len(bridge.with_suffix(".py").read_text().splitlines()) <= 20


def test_the_plan_says_what_the_file_holds(bridge, mini):
    plan, run = json.loads(bridge.with_suffix(".json").read_text()), restore(mini, device="cpu")
    assert plan["inputs"] == ["record", "state", "t_index"] and plan["record"] == list(run.spec.gathers)
    assert (plan["low"], plan["high"], plan["sampler"], plan["nfe"]) == (1500, 4500, "dbim", 4)
    assert plan["steps"] == trajectory_plan(run, 4, "dbim", 0.5)["steps"] and len(plan["steps"]) == 4
    session = onnxruntime.InferenceSession(str(bridge))
    assert [item.name for item in session.get_inputs()] == plan["inputs"]
    assert all(isinstance(item.shape[0], str) for item in session.get_inputs())  # any batch


def test_a_regression_is_one_file(trained, mini, fwi, tmp_path):
    run = restore(trained("run", "--num-itr", 1, "--method", "regression", "--drop-traces", 0.2), device="cpu")
    said = fwi("export", run.folder, "--onnx", tmp_path / "out" / "net.onnx")
    assert said.code == 0 and "differs from torch by at most" in said.out, said.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"net.onnx", "net.json"}
    seismic, start = records(run, 4)
    seismic[:, 1, :, 7] = 0  # a missing trace
    answer = onnxruntime.InferenceSession(str(tmp_path / "out" / "net.onnx")).run(None, dict(record=seismic,
        start=start))[0]
    with torch.no_grad(): ours = module_of(run)(torch.from_numpy(seismic), torch.from_numpy(start)).numpy()
    np.testing.assert_allclose(answer, ours, atol=0.3, rtol=0)
    inverted = load_run(run.folder, device="cpu").invert(seismic, start=start)
    np.testing.assert_allclose(np.asarray(inverted.samples)[:, 0].reshape(ours.shape), ours, atol=1)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(bridge, mini, refused, trained, tmp_path):
    refused("export", mini, "--onnx", bridge, saying=("there already",))
    refused("export", mini, "--onnx", tmp_path / "net.pt", saying=(".onnx",))
    refused("export", tmp_path / "none", "--onnx", tmp_path / "net.onnx", saying=("none",))
    refused("export", mini, "--onnx", tmp_path / "net.onnx", "--sampler", "sde", "--eta", 0.5, saying=("eta",))
    refused("export", trained("ddpm", "--num-itr", 1, "--method", "ddpm"), "--onnx", tmp_path / "net.onnx",
        saying=("ddpm", "many calls"))
    refused("export", trained("blind", "--num-itr", 1, "--drop-cond", 1), "--onnx", tmp_path / "net.onnx",
        saying=("without seismic",))
    assert not list(tmp_path.glob("net*"))
