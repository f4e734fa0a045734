"A survey that is nobody's: 3 shots, 500 samples at 2 ms, 40 receivers at 12.5 m over 48 x 40 cells, 1480 to 5500 m/s."
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fwi_i2sb.data.multi_family import MultiFamilyStore
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.data.scale import VelocityScale
from fwi_i2sb.data.starting_models import parse_start, Start
from fwi_i2sb.data.store import convert, StoreDataset
from fwi_i2sb.inference.figure import plot_result
from fwi_i2sb.inference.run import load_run, stable_range
from fwi_i2sb.inference.widget import explore
from fwi_i2sb.methods.options import ModelOptions
from fwi_i2sb.physics.wave import Survey
from fwi_i2sb.plot import plot_gather
from fwi_i2sb.training.preparation import Preparation
from fwi_i2sb.training.records import StoredRecords
from fwi_i2sb.training.run_dir import FORMAT, read_metrics

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
        outside = fwi("check", own_data, "--survey", survey_file)
        assert outside.code == 2 and "not in the network's 1500 to 4500 m/s" in outside.out
        assert fwi("check", own_data, "--survey", survey_file, "--accept", "range").code == 0
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


def test_a_wavelet_beyond_the_sampling_is_refused(refused, tmp_path):
    assert replace(SURVEY, freq=125.0).freq == 125  # a quarter of 500 Hz
    with pytest.raises(InputError, match="freq = 126 Hz needs a dt of 0.00198"): replace(SURVEY, freq=126.0)
    (tmp_path / "fast.json").write_text(json.dumps(SURVEY.to_dict() | dict(freq=500.0, dt=1e-3)))
    refused("generate", tmp_path / "new", "--family", "CurveVel_A", "--train", 1, "--survey", tmp_path / "fast.json",
        saying=("freq = 500 Hz needs a dt of 0.0005 s or less",))
    assert not (tmp_path / "new").exists()


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
    narrow = convert(tmp_path / "Field", "Field", store_dir=tmp_path / "narrow", survey=SURVEY,
        scale=VelocityScale(1400, 5500))
    with pytest.raises(InputError, match="velocities from 1400 to 5500 m/s, not 1480 to 5500"):
        MultiFamilyStore([train, StoreDataset(narrow, "train")])
    start = Start(parse_start("linear:1480:5500"), scale=SCALE)
    records = StoredRecords(joint, start, 0).__getitems__([(0, 0, 2)])
    batch = Preparation(joint, start, ModelOptions(), 0, "cpu")(records)
    torch.testing.assert_close(batch["x0"][0], SCALE.normalize(joint.physical(2)[0]))
    assert batch["x1"].min() == pytest.approx(-1) and batch["x1"].max() == pytest.approx(1)
    words = ("train", "--result-dir", tmp_path / "runs", "--name", "field", "--dataset-dir", tmp_path / "Field",
        "--model", "tiny", "--batch-size", 4, "--num-itr", 2, "--val-nfe", 1, "--val-maps", 0, "--log-writer", "none",
        "--device", "cpu")
    assert fwi(*words, "--dataset-name", "Field").code == 0
    before = (tmp_path / "Field" / "val" / "manifest.json").read_bytes()
    shutil.rmtree(tmp_path / "Field" / "train")  # whoever judges a run needs no training records
    run = tmp_path / "runs" / "field"
    judged = fwi("evaluate", run, "--records", 2, "--samples", 1, "--nfe", 1, "--misfit-records", 1, "--published")
    assert judged.code == 0 and "OpenFWI published no figures for Field" in judged.out
    assert (tmp_path / "Field" / "val" / "manifest.json").read_bytes() == before


def test_a_survey_that_cannot_be_simulated_is_refused_before_anything_is_stored(own_data, tmp_path, refused):
    survey = tmp_path / "survey.json"
    for sources, saying in ((((-12.5, 12.5), *SURVEY.sources[1:]), "outside the map"),
                            (((3.0, 12.5), *SURVEY.sources[1:]), "not on a node")):
        survey.write_text(json.dumps(replace(SURVEY, sources=sources).to_dict()))
        refused("convert", own_data, "--family", "CurveVel_A", "--store-dir", tmp_path / "store", "--survey", survey,
            saying=(saying,))
    survey.write_text(json.dumps(SURVEY.to_dict()).replace('{"dx"', '{"dx": 10.0, "dx"'))
    refused("convert", own_data, "--family", "CurveVel_A", "--store-dir", tmp_path / "store", "--survey", survey,
        saying=("survey.json", "it gives 'dx' twice"))
    assert not (tmp_path / "store").exists()
    (tmp_path / "record.npy").write_bytes(b"")
    refused("check", tmp_path / "record.npy", "--family", "CurveVel_A", saying=("--family has no effect",))


def test_a_gather_is_drawn_along_its_receivers(recwarn):
    for receivers, label, ends in (([(0.0, 12.5 * i) for i in range(40)], "receiver depth (m)", (0, 487.5)),
            ([(250.0, 12.5)], "receiver x (m)", (250, 262.5))):
        survey = replace(SURVEY, receivers=receivers)
        ax = plot_gather(np.zeros((3, 250, len(receivers))), survey=survey).axes[0]
        assert ax.get_xlabel() == label and ax.get_xlim() == ends
    maps = np.full((1, *CELLS), 2000.0)
    figure = plot_result(start=maps, mean=maps, std=0 * maps, seismic=np.ones((3, 250, 40)), survey=replace(SURVEY,
        receivers=[(0.0, 12.5 * i) for i in range(40)]), resimulated=np.zeros((3, 250, 40)))
    assert "trace\nat depth 375 m" in {ax.get_title() for ax in figure.axes}
    assert [str(warning.message) for warning in recwarn] == []


def test_what_does_not_fit_is_refused_at_once(survey_file, tmp_path, refused):
    words = "generate", tmp_path, "--family", "CurveVel_A", "--train", 1, "--val", 1, "--survey", survey_file
    refused(*words, *RANGE, "--shape", 48, 39, saying=("the source at x=487.5 m", "outside the map of 48 x 39"))
    refused(*words, *RANGE, "--shape", *CELLS, "--engine", "openfwi", saying=("time step is too long", "5500 m/s"))
    refused(*words, "--velocity-range", 0, 5500, saying=("velocities must be positive",))
    path, right = tmp_path / "words.json", SURVEY.to_dict()
    for wrong, saying in (({}, "it has no 'dx'"), ([right], "it holds no object"), (right | dict(foo=1), "'foo' is no"),
            (right | dict(sources=[[1, 2, 3]]), "sources must be positions"), (right | dict(nt=True), "nt must be a"),
            (right | dict(dx="10"), "dx must be a number (got '10')"), (right | dict(nt=10**9), "10000000 at most"),
            (right | dict(dt=10**400), "not a survey description"),
            (right | dict(receivers=[[0.0, float("nan")]]), "at finite positions"),
            (right | dict(receivers=right["receivers"] * 2), "two receivers of the survey are on the same node")):
        path.write_text(json.dumps(wrong))
        refused(*words[:-1], path, *RANGE, "--shape", *CELLS, saying=(saying,))
    refused(*words[:-1], "/dev/null", saying=("/dev/null is a pipe or a device",))
    assert not (tmp_path / "CurveVel_A").exists()


@pytest.fixture(scope="module")
def own_run(own_data, tmp_path_factory) -> Path:
    "A few steps of training on those records, by the command."
    from fwi_i2sb import cli
    runs = tmp_path_factory.mktemp("runs")
    words = ["train", "--result-dir", runs, "--name", "own", "--dataset-dir", own_data, "--dataset-name", "CurveVel_A",
        "--model", "tiny", "--batch-size", 4, "--microbatch", 4, "--num-itr", 3, "--val-nfe", 2, "--val-batches", 1,
        "--log-writer", "none", "--device", "cpu"]
    cli.main([str(w) for w in words])
    return runs / "own"


def test_a_run_knows_its_survey_and_validates_in_metres_per_second(own_run):
    run = load_run(own_run)
    assert run.survey.difference(SURVEY) is None and run.scale.same_as(SCALE) and run.spec.map_size == CELLS
    assert json.loads((own_run / "config.json").read_text())["format"] == FORMAT
    row = next(r for r in read_metrics(own_run) if "val_mae" in r)
    assert row["val_records"] == 4 and row["val_mae_norm"] == pytest.approx(row["val_mae"] / SCALE.unit)
    assert (own_run / "samples" / "step-3.png").stat().st_size > 10_000


def test_inversion_gives_maps_of_that_range(own_run, own_data, tmp_path, fwi, refused):
    done = fwi("invert", own_run, "--records", 2, "--samples", 3, "--nfe", 2, "--start", "linear:1480:5500", "--out",
        tmp_path)
    assert done.code == 0 and "misfit" in done.out, done
    with np.load(tmp_path / "validation-2.npz", allow_pickle=False) as result:
        assert result["samples"].shape == (2, 3, 1, *CELLS) and (tmp_path / "validation-2.png").exists()
        np.testing.assert_allclose(result["start"][0, 0, [0, -1], 0], [1480, 5500], rtol=1e-5)
        np.testing.assert_allclose(result["std"], result["samples"].std(1, ddof=1), rtol=1e-3, atol=0.05)
        low, high = stable_range(SCALE)
        assert low <= result["samples"].min() and result["samples"].max() <= high
        assert np.isfinite(json.loads(str(result["provenance"]))["misfit"]["mean"]).all()
    np.save(tmp_path / "fast.npy", np.full(CELLS, 5600, np.float32))
    for start in ("linear:1480:5600", tmp_path / "fast.npy"):
        refused("invert", own_run, "--records", 1, "--start", start, "--out", tmp_path / "no", saying=("1480 to 5500",))
    with pytest.raises(InputError, match="1480 to 5500"):
        load_run(own_run).invert(torch.zeros(3, 500, 40), np.full(CELLS, 5600, np.float32))


def test_the_card_is_in_that_range_and_needs_no_training_records(own_run, own_data, tmp_path, fwi):
    shutil.copytree(own_data, tmp_path / "data", ignore=shutil.ignore_patterns("train", "data1.npy", "model1.npy"))
    done = fwi("evaluate", own_run, "--dataset-dir", tmp_path / "data", "--records", 2, "--samples", 2,
        "--nfe", 2, "--misfit-records", 1, "--clip-denoise", "on", "--out", tmp_path / "card")
    assert done.code == 0, done
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert card["velocity_range"] == [1480, 5500] and card["dx"] == 12.5 and card["low_band"] == SURVEY.freq / 3
    assert card["settings"]["clip"] is True
    assert np.shape(card["example"]["mean"]) == CELLS and card["units"]["mae_norm"] == "2010 m/s"
    for row in card["rows"]: assert row["mae_norm"] == pytest.approx(row["mae"] / SCALE.unit)
    assert (tmp_path / "card" / "card.png").stat().st_size > 10_000
    assert not (tmp_path / "data" / "train").exists()


def test_the_explorer_takes_its_ranges_from_the_run(own_run):
    box = explore(own_run, device="cpu", n_records=2, samples=2, nfe=2)
    assert (box.control["top"].min, box.control["bottom"].max) == (1480, 5500)
    assert box.control["x"].max == 487.5 and [number for _, number in box.control["shot"].options] == [0, 1, 2]
    box.control["start"].label = "linear, two velocities"
    assert box.status.value == "" and box.explorer["start"].startswith("linear:1480:")
    assert box.explorer["inversion"].mean.shape == (1, 1, *CELLS)
