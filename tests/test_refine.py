"Inversions that waves have the last word in: the commands `invert` and `evaluate` with `--refine`."
import json

import numpy as np
import pytest
import torch

from fwi_i2sb import load_run
from fwi_i2sb.inference.refine import refine_samples
from fwi_i2sb.inference.run import resimulate
from fwi_i2sb.inference.validation_data import validation_records
from fwi_i2sb.metrics.accuracy import misfit


def test_invert_refines_files_and_says_so(fwi, mini, tmp_path):
    run = load_run(mini)
    seismic, _, _ = validation_records(run, 2)
    np.save(tmp_path / "two.npy", seismic.numpy())
    words = ("invert", mini, "--record", tmp_path / "two.npy", "--samples", 2, "--nfe", 2)
    plain, refined = (fwi(*words, "--out", tmp_path / name, *more)
        for name, more in (("a", ()), ("b", ("--refine", 2))))
    assert plain.code == refined.code == 0 and "refined by up to 2 steps" in refined.out
    before, after = (np.load(tmp_path / name / "two.npz", allow_pickle=False) for name in "ab")
    said = json.loads(str(after["provenance"]))
    assert said["wave_solves"] == 3 * 5 and len(said["refine_misfit"]) == len(said["refine_noise"]) == 2
    assert (before["start"] == after["start"]).all() and (before["samples"] != after["samples"]).any()
    for maps, told in zip((before["mean"], after["mean"]), zip(*said["refine_misfit"])):
        again = misfit(resimulate(run, torch.from_numpy(maps)), seismic)
        np.testing.assert_allclose(again, told, rtol=1e-3)
    assert all(b < a for a, b in said["refine_misfit"])


def test_the_mean_has_steps_of_its_own(mini):
    run = load_run(mini)
    seismic, _, _ = validation_records(run, 2)
    ask = lambda **steps: run.invert(seismic, "linear", samples=2, nfe=2, **steps)
    both, of_mean = ask(refine=1, refine_mean=3), ask(refine_mean=3)
    assert both.mean.equal(ask(refine=3).mean) and both.samples.equal(ask(refine=1).samples)
    assert of_mean.mean.equal(both.mean) and of_mean.samples.equal(ask().samples)
    assert [one.provenance["wave_solves"] for one in (both, of_mean)] == [7 + 2 * 3, 7]
    assert [one.provenance["mean_solves"] for one in (both, of_mean)] == [7, 7]
    alone = run.invert(seismic, "linear", samples=1, nfe=2, refine_mean=3)
    assert alone.mean.equal(alone.samples[:, 0])
    assert (alone.provenance["wave_solves"], alone.provenance["mean_solves"]) == (7, 0), "a single sample is the mean"


def test_a_start_of_ones_own_never_gets_a_worse_misfit(mini):
    run = load_run(mini)
    seismic, _, _ = validation_records(run, 2)
    result = run.invert(seismic, "linear:1500:4000", samples=1, nfe=2, refine=2)
    told = result.provenance["refine_misfit"]
    assert all(b <= a for a, b in told) and any(b < a for a, b in told)


def test_refinement_ends_at_the_noise(mini):
    run = load_run(mini)
    seismic, truth, _ = validation_records(run, 1)
    power = seismic.square().mean().sqrt()
    noisy = seismic + torch.randn(seismic.shape, generator=torch.manual_seed(0)) * power * 10 ** (-10 / 20)
    maps, _, told = refine_samples(run, noisy, truth, truth[:, None], 4, 4)
    assert told["wave_solves"] == 1 and maps.equal(truth), "the truth explains its record to the noise"
    assert told["refine_noise"][0] == pytest.approx(11 ** -0.5, rel=0.05)
    _, _, known = refine_samples(run, noisy, truth, truth[:, None], 4, 4, snr=60.0)
    assert known["wave_solves"] > 1 and known["refine_noise"][0] == pytest.approx(1e-3, rel=0.01)


def test_a_card_shows_both_sides_of_a_refinement(fwi, mini, tmp_path):
    told = fwi("evaluate", mini, "--records", 2, "--samples", 2, "--nfe", 2, "--starts", "linear", "--refine", 1,
        "--refine-mean", 2, "--refine-tv", 1e-4, "--misfit-records", 1, "--out", tmp_path)
    assert told.code == 0 and "bridge, not refined" in told.out
    card = json.loads((tmp_path / "card.json").read_text())
    rows = {row["method"]: row for row in card["rows"]}
    before, after = rows["bridge, not refined"], rows["bridge"]
    assert after["misfit"] < before["misfit"] and before["wave_solves"] == 0 and after["wave_solves"] == 5 + 2 * 3
    assert rows["bridge, single sample"]["wave_solves"] == 3 and before["coverage_90"] is not None
    assert (card["settings"]["refine"], card["settings"]["refine_mean"]) == (1, 2) and (tmp_path / "card.png").exists()


@pytest.mark.parametrize("words, saying", [
    (("--refine-tv", "0.1"), "no effect without --refine"),
    (("--snr", "20"), "no effect without them"),
    (("--refine", "-1"), "--refine must be 0 or more"),
    (("--refine-mean", "-1"), "--refine-mean must be 0 or more"),
    (("--samples", "1", "--refine", "3", "--refine-mean", "2"), "a single sample is the mean"),
    (("--refine", "3", "--fwi-iterations", "2"), "--refine is a setting of the network's answer"),
])
def test_what_refines_nothing_is_refused(refused, mini, tmp_path, words, saying):
    refused("invert", mini, "--records", "1", "--out", tmp_path, *words, saying=(saying,))
    assert not list(tmp_path.iterdir())
