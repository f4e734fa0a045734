"Folders of OpenFWI files as people have them: three layouts, and everything that can be wrong with them."
import pickle

import numpy as np
import pytest

from fwi_i2sb.data.check import check_record, inspect_folder
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.core.files import open_npy
from fwi_i2sb.data.geology import sample_velocity
from fwi_i2sb.data.openfwi import discover, find_root, read_pair
from fwi_i2sb.physics.wave import simulate, surface_survey


def shard(folder, seismic, velocity, n=2, value=1.0, shape=(5, 40, 70), cells=(70, 70)):
    "Write one pair of files; `n=None` writes a single record without the leading axis."
    for name, array in (((seismic, np.full(shape, value, "float32")),
            (velocity, np.full((1, *cells), 2000 + value, "float32")))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, array if n is None else np.stack([array] * n))


def names(pairs): return [(p.seismic.name, p.velocity.name, p.count) for p in pairs]


def test_split_folders_with_single_records_and_shards(tmp_path):
    for k in (1, 2, 10): shard(tmp_path, f"train/data/data{k}.npy", f"train/model/model{k}.npy", n=None, value=k)
    shard(tmp_path, "val/data/seis2_1_0.npy", "val/model/vel2_1_0.npy", n=3)
    assert names(discover(tmp_path, "FlatVel_A", split="train")) == [(f"data{k}.npy", f"model{k}.npy", 1)
        for k in (1, 2, 10)]
    assert names(discover(tmp_path, "FlatVel_A", split="val")) == [("seis2_1_0.npy", "vel2_1_0.npy", 3)]
    seismic, velocity = read_pair(discover(tmp_path, "FlatVel_A", split="train")[2], 0)
    assert seismic.shape == (5, 40, 70) and velocity.shape == (1, 70, 70) and velocity[0, 0, 0] == 2010
    # a map without its leading axis, in float64
    np.save(tmp_path / "train/model/model10.npy", np.full((70, 70), 1500.))
    velocity = read_pair(discover(tmp_path, "FlatVel_A", split="train")[2], 0)[1]
    assert velocity.shape == (1, 70, 70) and velocity.dtype == np.float32


@pytest.mark.parametrize("family, train, val", [
    ("CurveVel_B", ("data/data48.npy", "model/model48.npy"), ("data/data49.npy", "model/model49.npy")),
    ("CurveFault_B", ("seis6_1_31.npy", "vel6_1_31.npy"), ("seis6_1_32.npy", "vel6_1_32.npy")),
    ("Style_A", ("data/data120.npy", "model/model120.npy"), ("data/data134.npy", "model/model134.npy"))])
def test_original_layout_with_the_official_split(tmp_path, family, train, val):
    for pair in (train, val): shard(tmp_path / family, *pair)
    for root in (tmp_path, tmp_path / family):
        for split, pair in (("train", train), ("val", val)):
            assert names(discover(root, family, split=split)) == [(pair[0].split("/")[-1], pair[1].split("/")[-1], 2)]


def test_kaggle_copy_needs_validation_files(tmp_path):
    for k in (1, 2): shard(tmp_path / "train_samples" / "FlatVel_A", f"data/data{k}.npy", f"model/model{k}.npy")
    assert find_root(tmp_path, "FlatVel_A") == tmp_path / "train_samples" / "FlatVel_A"
    with pytest.raises(InputError, match="--val-files"): discover(tmp_path, "FlatVel_A", split="val")
    assert (names(discover(tmp_path, "FlatVel_A", split="val", val_files=["model2.npy"]))
        == [("data2.npy", "model2.npy", 2)])
    assert (names(discover(tmp_path, "FlatVel_A", split="train", val_files=["model2.npy"]))
        == [("data1.npy", "model1.npy", 2)])
    with pytest.raises(InputError, match="data7.npy"):
        discover(tmp_path, "FlatVel_A", split="val", val_files=["data7.npy"])
    report = inspect_folder(tmp_path, "FlatVel_A")
    assert "--val-files" in report.problems[0] and report.facts["unsplit"]["records"] == 4


def test_wrong_folders(tmp_path):
    shard(tmp_path / "FlatVel_A", "data/data1.npy", "model/model1.npy")
    shard(tmp_path / "FlatVel_A", "data/data49.npy", "model/model49.npy")
    with pytest.raises(InputError, match="does not exist"): find_root(tmp_path / "none", "FlatVel_A")
    with pytest.raises(InputError, match="only FlatVel_A"): find_root(tmp_path, "Style_A")
    with pytest.raises(InputError, match="holds FlatVel_A, not CurveVel_A"):
        find_root(tmp_path / "FlatVel_A", "CurveVel_A")
    with pytest.raises(InputError, match="did you mean 'FlatVel_A'"): find_root(tmp_path, "FlatVelA")
    shard(tmp_path / "FlatVel_A", "data/data61.npy", "model/model61.npy")
    with pytest.raises(InputError, match="data61.npy is not an official file"):
        discover(tmp_path, "FlatVel_A", split="train")


def test_partners_and_counts(tmp_path):
    shard(tmp_path, "train/data/data1.npy", "train/model/model1.npy")
    shard(tmp_path, "val/data/data2.npy", "val/model/model2.npy")
    np.save(tmp_path / "train/model/model1.npy", np.ones((3, 1, 70, 70), "float32"))
    with pytest.raises(InputError, match="holds 2 records but .*model1.npy holds 3"):
        discover(tmp_path, "FlatVel_A", split="train")
    np.save(tmp_path / "val/data/data3.npy", np.ones((2, 5, 40, 70), "float32"))
    with pytest.raises(InputError, match="data3.npy has no partner model3.npy .2 seismic and 1 velocity"):
        discover(tmp_path, "FlatVel_A", split="val")
    (tmp_path / "val/data/data3.npy").rename(tmp_path / "val/model/model9.npy")
    with pytest.raises(InputError, match="model9.npy has no seismic partner"):
        discover(tmp_path, "FlatVel_A", split="val")
    assert len(inspect_folder(tmp_path, "FlatVel_A").problems) >= 2


def test_files_that_cannot_be_read(tmp_path):
    np.save(tmp_path / "good.npy", np.ones((2, 3))); good = (tmp_path / "good.npy").read_bytes()
    np.save(tmp_path / "objects.npy", np.array([{}, 2], dtype=object))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.savez(tmp_path / "several", a=np.ones(2)); (tmp_path / "folder.npy").mkdir()
    for name, content in ((("short", good[:-1]), ("header", good[:40]), ("magic", good[:3]), ("empty", b""),
            ("text", b"1500 1600"), ("pickle", pickle.dumps([1])), ("second", 2 * good))):
        (tmp_path / f"{name}.npy").write_bytes(content)
    for name, reason in (("short", "truncated"), ("header", "truncated"), ("magic", "truncated"),
                         ("empty", "truncated"), ("text", "not a .npy"), ("pickle", "pickled"),
                         ("objects", "pickled"), ("words", "not real numbers"), ("none", "does not exist"),
                         ("folder", "cannot be read"), ("second", f"holds {len(good)} bytes more")):
        with pytest.raises(InputError, match=reason) as caught: open_npy(tmp_path / f"{name}.npy")
        assert f"{name}.npy" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="not a .npy"): open_npy(tmp_path / "several.npz")
    with pytest.raises(InputError, match="3 or 4 axes"): open_npy(tmp_path / "good.npy", ndim=(3, 4))


def test_report_names_every_problem(tmp_path):
    options = dict(survey=surface_survey(70, nt=40))
    velocity = sample_velocity("Style_B", 4, seed=5)
    for split, k, v in (("train", 1, velocity[:2]), ("val", 2, velocity[2:])):
        shard(tmp_path, f"{split}/data/data{k}.npy", f"{split}/model/model{k}.npy")
        np.save(tmp_path / f"{split}/data/data{k}.npy", simulate(v, options["survey"]))
        np.save(tmp_path / f"{split}/model/model{k}.npy", v)
    assert not inspect_folder(tmp_path, "Style_B", **options).problems
    assert "(5, 40, 70), but the survey gives (5, 1000, 70)" in inspect_folder(tmp_path, "Style_B").problems[0]
    np.load(tmp_path / "train/data/data1.npy", mmap_mode="r+")[1, 0, 0, 0] = np.inf
    np.load(tmp_path / "val/model/model2.npy", mmap_mode="r+")[0, 0, 60:] = 5000
    steps = []
    report = inspect_folder(tmp_path, "Style_B", **options, progress=lambda *step: steps.append(step))
    assert steps == [(i, 4) for i in (1, 2, 3, 4)] and report.facts["train"] == dict(files=1, records=2)
    assert "data1.npy: record 1" in report.problems[0] and "5000 m/s" in report.problems[1] and not report.doubts
    assert any("5000" in line for line in report.lines()) and report.to_dict()["problems"] == report.problems


def test_a_record_with_a_hole(tmp_path):
    record = np.zeros((5, 1000, 70), "float32"); record[2, 500, 3] = np.nan
    np.save(tmp_path / "record.npy", record)
    report = check_record(tmp_path / "record.npy")
    assert "NaN or infinite values (1 of 350000), the first at shot, time, receiver (2, 500, 3)" in report.problems[0]
    np.save(tmp_path / "record.npy", record[:, :500])
    assert "(5, 500, 70) is not OpenFWI's" in check_record(tmp_path / "record.npy").problems[0]
