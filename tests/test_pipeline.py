"From a record alone: starts of another run, residuals, and the pipeline that joins the stages."
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import pristine

from fwi_i2sb import cli, InputError, load_run
from fwi_i2sb.core.sealed import write_sealed
from fwi_i2sb.data.segy import write_segy
from fwi_i2sb.inference import pack
from fwi_i2sb.inference.pipeline import read_calibration, read_plan, write_calibration
from fwi_i2sb.inference.trust import geology_distance, SIGNS
from fwi_i2sb.inference.validation_data import validation_records
from fwi_i2sb.metrics.recalibration import Recalibration
from fwi_i2sb.physics import filters
from fwi_i2sb.physics.filters import decimate
from fwi_i2sb.physics.wave import simulate
from fwi_i2sb.training import starts
from fwi_i2sb.training.conditions import read_by_network
from fwi_i2sb.training.run_dir import data_spec, open_store, read_config
from fwi_i2sb.training.trained import FirstGuess

SMALL = ("--first-guess-itr", 4, "--num-itr", 4, "--batch-size", 4, "--microbatch", 4, "--samples", 2, "--nfe", 2,
    "--refine", 0, "--parts", 2, 1, 1, "--val-batches", 1, "--val-maps", 0, "--log-writer", "none", "--device", "cpu")


def words(data, out, *more):
    return "train-pipeline", "--out", out, "--dataset-dir", data, "--dataset-name", "CurveVel_A", *SMALL, *more


@pytest.fixture(scope="module")
def copied(data, tmp_path_factory):
    "A copy of the data set without the starts of others: they are kept beside its store."
    return pristine(data, tmp_path_factory.mktemp("copied") / "CurveVel_A")


@pytest.fixture(scope="module")
def trained(copied):
    "A pipeline, not to be changed."
    cli.main([str(word) for word in words(copied, copied.parent / "pipeline")])
    return copied.parent / "pipeline"


@pytest.fixture
def own(trained, tmp_path):
    "A copy of it."
    return shutil.copytree(trained, tmp_path / "pipeline")


@pytest.fixture(scope="module")
def records(trained):
    return validation_records(load_run(trained), 2)


def test_a_record_alone_is_enough(trained, records):
    run, (seismic, truth, _) = load_run(trained), records
    result = run.invert(seismic)
    assert result.samples.shape == (2, 2, 1, 70, 70) and result.provenance["start"] == "first-guess"
    guess = FirstGuess(trained / "first-guess", "cpu")(seismic, [0, 1])
    torch.testing.assert_close(result.start, guess, rtol=0, atol=0.01)
    low, high = result.interval(0.9)
    inner = result.interval(0.5)
    assert (low <= inner[0]).all() and (inner[0] <= inner[1]).all() and (inner[1] <= high).all()
    raw = result.samples.std(1)
    assert torch.equal(result.std, run.pipeline.recalibration.std(raw)) and not torch.equal(result.std, raw)
    faster = result.exceedance(3000.0)
    assert (faster[low > 3000] >= 0.94).all() and (faster[high < 3000] <= 0.06).all()
    assert result.trust.shape == (2,) and len(result.provenance["trust_reasons"]) == 2


def test_from_a_start_of_ones_own_the_map_alone_is_judged(trained, records):
    run, (seismic, *_) = load_run(trained), records
    told = run.invert(seismic, "linear:1500:4000").provenance
    assert not told["calibrated"] and set(told["signs"]) == set(SIGNS) - {"start_misfit", "moved"}
    for k, reasons in enumerate(told["trust_reasons"]):
        assert not any("start" in reason for reason in reasons)
        assert any("its map leaves" in reason for reason in reasons) == (
            told["signs"]["misfit"][k] > run.pipeline.limits["misfit"])


def test_a_map_of_another_geology_is_doubted(own, records):
    run, (seismic, _, _) = load_run(own), records
    result = run.invert(seismic)
    told, limit = result.provenance["signs"]["geology"], run.pipeline.limits["geology"]
    torch.testing.assert_close(geology_distance(result.mean, run.pipeline.geology).tolist(), told)
    usual = read_calibration(own)["values"]["geology"]
    assert max(usual) < limit < geology_distance(result.mean.flip(2), run.pipeline.geology).min()
    before, whole = read_calibration(own), read_calibration(own)
    for part in (before["values"], before["limits"]): del part["geology"]
    write_calibration(own, **{name: value for name, value in before.items() if name != "geology"})  # an earlier one
    again = load_run(own).invert(seismic)
    assert "geology" not in again.provenance["signs"] and torch.equal(again.mean, result.mean)
    for wrong in (whole | dict(geology=None), whole | dict(geology=dict(center=[0.0] * 3, precision=[]))):
        write_sealed(own / "calibration.json", wrong)
        with pytest.raises(InputError, match="calibration.json is damaged"): load_run(own)


def test_the_network_reads_what_the_start_leaves(trained, records):
    run, (seismic, _, _) = load_run(trained), records
    start = run.invert(seismic, samples=1, nfe=1).start
    again = decimate(simulate(start, run.survey), run.spec.factor)
    given = read_by_network(run.options.model, run.spec, seismic, run.scale.normalize(start))
    torch.testing.assert_close(given[:, :5], run.pressure.normalize(seismic))
    torch.testing.assert_close(given[:, 5:10], run.pressure.normalize(seismic - again), rtol=0, atol=1e-4)
    assert (given[:, 10:] == run.pressure.normalize(torch.zeros(()))).all() and given.shape[1] == 15


def test_missing_traces_and_shots_are_told_to_the_network_and_count_nowhere(trained, records):
    run, (seismic, _, _) = load_run(trained), records
    holes = seismic.clone()
    holes[0, 1], holes[0, :, :, 30:40] = 0, 0
    holes[1, :, :, 20:50] = 0
    loud = holes + 0
    start = run.scale.normalize(run.invert(seismic, samples=1, nfe=1).start)
    given = read_by_network(run.options.model, run.spec, loud, start)
    there = (holes != 0).any(-2, keepdim=True).float().expand_as(holes)
    silence = run.pressure.normalize(torch.zeros(()))
    assert torch.equal(given[:, 10:], silence + 0.5 * (1 - there))
    assert (given[:, 5:10][there == 0] == silence).all()
    result = run.invert(holes)
    reasons = result.provenance["trust_reasons"]
    assert "dead" in result.provenance["record_checks"][0][0] and not any("dead" in reason for reason in reasons[0])
    assert any("has 150 of 350 traces without a signal" in reason for reason in reasons[1])  # more than in training
    again = decimate(simulate(result.mean, run.survey), run.spec.factor)
    expected = ((again - holes) * there)[0].norm() / holes[0].norm()
    assert abs(result.provenance["signs"]["misfit"][0] - expected) < 1e-4


def test_a_file_without_a_shot_is_inverted(fwi, refused, trained, mini, records, tmp_path):
    pytest.importorskip("segyio")
    run = load_run(trained)
    raw = simulate(records[1][:1], run.survey)[0].numpy()
    write_segy(tmp_path / "whole.sgy", raw, run.survey)
    gone = [trace for trace in range(350) if trace // 70 == 3 or trace % 70 in (5, 6)]
    data = (tmp_path / "whole.sgy").read_bytes()
    size = 240 + 4 * run.survey.nt
    kept = b"".join(data[3600 + i * size:3600 + (i + 1) * size] for i in range(350) if i not in gone)
    (tmp_path / "part.sgy").write_bytes(data[:3600] + kept)
    told = fwi("invert", trained, "--record", tmp_path / "part.sgy", "--out", tmp_path / "out")
    assert told.code == 0 and "the network is told so" in told.err
    with np.load(tmp_path / "out" / "part.npz") as found: about = json.loads(str(found["provenance"]))
    assert about["missing_traces"] == len(gone) and "dead" not in str(about["trust_reasons"])
    refused("invert", mini, "--record", tmp_path / "part.sgy", saying=("shot 3 of 5", "has no trace"))


def test_a_packed_pipeline_answers_as_before(fwi, trained, records, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pack, "PART", 1_500_000)
    packed = tmp_path / "small"
    told = fwi("pack", trained, packed, "--cost", "seconds")
    assert told.code == 0 and f"hub:{packed}" in told.out
    sizes = [path.stat().st_size for path in packed.rglob("*.safetensors")]
    assert len(sizes) > 3 and sum(sizes) < 0.52 * sum(
        max(run.glob("checkpoints/*/ema.safetensors")).stat().st_size for run in trained.glob("*/") if
        (run / "config.json").exists())
    before, after = (load_run(name).invert(records[0]) for name in (trained, f"hub:{packed}"))
    assert (before.mean - after.mean).abs().max() < 10 and (before.mean - after.mean).abs().mean() < 1
    assert str(tmp_path.parent) not in "".join(path.read_text() for path in packed.rglob("*.json"))
    assert "seconds" in (packed / "MODEL_CARD.md").read_text()
    np.save(tmp_path / "r.npy", simulate(records[1][:1], load_run(trained).survey)[0].numpy())
    told = fwi("invert", f"hub:{packed}", "--record", tmp_path / "r.npy")
    assert told.code == 0 and (tmp_path / "small" / "evaluation" / "r.npz").exists()
    told = fwi("pack", trained, "small", "--cost", "minutes")  # what it prints is the name to be used here
    assert told.code == 0 and "minutes" in (packed / "MODEL_CARD.md").read_text()
    assert load_run(told.out.split()[-1]).path.resolve() == packed / "bridge"


def test_a_packed_pipeline_that_changed_is_refused(fwi, refused, trained, tmp_path):
    assert fwi("pack", trained, tmp_path / "small", "--cost", "seconds").code == 0
    path = next((tmp_path / "small").rglob("ema-1.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused("invert", f"hub:{tmp_path / 'small'}", "--records", 1, saying=("ema-1.safetensors", "has changed"))
    refused("invert", "hub:smal", "--records", 1, saying=("unknown pipeline",))
    refused("pack", trained / "bridge", tmp_path / "new", "--cost", "x", saying=("is not a pipeline",))
    (tmp_path / "full").mkdir()
    refused("pack", trained, tmp_path / "full", "--cost", "x", saying=("was not made by pack",))
    refused("pack", trained, tmp_path / "My_Own", "--cost", "x", saying=("My_Own", "small letters"))
    step = load_run(trained).step
    (tmp_path / "full" / "text.json").write_text("no card")
    refused("pack", trained, tmp_path / "new", "--cost", "x", "--card", tmp_path / "full" / "text.json",
        saying=("text.json is not the card.json",))
    for card, words in (([], "not the card.json"), (dict(rows=[1], step=step), "its rows are none"),
            (dict(rows=[], step=step + 1), f"card of step {step + 1}")):
        (tmp_path / "full" / "card.json").write_text(json.dumps(card))
        refused("pack", trained, tmp_path / "new", "--cost", "x", "--card", tmp_path / "full" / "card.json",
            saying=(words,))
    assert {path.name for path in tmp_path.iterdir()} == {"small", "full"}


def test_what_is_fetched_is_kept_where_one_can_write(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/sys")  # where even root makes no folder
    np.save(tmp_path / "record.npy", np.ones((5, 1000, 70), np.float32))
    refused("invert", "hub:http://127.0.0.1:9/toy", "--record", tmp_path / "record.npy",
        saying=("/sys", "XDG_CACHE_HOME"))


def test_stages_share_no_record(trained):
    parts = [read_config(trained / name)[0].data.part for name in ("first-guess", "bridge")]
    assert parts == ["1-2/4", "3/4"]
    numbers = [set(starts.Part.parse(part).among(48)) for part in (*parts, "4/4")]
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == 48
    options = read_config(trained / "bridge")[0]
    kept = open_store(options)[0]
    assert len(kept) == 12 and kept.numbers[0].tolist() == list(range(2, 48, 4))
    assert len(list((kept.stores[0].folder).glob("starts-*/manifest.json"))) >= 1


def test_training_reads_the_starts_that_inversion_makes(trained):
    options, spec = read_config(trained / "bridge")
    store, _ = open_store(options)
    kept = starts.prepare_starts(options, spec, store, "train")
    x1, left = kept([3], [(0, 0)])
    seismic = store.physical(3)[1][None]
    guess = spec.velocity.normalize(FirstGuess(trained / "first-guess", "cpu")(seismic, [3]))
    torch.testing.assert_close(x1, guess, rtol=0, atol=1e-5)
    again = decimate(simulate(spec.velocity.denormalize(guess), spec.survey), spec.factor)
    torch.testing.assert_close(left, seismic - again, rtol=2e-3, atol=2e-3)


def test_a_command_writes_intervals_and_trust(fwi, trained, records, tmp_path):
    seismic = simulate(records[1], load_run(trained).survey).numpy()
    seismic[1] *= -1
    np.save(tmp_path / "two.npy", seismic)
    told = fwi("invert", trained, "--record", tmp_path / "two.npy", "--out", tmp_path / "a")
    assert told.code == 0 and "trust: " in told.out
    with np.load(tmp_path / "a" / "two.npz", allow_pickle=False) as found:
        assert (found["interval90_low"] < found["interval90_high"]).all()
        assert found["trust"].tolist()[1] == 0 and "polarity" in str(found["trust_reasons"][1])
        said = json.loads(str(found["provenance"]))
    assert said["calibrated"] and set(said["signs"]) == set(SIGNS)
    fwi("invert", trained, "--record", tmp_path / "two.npy", "--out", tmp_path / "b", "--samples", 3)
    with np.load(tmp_path / "b" / "two.npz", allow_pickle=False) as found:
        assert "interval90_low" not in found and not json.loads(str(found["provenance"]))["calibrated"]


def test_a_card_shows_the_spread_before_and_after(fwi, trained, tmp_path):
    told = fwi("evaluate", trained, "--records", 2, "--misfit-records", 2, "--out", tmp_path)
    assert told.code == 0
    card = json.loads((tmp_path / "card.json").read_text())
    rows = {row["method"]: row for row in card["rows"]}
    assert {row["start"] for row in card["rows"]} == {"first-guess"}
    assert rows["bridge, recalibrated"]["mae"] == rows["bridge"]["mae"]
    assert rows["bridge, recalibrated"]["coverage_90"] > rows["bridge"]["coverage_90"]


def test_a_pipeline_continues_where_it_was(fwi, refused, copied, own):
    (own / "calibration.json").unlink()
    refused("invert", own, "--records", 2, saying=("is not finished", "train-pipeline"))
    before = {path: path.stat().st_mtime_ns for path in own.rglob("step-*/ema.safetensors")}
    kept = sorted((own / "calibration").iterdir())
    kept[0].write_bytes(b"cut short")
    told = fwi(*words(copied, own))
    assert told.code == 0 and "finished" in told.out
    assert before == {path: path.stat().st_mtime_ns for path in own.rglob("step-*/ema.safetensors")}
    assert sorted((own / "calibration").iterdir()) == kept
    told = fwi(*words(copied, own, "--nfe", 3, "--refine-mean", 1))
    settings = load_run(own).pipeline.settings
    assert told.code == 0 and [settings[name] for name in ("nfe", "refine", "refine_mean")] == [3, 0, 1]


def test_a_pipeline_from_before_the_means_own_steps_answers_as_it_did(own, records):
    assert "refine_mean" not in read_plan(own)["settings"], "what was calibrated then is not calibrated again"
    run = load_run(own)
    before, more = run.invert(records[0]), run.invert(records[0], refine_mean=1)
    assert [one.provenance["refine_mean"] for one in (before, more)] == [0, 1]
    assert [one.provenance["calibrated"] for one in (before, more)] == [True, False]


def test_what_is_not_that_pipeline_is_refused(fwi, refused, copied, own, tmp_path):
    refused(*words(copied, own, "--parts", 1, 1, 2), saying=("--parts 2 1 1", "--out"))
    refused(*words(copied, own, "--part", "1/2"), saying=("--parts",))
    refused(*words(copied, own, "--samples", 1, "--refine-mean", 3), saying=("a single sample is the mean", "--refine"))
    refused(*words(copied, own, "--refine-tv", 0.1), saying=("--refine-tv has no effect",))
    refused(*words(copied, own, "--fold", "1/2"), saying=("--fold has no effect", "--parts"))
    refused(*words(copied, own, "--first-guess-model", "unet_ch16"),
        saying=("another --first-guess-model (tiny, now unet_ch16)", "another --out"))
    refused(*words(copied, own, "--lr", 0.5), saying=("another --lr", "another --out"))
    refused(*words(copied, tmp_path / "new", "--parts", 40, 7, 1), saying=("10 or more", "--parts"))
    refused(*words(copied, tmp_path / "new", "--parts", 1, 0, 1), saying=("--parts",))
    refused(*words(copied, tmp_path / "new", "--condition", "seismic", "--passes", 2), saying=("--passes",))
    assert not (tmp_path / "new").exists()
    text = (own / "calibration.json").read_text()
    (own / "calibration.json").write_text(text.replace('"weight"', '"wait"'))
    refused("invert", own, "--records", 2, saying=("calibration.json is damaged",))
    (own / "calibration.json").write_text(text)
    shutil.rmtree(own / "bridge")
    shutil.copytree(own / "first-guess", own / "bridge")
    refused("invert", own, "--records", 2, saying=("other weights",))


def test_a_pipeline_in_place_of_something_else_is_named(refused, trained, copied, tmp_path):
    family = "--dataset-name", "CurveVel_A"
    for words in (("invert", trained / "bridge", "--record", trained), ("check", trained),
            ("convert", trained, "--family", "CurveVel_A"),
            ("train", "--dataset-dir", copied, *family, "--result-dir", tmp_path, "--fine-tune", trained)):
        refused(*words, saying=("pipeline",))


def test_damaged_starts_are_named(refused, copied, own):
    (own / "calibration.json").unlink()
    shutil.rmtree(own / "bridge")
    database, = {*copied.glob("train/starts-*/database.lmdb")}
    whole = database.read_bytes()
    database.write_bytes(whole[:len(whole) // 2])
    refused(*words(copied, own), saying=(str(database), "manifest.json", "repeat the command"))
    database.write_bytes(whole)


def test_folds_let_two_stages_share_their_records(fwi, refused, copied, tmp_path):
    out = tmp_path / "folds"
    told = fwi(*words(copied, out, "--folds", 2, "--first-guess-itr", 2, "--num-itr", 2))
    assert told.code == 0, told.err
    names = ("first-guess", "first-guess-1", "first-guess-2", "bridge")
    assert [read_config(out / name)[0].data.part for name in names] == ["1-3/4", "2/4", "1,3/4", "1-3/4"]
    options, spec = read_config(out / "bridge")
    store, val = open_store(options)
    assert load_run(out).invert(val.physical(0)[1][None]).provenance["start"] == "first-guess"
    kept = starts.prepare_starts(options, spec, store, "train")
    x1, _ = kept([0, 1, 2, 3, 4], [(0, 0)] * 5)
    unseen = ["first-guess-1", "first-guess-2", "first-guess-1", "first-guess-1", "first-guess-2"]  # of 0, 1, 2, 4, 5
    for i, name in enumerate(unseen):
        guess = FirstGuess(out / name, "cpu")(store.physical(i)[1][None], [i])
        torch.testing.assert_close(x1[i], spec.velocity.normalize(guess)[0], rtol=0, atol=1e-5)
    x1, _ = starts.prepare_starts(options, spec, val, "val", records=1)([0], [(0, 0)])
    guess = FirstGuess(out / "first-guess", "cpu")(val.physical(0)[1][None], [0])
    torch.testing.assert_close(x1, spec.velocity.normalize(guess), rtol=0, atol=1e-5)
    refused(*words(copied, out, "--folds", 3), saying=("--folds 2", "--out"))
    refused(*words(copied, tmp_path / "new", "--folds", 1), saying=("--folds", "got 1"))
    refused(*words(copied, tmp_path / "new", "--folds", 9), saying=("--folds", "got 9"))
    refused(*words(copied, tmp_path / "new", "--start-folds", 2), saying=("--folds",))
    alone = ("train", "--dataset-dir", copied, "--dataset-name", "CurveVel_A", "--result-dir", tmp_path, "--name", "x",
        "--model", "tiny", "--num-itr", 1, "--device", "cpu", "--start-folds", 2)
    refused(*alone, saying=("--start-folds", "--corrupt first-guess"))
    with pytest.raises(InputError, match="trained on record 0 .*--part"):
        starts.CrossFit([FirstGuess(out / "first-guess-2", "cpu")] * 2, store)
    refused(*alone[:-1], 3, "--corrupt", f"first-guess:{out / 'first-guess'}", saying=("first-guess-3",))
    assert not (tmp_path / "new").exists() and not (tmp_path / "x").exists()


def test_a_launcher_of_several_processes_is_refused(refused, copied, tmp_path, monkeypatch):
    for name, value in (("SIZE", 2), ("RANK", 0), ("LOCAL_RANK", 0), ("LOCAL_SIZE", 2)):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", str(value))
    refused(*words(copied, tmp_path / "new"), saying=("--proc-per-node",))
    assert list(tmp_path.iterdir()) == []


def test_a_first_guess_that_knows_the_records_is_refused(refused, trained, copied, tmp_path):
    same = ("train", "--dataset-dir", copied, "--dataset-name", "CurveVel_A", "--result-dir", tmp_path,
        "--model", "tiny", "--num-itr", 1, "--device", "cpu", "--corrupt", f"first-guess:{trained / 'first-guess'}")
    refused(*same, "--name", "a", saying=("1-2/4", "all", "--part"))
    refused(*same, "--name", "a", "--part", "4-6/8", saying=("--part",))
    refused(*same, "--name", "a", "--part", "5/4", saying=("'5/4'",))
    refused(*same[:-1], "first-guess:nowhere", "--name", "a", saying=("nowhere", "is not a run"))
    assert list(tmp_path.iterdir()) == []


def test_passes_need_residuals(mini, records):
    with pytest.raises(InputError, match="residual"): load_run(mini).invert(records[0], passes=2)


def test_a_second_pass_starts_where_the_first_ended(trained, records):
    run, seismic = load_run(trained), records[0][:1]
    once = run.invert(seismic, passes=1, samples=2)
    twice = run.invert(seismic, passes=2, samples=2)
    again = run.invert(seismic, once.mean.clamp(1500, 4500), passes=1, samples=2)
    torch.testing.assert_close(twice.mean, again.mean, rtol=0, atol=0.5)
    assert twice.provenance["wave_solves"] == once.provenance["wave_solves"] + 1


def test_interrupted_starts_are_continued(mini, tmp_path, monkeypatch):
    options, _ = read_config(mini)
    data = pristine(options.data.dataset_dir, tmp_path / "data")
    options = replace(options, data=replace(options.data, dataset_dir=data, part="1-2/3", start_draws=3),
        model=replace(options.model, condition="seismic,residual"))
    store, _ = open_store(options)
    spec, whole, left = data_spec(store), starts.start_residual, iter(range(2))
    monkeypatch.setattr(starts, "_BATCH", 5)
    # the first call is for the size of a value
    def dies(*given):
        if next(left, None) is None: raise KeyboardInterrupt
        return 0 * given[0]
    monkeypatch.setattr(starts, "start_residual", dies)
    with pytest.raises(KeyboardInterrupt): starts.prepare_starts(options, spec, store, "train")
    folder, = store.stores[0].folder.glob("starts-*")
    assert not (folder / "manifest.json").exists() and (folder / "database.lmdb").exists()
    made = []
    monkeypatch.setattr(starts, "start_residual", lambda d, *given: made.append(len(d)) or 0 * d)
    kept = starts.prepare_starts(options, spec, store, "train")
    assert sum(made) == 3 * (1 + 32 - 5) and whole is not starts.start_residual
    drawn = {round(kept([4], [(0, k)])[0].sum().item(), 3) for k in range(20)}
    assert len(drawn) == 3
    live = starts.make_start(options.model.corrupt, spec)
    x0 = store.velocity.normalize(store.physical(31)[0][None])
    each = {round(live(x0, [(0, 31, k, starts.STREAMS["start"])]).sum().item(), 3) for k in range(3)}
    assert {round(kept([31], [(0, k)])[0].sum().item(), 3) for k in range(20)} == each


def test_a_table_of_quantiles_is_a_distribution():
    made = Recalibration(torch.full((4,), 100.0), 0.0, torch.linspace(-1.9, 1.9, 39).expand(4, 39), torch.ones(4), 50)
    mean, std = torch.full((1, 1, 4, 2), 3000.0), torch.zeros(1, 1, 4, 2)
    for p in (0.1, 0.5, 0.73, 0.95):
        v = made.quantile(mean, std, p)
        np.testing.assert_allclose(made.exceedance(mean, std, v[0, 0, 0, 0].item()), 1 - p, atol=2e-3)


def test_an_inversion_of_a_raw_record_is_refined(mini):
    # the weights of the decimation are made inside of invert, and the refinement needs gradients through them
    run = load_run(mini)
    raw = simulate(torch.full((1, 1, 70, 70), 2500.0), run.survey)
    filters._decimation.cache_clear()
    assert run.invert(raw, samples=1, nfe=1, refine=1).provenance["wave_solves"] >= 1
