"Data are what they were: every kind of damage is found, sound records are left in peace, and foreign files are named."
import gzip
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from fwi_i2sb.core.errors import InputError
from fwi_i2sb.core.formats import read_array, recognise
from fwi_i2sb.data.check import check_record, inspect_folder
from fwi_i2sb.data.findings import check_accepted, Finding, inspect_map, REASONS, Tally
from fwi_i2sb.data.geology import sample_velocity
from fwi_i2sb.data.manifest import read_manifest
from fwi_i2sb.data.rules import inspect_pair, velocity_at_sources
from fwi_i2sb.data.scale import VelocityScale
from fwi_i2sb.data.store import convert, StoreDataset
from fwi_i2sb.physics.wave import OPENFWI, simulate, surface_survey, Survey

FAMILIES = "CurveVel_A", "FlatVel_B", "FlatFault_A", "Style_A", "CurveFault_B", "Style_B"


@pytest.fixture(scope="module")
def pairs():
    "Records and maps by family, made by the fast engine."
    maps = {name: sample_velocity(name, 4, seed=31) for name in FAMILIES}
    return {name: (simulate(v).numpy(), v.numpy()) for name, v in maps.items()}


def reasons(found): return {finding.reason for finding in found}


def test_sound_records_raise_no_finding(pairs):
    for seismic, velocity in pairs.values():
        for d, v in zip(seismic, velocity):
            assert inspect_pair(d, v) == [] and inspect_pair(d) == []
            # as a file of half precision has it
            assert inspect_pair(d.astype(np.float16).astype(np.float32), v) == []
    velocity = sample_velocity("FlatFault_B", 1, seed=8)
    assert inspect_pair(simulate(velocity, engine="openfwi")[0].numpy(), velocity[0].numpy()) == []


def filled(v, rows, speed, rest=None):
    "A map with one velocity in some of its rows, and perhaps another in all others."
    v = v.copy() if rest is None else np.full_like(v, rest)
    v[:, slice(*rows)] = speed
    return v


@pytest.mark.parametrize("rows, speed, rest", [((60, 70), 5200, None), ((5, 10), 5500, None), ((0, 12), 6000, None),
    ((0, 10), 1480, 4500), ((0, 2), 1480, 5500), ((0, 20), 4500, 1500), ((0, 70), 1500, None), ((0, 70), 5200, None)],
    ids=["salt below", "salt inside", "fast top", "water", "thin water over salt", "fast over slow", "slow", "fast"])
def test_records_over_strong_contrasts_are_sound_and_their_damage_is_found(pairs, rows, speed, rest):
    v = filled(pairs["CurveVel_A"][1][0], rows, speed, rest)
    d = simulate(torch.from_numpy(v[None]))[0].numpy()  # in shorter steps, over the fastest
    assert not reasons(inspect_pair(d)) and reasons(inspect_pair(d, v)) <= {"range", "constant-map"}
    late = np.pad(d, ((0, 0), (30, 0), (0, 0)))[:, :1000]
    waves = np.fft.rfft(d, 2048, axis=1) * np.exp(-60j * np.pi * np.arange(1025) / 2048)[:, None]
    between = np.fft.irfft(waves, 2048, axis=1)[:, :1000].astype(np.float32)  # late, and nowhere zero
    early = np.pad(d, ((0, 0), (0, 30), (0, 0)), "edge")[:, 30:]
    for other, reason in ((late, "time-zero"), (between, "time-zero"), (early, "time-zero"), (-d, "polarity"),
            (3 * d, "scale"), (d * np.r_[1, 1, -1, 1, 1][:, None, None], "polarity")):
        for known in ([], [v]): assert reason in reasons(inspect_pair(other, *known)), reason


def test_a_wider_range_of_velocities_does_not_make_a_record_odd(pairs):
    scale, (seismic, velocity) = VelocityScale(1500, 5500), pairs["FlatVel_B"]
    for engine in ("deepwave", "openfwi"):
        d = simulate(torch.from_numpy(velocity[:1]), engine=engine, max_velocity=scale.high)[0].numpy()
        for known in (None, velocity[0]):
            assert inspect_pair(d, known, scale=scale) == []
            assert reasons(inspect_pair(np.roll(d, 30, 1), known, scale=scale)) == {"time-zero"}


def spiked(d):
    d = d.copy(); d[1, 321, 40] += 2 * abs(d[1, :, 40]).max(); return d


# what is done to a record, what is found without its map
DAMAGES = {
    "upside down": (lambda d: -d, "polarity"),
    "one shot upside down": (lambda d: d * np.r_[1, 1, -1, 1, 1][:, None, None], "polarity"),
    "three times": (lambda d: 3 * d, "scale"), "half": (lambda d: d / 2, "scale"), "kPa": (lambda d: d / 1e3, "scale"),
    "each shot to 1": (lambda d: d / abs(d).max((1, 2), keepdims=True), "scale"),
    "counts": (lambda d: np.rint(d * 100), "scale"),
    "7 ms late": (lambda d: np.pad(d, ((0, 0), (7, 0), (0, 0)))[:, :1000], "time-zero"),
    "40 ms early": (lambda d: np.pad(d, ((0, 0), (0, 40), (0, 0)), "edge")[:, 40:], "time-zero"),
    "muted": (lambda d: d * (np.arange(1000) >= 90)[:, None], "muted"),
    "cut short": (lambda d: d * (np.arange(1000) < 700)[:, None], "muted"),
    "a shot lost": (lambda d: d * (np.arange(5) != 3)[:, None, None], "dead"),
    "dead traces": (lambda d: d * (np.arange(70) % 11 != 5), "dead"),
    "clipped": (lambda d: d.clip(-4, 4), "clipped"), "clipped below": (lambda d: d.clip(-1, None), "clipped"),
    "offset": (lambda d: d - 0.2, "offset"),
    "noise": (lambda d: d + np.random.default_rng(1).normal(0, 0.1, d.shape), "noise"), "spike": (spiked, "spikes"),
    "nothing": (np.zeros_like, "silent"), "one number": (lambda d: 0 * d + 3, "silent"),
    "a hole": (lambda d: np.where(d == d.max(), np.nan, d), "nan"), "one shot": (lambda d: d[:1], "shape"),
    "every second sample": (lambda d: d[:, ::2], "shape"), "receivers first": (lambda d: d.transpose(0, 2, 1), "shape")}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_record_is_named_with_and_without_its_map(pairs, how):
    change, reason = DAMAGES[how]
    for name in ("CurveVel_A", "Style_A"):
        seismic, velocity = pairs[name]
        d = change(seismic[1]).astype(np.float32)
        assert reasons(inspect_pair(d, velocity[1])) == reasons(inspect_pair(d)) == {reason}


@pytest.mark.parametrize("nt", (999, 1000, 1001))
def test_a_missing_value_is_found_at_any_sample_of_any_length(pairs, nt):
    d = np.pad(pairs["CurveVel_A"][0][1], ((0, 0), (0, 1), (0, 0)), "edge")[:, :nt]
    assert "nan" not in reasons(inspect_pair(d, survey=replace(OPENFWI, nt=nt)))
    for place in (0, nt // 2, nt - 2, nt - 1):
        for value in (np.nan, np.inf, -np.inf):
            holed = d.copy(); holed[2, place, 3] = value
            assert reasons(inspect_pair(holed, survey=replace(OPENFWI, nt=nt))) == {"nan"}, (place, value)


def test_maps_that_are_not_of_their_records(pairs):
    for name, (seismic, velocity) in pairs.items():
        swapped = np.roll(velocity, 1, axis=0)
        found = [inspect_pair(d, v) for d, v in zip(seismic, swapped)]
        assert all("pairing" in reasons(f) for f in found), name
    seismic, velocity = pairs["CurveVel_A"]
    assert "depth and x exchanged it would fit" in str(inspect_pair(seismic[2], velocity[2].transpose(0, 2, 1))[0])
    assert "upside down it would fit" in str(inspect_pair(seismic[2], velocity[2][:, ::-1])[0])


@pytest.mark.parametrize("change, reason, word", [
    (lambda v: v / 1000, "units", "km/s"), (lambda v: 1 / v, "units", "s/m"), (lambda v: 1000 / v, "units", "s/km"),
    (lambda v: (v - 3000) / 1500, "units", "normalised"), (lambda v: (v - v.min()) / 3000, "units", "normalised"),
    (lambda v: v / 0.3048, "units", "ft/s"), (lambda v: v - v.min() + 1440, "range", "1440"),
    (lambda v: np.where(v > 3500, 5000, v), "range", "5000"), (lambda v: 0 * v + 2500, "constant-map", "2500"),
    (lambda v: np.where(v > 3500, np.nan, v), "nan", "map")])
def test_maps_in_other_units(pairs, change, reason, word):
    found, = inspect_map(change(pairs["Style_A"][1][0]).clip(None, 20000))
    assert found.reason == reason and word in str(found)


def test_other_surveys_and_ranges_are_judged_by_their_own_numbers():
    scale = VelocityScale(800, 3000)
    surveys = [surface_survey(48, 3, dx=8.0, dt=5e-4, nt=900, freq=16.0),
        surface_survey(48, 4, dx=20.0, dt=2e-3, nt=400, freq=7.0),
        Survey(10.0, 1e-3, 500, 12.0, ((100.0, 50.0), (300.0, 50.0)), tuple((10.0 * x, 10.0) for x in range(2, 46)))]
    for survey in surveys:
        velocity = sample_velocity("CurveVel_A", 3, shape=(40, 48), seed=4, scale=scale)
        seismic = simulate(velocity, survey, max_velocity=scale.high).numpy()
        for d, v in zip(seismic, velocity.numpy()): assert inspect_pair(d, v, survey, scale) == []
    here = surveys[0]
    d, v = simulate(velocity, here, max_velocity=scale.high).numpy(), velocity.numpy()
    assert reasons(inspect_pair(-d[0], v[0], here, scale)) == {"polarity"}
    assert reasons(inspect_pair(d[0], v[1], here, scale)) == {"pairing"}
    # a source that begins late, perhaps
    assert reasons(inspect_pair(d[0] * (np.arange(900) > 5)[:, None], v[0], here, scale)) == set()
    # of a wavelet that nobody knows first arrivals tell
    other = simulate(velocity, replace(surveys[2], freq=9.0), max_velocity=scale.high).numpy()[0]
    assert inspect_pair(other, v[0], surveys[2], scale) == []
    assert reasons(inspect_pair(other, (1.6 * v[0]).clip(800, 3000), surveys[2], scale)) == {"arrivals"}


def test_records_tell_the_velocity_at_their_sources(pairs):
    seismic, velocity = pairs["FlatVel_B"]
    told = velocity_at_sources(-5 * seismic[0])
    np.testing.assert_allclose([told[k] for k in range(5)], velocity[0, 0, 1, 0], rtol=1e-3)
    assert velocity_at_sources(seismic[0][:, 1:]) == {} == velocity_at_sources(np.zeros_like(seismic[0]))


def test_findings_are_counted_and_accepted_by_name():
    tally = Tally(["noise"])
    for k in range(3): tally.add(f"a.npy: record {k}", [Finding("scale", "is loud"), Finding("noise", "is noisy")])
    assert tally.problems == ["a.npy: record 0 is loud (scale; 2 more record(s) too)"]
    assert tally.doubts == [] and tally.accepted == {"noise": 3}
    with pytest.raises(InputError, match="did you mean 'polarity'"): check_accepted(["polarty"])
    assert all(isinstance(damage, bool) for damage, _ in REASONS.values())


# folders and files

def write(folder, seismic, velocity, numbers=(1, 49)):
    for kind in ("data", "model"): (folder / kind).mkdir(parents=True, exist_ok=True)
    for k, part in zip(numbers, np.array_split(np.arange(len(seismic)), len(numbers))):
        np.save(folder / f"data/data{k}.npy", seismic[part]); np.save(folder / f"model/model{k}.npy", velocity[part])
    return folder


def test_a_folder_says_what_is_wrong_with_which_record(pairs, tmp_path):
    seismic, velocity = pairs["FlatVel_B"]
    sound = inspect_folder(write(tmp_path / "FlatVel_B", seismic, velocity))
    assert not sound.problems and not sound.doubts
    shutil.rmtree(tmp_path / "FlatVel_B")
    seismic = np.concatenate([seismic[:3], seismic[:1]]); velocity = np.concatenate([velocity[:3], velocity[:1]])
    seismic[1] *= -1
    report = inspect_folder(write(tmp_path / "FlatVel_B", seismic, velocity))
    assert len(report.problems) == 1 and "data1.npy: record 1 is upside down" in report.problems[0]
    assert len(report.doubts) == 1 and "data49.npy: record 1 is the same as" in report.doubts[0]
    assert any(line.startswith("doubt ") for line in report.lines())
    assert not inspect_folder(tmp_path / "FlatVel_B", accept=("polarity", "duplicate")).problems


def test_a_folder_of_families_is_checked_one_by_one(fwi, refused, pairs, tmp_path):
    write(tmp_path / "FlatVel_B", *pairs["FlatVel_B"]); write(tmp_path / "Style_A", *pairs["Style_A"], (1, 121))
    done = fwi("check", tmp_path)
    assert done.code == 0 and "family        FlatVel_B" in done.out and "family        Style_A" in done.out
    np.save(tmp_path / "Style_A/data/data1.npy", 4 * pairs["Style_A"][0][:2])
    refused("check", tmp_path, saying=("1 problem", "Style_A/data/data1.npy: record 0 is 4 times the pressure"))
    assert fwi("check", tmp_path, "--accept", "scale").code == 0


@pytest.mark.parametrize("change", [lambda d: d[:, :, :800], lambda d: np.pad(d, ((0, 0), (0, 0), (0, 1), (0, 0))),
    lambda d: d.transpose(0, 1, 3, 2), lambda d: d[:, :2]])
def test_a_folder_that_the_conversion_refuses_for_its_shape(refused, pairs, tmp_path, change):
    seismic, velocity = pairs["CurveVel_A"]
    folder = write(tmp_path / "CurveVel_A", change(seismic), velocity)
    for words in (("check", folder), ("convert", folder, "--family", "CurveVel_A")):
        refused(*words, saying=("has records of shape", "but the survey gives (5, 1000, 70)"))


def test_several_records_in_one_file(fwi, refused, pairs, tmp_path):
    seismic = pairs["CurveFault_B"][0][:2]
    np.save(tmp_path / "two.npy", seismic)
    (tmp_path / "two.npy").rename(tmp_path / "TWO.NPY")
    assert fwi("check", tmp_path / "TWO.NPY").code == 0
    np.save(tmp_path / "two.npy", np.stack([seismic[0], seismic[1] * 0]))
    refused("check", tmp_path / "two.npy", saying=("record 1 holds no signal",))
    np.save(tmp_path / "maps.npy", pairs["CurveFault_B"][1])
    assert "maps, not records" in check_record(tmp_path / "maps.npy").problems[0]


def test_foreign_files_are_told_by_their_content(refused, pairs, tmp_path):
    d = pairs["Style_B"][0][0]
    np.savez(tmp_path / "a.npz", pressure=d); np.save(tmp_path / "a.npy", d)
    (tmp_path / "a.npy.gz").write_bytes(gzip.compress((tmp_path / "a.npy").read_bytes()))
    head = bytearray(b"C 1 CLIENT".ljust(3600)); head[3224:3226] = struct.pack(">h", 4)
    trace = bytearray(240); trace[114:118] = struct.pack("<HH", 1000, 1000)
    (tmp_path / "line.npy").write_bytes(bytes(head) + bytes(4240))  # its name lies
    (tmp_path / "line.su").write_bytes((bytes(trace) + bytes(4000)) * 3)
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file, Platform".ljust(200))
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n".ljust(100))
    for name, kind, words in (("a.npz", "npz", "archive of pressure"), ("a.npy.gz", "gzip", "gunzip"),
            ("a.mat", "mat", "loadmat"), ("a.h5", "hdf5", "h5py")):
        assert recognise(tmp_path / name) == kind
        refused("check", tmp_path / name, saying=(name, words, "(shots, time, receivers)"))
    for name, kind, words in (("line.npy", "segy", "is damaged"), ("line.su", "su", "nothing but zeros")):
        assert recognise(tmp_path / name) == kind
        refused("check", tmp_path / name, saying=(name, words))
    for name, words in (("line.npy", "segyio.open"), ("line.su", "segyio.su.open")):
        with pytest.raises(InputError, match=words): read_array(tmp_path / name)
    assert recognise(tmp_path / "a.npy") == "npy" and recognise(tmp_path / "none") == "none"
    (tmp_path / "ebcdic").write_bytes(b"\xc3" + 3599 * b"\x40" + bytes(400))
    assert recognise(tmp_path / "ebcdic") == "segy"
    refused("convert", tmp_path / "a.npy", "--family", "Style_B",
        saying=("a.npy is a .npy file", "folder of a data set"))
    with pytest.raises(InputError, match="does not exist"): read_array(tmp_path / "none.npy")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    assert recognise(tmp_path / "a.pt") == "weights"


@pytest.mark.parametrize("layout, name", [("data", "data/data2.npy.gz"), ("data", "model/model2.NPY"),
    ("", "vel2.mat")])
def test_a_file_of_another_kind_beside_good_ones_is_named_once(fwi, pairs, tmp_path, layout, name):
    root, (d, v) = tmp_path / "Style_B", pairs["Style_B"]
    for kind, plain, array in (("data", "seis", d), ("model", "vel", v)):
        (folder := root / kind if layout else root).mkdir(parents=True, exist_ok=True)
        for k in (1, 61): np.save(folder / f"{kind if layout else plain}{k}.npy", array)
    (root / name).write_bytes(gzip.compress(b"data"))
    with pytest.warns(UserWarning, match=f"passed over: .*{name} is packed with gzip") as told:
        done = fwi("convert", root, "--family", "Style_B", "--val-files", *(p.name for p in root.rglob("*61.npy")),
            "--accept", "duplicate")
    assert done.code == 0, done.err
    assert sum("passed over" in str(one.message) for one in told) == 1


def test_folders_are_told_apart(mini, data, tmp_path):
    assert [recognise(p) for p in (mini, mini / "checkpoints" / "step-60", data, tmp_path)] == [
        "run", "checkpoint", "store", "empty folder"]
    write(tmp_path / "set", np.zeros((2, 5, 4, 3)), np.zeros((2, 1, 3, 3)))
    assert recognise(tmp_path / "set") == "data set" and recognise(tmp_path / "set/data") == "records"
    with pytest.raises(InputError, match="is a trained run"): inspect_folder(mini)


def test_a_store_beside_files_that_changed_since_is_a_problem(refused, pairs, tmp_path):
    seismic, velocity = pairs["FlatVel_B"]
    folder = write(tmp_path / "FlatVel_B", seismic, velocity)
    convert(folder, "FlatVel_B", workers=0)
    assert not inspect_folder(folder).problems
    mended = velocity.copy()
    mended[0, 0, -1] += 50
    write(folder, seismic, mended)  # a row of one map
    assert "made of what model/model1.npy held before: convert again" in "".join(inspect_folder(folder).problems)
    write(folder, seismic[::-1], velocity[::-1])
    assert "data1.npy, model/model1.npy held before: convert again" in "".join(inspect_folder(folder).problems)
    convert(folder, "FlatVel_B", workers=0)
    assert not inspect_folder(folder).problems


@pytest.mark.parametrize("reason, change", [
    ("polarity", lambda d, v: (-d, v)), ("scale", lambda d, v: (d / abs(d).max(), v)),
    ("units", lambda d, v: (d, v / 1000)), ("units", lambda d, v: (d, 1 / v)), ("units", lambda d, v: (d, v * 0)),
    ("pairing", lambda d, v: (d[::-1], v)), ("pairing", lambda d, v: (d, v[..., ::-1])),
    ("pairing", lambda d, v: (d, v.swapaxes(-1, -2))), ("silent", lambda d, v: (d * 0, v)),
    ("time-zero", lambda d, v: (np.roll(d, 40, 2), v)),
    ("nan", lambda d, v: (np.where(abs(d) > 5, np.nan, d), v))])
def test_the_conversion_refuses_damage(fwi, refused, pairs, tmp_path, reason, change):
    seismic, velocity = (np.ascontiguousarray(a, "float32") for a in change(*pairs["CurveVel_A"]))
    folder = write(tmp_path / "CurveVel_A", seismic, velocity)
    before = sorted(folder.rglob("*"))
    refused("convert", folder, "--family", "CurveVel_A", saying=("record 0", f"({reason})"))
    assert sorted(folder.rglob("*")) == before
    words = ("--accept", reason)
    if reason == "nan":  # nobody can mean that
        refused("convert", folder, "--family", "CurveVel_A", *words, saying=("(nan)",))
        return
    if reason == "units": words += ("--dtype", "float32")
    fwi("convert", folder, "--family", "CurveVel_A", *words)
    manifest = read_manifest(folder / "val")
    assert manifest["accepted"] == [reason] and manifest["findings"][reason] >= 1


def test_the_conversion_warns_of_doubts_and_velocities_out_of_range(pairs, tmp_path):
    seismic, velocity = (a.copy() for a in pairs["FlatVel_B"])
    seismic[1, 2, :, 30] = 0; velocity[0, 0, -1] = 5200
    folder = write(tmp_path / "FlatVel_B", seismic, velocity)
    with pytest.warns(UserWarning) as told: convert(folder, "FlatVel_B", workers=0)
    said = "".join(str(w.message) for w in told)
    assert "dead 1" in said and "range 1" in said and "record 0 of" in said
    assert {"dead": 1, "range": 1}.items() <= read_manifest(folder / "train")["findings"].items()


LAYOUT = """
from dataclasses import dataclass
from fwi_i2sb.data import openfwi
from fwi_i2sb.data.layouts import Layout, LAYOUTS

@dataclass(frozen=True)
class Mine(openfwi.Pair):
    pass

class Numbered(Layout):
    def holds(self, folder): return any(folder.glob("record_*.npy"))
    def split_files(self, root, family, split, val_files=None):
        *train, last = sorted(root.glob("record_*.npy"))
        pair = lambda path: (path, path.with_name(path.name.replace("record", "map")))
        return [pair(path) for path in (train if split == "train" else [last])], []
    def open_pair(self, seismic, velocity): return Mine(**vars(openfwi.open_pair(seismic, velocity)))

LAYOUTS.register("numbered")(Numbered())
"""


def test_one_file_adds_a_layout(fwi, refused, data, tmp_path, names_leave):
    (tmp_path / "mine.py").write_text(LAYOUT)
    (folder := tmp_path / "Line").mkdir()
    for name, file in (("record", "data"), ("map", "model")):
        values = np.load(data / file / f"{file}49.npy", allow_pickle=False)
        for k in range(3): np.save(folder / f"{name}_{k}.npy", values[k:k + 1])
    words, mine = (folder, "--family", "CurveVel_A"), ("--import", tmp_path / "mine.py")
    refused("convert", *words, saying=("Line",))
    done = fwi("check", *words, *mine)
    assert done.code == 0 and "train" in done.out, done
    done = fwi("convert", *words, *mine, "--store-dir", tmp_path / "store", "--workers", 1)  # imports it, too
    assert done.code == 0, done
    store = StoreDataset(tmp_path / "store", "train")
    truth = np.load(folder / "map_1.npy", allow_pickle=False)[0]
    assert len(store) == 2
    np.testing.assert_allclose(store.physical(1)[0], truth, atol=0.5)
