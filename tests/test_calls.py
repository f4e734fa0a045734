"What a notebook may ask for by mistake: each call is refused in a sentence, or means what it says."
import math

import numpy as np
import pytest
import torch

from fwi_i2sb import Bridge, convert, evaluate, load_run, mae, plot_maps, simulate
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.data.multi_family import MultiFamilyStore
from fwi_i2sb.metrics.calibration import bootstrap, coverage
from fwi_i2sb.physics.filters import decimate, low_band
from fwi_i2sb.physics.smoothing import blur_benchmark
from fwi_i2sb.physics.wave import OPENFWI
from fwi_i2sb.physics.waveform_inversion import descend

MAP = torch.full((1, 1, 70, 70), 2000.0)


@pytest.fixture(scope="module")
def run(mini): return load_run(mini, device="cpu")


@pytest.fixture(scope="module")
def record(data): return np.load(data / "data" / "data49.npy", mmap_mode="r")[0]


@pytest.fixture(scope="module")
def result(run, record): return run.invert(record, samples=2, nfe=1)


@pytest.mark.parametrize("given, saying", [
    (dict(w=1e30), "w must be 1000 or less"), (dict(snr=math.nan, refine=1), "snr must be a finite number"),
    (dict(samples=1.5), "samples must be a whole number"), (dict(seed=None), "seed is a whole number"),
    (dict(seed=-1), "seed must be 0 or more"), (dict(record_ids=[-1]), "record number must be 0 or more"),
    (dict(survey="openfwi"), "a Survey is wanted"), (dict(tta=3), "unknown test-time augmentation '3'"),
    (dict(post=["bounds"]), "unknown post-processing"),
    (dict(original="all"), "original must be true or false for each"),
    (dict(start="blur-openfwi_custom", truth=MAP * math.nan), "true maps hold NaN")], ids=lambda given: str(given)[:30])
def test_an_inversion_that_cannot_be(run, record, given, saying):
    with pytest.raises(InputError, match=saying): run.invert(record, **given)


def test_texts_are_refused_before_anything_is_inverted(run, record, monkeypatch):
    def no_image(survey, columns): raise InputError("no mirror image")

    monkeypatch.setattr("fwi_i2sb.inference.invert.draw_samples", None)
    monkeypatch.setattr("fwi_i2sb.inference.tta.mirror", no_image)
    for given, saying in ((dict(post="gaussian:0"), "gaussian:SIGMA"), (dict(tta="flip"), "no mirror image")):
        with pytest.raises(InputError, match=saying): run.invert(record, samples=1, nfe=1, **given)


@pytest.mark.parametrize("change, saying", [
    (lambda d: d[None, None], r"has shape \(1, 1, 5, 1000, 70\)"), (lambda d: d * 1j, "these are complex"),
    (lambda d: d > 0, "these are bool"), (lambda d: torch.from_numpy(d > 0), "these are torch.bool"),
    (lambda d: np.ma.masked_array(d, mask=d > 1), "are masked")])
def test_what_is_no_record(run, record, change, saying):
    with pytest.raises(InputError, match=saying): run.invert(change(np.array(record)))


def test_a_truth_may_be_an_array(run, record):
    tensor, array = (run.invert(record, "blur-openfwi_custom", truth=truth, samples=1, nfe=1).mean
        for truth in (MAP, MAP.numpy()))
    assert torch.equal(tensor, array)


def test_an_answer_that_is_not_finite_is_not_trusted(run, record, monkeypatch):
    lost = lambda method, net, gathers, start, rows, *given, **more: torch.full((len(rows), 1, 70, 70), math.nan)
    monkeypatch.setattr("fwi_i2sb.inference.invert.draw_samples", lost)
    with pytest.warns(UserWarning): found = run.invert(record * 2, samples=1, nfe=1)
    assert not found.trust.any() and "the answer is not finite" in found.provenance["trust_reasons"][0]


def test_an_answer_that_is_asked_for_what_it_has_not(result, tmp_path):
    for call, saying in ((lambda: result.plot(5), "1 record.s., and no 5"),
            (lambda: result.save(tmp_path / "a" / "b.npz"), "there is no folder"),
            (lambda: result.save(tmp_path / "a.npz", more=object()), "more holds objects")):
        with pytest.raises(InputError, match=saying): call()
    assert not list(tmp_path.iterdir())


def test_probabilities_and_levels():
    run = load_run("hub:curvevel-a", device="cpu")
    spread, made = torch.full_like(MAP, 100.0), run.recalibration
    for p in (-1, 0, 1, 2, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"): made.quantile(MAP, spread, p)
    with pytest.raises(InputError, match="finite"): made.exceedance(MAP, spread, math.nan)
    samples = MAP[:, None].repeat(1, 3, 1, 1, 1)
    for level in (-0.5, 1, 2, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"): coverage(samples, MAP, (level,))
        with pytest.raises(InputError, match="between 0 and 1"): bootstrap([1.0, 2.0, 3.0], level=level)


@pytest.mark.parametrize("call, saying", [
    (lambda: simulate(MAP.numpy()), "must be a tensor of float32 or float64"),
    (lambda: simulate(MAP[:0]), "must have shape"),
    (lambda: simulate(MAP * 1e30), "over 1e6"), (lambda: low_band(torch.zeros(1, 5, 100, 70), 0.004, 0), "above 0 Hz"),
    (lambda: blur_benchmark(MAP, 0), "must be positive"), (lambda: blur_benchmark(MAP, -1.0), "must be positive"),
    (lambda: Bridge(beta_max=math.inf), "positive and finite"), (lambda: plot_maps({}), "no maps to draw"),
    (lambda: descend(torch.zeros(1, 5, 250, 70), MAP, OPENFWI, factor=0), "factor must be 1 or more"),
    (lambda: MultiFamilyStore([]), "at least one store"), (lambda: evaluate("runs/first"), "load_run")])
def test_parts_that_are_called_with_what_cannot_be(call, saying):
    with pytest.raises(InputError, match=saying): call()


def test_arrays_serve_where_tensors_do():
    assert mae(MAP.numpy(), MAP.numpy() + 3).tolist() == [3.0]
    record = torch.randn(1, 5, 1000, 70, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decimate(record.numpy(), 4), decimate(record, 4))


def test_a_conversion_that_cannot_be_leaves_nothing(data, tmp_path):
    for given, saying in ((dict(workers=-3), "workers must be 0"), (dict(val_files="data49.npy"), "must be a list")):
        with pytest.raises(InputError, match=saying): convert(data, "CurveVel_A", store_dir=tmp_path / "new", **given)
    assert not list(tmp_path.iterdir())
