"Runs written before the ranges of velocity were data: their config.json has `facts` and no format."
import json
import shutil
import sys

import pytest
import torch
from forkserver import run as python

from fwi_i2sb.core.errors import InputError
from fwi_i2sb.data.scale import OPENFWI_SCALE
from fwi_i2sb.inference.run import load_run
from fwi_i2sb.training.run_dir import FORMAT, read_config


@pytest.fixture
def old(mini, tmp_path):
    "The mini run as it would have been written then."
    shutil.copytree(mini, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    spec, _ = config.pop("data_spec"), config.pop("format")
    survey = spec["survey"]
    config["facts"] = dict(family=spec["family"], data_min=spec["pressure"]["low"], data_max=spec["pressure"]["high"],
        survey=survey, shots=len(survey["sources"]), receivers=len(survey["receivers"]),
        **{k: spec[k] for k in ("time_samples", "factor", "map_size", "linear", "records", "fingerprint")})
    path.write_text(json.dumps(config))
    return path.parent


def test_an_old_run_inverts_to_the_same_numbers(mini, old):
    new, run = load_run(mini, device="cpu"), load_run(old, device="cpu")
    assert run.spec == new.spec and run.scale == OPENFWI_SCALE
    seismic = torch.randn(2, *run.spec.gathers)
    for start in ("linear", "linear:1500:4000"):
        pair = [r.invert(seismic, start, samples=2, nfe=2) for r in (new, run)]
        assert torch.equal(pair[0].samples, pair[1].samples) and torch.equal(pair[0].start, pair[1].start)


def test_a_newer_format_is_refused(old):
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | dict(format=FORMAT + 1)))
    with pytest.raises(InputError, match=f"format {FORMAT + 1}"): read_config(old)


@pytest.mark.parametrize("path", ["fwi_i2sb", "fwi_i2sb.inference", "fwi_i2sb.inference.run"])
def test_a_run_has_its_methods_wherever_it_was_imported_from(path):
    code = (f"from {path} import load_run; from inspect import signature; run = signature(load_run).return_annotation; "
        "assert all(hasattr(run.__args__[0], name) for name in ('invert', 'states', 'classical'))")
    python([sys.executable, "-c", code], check=True)
