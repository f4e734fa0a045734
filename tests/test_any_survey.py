"A survey that is nobody's: 3 shots, 500 samples at 2 ms, 40 receivers at 12.5 m over 48 x 40 cells, 1480 to 5500 m/s."
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fwi_i2sb.data.multi_family import MultiFamilyStore
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.data.scale import VelocityScale
from fwi_i2sb.data.store import convert, StoreDataset
from fwi_i2sb.physics.wave import Survey

SCALE, CELLS = VelocityScale(1480, 5500), (48, 40)
SURVEY = Survey(12.5, 2e-3, 500, 15.0, tuple((x, 12.5) for x in (0.0, 250.0, 487.5)),
    tuple((12.5 * i, 12.5) for i in range(40)))
RANGE = "--velocity-range", 1480, 5500


@pytest.fixture(scope="module")
def survey_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("survey") / "survey.json"
    path.write_text(json.dumps(SURVEY.to_dict()))
    return path


@pytest.fixture(scope="module")
def own_data(tmp_path_factory, survey_file) -> Path:
    "The generated records, made by the command, once."
    from fwi_i2sb import cli
    root = tmp_path_factory.mktemp("own")
    words = ["generate", root, "--family", "CurveVel_A", "--train", 12, "--val", 4, "--shard-size", 12, "--workers", 1,
        "--survey", survey_file, "--shape", *CELLS, *RANGE]
    cli.main([str(w) for w in words])
    return root / "CurveVel_A"


def files(folder) -> tuple[np.ndarray, np.ndarray]:
    "Seismic and velocity of the training file."
    return np.load(folder / "data" / "data1.npy"), np.load(folder / "model" / "model1.npy")


def test_generated_maps_fill_the_range(own_data):
    seismic, velocity = files(own_data)
    assert seismic.shape == (12, 3, 500, 40) and velocity.shape == (12, 1, *CELLS)
    assert 1480 <= velocity.min() < 1600 and 5300 < velocity.max() <= 5500
    assert np.isfinite(seismic).all() and np.abs(seismic).max() > 1


def test_check_takes_its_numbers_from_the_survey(own_data, survey_file, tmp_path, fwi, refused):
    outcome = fwi("check", own_data)
    assert outcome.code == 0 and "1480 to 5500 m/s" in outcome.out, outcome
    (own_data / "generate.json").rename(tmp_path / "generate.json")
    try:
        refused("check", own_data, saying=("problem",))
        assert fwi("check", own_data, "--survey", survey_file, *RANGE).code == 0
        assert "leaves the network's 1500 to 4500 m/s" in fwi("check", own_data, "--survey", survey_file).out
    finally: (tmp_path / "generate.json").rename(own_data / "generate.json")
    np.save(tmp_path / "record.npy", files(own_data)[0][0])
    assert fwi("check", tmp_path / "record.npy", "--survey", survey_file, *RANGE).code == 0
    refused("check", tmp_path / "record.npy", saying=("(3, 500, 40)", "OpenFWI's (5, 1000, 70)"))


def test_convert_reads_the_survey_and_measures_the_pressure(own_data, tmp_path, fwi):
    outcome = fwi("convert", own_data, "--family", "CurveVel_A", "--store-dir", tmp_path, "--dtype", "float32",
        "--time-samples", 500)
    assert outcome.code == 0, outcome
    seismic, velocity = files(own_data)
    store = StoreDataset(tmp_path, "train")
    assert store.survey.difference(SURVEY) is None and store.velocity == SCALE and store.factor == 1
    assert (store.pressure.low, store.pressure.high) == (seismic.min(), seismic.max())
    assert StoreDataset(tmp_path, "val").pressure == store.pressure
    torch.testing.assert_close(store[3]["velocity"], SCALE.normalize(torch.from_numpy(velocity[3])))
    whole = torch.stack([store[i]["seismic"] for i in range(12)])
    assert whole.min() == pytest.approx(-1) and whole.max() == pytest.approx(1)


def test_the_store_is_found_again_and_nothing_else_is(own_data, survey_file, tmp_path, fwi, refused):
    words = "convert", own_data, "--family", "CurveVel_A", "--store-dir", tmp_path
    assert fwi(*words).code == 0
    assert StoreDataset(tmp_path, "train").manifest["seismic"]["shape"] == [3, 250, 40]  # 4 ms at 15 Hz, as OpenFWI's
    before = (tmp_path / "train" / "manifest.json").read_bytes()
    assert fwi(*words, "--survey", survey_file, *RANGE).code == 0
    assert (tmp_path / "train" / "manifest.json").read_bytes() == before
    assert fwi("check", tmp_path).code == 0
    refused(*words, "--velocity-range", 1480, 6000, saying=("velocity range 1480 to 5500, not 1480 to 6000",))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(replace(SURVEY, freq=12.0).to_dict()))
    refused(*words, "--survey", other, saying=("survey freq 15 Hz, not 12 Hz",))
    rounded = json.loads(json.dumps(SURVEY.to_dict(), default=float))
    rounded["dt"] = float(np.float32(rounded["dt"]))  # the same number in single precision
    other.write_text(json.dumps(rounded))
    assert fwi(*words, "--survey", other).code == 0


def test_data_of_others_under_a_name_of_their_own(own_data, survey_file, tmp_path, fwi, refused):
    for k, part in (("train", slice(0, 8)), ("val", slice(8, 12))):
        for sub, values in zip(("data", "model"), files(own_data)):
            (tmp_path / "Field" / k / sub).mkdir(parents=True)
            np.save(tmp_path / "Field" / k / sub / f"{sub}1.npy", values[part])
    words = "convert", tmp_path / "Field", "--family", "Field"
    refused(*words, saying=("unknown family 'Field'",))
    refused(*words, "--survey", survey_file, "--velocity-range", 5500, 1480, saying=("smaller first",))
    assert fwi(*words, "--survey", survey_file, *RANGE).code == 0
    assert fwi(*words).code == 0  # the store says what it is
    train = StoreDataset(tmp_path / "Field", "train", family="Field")
    assert len(train) == 8 and train.family.name == "Field" and train.velocity == SCALE
    assert fwi("check", tmp_path / "Field").code == 0
    joint = MultiFamilyStore([train])
    assert joint.velocity == SCALE and joint.pressure == train.pressure
    narrow = convert(tmp_path / "Field", "Field", store_dir=tmp_path / "narrow", survey=SURVEY, scale=VelocityScale(1400, 5500))
    with pytest.raises(InputError, match="velocities from 1400 to 5500 m/s, not 1480 to 5500"):
        MultiFamilyStore([train, StoreDataset(narrow, "train")])


def test_what_does_not_fit_is_refused_at_once(survey_file, tmp_path, refused):
    words = "generate", tmp_path, "--family", "CurveVel_A", "--train", 1, "--val", 1, "--survey", survey_file
    refused(*words, *RANGE, "--shape", 48, 39, saying=("the source at x=487.5 m", "outside the map of 48 x 39"))
    refused(*words, *RANGE, "--shape", *CELLS, "--engine", "openfwi", saying=("time step is too long", "5500 m/s"))
    refused(*words, "--velocity-range", 0, 5500, saying=("velocities must be positive",))
    survey_of_words = tmp_path / "words.json"
    survey_of_words.write_text("{}")
    refused(*words[:-1], survey_of_words, saying=("words.json is not a survey description",))
    assert not (tmp_path / "CurveVel_A").exists()
