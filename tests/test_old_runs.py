"Runs written before the ranges of velocity were data: their config.json has `facts` and no format."
import json
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from forkserver import run as python
from processes import pristine
from safetensors.numpy import save_file

from fwi_i2sb.core.errors import InputError
from fwi_i2sb.data.generated import generated_with
from fwi_i2sb.data.scale import OPENFWI_SCALE
from fwi_i2sb.inference.pipeline import read_calibration, read_plan
from fwi_i2sb.inference.run import load_run
from fwi_i2sb.methods.registry import build_method
from fwi_i2sb.training.best import named_checkpoint
from fwi_i2sb.training.members import read_ensemble
from fwi_i2sb.training.run_dir import FORMAT, read_config


@pytest.fixture
def old(mini, tmp_path):
    "The mini run as it would have been written then."
    pristine(mini, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    spec, _ = config.pop("data_spec"), config.pop("format")
    survey = spec["survey"]
    config["facts"] = dict(family=spec["family"], data_min=spec["pressure"]["low"], data_max=spec["pressure"]["high"],
        survey=survey, shots=len(survey["sources"]), receivers=len(survey["receivers"]),
        **{k: spec[k] for k in ("time_samples", "factor", "map_size", "linear", "records", "fingerprint")})
    path.write_text(json.dumps(config))
    return path.parent


def drawn(name, shape):
    "Weights of a layer for `tests/old_run`, which would be too large a file."
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1: return np.float32(0.8) * values / np.float32(np.sqrt(np.prod(shape[1:])))
    return np.ones(shape, np.float32) if name.endswith("weight") else np.float32(0.01) * values


def test_a_run_from_before_the_chapters_inverts_to_what_it_did_then(tmp_path):
    """The folder was written, and its maps were found, by the program as it was before its modules moved into chapters.

    `drawn` gives the very weights: their hash is in the checkpoint's state, and is checked when it is read."""
    folder = tmp_path / "run"
    shutil.copytree(Path(__file__).parent / "old_run", folder)
    options, spec = read_config(folder)
    layers = build_method(options.model, spec).net.state_dict()
    save_file({name: drawn(name, tuple(values.shape)) for name, values in layers.items()},
        folder / "checkpoints" / "step-60" / "ema.safetensors")
    run = load_run(folder, device="cpu")
    seismic = np.random.default_rng(0).standard_normal((2, 5, 250, 70)).astype(np.float32)
    with np.load(folder / "maps.npz") as maps:
        for start in maps:
            found = run.invert(torch.from_numpy(seismic), start, samples=1, nfe=3).samples
            np.testing.assert_allclose(found, maps[start], rtol=0, atol=0.1)  # m/s: rounding of another processor


def test_an_old_run_inverts_to_the_same_numbers(mini, old):
    new, run = load_run(mini, device="cpu"), load_run(old, device="cpu")
    assert run.spec == new.spec and run.scale == OPENFWI_SCALE
    seismic = torch.randn(2, *run.spec.gathers)
    for start in ("linear", "linear:1500:4000"):
        pair = [r.invert(seismic, start, samples=2, nfe=2) for r in (new, run)]
        assert torch.equal(pair[0].samples, pair[1].samples) and torch.equal(pair[0].start, pair[1].start)


def test_seals_come_off_old_runs_only(mini, old, tmp_path):
    pristine(mini, tmp_path / "new")
    for run in (old, tmp_path / "new"):
        for path in run.glob("checkpoints/*/state.json"):
            state = json.loads(path.read_text())
            del state["checksum"]
            path.write_text(json.dumps(state))
    assert load_run(old, device="cpu").step == load_run(mini, device="cpu").step
    with pytest.warns(UserWarning, match="has no checksum"), pytest.raises(InputError, match="no valid checkpoint"):
        load_run(tmp_path / "new", device="cpu")


@pytest.mark.parametrize("read, name, content", [(read_plan, "pipeline.json", dict(format=1)),
    (read_calibration, "calibration.json", {}), (read_ensemble, "ensemble.json", {}),
    (lambda folder: named_checkpoint(folder / "checkpoints" / "best"), "best.json",
        dict(metric="mae", value=1., step=5)),
    (generated_with, "generate.json", dict(velocity_range=[1500., 4500.]))])
def test_what_has_always_been_sealed_is_not_read_without(tmp_path, read, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{name} is damaged.*it has no checksum"): read(tmp_path)


def test_a_newer_format_is_refused(old):
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | dict(format=FORMAT + 1)))
    with pytest.raises(InputError, match=f"format {FORMAT + 1}"): read_config(old)


@pytest.mark.parametrize("path", ["fwi_i2sb", "fwi_i2sb.inference", "fwi_i2sb.inference.run"])
def test_a_run_has_its_methods_wherever_it_was_imported_from(path):
    code = (f"from {path} import load_run; from inspect import signature; run = signature(load_run).return_annotation; "
        "assert all(hasattr(run.__args__[0], name) for name in ('invert', 'states', 'classical'))")
    python([sys.executable, "-c", code], check=True)
