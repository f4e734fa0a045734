"The commands as a user runs them: the basic workflow, and every kind of bad input."
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from processes import pristine

import fwi_i2sb
from fwi_i2sb.cli import COMMANDS
from fwi_i2sb.data.command import CheckOptions
from fwi_i2sb.core.commands import run_command
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.training.options import OptimOptions
from fwi_i2sb.training.checkpoint import checkpoints
from fwi_i2sb.training.run_dir import FORMAT
from fwi_i2sb.inference.run import load_run, TrainedRun

TRAIN = ["--model", "tiny", "--batch-size", "4", "--microbatch", "4", "--num-itr", "1", "--val-maps", "0",
    "--log-writer", "none", "--device", "cpu"]


def train_words(data, out, *more, family="CurveVel_A"):
    return ["train", "--result-dir", out, "--dataset-dir", data, "--dataset-name", family, *TRAIN, *more]


def files(folder: Path) -> set[str]: return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.fixture
def originals(tmp_path) -> Path:
    "A folder of original OpenFWI files of FlatVel_A with two records each, random but well-formed."
    rng = np.random.default_rng(0)
    root = tmp_path / "FlatVel_A"
    for kind in ("data", "model"): (root / kind).mkdir(parents=True)
    for number in (1, 49):
        np.save(root / "data" / f"data{number}.npy", rng.normal(size=(2, 5, 1000, 70)).astype(np.float32))
        np.save(root / "model" / f"model{number}.npy", rng.uniform(1500, 4500, (2, 1, 70, 70)).astype(np.float32))
    return root


@pytest.fixture
def record(data, tmp_path) -> Path:
    "One raw validation record as a file of its own."
    path = tmp_path / "record.npy"
    np.save(path, np.load(data / "data" / "data49.npy", mmap_mode="r", allow_pickle=False)[0])
    return path


# the basic workflow

def test_help_lists_the_commands_in_the_order_of_a_working_day():
    shown = {subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True).stdout
        for module in ("fwi_i2sb", "fwi_i2sb.cli")}
    [shown] = shown  # the same
    places = [shown.index(f"\n  {name} ")
        for name in ("generate", "check", "convert", "train", "invert", "evaluate", "demo", "bench")]
    assert places == sorted(places)


def test_the_list_of_commands_loads_none_of_them():
    code = ("import sys; from fwi_i2sb.cli import COMMANDS, main; main(['--help']); main(['--version']); "
        "assert not {'torch', 'matplotlib', *(f'fwi_i2sb.{c.module}' for c in COMMANDS.values())} & {*sys.modules}")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.endswith(f"fwi_i2sb {fwi_i2sb.__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_itself(name):
    assert COMMANDS[name].load()[1].__doc__.startswith(COMMANDS[name].about)


@pytest.mark.parametrize("module", ["fwi_i2sb models", "fwi_i2sb.cli models", "fwi_i2sb.train", "fwi_i2sb.bench"])
def test_a_program_says_how_threads_wait_before_torch_is_loaded(module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("""
import builtins, os, sys
real = builtins.__import__
def look(name, *rest, **named):
    if name == "torch" and "torch" not in sys.modules: print("waits:", os.environ.get("OMP_WAIT_POLICY"), flush=True)
    return real(name, *rest, **named)
builtins.__import__ = look
""")
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(fwi_i2sb.__file__).parents[1])])
    done = subprocess.run([sys.executable, "-m", *module.split(), "--help"], capture_output=True, text=True, env=env,
        check=True)
    assert done.stdout.startswith("waits: PASSIVE\n"), done.stdout[:200]


def test_check_convert_train_on_original_files(fwi, originals, tmp_path):
    checked = fwi("check", originals, "--json", tmp_path / "report.json")
    assert checked.code == 0 and "(5, 1000, 70)" in checked.out
    assert json.loads((tmp_path / "report.json").read_text())["problems"] == []
    assert fwi("convert", originals, "--family", "FlatVel_A").code == 0
    assert fwi(*train_words(originals, tmp_path / "runs", family="FlatVel_A")).code == 0
    assert (tmp_path / "runs" / "0" / "config.json").exists()


def test_the_data_may_be_read_only(fwi, originals, tmp_path):
    before = files(originals)
    assert (fwi(*train_words(originals, tmp_path / "runs", "--store-dir", tmp_path / "store", family="FlatVel_A")).code
        == 0)
    assert files(originals) == before and (tmp_path / "store" / "train" / "database.lmdb").exists()


def test_one_record_of_ones_own(fwi, mini, record, tmp_path):
    done = fwi("invert", mini, "--record", record, "--start", "linear:1500:4000", "--samples", "2", "--nfe", "2",
        "--out", tmp_path / "out")
    assert done.code == 0 and "misfit" in done.out
    with np.load(tmp_path / "out" / "record.npz", allow_pickle=False) as result:
        assert result["samples"].shape == (1, 2, 1, 70, 70) and str(result["units"]) == "m/s"
        np.testing.assert_allclose(result["mean"], result["samples"].mean(1), rtol=1e-5)
        np.testing.assert_allclose(result["start"][0, 0, [0, -1], 0], [1500, 4000], rtol=1e-5)
        assert {"run", "step", "nfe", "seed", "misfit", "device"} <= json.loads(str(result["provenance"])).keys()
    assert (tmp_path / "out" / "record.png").stat().st_size > 10_000


def test_several_records_in_one_file_each_with_its_start(fwi, mini, data, tmp_path):
    np.save(tmp_path / "two.npy", np.load(data / "data" / "data49.npy", mmap_mode="r", allow_pickle=False)[:2])
    np.save(tmp_path / "starts.npy", np.stack([np.full((70, 70), v, np.float32) for v in (2000, 3000)]))
    assert fwi("invert", mini, "--record", tmp_path / "two.npy", "--start", tmp_path / "starts.npy", "--samples", "1",
        "--nfe", "1", "--out", tmp_path).code == 0
    with np.load(tmp_path / "two.npz", allow_pickle=False) as result:
        np.testing.assert_allclose(result["start"][:, 0, 0, 0], [2000, 3000], rtol=1e-5)


def test_a_folder_of_records_each_with_its_own_result(fwi, refused, mini, data, tmp_path):
    records = np.load(data / "data" / "data49.npy", allow_pickle=False)[:3]
    for k, name in enumerate(("a/shot", "b/shot", "a/other")):
        (tmp_path / name).parent.mkdir(exist_ok=True); np.save(tmp_path / f"{name}.npy", records[k])
    words = ["--start", "linear:1500:4000", "--samples", 1, "--nfe", 1, "--out"]
    done = fwi("invert", mini, "--record", tmp_path / "a", tmp_path / "b" / "shot.npy", *words, tmp_path / "out")
    assert done.code == 0 and "wrote 3 of 3" in done.out
    names = {"a-shot", "b-shot", "other"}
    assert files(tmp_path / "out") == {f"{name}{suffix}" for name in names for suffix in (".npz", ".png")}
    alone = fwi("invert", mini, "--record", tmp_path / "b" / "shot.npy", *words, tmp_path / "alone")
    assert alone.code == 0 and "relative data misfit" in alone.out
    with (np.load(tmp_path / "out" / "b-shot.npz") as among, np.load(tmp_path / "alone" / "shot.npz") as one):
        assert among.files == one.files
        np.testing.assert_array_equal(among["samples"], one["samples"])
    # what cannot be inverted does not keep the others back
    np.save(tmp_path / "b" / "bad.npy", records[0, :, :77])
    refused("invert", mini, "--record", tmp_path / "b", *words, tmp_path / "more",
        saying=("1 of 2 files", "(5, 77, 70)"))
    assert (tmp_path / "more" / "shot.npz").exists()


def test_a_result_is_never_overwritten_by_another(fwi, refused, mini, data, tmp_path, monkeypatch):
    record = np.load(data / "data" / "data49.npy", mmap_mode="r", allow_pickle=False)[0]
    for k, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir(); np.save(tmp_path / name / "shot.npy", record * (1 + k))
        os.utime(tmp_path / name / "shot.npy", (1, 1))  # as out of an archive
    quick = ("invert", mini, "--start", "linear:1500:4000", "--samples", 1, "--nfe", 1, "--record")
    words, out = (*quick, tmp_path / "a" / "shot.npy"), ("--out", tmp_path / "out")
    monkeypatch.setattr("fwi_i2sb.inference.command.plot_result", lambda **given: 1 / 0)
    with pytest.warns(UserWarning, match="shot.png could not be shown"): done = fwi(*words, *out)
    assert done.code == 0 and "data misfit" in done.out and files(tmp_path / "out") == {"shot.npz"}
    assert ".png" not in done.out
    monkeypatch.undo()
    assert fwi(*words, *out).code == 0 and files(tmp_path / "out") == {"shot.npz", "shot.png"}
    before = (tmp_path / "out" / "shot.npz").read_bytes()
    (tmp_path / "a" / "shot.npz").write_text("mine")
    (tmp_path / "b" / "shot.png").write_text("mine")
    monkeypatch.setattr(TrainedRun, "invert", lambda *given, **named: pytest.fail("the work has begun"))
    refused(*quick, tmp_path / "b" / "shot.npy", *out, saying=("shot.npz", "same question", "--out"))
    refused(*words, "--seed", 1, *out, saying=("shot.npz", "same question", "--out"))
    refused(*words, "--out", tmp_path / "a", saying=(str(tmp_path / "a" / "shot.npz"), "--out"))
    refused(*words, "--out", tmp_path / "b", saying=(str(tmp_path / "b" / "shot.png"), "--out"))
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a-shot.npz").write_text("mine")
    refused(*words, tmp_path / "b" / "shot.npy", "--out", tmp_path / "both", saying=("a-shot.npz", "--out"))
    assert (tmp_path / "out" / "shot.npz").read_bytes() == before


def test_an_inversion_is_never_lost_to_its_data_misfit(fwi, mini, tmp_path, monkeypatch):
    from fwi_i2sb.inference import command

    words = ["invert", mini, "--records", 2, "--samples", 1, "--nfe", 1, "--engine", "openfwi"]
    real, asked = command.resimulate, []

    def fails(run, velocity, engine):
        asked.append(engine)
        assert (tmp_path / "kept" / "validation-2.npz").exists()
        if len(asked) == 2: raise InputError("the time step is too long for engine 'openfwi'")
        return real(run, velocity, "deepwave")
    monkeypatch.setattr(command, "resimulate", fails)
    done = fwi(*words, "--out", tmp_path / "kept")
    assert done.code == 0 and asked == ["openfwi"] * 4
    assert "of 1 of 2 record(s) could not be computed, the first: mean: the time step is too long" in done.out
    with np.load(tmp_path / "kept" / "validation-2.npz") as result: about = json.loads(str(result["provenance"]))
    assert about["misfit"]["mean"][0] is None and about["misfit"]["mean"][1] > 0 and len(about["misfit_failed"]) == 1

    def stopped(run, velocity, engine): raise KeyboardInterrupt
    monkeypatch.setattr(command, "resimulate", stopped)
    done = fwi(*words, "--out", tmp_path / "stopped")
    assert done.code == 130 and "is written, without its data misfit" in done.err
    with np.load(tmp_path / "stopped" / "validation-2.npz") as result: assert result["mean"].shape == (2, 1, 70, 70)


def test_batches_of_records_give_what_one_batch_gives(fwi, mini, data, tmp_path, monkeypatch):
    "Maps, lists and seeds as in one piece, and nothing left beside the results."
    monkeypatch.setattr("fwi_i2sb.inference.command._batches", lambda *given: iter([(0, 3), (3, 5)]))
    words = ("invert", mini, "--records", 5, "--samples", 2, "--nfe", 2, "--out")
    assert fwi(*words, tmp_path / "parts").code == 0
    monkeypatch.setattr("fwi_i2sb.inference.command._batches", lambda *given: iter([(0, 5)]))
    assert fwi(*words, tmp_path / "whole").code == 0
    parts, whole = (np.load(tmp_path / name / "validation-5.npz") for name in ("parts", "whole"))
    assert parts.files == whole.files
    for name in ("samples", "mean", "std", "start", "truth"):
        np.testing.assert_allclose(parts[name], whole[name], atol=0.5, err_msg=name)
    a, b = (json.loads(str(result["provenance"])) for result in (parts, whole))
    assert a["records"] == b["records"] and len(a["record_checks"]) == 5 and not any(a["record_checks"])
    np.testing.assert_allclose(a["misfit"]["mean"], b["misfit"]["mean"], rtol=1e-3)
    assert not list((tmp_path / "parts").glob(".*"))


def test_an_odd_record_is_inverted_and_said_to_be_odd(fwi, mini, data, tmp_path):
    records = np.load(data / "data" / "data49.npy", allow_pickle=False)[:3].copy()
    records[1] *= -0.2; records[2, 4] = 0
    np.save(tmp_path / "odd.npy", records)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "record checks")  # which the command says in its own words
        done = fwi("invert", mini, "--record", tmp_path / "odd.npy", "--samples", 1, "--nfe", 1, "--out",
            tmp_path / "out")
    assert done.code == 0 and "record checks: 2 of 3 record(s) are odd" in done.out
    for tta, words in ((None, "2 of 3 record(s) are odd, the first is upside down"), ("noise:0.1:1", "are odd")):
        with pytest.warns(UserWarning, match="record checks") as told:
            found = load_run(mini, device="cpu").invert(records, samples=1, nfe=1, tta=tta)
        assert [one.filename for one in told] == [__file__] and words in repr(found) and words in str(told[0].message)
    for words in ("odd: record 1 is upside down", "odd: record 1 is 0.2 times", "odd: record 2 lacks shot 4"):
        assert words in done.err
    with np.load(tmp_path / "out" / "odd.npz", allow_pickle=False) as result:
        checks = json.loads(str(result["provenance"]))["record_checks"]
    assert [len(found) for found in checks] == [0, 2, 1]
    done = fwi("invert", mini, "--record", tmp_path / "odd.npy", "--start", "linear:4500:4500", "--samples", 1,
        "--nfe", 1, "--out", tmp_path / "slow")
    assert "where the start has 4500 m/s" in done.err


def test_what_is_given_for_something_else_is_named(refused, mini, data, record, tmp_path):
    out = ("--out", tmp_path / "out")
    np.savez(tmp_path / "map.npz", velocity=np.full((70, 70), 2000.0))
    refused("invert", mini, "--record", record, "--start", tmp_path / "map.npz", *out,
        saying=("archive of velocity", "m/s"))
    refused("invert", mini, "--record", record, "--start", mini, *out, saying=("is a trained run", "a map (depth, x)"))
    refused("invert", mini, "--record", mini, *out, saying=("is a trained run", "records are .npy"))
    refused("invert", mini, "--record", data, *out, saying=("is a store", "--dataset-dir"))
    refused("invert", mini, "--record", data / "val" / "database.lmdb", *out, saying=("database of a store",))
    refused("invert", data, "--records", 1, *out, saying=("is a store", "a trained run is wanted"))
    refused("invert", record, "--records", 1, *out, saying=("is a .npy file", "a trained run is wanted"))
    (tmp_path / "empty").mkdir()
    refused("invert", mini, "--record", tmp_path / "empty", *out, saying=("no .npy record",))
    assert not (tmp_path / "out").exists()


def test_more_samples_than_fit_are_refused_before_the_work(refused, mini, tmp_path, monkeypatch):
    words = ("invert", mini, "--records", 1, "--nfe", 2, "--out", tmp_path / "out", "--samples")
    refused(*words, 2 * 10**9, saying=("--samples must be 10000 or less",))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**7))
    refused(*words, 9999, saying=("9999 samples", "GB of memory"))
    assert not (tmp_path / "out").exists()


def test_evaluate_writes_the_table_with_its_controls(fwi, mini, tmp_path):
    done = fwi("evaluate", mini, "--records", "3", "--samples", "2", "--nfe", "2", "--misfit-records", "1",
        "--out", tmp_path)
    rows = json.loads((tmp_path / "card.json").read_text())["rows"]
    assert done.code == 0 and len(rows) == 12
    assert {r["method"] for r in rows} == {"starting model", "bridge", "bridge, single sample",
        "bridge, best of 2 (oracle)", "seismic switched off", "wrong record"}
    assert all(np.isfinite([r[k] for k in ("mae", "mae_norm", "rmse", "ssim", "misfit")]).all() for r in rows)


# bad input: one sentence, exit code 2, nothing left behind

def test_unknown_command(refused): refused("trian", saying=("'trian'", "train"))


def test_an_error_of_the_system_is_said_in_its_own_words(capsys):
    for error, words in ((ConnectionRefusedError(111, "Connection refused"), "error: Connection refused\n"),
            (OSError("no such device"), "error: no such device\n"),
            (FileNotFoundError(2, "No such file", "map.npy"), "error: map.npy: No such file\n")):
        def work(options): raise error
        with pytest.raises(SystemExit) as stop: run_command(work, CheckOptions, ["data"])
        assert stop.value.code == 2 and capsys.readouterr().err == words


def test_a_number_out_of_its_limits_is_refused_in_python_as_on_the_command_line(refused):
    refused("convert", "data", "--family", "CurveVel_A", "--time-samples", 0,
        saying=("--time-samples must be 1 or more (got 0)",))
    for values, words in ((dict(ema=1.5), "--ema must be 1 or less"),
            (dict(lr=float("nan")), "--lr must be a finite number"), (dict(num_itr=0), "--num-itr must be 1 or more")):
        with pytest.raises(InputError, match=words): OptimOptions(**values)
        with pytest.raises(InputError, match=words): replace(OptimOptions(), **values)


def test_missing_folder(refused, tmp_path):
    for words in ((["check", tmp_path / "none"], ["convert", tmp_path / "none", "--family", "CurveVel_A"],
            train_words(tmp_path / "none", tmp_path / "runs"), ["invert", tmp_path / "none"],
            ["evaluate", tmp_path / "none"])):
        refused(*words, saying=("none",))
    assert files(tmp_path) == set()


def test_unknown_names_suggest_the_nearest(refused, data, tmp_path):
    refused(*train_words(data, tmp_path / "r", family="CurvVel_A"), saying=("CurveVel_A",))
    refused("generate", tmp_path / "g", "--family", "Style_C", saying=("Style_",))
    refused("convert", data, "--family", "FlatVelA", saying=("FlatVel_A",))
    for option, wrong, right in ((("--model", "unet_ch23", "unet_ch32"), ("--encoder", "resise", "resize"),
            ("--corrupt", "blur-openfwi-custom", "blur-openfwi_custom"))):
        refused(*train_words(data, tmp_path / "r", option, wrong), saying=(right,))
    assert files(tmp_path) == set()


def broken(originals, how):
    seismic, velocity = originals / "data" / "data1.npy", originals / "model" / "model1.npy"
    values = np.load(seismic, allow_pickle=False)
    if how == "counts": np.save(velocity, np.full((3, 1, 70, 70), 2000, np.float32))
    if how == "truncated": seismic.write_bytes(seismic.read_bytes()[:-1000])
    if how == "nan":
        values[1, 2, 3, 4] = np.nan
        np.save(seismic, values)
    if how == "shape": np.save(seismic, values[:, :, :, :60])
    if how == "pickled": np.save(seismic, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    if how == "partner": velocity.unlink()


@pytest.mark.parametrize("how, name", [("counts", "model1.npy"), ("truncated", "data1.npy"), ("nan", "data1.npy"),
    ("shape", "data1.npy"), ("pickled", "data1.npy"), ("partner", "1.npy")])
def test_broken_files_are_named(refused, originals, tmp_path, how, name):
    broken(originals, how)
    before = files(originals)
    for words in ((["check", originals], ["convert", originals, "--family", "FlatVel_A", "--workers", "1"],
            train_words(originals, tmp_path / "runs", family="FlatVel_A"))):
        refused(*words, saying=(name,))
    assert not (tmp_path / "runs").exists() and files(originals) == before


def test_a_store_of_another_family(refused, data, tmp_path):
    refused(*train_words(data, tmp_path / "runs", family="CurveVel_B"), saying=("CurveVel_A", "CurveVel_B"))
    refused("convert", data, "--family", "CurveVel_A", "--velocity-range", 1400, 5000,
        saying=("1500 to 4500, not 1400 to 5000", "--store-dir"))


@pytest.mark.parametrize("batch, micro", [("30", "8"), ("0", "1")])
def test_a_batch_that_does_not_divide(refused, data, tmp_path, batch, micro):
    refused(*train_words(data, tmp_path / "runs", "--batch-size", batch, "--microbatch", micro),
        saying=("--batch-size",))
    assert files(tmp_path) == set()


def test_a_damaged_checkpoint_given_by_path(refused, mini, data, tmp_path):
    pristine(mini, tmp_path / "run")
    checkpoint = checkpoints(tmp_path / "run")[0]
    weights = checkpoint / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    before = files(tmp_path)
    for words in ((["invert", checkpoint], ["evaluate", checkpoint],
            train_words(data, tmp_path / "runs", "--ckpt", checkpoint),
            train_words(data, tmp_path / "runs", "--fine-tune", checkpoint))):
        refused(*words, saying=("damaged", checkpoint.name))
    refused("invert", tmp_path / "run", saying=("no valid checkpoint",))
    assert files(tmp_path) == before


@pytest.mark.parametrize("spoil, saying", [
    (lambda c: c.update(data_spec=None), "malformed"), (lambda c: c.update(data_spec={}), "'data_min'"),
    (lambda c: c.pop("data_spec"), "'data_spec'"), (lambda c: c.update(format=FORMAT + 1), f"format {FORMAT + 1}"),
    (lambda c: c["data_spec"].pop("linear"), "'linear'"), (lambda c: c["data_spec"].pop("factor"), "'factor'"),
    (lambda c: c["data_spec"].update(linear=[1500.]), "linear must be 2"),
    (lambda c: c["data_spec"].update(map_size=[70, 0]), "map_size must be 1 or more"),
    (lambda c: c["data_spec"].update(moments=[1., float("nan"), 0.]), "moments must be 3"),
    (lambda c: c["data_spec"].update(time_samples=-250), "time_samples"),
    (lambda c: c["data_spec"].update(factor=float("inf")), "infinity"),
    (lambda c: c["model"].update(interval="1000"), "'interval'"),
    (lambda c: c["model"].update(image_size=64.5), "'image_size'"),
    (lambda c: c["model"].update(precondition=True), "'moments'"),
    (lambda c: c["run"].update(colour=1), "'colour'"),
    (lambda c: c["data_spec"]["velocity"].update(low=1400.), "checksum"),
    (lambda c: c["model"].update(beta_max=c["model"]["beta_max"] * 2), "checksum"),
    (lambda c: c.pop("checksum"), "checksum"), (lambda c: c.update(run=None), "no options of a run"),
    (lambda c: c.update(model=[1]), "no options of a run"),
    (lambda c: c["data"].update(dataset_dir=["a"]), "--dataset-dir must be a path")],
    ids=["spec-null", "spec-empty", "spec-missing", "format", "linear", "factor", "line", "map", "moment", "samples",
        "endless", "interval",
        "image-size", "moments", "unknown", "range", "digit", "unsealed", "run", "model", "path"])
def test_a_damaged_config_is_named(refused, mini, tmp_path, spoil, saying):
    pristine(mini, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    spoil(config)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    refused("invert", tmp_path / "run", "--records", 1, "--out", tmp_path / "out", saying=(saying,))
    assert not (tmp_path / "out").exists()


def test_empty_arrays(refused, mini, record, tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((0, 5, 1000, 70), np.float32))
    np.save(tmp_path / "map.npy", np.zeros((0, 70, 70), np.float32))
    refused("invert", mini, "--record", tmp_path / "none.npy", "--out", tmp_path / "out",
        saying=("(0, 5, 1000, 70)", "no values"))
    refused("invert", mini, "--record", record, "--start", tmp_path / "map.npy", "--out", tmp_path / "out",
        saying=("(0, 70, 70)", "no values"))
    refused("invert", mini, "--record", record, "--start", "", "--out", tmp_path / "out", saying=("''",))
    refused("evaluate", mini, "--dataset-name", "", "--out", tmp_path / "out", saying=("''",))
    assert not (tmp_path / "out").exists()


def test_a_folder_in_the_place_of_a_result(refused, mini, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainedRun, "invert", lambda *given, **named: pytest.fail("the work has begun"))
    for command, name, words in ((("evaluate", "card.json", ()),
            ("evaluate", "card.png", ()), ("invert", "validation-1.npz", ("--records", 1)),
            ("invert", "validation-1-classical.png", ("--records", 1, "--fwi-iterations", 1)))):
        (tmp_path / name / name).mkdir(parents=True)
        refused(command, mini, *words, "--out", tmp_path / name, saying=(name, "is a folder"))
        assert files(tmp_path / name) == {name}
    (tmp_path / "file").write_text("")
    refused("invert", mini, "--records", 1, "--out", tmp_path / "file", saying=("is a file", "--out"))


def test_a_run_given_from_inside_its_folder_keeps_its_name(fwi, mini, tmp_path, monkeypatch):
    monkeypatch.chdir(mini)
    assert fwi("evaluate", ".", "--records", 2, "--nfe", 1, "--misfit-records", 1, "--starts", "linear", "--out",
        tmp_path).code == 0
    assert json.loads((tmp_path / "card.json").read_text())["name"] == mini.name


def test_what_says_nothing_or_half(refused, data, tmp_path):
    refused(*train_words(data, tmp_path / "runs", "--node-rank", 1), saying=("--num-proc-node",))
    refused(*train_words(data, tmp_path / "runs", "--lr-schedule", "cosine", "--lr-gamma", 0.5),
        saying=("--lr-gamma", "cosine"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option, value", [("--num-itr", "0"), ("--keep", "0"), ("--log-every", "0"),
    ("--drop-cond", "1.5"), ("--val-nfe", "1000"), ("--val-maps", "33"), ("--lr", "-1"), ("--time-samples", "300"),
    ("--gpu", "7"), ("--seed", "-1"), ("--beta-max", "inf"), ("--name", "../x"), ("--name", ".."), ("--name", "a/b"),
    ("--name", "/a"), ("--corrupt", "file"), ("--corrupt", "linear:0.5,"), ("--clip-grad-norm", "0"),
    ("--name", "n" * 201), ("--name", "a\nb"), ("--simulate", "999999999")])
def test_numbers_that_cannot_be(refused, data, tmp_path, option, value):
    if option == "--time-samples":
        for name in ("data", "model"): pristine(data / name, tmp_path / "CurveVel_A" / name)
    source = tmp_path / "CurveVel_A" if option == "--time-samples" else data
    before = files(tmp_path)
    saying = value if value.isprintable() and len(value) < 99 else "--name must be printable"
    if option == "--simulate": saying = "the records of the pool need"
    refused(*train_words(source, tmp_path / "runs", option, value), saying=(saying,))
    assert files(tmp_path) == before


def test_an_odd_bridge(refused, data, tmp_path):
    refused(*train_words(data, tmp_path / "runs", "--interval", "999"), saying=("999", "even"))


def test_records_the_run_was_not_trained_for(refused, mini, record, tmp_path):
    values = np.load(record, allow_pickle=False)
    cases = {"receivers": values[:, :, :60], "shots": values[:4], "time": values[:, :900], "flat": values[0]}
    for name, wrong in cases.items():
        np.save(tmp_path / f"{name}.npy", wrong)
        refused("invert", mini, "--record", tmp_path / f"{name}.npy", "--out", tmp_path / "out",
            saying=("(5, 1000, 70)",))
    refused("invert", mini, "--record", record, "--dt", "0.002", "--out", tmp_path / "out",
        saying=("dt 0.002 s, not 0.001 s",))
    refused("invert", mini, "--record", record, "--dx", "5", "--out", tmp_path / "out", saying=("dx 5 m, not 10 m",))
    np.save(tmp_path / "nan.npy", np.where(values == values.max(), np.nan, values))
    refused("invert", mini, "--record", tmp_path / "nan.npy", "--out", tmp_path / "out", saying=("not finite",))
    np.save(tmp_path / "huge.npy", np.stack([values, values.astype(float) * 1e300]))
    refused("invert", mini, "--record", tmp_path / "huge.npy", "--out", tmp_path / "out",
        saying=("huge.npy: record 1 holds values", "in single precision"))
    refused("invert", mini, "--record", tmp_path / "missing.npy", "--out", tmp_path / "out", saying=("missing.npy",))
    assert not (tmp_path / "out").exists()


def test_starts_that_cannot_be(refused, mini, record, tmp_path):
    np.save(tmp_path / "km.npy", np.full((70, 70), 2.5, np.float32))
    np.save(tmp_path / "small.npy", np.full((60, 70), 2500, np.float32))
    np.save(tmp_path / "three.npy", np.full((3, 70, 70), 2500, np.float32))
    refused("evaluate", mini, "--starts", tmp_path / "three.npy", "--out", tmp_path / "out",
        saying=("(3, 70, 70)", "one map"))
    for start, words in (((tmp_path / "km.npy", ("m/s",)), (tmp_path / "three.npy", ("3 starting models",)),
            (tmp_path / "small.npy", ("(60, 70)", "(70, 70)")), ("blur-openfwi_custom", ("true map",)),
            ("lineal", ("linear",)))):
        refused("invert", mini, "--record", record, "--start", start, "--out", tmp_path / "out", saying=words)
    assert not (tmp_path / "out").exists()


def test_a_record_and_what_chooses_validation_records(refused, mini, record, tmp_path):
    for words in (("--records", 3), ("--dataset-dir", tmp_path), ("--store-dir", tmp_path)):
        refused("invert", mini, "--record", record, *words, "--out", tmp_path / "out",
            saying=(words[0], "has no effect with --record"))
    assert not (tmp_path / "out").exists()


def test_samples_that_would_be_equal(refused, mini, record, tmp_path):
    for words in (("--sampler", "ode"), ("--nfe", 1)):
        refused("invert", mini, "--record", record, "--samples", 3, *words, "--out", tmp_path / "out",
            saying=("--samples 3 would be equal",))
    assert not (tmp_path / "out").exists()


def test_nfe_out_of_range(refused, mini, record, tmp_path):
    for nfe, word in (("0", "--nfe must be 1 or more (got 0)"), ("1000", "999")):
        refused("invert", mini, "--record", record, "--nfe", nfe, "--out", tmp_path / "out", saying=(word,))
    assert not (tmp_path / "out").exists()
