"Ensembles, test-time augmentation and post-processing: what joined answers are, and what is refused."
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import arguments, pristine

from fwi_i2sb import InputError, load_run, mae
from fwi_i2sb.examples import mini_options
from fwi_i2sb.inference.ensemble import EnsembleRun, join_runs
from fwi_i2sb.inference.kept import weights_digest
from fwi_i2sb.inference.make_ensemble import EnsembleOptions, fit, learned_weights, make_ensemble
from fwi_i2sb.inference.validation_data import validation_data, validation_records
from fwi_i2sb.physics.mirror import flip_map, flip_record, mirror
from fwi_i2sb.physics.wave import simulate
from fwi_i2sb.train import train
from fwi_i2sb.training.members import read_ensemble, write_ensemble

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(mini, data, tmp_path_factory):
    "Two regressions, of half the records, beside each other, and the mini run: other seeds, other methods."
    root = tmp_path_factory.mktemp("members")
    options = mini_options(root, data)
    optim, half = replace(options.optim, num_itr=8, batch_size=8, microbatch=8), replace(options.data, part="1/2")
    model = replace(options.model, method="regression", corrupt="linear", drop_cond=0.0)
    log = replace(options.log, val_nfe=None)
    made = [train(replace(options, run=replace(options.run, result_dir=root, name=f"seed-{seed}", seed=seed),
        data=half, optim=optim, model=model, log=log), progress=False) for seed in (0, 1)]
    return [*made, pristine(mini, root / "mini")]


@pytest.fixture(scope="module")
def records(runs):
    return validation_records(load_run(runs[0]), 3)


@pytest.fixture(scope="module")
def learned(runs):
    "An ensemble with learnt weights, not to be changed."
    return make_ensemble(EnsembleOptions(tuple(runs), runs[0].parent / "learned", "learned", device="cpu"))


def plan(n, weights=None, combine="mean"):
    return dict(combine=combine, weights=weights or [1 / n] * n, kept=None, recalibration=None)


def test_equal_members_are_their_member(runs, records, tmp_path):
    run = load_run(runs[2])
    for combine in ("mean", "median"):
        joined = join_runs([run] * 3, tmp_path, plan(3, combine=combine)).invert(records[0], "linear", nfe=2, samples=2)
        alone = run.invert(records[0], "linear", nfe=2, samples=2)
        torch.testing.assert_close(joined.mean, alone.mean, rtol=0, atol=1e-3)
        torch.testing.assert_close(joined.std, alone.std, rtol=1e-4, atol=0.05)


def test_spread_is_that_within_the_members_and_between_them(runs, records, tmp_path):
    members, w = [load_run(run) for run in runs], [0.2, 0.3, 0.5]
    joined = join_runs(members, tmp_path, plan(3, w)).invert(records[0], "linear")
    answers = [member.invert(records[0], "linear") for member in members]
    means = np.stack([a.mean.numpy() for a in answers]).astype(float)
    within = np.stack([a.samples.numpy().std(1, ddof=1) if a.samples.shape[1] > 1 else 0 * a.mean.numpy()
        for a in answers]).astype(float)
    mean = np.tensordot(w, means, 1)
    np.testing.assert_allclose(joined.mean, mean, rtol=1e-5)
    expected = np.sqrt(np.tensordot(w, within**2 + (means - mean)**2, 1))
    np.testing.assert_allclose(joined.std, expected, rtol=1e-3, atol=0.05)
    assert joined.samples.shape[1] == 1 + 1 + 8 == joined.provenance["samples"]
    middle = join_runs(members, tmp_path, plan(3, combine="median")).invert(records[0], "linear")
    np.testing.assert_allclose(middle.mean, np.median(means, 0), rtol=1e-6)


def test_learnt_weights_are_a_distribution_and_the_best_on_records_that_no_card_sees(learned, runs):
    ensemble, found = load_run(learned, device="cpu"), read_ensemble(learned)
    assert isinstance(ensemble, EnsembleRun) and repr(ensemble).count("3 members") == 1
    weights = found["weights"]
    assert min(weights) >= 0 and abs(sum(weights) - 1) < 1e-9 and found["kept"]["records"] == 4
    whole, rest = validation_data(load_run(runs[0])), validation_data(ensemble)
    assert len(whole) == 8 and len(rest) == 4 and torch.equal(whole.physical(3)[1], rest.physical(3)[1])
    truth, seismic = (torch.stack(part) for part in zip(*map(whole.physical, range(4, 8))))
    errors = np.stack([(load_run(run).invert(seismic, record_ids=[4, 5, 6, 7]).mean - truth).double().numpy().ravel()
        for run in runs])
    square = errors @ errors.T / errors.shape[1]
    others = np.random.default_rng(0).dirichlet([1, 1, 1], 2000)
    assert weights @ square @ np.array(weights) <= np.einsum("ni,ij,nj->n", others, square, others).min() * (1 + 1e-6)
    assert found["about"]["mae"] < np.mean(found["about"]["mae_members"])


def test_a_useless_member_gets_no_weight():
    e = np.random.default_rng(1).standard_normal((3, 5000)) * [[1.0], [1.0], [1.0]]
    e[2] = e[0] * 3
    assert learned_weights(e @ e.T / 5000)[2] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(learned_weights(np.zeros((2, 2))), 0.5)


def test_calibration_holds_for_the_members_own_settings(runs, records, tmp_path):
    members, data = [load_run(run) for run in runs[:2]], validation_data(load_run(runs[0]))
    many = data.shortened(data.sizes)
    many.numbers, many.sizes, many._ends = [np.tile(data.numbers[0], 3)], (24,), np.array([24])
    weights, made, about = fit(members, many, 12, "mean", tmp_path, lambda done, total: None)
    ensemble = join_runs(members, tmp_path, plan(2) | dict(recalibration=made))
    plain, asked = ensemble.invert(records[0]), ensemble.invert(records[0], "linear:1600:4000")
    assert plain.provenance["calibrated"] and not asked.provenance["calibrated"]
    torch.testing.assert_close(plain.std, ensemble.recalibration.std(plain.spread))
    low, high = plain.interval(0.9)
    assert (low <= high).all() and weights == [0.5, 0.5] and about["mae"] > 0
    with pytest.raises(InputError, match="no calibrated spread"): asked.interval()
    turned = ensemble.invert(records[0], tta="flip")
    assert not turned.provenance["calibrated"] and torch.equal(turned.std, turned.spread)
    assert not list(tmp_path.iterdir())


def test_commands_take_an_ensemble_like_a_run(fwi, learned, records, tmp_path):
    run = load_run(learned)
    told = fwi("invert", learned, "--records", 2, "--start", "linear", "--out", tmp_path, "--samples", 1, "--device",
        "cpu", "--tta", "flip,noise:0.02:1", "--post", "bounds,gaussian:0.5")
    assert told.code == 0, told
    with np.load(tmp_path / "validation-2.npz") as found:
        about, mean = json.loads(str(found["provenance"])), found["mean"]
    assert about["tta"] == "flip,noise:0.02:1" and about["samples"] == 9 and about["method"] == "ensemble"
    before, after = np.mean(about["post_mae_before"]), np.mean(about["post_mae_after"])
    assert f"MAE {before:.1f} m/s before, {after:.1f} m/s after" in told.out
    assert after == pytest.approx(float(mae(torch.from_numpy(mean), records[1][:2]).mean()))
    np.save(tmp_path / "r.npy", simulate(records[1][:1], run.survey)[0].numpy())
    told = fwi("invert", learned, "--record", tmp_path / "r.npy", "--out", tmp_path, "--device", "cpu")
    assert told.code == 0 and (tmp_path / "r.png").exists()
    told = fwi("evaluate", learned, "--records", 2, "--starts", "linear", "--samples", 1, "--misfit-records", 1,
        "--out", tmp_path / "card", "--tta", "flip", "--device", "cpu")
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert told.code == 0 and card["settings"]["tta"] == "flip" and card["rows"][1]["method"] == "ensemble"


def test_a_bridge_starts_from_the_map_of_an_ensemble(fwi, refused, runs, learned, data, records, tmp_path):
    pair = make_ensemble(EnsembleOptions(tuple(runs[:2]), tmp_path / "pair", "median", records=0, device="cpu"))
    words = arguments(data, tmp_path, "bridge", "--corrupt", f"first-guess:{pair}", "--num-itr", 2)
    refused("train", *words, saying=("was trained on records that this training would use",))
    refused("train", *arguments(data, tmp_path, "bridge", "--corrupt", f"first-guess:{learned}"), "--part", "2/2",
        saying=("learnt the method bridge",))
    assert fwi("train", *words, "--part", "2/2").code == 0
    found = load_run(tmp_path / "bridge", device="cpu").invert(records[0], nfe=1, samples=1)
    maps = torch.stack([load_run(run, device="cpu").invert(records[0]).mean for run in runs[:2]])
    torch.testing.assert_close(found.start, maps.mean(0), rtol=1e-5, atol=0.05)  # the median of two
    assert found.provenance["start_calls"] == 2 and found.provenance["network_calls"] == 3
    # joined with a run that starts elsewhere, each member has its own start, whichever is the first
    bridge, np_record = tmp_path / "bridge", tmp_path / "r.npy"
    np.save(np_record, records[0][0].numpy())
    for name, two in (("one", (bridge, runs[0])), ("two", (runs[0], bridge))):
        mixed = make_ensemble(EnsembleOptions(two, tmp_path / name, records=0, device="cpu"))
        words = (mixed, "--samples", 1, "--nfe", 1, "--device", "cpu", "--out", tmp_path / f"of-{name}")
        assert fwi("invert", *words, "--record", np_record).code == 0
        with np.load(tmp_path / f"of-{name}" / "r.npz") as file: mean = torch.from_numpy(file["mean"])
        each = [load_run(run, device="cpu").invert(records[0][:1], samples=1, nfe=1).mean for run in two]
        torch.testing.assert_close(mean, torch.stack(each).mean(0))
    told = fwi("evaluate", *words, "--records", 2, "--misfit-records", 1)
    card = json.loads((tmp_path / "of-two" / "card.json").read_text())
    assert told.code == 0 and {row["start"] for row in card["rows"]} == {"own"}, told.err
    stale = json.loads((pair / "ensemble.json").read_text())
    stale["members"][1]["sha256"] = ["0" * 64]
    write_ensemble(pair, **{name: stale[name] for name in stale if name not in ("checksum", "format")})
    refused("invert", tmp_path / "bridge", "--records", 1, "--out", tmp_path / "out", "--device", "cpu",
        saying=("made with other weights", "fwi-i2sb ensemble"))


def test_what_answers_is_told_apart(runs, tmp_path):
    a, b, c = (load_run(run, device="cpu") for run in runs)
    made = [join_runs(two, tmp_path, plan(2, **more)) for two, more in (((a, b), {}), ((a, c), {}), ((b, a), {}),
        ((a, b), dict(weights=[0.4, 0.6])), ((a, b), dict(combine="median")))]
    assert len({weights_digest(run) for run in (*made, a)}) == 6
    assert weights_digest(join_runs([a, b], tmp_path / "other", plan(2))) == weights_digest(made[0])


def test_an_ensemble_is_served_like_a_run(learned, records, runs):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from fwi_i2sb.serving.app import create_app
    from fwi_i2sb.serving.settings import read_settings

    settings = read_settings(secret_api_key="key", model_artifacts_dir=learned.parent, device="cpu")
    body = dict(data=records[0][0].double().tolist(), nfe=1, samples=1, seed=3)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        ask = lambda: client.post("/api/v1/predict/learned", json=body, headers={"X-API-Key": "key"})
        assert "learned" in client.get("/api/v1/models").json()["models"]
        said = client.get("/api/v1/models/learned").json()["model_configuration"]
        assert said["kind"] == "ensemble" and [one["method"] for one in said["members"][:2]] == ["regression"] * 2
        assert sum(one["weight"] for one in said["members"]) == pytest.approx(1)
        assert client.get("/api/v1/models/learned/tabulate").json()["tabulated_summary"].count("GFLOP") == 3
        answer = ask().json()
        alone = load_run(learned, device="cpu").invert(records[0][:1], nfe=1, samples=1, seed=3)
        np.testing.assert_allclose(answer["output_map"], alone.mean[0, 0], atol=0.06)
        np.testing.assert_allclose(answer["std"], alone.std[0, 0], atol=0.06)
        assert str(learned.parent) not in json.dumps(answer)
        # trained on since: the ensemble is not what was made any more
        other = shutil.copytree(learned, learned.parent / "other")
        changed = json.loads((other / "ensemble.json").read_text())
        changed["members"][0]["sha256"] = ["0" * 64]
        write_ensemble(other, **{k: v for k, v in changed.items() if k not in ("checksum", "format")})
        found = client.post("/api/v1/predict/other", json=body, headers={"X-API-Key": "key"})
        assert found.status_code == 500 and str(learned.parent) not in found.text
        assert ask().status_code == 200


def test_a_moved_folder_of_runs_takes_its_ensemble_along(runs, learned, records, tmp_path):
    moved = shutil.copytree(learned.parent, tmp_path / "moved")
    before, after = (load_run(folder).invert(records[0], samples=1) for folder in (learned, moved / "learned"))
    assert torch.equal(before.mean, after.mean)
    shutil.rmtree(moved / "seed-1")
    with pytest.raises(InputError, match="seed-1"): load_run(moved / "learned")


def test_what_is_no_ensemble_is_refused(refused, learned, runs, data, tmp_path):
    out = ("--out", tmp_path / "new", "--device", "cpu")
    refused("ensemble", runs[0], *out, saying=("two runs or more",))
    refused("ensemble", runs[0], learned, *out, saying=("is an ensemble itself",))
    refused("ensemble", *runs, runs[0], *out, saying=(f"run {runs[0]} is named twice",))
    refused("ensemble", runs[0], data, *out, saying=("a trained run is wanted",))
    refused("ensemble", *runs, *out, "--combine", "learned", "--records", 0, saying=("--combine learned",))
    refused("ensemble", *runs, *out, "--records", 5, saying=("give 4 or fewer",))
    refused("ensemble", *runs, "--out", learned, saying=("name a new folder with --out",))
    refused("invert", runs[0], "--tta", "flop", saying=("did you mean 'flip'",))
    refused("invert", runs[0], "--post", "gaussian", saying=("gaussian:SIGMA",))
    assert not (tmp_path / "new").exists()
    for change in (dict(weights=[1.0, 1.0, 1.0]), dict(extra=1), dict(format=9)):
        broken = tmp_path / "broken"
        broken.mkdir(exist_ok=True)
        rest = {k: v for k, v in json.loads((learned / "ensemble.json").read_text()).items() if k != "checksum"}
        (broken / "ensemble.json").write_text(json.dumps(rest | change))
        refused("invert", broken, saying=("ensemble.json",))


def test_members_that_read_other_records_cannot_join(runs, tmp_path):
    one = load_run(runs[0])
    for spec in (replace(one.spec, survey=replace(one.survey, freq=20.0)), replace(one.spec, map_size=(70, 71)),
            replace(one.spec, velocity=replace(one.scale, high=5000.0))):
        with pytest.raises(InputError, match="cannot answer together"):
            join_runs([one, replace(one, spec=spec)], tmp_path, plan(2))


def test_asking_twice_turns_the_record_as_waves_are(runs, records):
    run = load_run(runs[0])
    turned = mirror(run.survey, 70)
    other = flip_map(run.invert(flip_record(records[0], turned)).mean)
    here = run.invert(records[0]).mean
    torch.testing.assert_close(run.invert(records[0], tta="flip").mean, (here + other) / 2, rtol=1e-5, atol=0.01)
    noisy = run.invert(records[0], tta="noise:0.1:2")
    again = run.invert(records[0][2:], tta="noise:0.1:2", record_ids=[2])
    torch.testing.assert_close(noisy.mean[2:], again.mean, rtol=1e-4, atol=0.05)
    assert noisy.std.max() > 0 and noisy.samples.shape[1] == 3
