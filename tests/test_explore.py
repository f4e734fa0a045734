"The explorer without a browser: what it works out, what it refuses, and the widget's controls."
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from fwi_i2sb import load_run
from fwi_i2sb.inference.widget import explore
from fwi_i2sb.inference.explorer import Explorer, STAGES
from fwi_i2sb.examples import mini_options
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.methods.options import ModelOptions
from fwi_i2sb.train import train

PICTURES = ("maps", "profile", "state", "gather")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(mini): return load_run(mini)


@pytest.fixture(scope="module")
def explorer(run): return Explorer(run)


def pixels(png: bytes) -> np.ndarray: return np.asarray(Image.open(BytesIO(png)).convert("RGB"), dtype=float)


def test_the_inversion_is_that_of_the_run_and_the_trajectory_ends_at_its_sample(run, explorer):
    explorer.update(record=4, start="linear:1500:4000", sampler="dbim", nfe=3, w=0.5, samples=3, seed=2, sample=1)
    seismic, truth = explorer["pair"]
    again = run.invert(seismic, "linear:1500:4000", sampler="dbim", nfe=3, w=0.5, samples=3, seed=2, record_ids=[4])
    assert torch.equal(explorer["inversion"].samples, again.samples)
    assert len(explorer["trajectory"]) == 3
    torch.testing.assert_close(explorer["trajectory"][-1].xt, again.samples[:, 1], rtol=0, atol=0.5)  # m/s
    assert explorer["numbers"]["mean"]["mae"] == pytest.approx((again.mean - truth).abs().mean().item(), rel=1e-5)


def test_only_what_a_choice_changes_is_worked_out_again(explorer):
    explorer.update(record=0, start="linear", nfe=2, samples=2, x=350.0, shot=2)
    assert explorer.update(x=100.0) == ["maps", "profile"]
    assert explorer.update(shot=4) == ["gather"]
    assert explorer.update(call=1) == ["state"]
    assert not {"start_map", "start_record"} & set(explorer.update(nfe=1))
    assert set(explorer.update(record=1)) == set(STAGES)
    assert explorer.update(record=1) == []


def test_pictures_show_something_and_keep_their_size(explorer):
    sizes = {}
    for record in (2, 3):
        explorer.update(record=record)
        for name in PICTURES:
            picture = pixels(explorer[name])
            assert picture.std() > 20 and (picture < 250).mean() > 0.05
            # nothing is cut off
            for rim in (picture[0], picture[-1], picture[:, 0], picture[:, -1]): assert (rim > 250).all()
            assert sizes.setdefault(name, picture.shape) == picture.shape


@pytest.mark.parametrize("bad", [dict(nfe=1000), dict(nfe=0), dict(samples=0), dict(record=99), dict(start="linaer"),
    dict(sampler="ddim"), dict(x=700.0), dict(shot=5), dict(shot=-1), dict(call=0), dict(seed=-1), dict(colour=1),
    dict(nfe=2.5), dict(nfe="2"), dict(start=None), dict(x=float("nan")), dict(w="1"), dict(sample=-1), dict(shot=1.5)])
def test_an_impossible_choice_changes_nothing(explorer, bad):
    before = dict(explorer.choices), [explorer[name] for name in PICTURES]
    with pytest.raises(InputError): explorer.update(**bad)
    assert (explorer.choices, [explorer[name] for name in PICTURES]) == before
    assert explorer.update() == []


def test_remarks_say_what_a_result_is_worth(explorer):
    def remarks(**choices):
        explorer.update(nfe=1, samples=1, **choices)
        return " ".join(explorer["notes"])
    assert "made from the truth" in remarks(start="blur-openfwi_custom:12:12", w=1.0)
    other = remarks(start="linear", w=0.0)
    assert "another kind" in other and "record is not used" in other and "made from the truth" not in other
    explorer.update(sampler="ode", samples=2)
    assert any("all samples are equal" in note for note in explorer["notes"])
    explorer.update(sampler="sde")


def test_a_silent_record_is_shown_without_a_misfit(run):
    explorer = Explorer(run)
    usual, (seismic, truth) = explorer["numbers"], explorer.records[1]
    explorer.records[1] = 0 * seismic, truth
    with pytest.warns(UserWarning, match="no signal"): explorer.update(record=1)
    missing = {name: values.keys() - explorer["numbers"][name].keys() for name, values in usual.items()}
    assert missing == {"start": {"misfit"}, "mean": {"misfit"}, "single samples": set()}


def test_a_start_that_was_given_is_among_those_to_choose_from(run, tmp_path):
    path = tmp_path / "map.npy"
    np.save(path, np.full((70, 70), 2000.0, dtype=np.float32))
    box = explore(run, start=f"file:{path}", samples=1, nfe=1)
    assert box.control["start"].value == f"file:{path}" and (box.explorer["start_map"] == 2000).all()
    box.control["start"].label = "blurred truth, width"
    box.control["width"].value = 20
    assert box.explorer["start"] == "blur-openfwi_custom:20:20" and box.control["top"].layout.display == "none"


def test_the_widget_says_in_one_sentence_what_cannot_be(run):
    box = explore(run, samples=2, nfe=2)
    shown = {name: picture.value for name, picture in box.picture.items()}
    box.control["nfe"].value = 5000
    assert "(got 5000)" in box.status.value and "Traceback" not in box.status.value
    assert {name: picture.value for name, picture in box.picture.items()} == shown
    box.control["nfe"].value = 3
    assert box.status.value == "" and box.picture["maps"].value != shown["maps"] and box.control["call"].max == 3


def test_fewer_samples_and_calls_move_the_sliders_that_count_them(run):
    box = explore(run, samples=3, nfe=3, sample=2, call=3)
    box.control["samples"].value, box.control["nfe"].value = 1, 1
    assert (box.control["sample"].value, box.control["call"].value) == (0, 1) and len(box.explorer["trajectory"]) == 1


@pytest.fixture(scope="module")
def regressor(data, tmp_path_factory):
    "A run of another method, beside one named first-guess: itself."
    mini = mini_options(tmp_path_factory.mktemp("regressor"), data)
    options = replace(mini, run=replace(mini.run, name="first-guess"), data=replace(mini.data, dataset_dir=data),
                      model=ModelOptions("tiny", method="regression", corrupt="linear"),
                      optim=replace(mini.optim, num_itr=2, warmup=0), log=replace(mini.log, val_nfe=1, val_maps=0))
    return load_run(train(options, progress=False))


def test_another_method_offers_what_it_has(regressor):
    box = explore(regressor)
    assert (box.control["sampler"].options == ("direct",) and len(box.explorer["trajectory"]) == 1
        and box.explorer["inversion"].samples.shape[1] == 1)
    box.control["nfe"].value = 2
    assert "one network call" in box.status.value


def test_a_first_guess_is_offered_where_a_run_of_that_name_lies_beside(run, regressor):
    assert "first-guess" not in explore(run, samples=1, nfe=1).control["start"].options.values()
    box = explore(regressor)
    box.control["start"].value = "first-guess"
    assert box.status.value == "" and box.explorer["start"] == "first-guess" and "another kind" in box.report.value


def test_a_path_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError): explore(tmp_path)
