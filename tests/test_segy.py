"Files of other programs: SEG-Y and SU are read for what their headers tell, brought to a survey, and written."
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import segyio

from fwi_i2sb.core import commands
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.core.formats import read_array, recognise
from fwi_i2sb.data.check import check_record
from fwi_i2sb.data.gathers import agree, to_survey
from fwi_i2sb.data.geology import sample_velocity
from fwi_i2sb.data.segy import read_gathers, write_map_segy, write_segy
from fwi_i2sb.physics.wave import OPENFWI, simulate, surface_survey, Survey

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def d():
    "A record (5, 1000, 70)."
    return simulate(sample_velocity("CurveVel_A", 1, seed=3))[0].numpy()


def headers(survey=OPENFWI, *, scalar=-100, x0=0.0, y0=0.0, turn=0.0, dt=1000, unit=1.0, **more):
    "One header of SEG-Y for every trace, shot by shot: bytes and whole numbers, as of any program."
    factor = -scalar if scalar < 0 else 1 / max(scalar, 1)
    def place(x):
        return [round((x0 + x * np.cos(turn)) / unit * factor), round((y0 + x * np.sin(turn)) / unit * factor)]
    found = []
    for s, (sx, _) in enumerate(survey.sources):
        for r, (rx, _) in enumerate(survey.receivers):
            (a, b), (c, e) = place(sx), place(rx)
            found.append({1: len(found) + 1, 9: 101 + s, 13: r + 1, 29: 1, 71: scalar, 73: a, 77: b, 81: c, 85: e,
                89: 1, 117: dt} | {int(byte[1:]): value for byte, value in more.items()})
    return found


def write(path, traces, heads, *, kind=5, endian="big", binary=None):
    "A file by segyio alone; .su has no header of the file."
    spec = segyio.spec()
    spec.samples, spec.tracecount, spec.format, spec.endian = np.arange(traces.shape[1]), len(traces), kind, endian
    with segyio.create(str(path), spec) as file:
        for i, head in enumerate(heads): file.header[i] = {115: traces.shape[1]} | head
        file.bin.update({3217: heads[0][117]} | (binary or {}))
        file.trace.raw[:] = np.ascontiguousarray(traces, dtype=file.dtype)
    if path.suffix == ".su": path.write_bytes(path.read_bytes()[3600:])
    return path


def trace_rows(d): return d.swapaxes(1, 2).reshape(-1, d.shape[1])


def error(a, b): return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def read(path, survey=OPENFWI): return to_survey(read_gathers(path), survey)[:3]


# another tool's file, as the plan has it: shuffled, with scalars, 2 ms, 60 of 70 receivers

def foreign(path, d, *, scalar=-100, **more):
    rng = np.random.default_rng(5)
    gone = rng.choice(np.arange(1, 69), 10, replace=False)
    keep = rng.permutation([i for i in range(350) if i % 70 not in gone])
    heads = headers(scalar=scalar, dt=2000, **more)
    return write(path, trace_rows(d)[keep][:, ::2], [heads[i] for i in keep]), gone


@pytest.mark.parametrize("scalar, x0", [(-100, 0.0), (10, 450_000.0), (0, 12_345.0), (-10, 0.0)])
def test_shuffled_traces_with_scalars_at_2_ms_and_60_of_70_receivers(d, tmp_path, scalar, x0):
    path, gone = foreign(tmp_path / "line.sgy", d, scalar=scalar, x0=x0)
    gathers = read_gathers(path)
    assert gathers.facts() == {"shots": 5, "traces": 300, "samples": 500, "receivers (m apart)": 10.0, "dt (ms)": 2.0}
    record, there, said, original = to_survey(gathers, OPENFWI)
    assert not original.any() and record.shape == d.shape and record.dtype == np.float32
    assert set(np.flatnonzero(~there[0])) == set(gone) and (there == there[0]).all()
    assert error(record[:, :, there[0]], d[:, :, there[0]]) < 1e-3
    moved = [f"the line is moved by {-x0:.12g} m, to begin where the survey does"] if x0 else []
    assert said == ["samples 2 ms apart are resampled to 1 ms", *moved, f"50 of 350 traces are missing, the first at "
        f"shot 0, receiver {min(gone)}: they are interpolated from their neighbours in the shot"]


def test_missing_traces_are_between_their_neighbours_and_at_an_end_as_these(d, tmp_path):
    keep = [i for i in range(350) if i % 70 not in (0, 1, 33, 69)]
    record, there, said = read(write(tmp_path / "a.sgy", trace_rows(d)[keep], [headers()[i] for i in keep]))
    np.testing.assert_array_equal(record[:, :, there[0]], d[:, :, there[0]])
    np.testing.assert_allclose(record[:, :, 33], (d[:, :, 32] + d[:, :, 34]) / 2, atol=1e-5)
    for lost, near in ((0, 2), (1, 2), (69, 68)): np.testing.assert_array_equal(record[:, :, lost], d[:, :, near])
    assert len(said) == 1 and "20 of 350 traces are missing" in said[0]


def test_missing_traces_and_shots_stay_zeros_where_a_network_reads_a_mask(d, tmp_path):
    keep = [i for i in range(350) if i % 70 not in (0, 33) and i // 70 != 2 and not (i // 70 == 4 and i % 70 > 20)]
    path = write(tmp_path / "a.sgy", trace_rows(d)[keep], [headers()[i] for i in keep])
    with pytest.raises(InputError, match="shot 2 of 5 of the survey, the first at 340 m, has no trace"): read(path)
    record, there, said, original = to_survey(read_gathers(path), OPENFWI, fill=False)
    assert there.sum() == len(keep) and not there[2].any() and (original == there).all()
    np.testing.assert_array_equal(record, d * there[:, None])
    assert said == [f"{350 - len(keep)} of 350 traces are missing, the first at shot 0, receiver 0: the network is "
        "told so, and they do not count"]


@pytest.mark.parametrize("suffix", [".sgy", ".su"])
@pytest.mark.parametrize("endian", ["big", "little"])
def test_both_byte_orders_are_read(d, tmp_path, suffix, endian):
    path = write(tmp_path / f"a{suffix}", trace_rows(d), headers(), endian=endian)
    assert recognise(path) == ("segy" if suffix == ".sgy" else "su")
    record, there, said = read(path)
    np.testing.assert_array_equal(record, d)
    assert there.all() and said == []


@pytest.mark.parametrize("kind, most", [(1, 1e-6), (2, 0.2), (3, 0.2), (6, 0)])
def test_number_types(d, tmp_path, kind, most):
    found = d if kind in (1, 6) else np.rint(d * 100)
    record, _, _ = read(write(tmp_path / "a.sgy", trace_rows(found), headers(), kind=kind))
    assert error(record, found) <= most


def test_a_file_without_a_text_header_is_known_by_its_sizes(d, tmp_path):
    path = write(tmp_path / "a.dat", trace_rows(d), headers())
    for text in (bytes(3200), b" " * 3200, b"SY1 anything".ljust(3200, b"\0")):
        path.write_bytes(text + path.read_bytes()[3200:])
        assert recognise(path) == "segy"
    np.testing.assert_array_equal(read(path)[0], d)


def test_dead_traces_and_traces_of_zeros_count_as_missing(d, tmp_path):
    traces, heads = trace_rows(d).copy(), headers()
    for i in (5, 140): heads[i] |= {29: 2, 117: 0}; traces[i] = 99.0
    traces[200] = 0
    record, there, said = read(write(tmp_path / "a.sgy", traces, heads))
    assert np.argwhere(~there).tolist() == [[0, 5], [2, 0], [2, 60]] and np.abs(record).max() < 99
    assert "2 of 350 traces are marked as dead, or as no seismic: they count as missing" in said
    assert "1 traces of zeros count as missing" in said


def test_a_record_with_missing_traces_is_judged_by_those_that_are_there(refused, d, tmp_path):
    keep = [i for i in range(350) if i % 70 not in (1, 16, 35, 53)]  # next to the sources, where most is told
    path = write(tmp_path / "a.sgy", trace_rows(d)[keep], [headers()[i] for i in keep])
    assert check_record(path).problems == []
    write(path, -trace_rows(d)[keep], [headers()[i] for i in keep])
    refused("check", path, saying=("1 problem", "is upside down"))


def test_a_late_first_sample_begins_the_time_axis_there(d, tmp_path):
    record, _, said = read(write(tmp_path / "a.sgy", trace_rows(d)[:, 40:], headers(b109=40)))
    np.testing.assert_array_equal(record[:, 40:], d[:, 40:])
    assert not record[:, :40].any()
    assert said == ["its first sample is 40 ms after the shot: the time axis begins at the shot"]
    early = np.pad(trace_rows(d), ((0, 0), (25, 0)))
    record, _, said = read(write(tmp_path / "b.sgy", early, headers(b109=-250, b215=-10)))
    np.testing.assert_array_equal(record, d)
    assert "its first sample is -25 ms after the shot" in said[0]


def test_time_axes_that_end_elsewhere_are_cut_or_padded(d, tmp_path):
    record, _, said = read(write(tmp_path / "a.sgy", trace_rows(d)[:, :800], headers()))
    np.testing.assert_array_equal(record[:, :800], d[:, :800])
    assert not record[:, 800:].any() and said == ["it ends after 0.799 s: zeros follow, to 0.999 s"]
    record, _, said = read(write(tmp_path / "b.sgy", np.pad(trace_rows(d), ((0, 0), (0, 200))), headers()))
    np.testing.assert_array_equal(record, d)
    assert said == ["it is cut off after 0.999 of 1.199 s"]
    short = replace(OPENFWI, nt=250, dt=4e-3)
    record, _, said = read(write(tmp_path / "c.sgy", trace_rows(d), headers()), short)
    assert record.shape == (5, 250, 70) and error(record, d[:, ::4]) < 1e-2
    assert said == ["samples 1 ms apart are resampled to 4 ms"]


def test_a_sample_interval_in_two_headers(d, tmp_path):
    _, _, said = read(write(tmp_path / "a.sgy", trace_rows(d), headers(), binary={3217: 4000}))
    assert said == [
        "the header of the file has 4 ms between samples, those of the traces have 1 ms: these are taken"]
    gathers = read_gathers(write(tmp_path / "b.sgy", trace_rows(d), headers(dt=0), binary={3217: 1000}))
    assert gathers.dt == 1e-3 and gathers.notes == ()
    gathers = read_gathers(write(tmp_path / "c.sgy", trace_rows(d), headers(dt=0)))
    assert gathers.dt is None
    with pytest.raises(InputError, match="no sample interval: give it with --dt"): to_survey(gathers, OPENFWI)
    record, _, said, original = to_survey(agree(gathers, OPENFWI, dt=1e-3), OPENFWI)
    np.testing.assert_array_equal(record, d)
    assert original.all() and said == ["the headers tell no sample interval: 1 ms, as given"]
    heads = headers()
    heads[3] |= {117: 2000}
    with pytest.raises(InputError, match="different sample intervals: 1000, 2000 microseconds"):
        read_gathers(write(tmp_path / "e.sgy", trace_rows(d), heads))


@pytest.mark.parametrize("turn, degrees", [(0.5, "28.6"), (np.pi / 2, "90.0"), (np.pi + 0.5, "28.6")])
def test_a_line_in_any_direction(d, tmp_path, turn, degrees):
    path = write(tmp_path / "a.sgy", trace_rows(d), headers(turn=turn, x0=3e5, y0=7e5))
    record, there, said = read(path)
    assert there.all() and f"the line runs at {degrees} degrees to X: places are taken along it" in said[0]
    np.testing.assert_array_equal(record, d)
    assert ("the line is turned round, and its last station is the survey's first" in said) == (turn > 3)


def test_receivers_at_another_distance(d, tmp_path):
    fine = surface_survey(139, dx=5.0)
    half = np.arange(350) % 70 % 2 == 0
    path = write(tmp_path / "fine.sgy", np.repeat(trace_rows(d), 2, 0)[:695], headers(replace(fine,
        sources=OPENFWI.sources))[:695])
    with pytest.raises(InputError, match="shot"): read(path, replace(OPENFWI, sources=((0.0, 10.0), (333.0, 10.0))))
    path = write(tmp_path / "wide.sgy", trace_rows(d)[half], [h for h, take in zip(headers(), half) if take])
    record, there, said = read(path)
    assert "receivers 20 m apart are interpolated to the survey's 10 m" in said
    np.testing.assert_allclose(record[:, :, ::2], d[:, :, ::2], atol=1e-4)
    assert there[:, :69].all()


def test_every_second_receiver_of_a_finer_line_is_taken(tmp_path):
    fine = replace(surface_survey(139, dx=5.0), sources=OPENFWI.sources)
    rows = np.random.default_rng(0).normal(size=(5 * 139, 1000)).astype(np.float32)
    record, there, said = read(write(tmp_path / "a.sgy", rows, headers(fine)))
    np.testing.assert_array_equal(record, rows.reshape(5, 139, 1000)[:, ::2].swapaxes(1, 2))
    assert there.all() and said == ["345 of 695 traces belong to no station of the survey and are left out"]


def test_shots_beyond_the_survey_are_left_out(tmp_path):
    many = replace(OPENFWI, sources=tuple((10.0 * x, 10.0) for x in (0, 10, 17, 34, 40, 52, 69)))
    rows = np.random.default_rng(0).normal(size=(490, 1000)).astype(np.float32)
    record, _, said = read(write(tmp_path / "a.sgy", rows, headers(many, x0=5000.0)))
    np.testing.assert_array_equal(record, rows.reshape(7, 70, 1000)[[0, 2, 3, 5, 6]].swapaxes(1, 2))
    assert "140 of 490 traces belong to no station of the survey and are left out" in said


def test_places_a_little_off_are_said(d, tmp_path):
    heads = headers()
    for i, head in enumerate(heads): head[81] += (-1)**i * 120
    record, there, said = read(write(tmp_path / "a.sgy", trace_rows(d), heads))
    np.testing.assert_array_equal(record, d)
    assert there.all() and said == ["traces up to 1.2 m beside a receiver of the survey are taken for its own"]


def test_depths_are_compared_and_not_corrected(d, tmp_path):
    heads = headers(b69=-10, b41=3000)
    for head in heads: head[49] = 0; head[45] = 3000
    assert read(write(tmp_path / "a.sgy", trace_rows(d), heads))[2] == []
    for i, head in enumerate(heads): head[41] = 3000 + i % 70 * 10
    said = read(write(tmp_path / "b.sgy", trace_rows(d), heads))[2]
    assert said == ["depths differ from the survey's by up to 69 m: nothing is corrected for that"]


def test_files_without_places_are_taken_in_their_order(d, tmp_path):
    blank = [head | {73: 0, 77: 0, 81: 0, 85: 0} for head in headers()]
    record, there, said = read(write(tmp_path / "a.sgy", trace_rows(d), blank))
    np.testing.assert_array_equal(record, d)
    order = ["the headers tell no places of sources: shots are taken in their order",
        "the headers tell no places of receivers: traces are taken in their order"]
    assert said == order
    for head in blank: head[9] = 1
    record, there, said = read(write(tmp_path / "b.sgy", trace_rows(d), blank))
    np.testing.assert_array_equal(record, d)
    assert said == order
    with pytest.raises(InputError, match="tell no places of sources, and 1 shots of together 349 traces"):
        read(write(tmp_path / "c.sgy", trace_rows(d)[:349], blank[:349]))
    for i, head in enumerate(blank): head[9] = i // 70
    with pytest.raises(InputError, match="tell no places of receivers, and shot 4 has 69 traces, not the survey's 70"):
        read(write(tmp_path / "c.sgy", trace_rows(d)[:349], blank[:349]))


def test_feet_that_are_told_become_metres(d, tmp_path):
    path = write(tmp_path / "a.sgy", trace_rows(d), headers(scalar=-1000, unit=0.3048), binary={3255: 2})
    record, there, said = read(path)
    np.testing.assert_array_equal(record, d)
    assert there.all() and said == ["lengths are told in feet: 0.3048 m each"]


# what cannot be

REFUSED = {
    "feet": (dict(unit=0.3048), slice(None), "32.81 m apart \\(feet\\?\\), the survey's 10 m"),
    "a wrong scalar": (dict(unit=0.01), slice(None), "1000 m apart \\(is the scalar of the coordinates wrong\\?\\)"),
    "angles": (dict(b89=2), slice(None), "coordinates are angles, not metres"),
    "a shot": (dict(), np.r_[:70, 140:350], "shot 1 of 5 of the survey, the first at 170 m, has no trace"),
    "two shots": (dict(x0=1e4), np.r_[:70, 210:350], "shots 1, 2 of 5 of the survey, the first at 170 m, have no"),
    "receivers": (dict(), np.r_[:350][np.arange(350) % 70 < 34],
        "shot 0 has traces at 34 of the survey's 70 receivers, and half of them are needed"),
    "pairs": (dict(), np.r_[:350, 7], "traces 7 and 350 have one source and one receiver: stack such traces"),
    "a shot of dead traces": (dict(b29=2), slice(None), "nothing but zeros"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_survey_can_be_made_of(d, tmp_path, what):
    changed, keep, words = REFUSED[what]
    heads = np.array(headers(**changed))[keep]
    with pytest.raises(InputError, match=words):
        read(write(tmp_path / "a.sgy", trace_rows(d)[keep], heads.tolist()))


def test_a_record_that_is_too_short(d, tmp_path):
    path = write(tmp_path / "a.sgy", trace_rows(d)[:, :480], headers())
    with pytest.raises(InputError, match="ends after 0.479 s, and half of the survey's 0.999 s is needed"): read(path)


def test_an_area_and_a_survey_in_a_borehole(d, tmp_path):
    heads = headers()
    for i, head in enumerate(heads): head[85] = i % 7 * 5000
    with pytest.raises(InputError, match="lie in an area, not on a line"):
        read_gathers(write(tmp_path / "a.sgy", trace_rows(d), heads))
    hole = Survey(10.0, 1e-3, 1000, 15.0, ((0.0, 10.0),), ((100.0, 10.0), (100.0, 20.0)))
    path = write(tmp_path / "b.sgy", trace_rows(d), headers())
    with pytest.raises(InputError, match="lie above each other"): read(path, hole)


def test_damaged_files(d, tmp_path):
    path = write(tmp_path / "a.sgy", trace_rows(d), headers())
    whole = path.read_bytes()
    for change in (whole[:-100], whole[:3700], whole[:3224] + struct.pack(">h", 4) + whole[3226:]):
        path.write_bytes(change)
        with pytest.raises(InputError, match="a.sgy is damaged, or not what it seems: "): read_gathers(path)
    np.save(tmp_path / "b.npy", d)
    with pytest.raises(InputError, match="is a .npy file, and a record as SEG-Y or SU is wanted"):
        read_gathers(tmp_path / "b.npy")
    with pytest.raises(InputError, match="does not exist"): read_gathers(tmp_path / "none.sgy")


def test_a_matrix_is_wanted_where_no_record_is(d, tmp_path):
    path = write(tmp_path / "map.sgy", d[0, :70].T, headers()[:70])
    with pytest.raises(InputError, match="is a SEG-Y file, and a .npy of a map") as told: read_array(path, 2, "a map")
    code = str(told.value).split("is wanted: ")[1].replace("map.sgy", str(path)).replace("map.npy", str(tmp_path / "m"))
    first, _, second = code.partition(": ")
    exec(f"import numpy, segyio\n{first}:\n    {second}")
    np.testing.assert_array_equal(np.load(tmp_path / "m.npy"), d[0, :70])


# out

@pytest.mark.parametrize("name", ["a.sgy", "a.SU"])
def test_what_is_written_is_read_the_same(d, tmp_path, name):
    survey = replace(OPENFWI, sources=tuple((x + 1e6, z) for x, z in OPENFWI.sources),
        receivers=tuple((x + 1e6 + 0.125, z) for x, z in OPENFWI.receivers))
    write_segy(tmp_path / name, d, survey)
    assert recognise(tmp_path / name) == ("su" if name == "a.SU" else "segy") and len(list(tmp_path.iterdir())) == 1
    gathers = read_gathers(tmp_path / name)
    np.testing.assert_allclose(gathers.receivers[:70], survey.receivers, atol=1e-6)
    np.testing.assert_allclose(gathers.sources[::70], survey.sources, atol=1e-6)
    record, there, said, _ = to_survey(gathers, survey)
    np.testing.assert_array_equal(record, d)
    assert there.all() and said == []


def test_what_headers_cannot_hold_is_refused_and_leaves_nothing(d, tmp_path):
    for survey, record, words in ((OPENFWI, d[:4], r"shape \(4, 1000, 70\), and the survey gives \(5, 1000, 70\)"),
            (replace(OPENFWI, dt=1 / 1024), d, "no time step in s of 0.000976"),
            (replace(OPENFWI, nt=40000), np.zeros((5, 40000, 70), np.float32), "no number of samples of 40000"),
            (replace(OPENFWI, sources=tuple((x + 1e9, z) for x, z in OPENFWI.sources)), d, "no coordinates beyond")):
        with pytest.raises(InputError, match=words): write_segy(tmp_path / "a.sgy", record, survey)
    with pytest.raises(InputError, match="maps have shape"): write_map_segy(tmp_path / "a.sgy", np.zeros(3), 10, 10)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("dz, step, unit", [(10.0, 10000, "MM"), (6.6667, 6667, "MM"), (50.0, 5000, "CM"),
    (400.0, 400, "M")])
def test_maps_are_traces_in_depth(tmp_path, dz, step, unit):
    maps = sample_velocity("CurveVel_A", 3, seed=1).numpy()
    write_map_segy(tmp_path / "a.sgy", maps, 12.5, dz)
    with segyio.open(str(tmp_path / "a.sgy")) as file:  # strict: a cube
        assert list(file.ilines) == [1, 2, 3] and len(file.xlines) == 70 and file.bin[3501] == 1
        assert file.bin[3217] == file.header[5][117] == step
        assert f"THE INTERVAL OF THE HEADERS IS {step} {unit}" in file.text[0].decode()
        assert file.header[71][181] / -file.header[71][71] in (12.5, -12.5)
        for k in range(3): np.testing.assert_array_equal(file.iline[k + 1].T, maps[k, 0])


# by command

def test_without_segyio_one_sentence_says_what_to_install(refused, mini, d, tmp_path, monkeypatch):
    path = write(tmp_path / "line.sgy", trace_rows(d), headers())
    find = commands.importlib.util.find_spec
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None if name == "segyio" else find(name))
    said = "needs the package segyio: pip install 'fwi_i2sb[segy]'"
    refused("check", path, saying=("line.sgy, a SEG-Y file,", said))
    refused("invert", mini, "--record", path, "--out", tmp_path / "out", saying=("line.sgy, a SEG-Y file,", said))
    refused("invert", mini, "--records", 1, "--segy", "--out", tmp_path / "out", saying=("--segy", said))
    with pytest.raises(InputError, match="writing .*b.sgy needs"): write_segy(tmp_path / "b.sgy", d, OPENFWI)
    assert [p.name for p in tmp_path.iterdir()] == ["line.sgy"]


def provenance(path):
    with np.load(path, allow_pickle=False) as result: return json.loads(str(result["provenance"])), result["mean"]


def test_a_folder_of_mixed_records_is_inverted_one_result_each(fwi, refused, mini, data, tmp_path):
    records = np.load(data / "data" / "data49.npy", allow_pickle=False)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "line.npy", records[0])
    path, gone = foreign(tmp_path / "in" / "line.SGY", records[0], x0=5e5)
    write(tmp_path / "in" / "other.su", trace_rows(records[1]), headers(), endian="little")
    words = ("--samples", 1, "--nfe", 1)
    done = fwi("invert", mini, "--record", tmp_path / "in", *words, "--segy", "--out", tmp_path / "out")
    assert done.code == 0 and "wrote 3 of 3" in done.out, done
    names = {"in-line", "in-line-2", "other"}
    written = {f"{name}{suffix}" for name in names for suffix in (".npz", ".png", ".sgy")}
    assert {p.name for p in (tmp_path / "out").iterdir()} == written
    found = {p["record"]: (p, mean) for p, mean in (provenance(tmp_path / "out" / f"{n}.npz") for n in names)}
    told, mean = found[str(path)]
    assert told["missing_traces"] == 50 and len(told["record_changes"]) == 3 and told["record_checks"] == [[]]
    for sentence in told["record_changes"]: assert done.err.count(f"note: {path}: {sentence}\n") == 1
    plain, true = found[str(tmp_path / "in" / "line.npy")]
    assert plain["missing_traces"] == 0 and plain["record_changes"] == []
    assert np.abs(mean - true).mean() < 100
    for n in names:
        mean = provenance(tmp_path / "out" / f"{n}.npz")[1]
        with segyio.open(str(tmp_path / "out" / f"{n}.sgy")) as file:
            np.testing.assert_array_equal(file.iline[1].T, mean[0, 0])
    refused("invert", mini, "--record", tmp_path / "in", *words, "--segy", "--out", tmp_path / "in",
        saying=("--segy writes maps to", "name another folder with --out"))
    refused("invert", mini, "--record", path, *words, "--out", tmp_path / "no", "--dt", "0.001",
        saying=("line.SGY: the headers have 2 ms between samples, not 1 ms (--dt)",))
    refused("invert", mini, "--record", path, *words, "--out", tmp_path / "no", "--dx", "5",
        saying=("line.SGY: the headers have receivers 10 m apart, not 5 m (--dx)",))
    write(path, trace_rows(records[0])[70:], headers()[70:])
    refused("invert", mini, "--record", path, *words, "--out", tmp_path / "no", saying=("line.SGY: shot 0 of 5",))
    assert len(list((tmp_path / "in").iterdir())) == 3 and not (tmp_path / "no").exists()


def test_several_validation_records_are_inlines(fwi, mini, tmp_path):
    done = fwi("invert", mini, "--records", 2, "--samples", 1, "--nfe", 1, "--segy", "--out", tmp_path)
    assert done.code == 0 and "validation-2.sgy" in done.out
    told, mean = provenance(tmp_path / "validation-2.npz")
    assert told["missing_traces"] == 0 and told["record_changes"] == []
    with segyio.open(str(tmp_path / "validation-2.sgy")) as file:
        for k in range(2): np.testing.assert_array_equal(file.iline[k + 1].T, mean[k, 0])


def test_check_tells_what_is_done_to_a_file(fwi, refused, d, tmp_path):
    path, _ = foreign(tmp_path / "line.sgy", d, x0=5e5)
    done = fwi("check", path, "--json", tmp_path / "report.json")
    assert done.code == 0, done
    for words in ("receivers (m apart) 10", "missing traces 50", "problems      none",
            "note          samples 2 ms apart are resampled to 1 ms"): assert words in done.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["notes"]) == 3 and report["problems"] == []
    write(path, -trace_rows(d), headers())
    refused("check", path, saying=("the record is upside down",))
    write(path, trace_rows(d)[70:], headers()[70:])
    refused("check", path, saying=("1 problem", "shot 0 of 5 of the survey"))


RAW = """
import struct
import numpy as np
from fwi_i2sb.data.record_formats import register_record_format

@register_record_format("raw", "a raw file", (".raw",), matches=lambda head, size: head[:4] == b"RAW1")
def read(path):
    with open(path, "rb") as file:
        shots, samples, receivers = struct.unpack("<4x3i", file.read(16))
        return np.fromfile(file, "<f4").reshape(shots, samples, receivers)
"""


def test_one_file_adds_a_format_of_records(fwi, refused, mini, d, tmp_path, names_leave):
    (tmp_path / "mine.py").write_text(RAW)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "line.raw"
    path.write_bytes(b"RAW1" + struct.pack("<3i", *d.shape) + d.astype("<f4").tobytes())
    np.save(tmp_path / "in" / "same.npy", d)
    words, mine = ("--samples", 1, "--nfe", 1), ("--import", tmp_path / "mine.py")
    refused("check", path, saying=("line.raw is not a .npy file",))
    refused("invert", mini, "--record", path, *words, saying=("line.raw",))
    done = fwi("check", path, *mine)
    assert done.code == 0 and f"shape         {d.shape}" in done.out, done
    done = fwi("invert", mini, "--record", tmp_path / "in", *words, *mine, "--out", tmp_path / "out")
    assert done.code == 0 and "wrote 2 of 2" in done.out, done
    np.testing.assert_array_equal(*(provenance(tmp_path / "out" / f"{name}.npz")[1] for name in ("line", "same")))
    assert recognise(path) == "raw" and recognise(tmp_path / "in") == "records"
    path.write_bytes(path.read_bytes()[:-4])
    refused("invert", mini, "--record", path, *words, *mine, "--out", tmp_path / "no",
        saying=("line.raw cannot be read as a raw file: ValueError: cannot reshape",))
    assert not (tmp_path / "no").exists()
