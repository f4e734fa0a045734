"The evaluation card: what it promises to whoever reads it, on screen or as a file."
import gc
import json
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from processes import pristine

from fwi_i2sb.evaluation import command, evaluate as evaluation
from fwi_i2sb.data.starting_models import sees_truth
from fwi_i2sb.evaluation.card_text import table
from fwi_i2sb.evaluation.card_text import compare_cards, markdown
from fwi_i2sb.evaluation.card_figure import card_figure
from fwi_i2sb.sweeps.equal_budget import bars, card_row, rows_table
from fwi_i2sb.data.degrade import Degradation, degrade
from fwi_i2sb.evaluation.evaluate import evaluate
from fwi_i2sb.data.generate import generate
from fwi_i2sb.metrics.accuracy import mae
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.inference.explorer import Explorer
from fwi_i2sb.inference.validation_data import read_batch, validation_data, validation_records
from fwi_i2sb.data.store import convert
from fwi_i2sb.inference.run import load_run, TrainedRun
from fwi_i2sb.inference.trust import signs

FEW = ["--records", 3, "--samples", 2, "--nfe", 2, "--misfit-records", 1]
QUICK = [*FEW, "--starts", "linear"]
QUICK_KEYWORDS = dict(n_records=3, samples=2, nfe=2, misfit_records=1, starts=("linear",))
SCORES = ("mae", "rmse", "ssim", "misfit", "misfit_low", "crps", "spread_skill", "coverage_50", "correlation")


@pytest.fixture(scope="module")
def run(mini):
    torch.set_num_threads(1)
    return load_run(mini, device="cpu")


@pytest.fixture(scope="module")
def plain(run): return evaluate(run, **QUICK_KEYWORDS)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    "Two validation records of another family."
    root = tmp_path_factory.mktemp("other")
    generate(root, "FlatVel_B", n_train=1, n_val=2, workers=1)
    return root


class Made:
    "A data set of any length whose records are made when they are read; two families in turn."
    names, fingerprint = ("CurveVel_A", "FlatVel_B"), "made"

    def __init__(self, count): self.sizes = (count // 2, count - count // 2)

    def store_of(self, i): return int(i >= self.sizes[0])

    def physical(self, i):
        rng = np.random.default_rng(i)
        velocity = np.sort(rng.uniform(1500, 4500, 70)).astype(np.float32)[None, :, None].repeat(70, 2)
        return torch.from_numpy(velocity), torch.from_numpy(rng.standard_normal((5, 250, 70), dtype=np.float32))


def scores(card): return {(r["start"], r["family"], r["method"]): [r.get(k) for k in SCORES] for r in card["rows"]}


def assert_same(a, b, rtol=0.0):
    assert a.keys() == b.keys()
    for key in a:
        assert [v is None for v in a[key]] == [v is None for v in b[key]]
        np.testing.assert_allclose([v or 0 for v in a[key]], [v or 0 for v in b[key]], rtol=rtol, atol=rtol)


# what is written

def test_json_markdown_and_screen_say_the_same(fwi, mini, tmp_path):
    done = fwi("evaluate", mini, *FEW, "--starts", "linear", "blur-openfwi_custom", "--published", "--out", tmp_path)
    assert done.code == 0 and {p.name for p in tmp_path.iterdir()} == {"card.json", "card.md", "card.png"}
    card = json.loads((tmp_path / "card.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    page = (tmp_path / "card.md").read_text()
    shown = table(card).splitlines()
    assert done.out.startswith(table(card)) and max(map(len, shown[:2])) <= 140 and max(map(len, shown[2:17])) <= 120
    for row in card["rows"]:
        low, high = row["interval"]["mae"]
        for text in (done.out, page): assert f"{row['mae']:.1f} ({low:.1f}-{high:.1f})" in text
    for text in (done.out, page):
        assert ("blur-openfwi_custom*" in text and "linear*" not in text and "it has seen the answer" in text
            and "(oracle)" in text and "nobody can have it" in text)
    for text in (done.out, page):
        assert (text.lower().count("published by openfwi, other data: no comparison") == 1 and "0.0685" in text
            and "UPFWI" in text)
    assert "\n## Published by OpenFWI, other data: no comparison\n" in page
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")


def test_schema(plain):
    assert set(plain) == {"format", "run", "name", "step", "method", "model", "reads_start", "trained_on", "device",
        "data", "degradation", "version", "torch", "settings", "units", "interval", "velocity_range", "dx", "low_band",
        "expected", "rows", "records", "values", "example"}
    assert plain["settings"].items() >= dict(samples=2, nfe=2, sampler="sde", seed=0, w=1.0).items()
    assert plain["data"].items() >= dict(families=["CurveVel_A"], records=3, misfit_records=1,
        engine="deepwave").items()
    assert [r["kind"] for r in plain["rows"]] == ["start", "method", "sample", "oracle", "control", "control"]
    for row, values in zip(plain["rows"], plain["values"]):
        assert (row["records"] == len(values["mae"]) == 3 and row["misfit_records"] == 1
            and values["misfit"][1:] == [None, None])
        np.testing.assert_allclose([row["mae"], row["rmse"] ** 2],
            [np.mean(values["mae"]), np.mean(np.square(values["rmse"]))], rtol=1e-5)
        assert 0 < row["mape"] < row["mae"] / 1000 and row["mse"] == pytest.approx(row["rmse"] ** 2)
        assert row["r2"] < 1 and abs(row["pearson"]) <= 1 and 0 < row["rel_l2"] < 1
        assert (row["mae_norm"] == row["mae"] / 1500
            and row["interval"]["mae"][0] <= row["mae"] <= row["interval"]["mae"][1])
        assert ("coverage_90" in row) == (row["kind"] in ("method", "control")) and ("crps" in row)
        if "coverage_90" not in row: assert row["crps"] == row["mae"]
    assert plain["expected"]["coverage"][-1] == pytest.approx(1 / 3) and np.shape(plain["example"]["mean"]) == (70, 70)


def test_published_figures_of_two_families(fwi, run, mini, flat, tmp_path):
    done = fwi("evaluate", mini, *QUICK, "--records", 2, "--dataset-dir", flat, "--dataset-name", "FlatVel_B",
        "--published", "--out", tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert done.code == 0 and card["data"]["families"] == ["FlatVel_B"] and card["trained_on"] == "CurveVel_A"
    found = {(r["method"], r["loss"]): (r["mae_norm"], r["rmse_norm"], r["ssim"]) for r in card["published"]}
    assert (found["InversionNet", "l1"] == (0.0351, 0.0876, 0.9461)
        and found["VelocityGAN", "l2"] == (0.0328, 0.0787, 0.9556) and found["UPFWI", None] == (0.0677, 0.1493, 0.8874))
    assert "FlatVel_B: InversionNet (l1 loss)" in done.out


def test_result_card_figure_and_explorer_show_one_standard_deviation(run, plain):
    seismic, truth, ids = validation_records(run, 3)
    result = run.invert(seismic, "linear", samples=2, nfe=2, record_ids=ids)
    own = result.samples.numpy().std(1, ddof=1)  # K - 1
    np.testing.assert_allclose(result.std, own, rtol=1e-4, atol=0.01)
    row = next(row for row in plain["rows"] if row["kind"] == "method")
    assert row["spread"] == pytest.approx(np.sqrt((own.astype(float) ** 2).mean()), rel=1e-4)
    assert plain["example"]["number"] == ids[0]
    np.testing.assert_allclose(plain["example"]["std"], own[0, 0], atol=0.51)  # what the card's figure draws
    shown = Explorer(run, n_records=1, start="linear", samples=2, nfe=2)
    assert shown["numbers"]["mean"]["std"] == pytest.approx(own[0].mean(), rel=1e-4)
    np.testing.assert_allclose(shown["inversion"].std[0], own[0], rtol=1e-4, atol=0.01)


def test_cards_side_by_side(run, plain):
    other = evaluate(run, **QUICK_KEYWORDS | dict(samples=1))
    lines = compare_cards([plain, other]).splitlines()
    assert len(lines) == 2 + 1 + 2 and "not comparable" not in compare_cards([plain, other])
    assert "not comparable" in compare_cards([plain, evaluate(run, **QUICK_KEYWORDS | dict(n_records=2))])
    assert len(compare_cards([plain], kinds=("control",)).splitlines()) == 4
    noisy = evaluate(run, degradation=Degradation(snr=0.0), **QUICK_KEYWORDS)
    before = json.loads(json.dumps(plain))  # a card from before these scores
    for row in before["rows"]:
        for name in ("mse", "mape", "r2", "pearson", "rel_l2"): del row[name], row["interval"][name]
    assert table(before) == table(plain) and compare_cards([before]) == compare_cards([plain])
    assert markdown(before).count("| - | - | - | - |\n") == len(before["rows"]) and card_figure(before)
    # noise leaves the start's error and changes its misfit
    assert len(compare_cards([plain, noisy]).splitlines()) == 2 + 2 + 2


# what is measured

def test_the_wrong_record_is_the_next_one_and_keeps_the_start(run, plain):
    data = validation_data(run)
    truth, seismic = (torch.stack(part) for part in zip(*(data.physical(i) for i in range(3))))
    wrong = run.invert(seismic.roll(-1, 0), "linear", samples=2, nfe=2, record_ids=[0, 1, 2])
    values = {v["method"]: v["mae"] for v in plain["values"]}
    np.testing.assert_allclose(mae(wrong.mean, truth), values["wrong record"], rtol=1e-5)
    off = run.invert(seismic, "linear", samples=2, nfe=2, record_ids=[0, 1, 2], w=0.0)
    np.testing.assert_allclose(mae(off.mean, truth), values["seismic switched off"], rtol=1e-5)
    assert np.all(np.array(values["bridge, best of 2 (oracle)"]) <= values["bridge, single sample"])


def test_a_repetition_gives_the_same_numbers_and_another_seed_others(run, plain):
    assert_same(scores(plain), scores(evaluate(run, **QUICK_KEYWORDS)))
    assert plain["rows"][1]["interval"] == evaluate(run, **QUICK_KEYWORDS)["rows"][1]["interval"]
    assert scores(plain) != scores(evaluate(run, seed=1, **QUICK_KEYWORDS))


def test_batches_change_nothing(run):
    how = QUICK_KEYWORDS | dict(starts=("blur-openfwi_custom",), degradation=Degradation(snr=10.0, missing_traces=0.2),
        misfit_records=2)
    whole, parts = (scores(evaluate(run, batch_size=size, **how)) for size in (3, 1))
    assert_same(whole, parts, rtol=1e-3)


def test_families_have_rows_of_their_own(run):
    card = evaluate(run, Made(6), n_records=5, samples=2, nfe=1, misfit_records=1, starts=("linear",))
    assert card["records"] == dict(number=[0, 3, 1, 4, 2],
        family=["CurveVel_A", "FlatVel_B", "CurveVel_A", "FlatVel_B", "CurveVel_A"])
    rows = {r["family"]: r for r in card["rows"] if r["kind"] == "method"}
    assert [(f, r["records"], r["misfit_records"]) for f, r in rows.items()] == [("all", 5, 1), ("CurveVel_A", 3, 1),
        ("FlatVel_B", 2, 0)]
    np.testing.assert_allclose(rows["all"]["mae"], (3 * rows["CurveVel_A"]["mae"] + 2 * rows["FlatVel_B"]["mae"]) / 5)
    assert "FlatVel_B: from linear" in table(card) and rows["FlatVel_B"]["misfit"] is None


def test_memory_does_not_grow_with_the_records(run):
    def held():
        gc.collect()
        tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()  # torch._dynamo keeps fake ones too
            for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)}
        return np.array([sum(tensors.values()), tracemalloc.get_traced_memory()[0]])

    def peak(count):
        seen = []
        evaluate(run, Made(count), n_records=count, samples=2, nfe=1, misfit_records=1, starts=("linear",),
            batch_size=2, progress=lambda done, total: seen.append(held()))
        assert len(seen) == count // 2
        return np.max(seen, 0)

    tracemalloc.start()
    try: few, many = peak(4), peak(16)
    finally: tracemalloc.stop()
    assert (many - few < 1e6).all(), (few, many)  # 12 records more are 4 MB of gathers


def test_progress_counts_records(run):
    told = []
    evaluate(run, Made(6), **QUICK_KEYWORDS | dict(n_records=6, nfe=1, starts=("linear", "linear:2000:3000")),
        batch_size=2, progress=lambda *pair: told.append(pair))
    assert told == sorted(told) and told[-1] == (6, 6) and len(told) == 6


def test_classical_inversion_stands_beside_the_same_records(run, monkeypatch):
    whole = TrainedRun.classical
    monkeypatch.setattr(TrainedRun, "classical", lambda *given, **named: whole(*given, iterations=1, **named))
    card = evaluate(run, fwi_records=2, batch_size=1, **QUICK_KEYWORDS)
    assert [(r["method"], r["records"]) for r in card["rows"][6:]] == [(f"{name}, first 2", 2)
        for name in ("classical FWI", "starting model", "bridge")]
    np.testing.assert_allclose(card["rows"][8]["mae"], np.mean(card["values"][1]["mae"][:2]), rtol=1e-5)
    assert card["rows"][6]["wave_solves"] == 3 and card["rows"][6]["network_calls"] == 0 and "waves" in table(card)


def test_a_network_that_cannot_do_without_seismic_has_no_such_control(run, monkeypatch):
    monkeypatch.setattr(type(run.method), "guidable", False)
    assert [r["method"] for r in evaluate(run, **QUICK_KEYWORDS)["rows"] if r["kind"] == "control"] == ["wrong record"]


def test_without_controls_the_other_rows_stay_as_they_are(run, plain):
    alone = scores(evaluate(run, controls=False, **QUICK_KEYWORDS))
    left_out = {(r["start"], r["family"], r["method"]) for r in plain["rows"] if r["kind"] == "control"}
    assert left_out and alone.keys() == scores(plain).keys() - left_out
    assert_same(alone, {key: value for key, value in scores(plain).items() if key in alone})


def test_a_single_record_has_a_card_without_controls_and_its_neighbour_stays_unread(run):
    class Counted(Made):
        read = []
        def physical(self, i): return self.read.append(i) or super().physical(i)

    data = Counted(4)
    card = evaluate(run, data, controls=False, **QUICK_KEYWORDS | dict(n_records=1))
    assert set(data.read) == {0} and card["rows"][1]["records"] == 1 and card["rows"][1]["interval"]["mae"] is None


def test_an_experiment_shows_a_method_without_a_finite_answer(run, plain):
    row = card_row(plain, "linear", name="lost") | dict(mae=None, mae_interval=None, ssim=None)
    text = rows_table([card_row(plain, "linear", name="sound"), row], "name")
    assert text.splitlines()[2].split()[:3] == ["lost", "-", "-"]
    bars(axes := Figure().add_subplot(), [row, card_row(plain, "linear", name="sound")], "name")
    assert len(axes.patches) == 1 and [label.get_text() for label in axes.get_yticklabels()] == ["lost", "sound"]


def test_a_trajectory_of_one_call_has_one_sample(run):
    row = next(row for row in evaluate(run, controls=False, **QUICK_KEYWORDS | dict(samples=None, nfe=1))["rows"]
        if row["kind"] == "method")
    assert (row["samples"], row["network_calls"], "spread_skill" in row) == (1, 1, False)


@pytest.mark.parametrize("words, saying",
    [(dict(starts="linear"), "tuple"), (dict(starts=()), "tuple"), (dict(w=np.nan), "got nan"),
        (dict(w=np.inf), "got inf"), (dict(seed=-1), "seed must be 0 or more"),
        (dict(batch_size=0), "batch_size must be 1 or more")], ids=str)
def test_what_a_notebook_may_mistake_is_refused(run, words, saying):
    with pytest.raises(InputError, match=saying): evaluate(run, **QUICK_KEYWORDS | words)


def test_the_wrong_record_is_of_the_same_family(run):
    data, numbers = Made(6), [0, 3, 1, 4, 2]
    batch = read_batch(run, data, numbers, 0, 5)
    for record, other in zip(numbers, [1, 4, 2, 3, 0]):
        assert torch.equal(batch.other[numbers.index(record)], data.physical(other)[1])
    lone = read_batch(run, data, [0, 3, 1], 0, 3)  # record 3 is the only one of its family
    assert torch.equal(lone.other[1], data.physical(1)[1])
    parts = [read_batch(run, data, numbers, first, 2, degradation=Degradation(snr=0.0)) for first in (0, 2, 4)]
    assert torch.equal(torch.cat([part.other for part in parts]),
        read_batch(run, data, numbers, 0, 5, degradation=Degradation(snr=0.0)).other)


@pytest.mark.parametrize("start, seen", [
    ("linear:0.5, blur-openfwi_custom:0.5", True), ("blur-openfwi_custom:0.5,linear:0.5", True),
    ("blur-openfwi_benchmark", True), ("linear:0.5,file:a.npy:0.5", False),
    ("first-guess", False), ("first-guess:runs/blur-openfwi", False), ("blurred.npy", False)])
def test_what_has_seen_the_truth(start, seen): assert sees_truth(start) is seen


def test_a_mixture_that_has_seen_the_truth_keeps_its_star(run):
    text = "linear:0.5, blur-openfwi_custom:0.5"
    card = evaluate(run, **QUICK_KEYWORDS | dict(starts=(text, "linear")))
    assert {row["start"]: row["sees_truth"] for row in card["rows"]} == {text: True, "linear": False}
    legend = [entry.get_text() for entry in card_figure(card).axes[0].get_legend().get_texts()]
    assert legend == [text + "*", "linear"] and f"from {text}*" in table(card) and f"{text}*" in markdown(card)


def test_a_first_guess_is_paid_once_however_many_samples(run, monkeypatch):
    whole = TrainedRun.invert

    def invert(*given, **named):
        result = whole(*given, **named)
        if isinstance(given[2], str):
            result.provenance.update(start_calls=1, start_seconds=0.5, network_calls=2 * 2 + 1, seconds_per_record=0.9)
        return result

    monkeypatch.setattr(TrainedRun, "invert", invert)
    rows = {row["method"]: row for row in evaluate(run, **QUICK_KEYWORDS)["rows"]}
    assert [rows[name]["network_calls"]
        for name in ("bridge", "bridge, single sample", "wrong record", "seismic switched off")] == [5, 3, 5, 5]
    assert rows["bridge, single sample"]["seconds_per_record"] == pytest.approx(0.7)


def test_an_answer_that_is_not_finite_leaves_no_mean(run, monkeypatch, tmp_path):
    whole = TrainedRun.invert

    def invert(run, seismic, start, *, record_ids, **named):
        result = whole(run, seismic, start, record_ids=record_ids, **named)
        samples = torch.where((torch.tensor(record_ids) == 0).reshape(-1, 1, 1, 1, 1), torch.nan, result.samples)
        return replace(result, samples=samples, mean=samples.mean(1), std=samples.std(1))

    monkeypatch.setattr(TrainedRun, "invert", invert)
    card = evaluate(run, **QUICK_KEYWORDS | dict(misfit_records=2))
    rows = {row["method"]: row for row in card["rows"]}
    for name in ("mae", "rmse", "ssim", "crps", "mae_norm", "rmse_norm", "spread", "spread_skill", "coverage_50"):
        assert rows["bridge"][name] is None and rows["bridge"]["interval"].get(name) is None
    assert ((rows["bridge"]["not_finite"], rows["bridge"]["records"], rows["bridge"]["misfit_records"]) == (1, 3, 1)
        and rows["bridge"]["misfit"] is not None)
    assert (rows["starting model"]["not_finite"] == 0 and rows["starting model"]["mae"] > 0
        and rows["starting model"]["misfit_records"] == 2)
    assert set(rows["bridge"]["reliability"]) == {None} and card["example"]["mean"][0][0] is None
    command.write_card(tmp_path, card | dict(published=[]))
    json.loads((tmp_path / "card.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    for text in (table(card | dict(published=[])), (tmp_path / "card.md").read_text()):
        assert "bridge from linear, 1 of 3" in text
    assert compare_cards([card]).count("| - |") > 3


# perturbed records

@pytest.mark.parametrize("perturbation",
    [dict(snr=0.0), dict(missing_shots=3), dict(missing_traces=0.5), dict(freq=8.0)], ids=lambda d: next(iter(d)))
def test_a_perturbation_is_written_down_and_felt(run, plain, perturbation):
    card = evaluate(run, degradation=Degradation(**perturbation), **QUICK_KEYWORDS)
    assert card["degradation"]["text"] == str(Degradation(**perturbation)) in table(card)
    before, after = scores(plain), scores(card)
    changed = {key[2] for key in after if after[key][0] != before[key][0]}
    # not the start, and not what does not look
    assert changed == {"bridge", "bridge, single sample", "bridge, best of 2 (oracle)", "wrong record"}


def test_other_smoothing_and_switches_on_the_command_line(fwi, mini, tmp_path):
    done = fwi("evaluate", mini, *FEW, "--starts", "blur-openfwi_custom:20:24", "--snr", 10, "--missing-shots", 1,
        "--missing-traces", 0.1, "--freq", 12, "--out", tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert done.code == 0 and card["degradation"] == dict(snr=10.0, missing_shots=1, missing_traces=0.1, freq=12.0,
        text="peak frequency 12 Hz, noise at 10 dB, 1 missing shot(s), 10% of the traces missing")
    assert (card["rows"][0]["start"] == "blur-openfwi_custom:20:24" and card["rows"][0]["sees_truth"]
        and card["degradation"]["text"] in (tmp_path / "card.md").read_text())


@pytest.mark.parametrize("words, saying", [
    (["--snr", "nan"], "--snr"), (["--snr", 4000], "--snr"),
    (["--sampler", "ode"], "--samples 2 would be equal"), (["--missing-shots", 5], "nothing of a record"),
    (["--missing-shots", -1], "--missing-shots"), (["--missing-traces", 1], "--missing-traces"),
    (["--freq", 100], "--freq"), (["--freq", -5], "--freq"), (["--records", 1], "two records"),
    (["--misfit-records", 0], "--misfit-records"), (["--fwi-records", 4], "--fwi-records must be from 0 to 3"),
    (["--fwi-records", 1, "--missing-shots", 1], "classical"), (["--missing-traces", 0.001], "none of the 350 traces"),
    (["--starts", "linear", "lineal"], "linear"),
    (["--starts", "linear", "linear"], "named twice"), (["--starts", "linear", "first-guess:nowhere"], "nowhere"),
    (["--starts", "linear", "nowhere.npy"], "nowhere.npy"), (["--samples", 0], "sample"),
    (["--batch-size", 0], "--batch-size"),
    (["--dataset-name", "CurvVel_A"], "CurveVel_A"), (["--dataset-name", "FlatVel_B"], "FlatVel_B")],
    ids=lambda w: " ".join(map(str, w)) if isinstance(w, list) else "")
def test_what_cannot_be_is_refused_before_any_work_and_nothing_is_written(refused, mini, tmp_path, words,
        saying, monkeypatch):
    monkeypatch.setattr(evaluation, "_misfits", lambda *given: pytest.fail("a map was scored already"))
    few = FEW if "--starts" in words else QUICK
    refused("evaluate", mini, *few, *words, "--out", tmp_path / "out", saying=(saying,))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_refused_before_any_work(refused, mini, tmp_path, monkeypatch, folder):
    monkeypatch.setattr(command, "evaluate", lambda *given, **named: pytest.fail("the work has begun"))
    (tmp_path / "file").write_text("not a folder")
    refused("evaluate", mini, *QUICK, "--out", tmp_path / folder, saying=(str(tmp_path / "file"), "is a file"))


def test_a_figure_that_fails_costs_no_numbers(plain, tmp_path, monkeypatch):
    def savefig(figure, path, **named):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.warns(UserWarning, match="card.png could not be shown .*no space left"):
        assert "card.png" not in command.write_card(tmp_path, plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "card.md"]
    assert json.loads((tmp_path / "card.json").read_text())["rows"] == plain["rows"]


def test_only_the_same_weights_take_the_place_of_a_card(mini, tmp_path):
    asked = dict(asked={}, step=3, fingerprint="f")
    new, other = (asked | dict(weights=[name]) for name in ("a", "b"))
    options = command.EvaluateOptions(mini)
    where = lambda identity, **given: command.card_folder(replace(options, **given), tmp_path, identity)
    assert where(new) == tmp_path
    (tmp_path / "card.json").write_text(json.dumps(dict(identity=new)))
    assert where(new) == where(new, out=tmp_path) == tmp_path and where(other) == tmp_path / "step-3"
    with pytest.raises(InputError, match="--out"): where(other, out=tmp_path)
    # of an earlier version: in the run's folder it is the run's, elsewhere anybody's
    (tmp_path / "card.json").write_text(json.dumps(dict(identity=asked)))
    assert where(new) == tmp_path and where(new | dict(step=4)) == tmp_path / "step-4"
    with pytest.raises(InputError, match="--out"): where(new, out=tmp_path)


@pytest.mark.parametrize("name", ["card.md", "card.png"])
def test_a_file_of_the_user_is_not_overwritten_by_a_card(mini, tmp_path, name):
    (tmp_path / name).write_text("mine")
    options = command.EvaluateOptions(mini)
    identity = dict(asked={}, step=3, fingerprint="f", weights=[])
    assert command.card_folder(options, tmp_path, identity) == tmp_path / "step-3"
    options = replace(options, out=tmp_path)
    with pytest.raises(InputError, match="--out"): command.card_folder(options, tmp_path, identity)


def test_the_share_of_lost_traces_is_said_as_it_is():
    assert str(Degradation(missing_traces=0.003)) == "0.3% of the traces missing"


@pytest.fixture
def joint(run, flat, tmp_path):
    "A run of two families whose stores were made in a folder of their own, as training makes them."
    root, stores = tmp_path / "data", tmp_path / "stores"
    generate(root, "CurveVel_A", n_train=1, n_val=2, workers=1)
    shutil.copytree(flat / "FlatVel_B", root / "FlatVel_B", ignore=shutil.ignore_patterns("train", "val"))
    for name in ("CurveVel_A", "FlatVel_B"): convert(root / name, name, store_dir=stores / name)
    return replace(run, options=replace(run.options,
        data=replace(run.options.data, dataset_dir=root, dataset_name="CurveVel_A,FlatVel_B", store_dir=stores)))


def test_the_store_is_found_where_training_made_it(joint, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    both, one, first = (validation_data(joint, dataset_name=name) for name in (None, "FlatVel_B", "CurveVel_A"))
    assert both.names == ("CurveVel_A", "FlatVel_B") and one.names == ("FlatVel_B",)
    assert (one.fingerprint, first.fingerprint) == (both.stores[1].fingerprint, both.stores[0].fingerprint)
    assert sorted(tmp_path.rglob("*")) == before, "nothing was converted again"
    single = replace(joint, options=replace(joint.options,
        data=replace(joint.options.data, dataset_name="CurveVel_A", store_dir=tmp_path / "stores" / "CurveVel_A")))
    assert (validation_data(single, dataset_name="CurveVel_A").fingerprint == first.fingerprint
        and sorted(tmp_path.rglob("*")) == before)
    assert not list((tmp_path / "data").rglob("*.lmdb")) and not list((tmp_path / "data").rglob("*.mdb"))
    # another folder, as far as anybody knows, brings its own store
    other = validation_data(joint, tmp_path / "data", dataset_name="FlatVel_B")
    assert len(other) == 2 and (tmp_path / "data" / "FlatVel_B" / "val").exists()


def test_every_record_needs_a_key_of_its_own():
    for perturbation in (dict(snr=10.0), dict(missing_shots=1)):
        with pytest.raises(InputError, match="1 keys were given for 3"):
            degrade(torch.ones(3, 5, 20, 7), Degradation(**perturbation), [0])


def test_a_truth_of_another_shape(run):
    truth, seismic = (part[None] for part in validation_data(run).physical(0))
    for wrong in (truth[:, :, :60], truth.expand(2, -1, -1, -1)):
        with pytest.raises(InputError, match="true maps have shape"):
            run.invert(seismic, "blur-openfwi_custom", truth=wrong)


def test_noise_of_a_silent_record(run):
    data = Made(4)
    data.physical = lambda i: (torch.full((1, 70, 70), 2000.0), torch.zeros(5, 250, 70))
    with pytest.raises(InputError, match="all zeros"):
        evaluate(run, data, degradation=Degradation(snr=10.0), **QUICK_KEYWORDS)


def test_a_silent_record_has_no_misfit_and_the_others_have_one(run):
    data, real = Made(3), Made.physical
    data.physical = lambda i: (real(data, i)[0], real(data, i)[1] * (i != 1))
    card = evaluate(run, data, **QUICK_KEYWORDS | dict(misfit_records=3))
    for row, values in zip(card["rows"], card["values"]):
        assert row["misfit"] > 0 and [v is None for v in values["misfit"]] == [False, True, False]
    _, seismic = data.physical(1)
    maps = torch.full((1, 1, 70, 70), 2000.0)
    found = signs(run, seismic[None], maps, maps, 0 * maps)
    assert found["misfit"] == found["start_misfit"] == [float("inf")]


def test_records_of_another_survey_are_refused(refused, run, mini, flat, tmp_path):
    convert(flat / "FlatVel_B", "FlatVel_B", store_dir=tmp_path / "store", time_samples=500)
    refused("evaluate", mini, *QUICK, "--dataset-name", "FlatVel_B", "--dataset-dir", tmp_path / "store", "--out",
        tmp_path / "out", saying=("time_samples 500, not 250",))
    other = replace(run, spec=replace(run.spec, survey=replace(run.survey, dt=0.002)))
    with pytest.raises(InputError, match="dt 0.001 s, not 0.002 s"):
        validation_data(other, flat, dataset_name="FlatVel_B")
    assert not (tmp_path / "out").exists()


def test_a_card_is_never_overwritten_by_another(fwi, refused, mini, tmp_path):
    run = tmp_path / "run"
    pristine(mini, run)
    few = ("--records", 2, "--samples", 1, "--nfe", 1, "--misfit-records", 1, "--starts", "linear")
    seen = {}
    for words, folder in ((few, ""), ((*few, "--snr", 10), None), ((*few, "--seed", 5), None), (few, "")):
        done = fwi("evaluate", run, *words)
        card = next(p for p in (run / "evaluation").rglob("card.json") if str(p) in done.out)
        if folder is not None: assert card == run / "evaluation" / folder / "card.json"
        else: assert card.parent.parent == run / "evaluation" and words[-2].strip("-") in card.parent.name
        assert done.code == 0 and all(old.read_bytes() == bytes for old, bytes in seen.items() if old != card)
        seen[card] = card.read_bytes()
    assert len(seen) == 3
    fwi("evaluate", run, *few, "--out", tmp_path / "own")
    refused("evaluate", run, *few, "--seed", 5, "--out", tmp_path / "own", saying=("card of another", "--out"))
    assert fwi("evaluate", run, *few, "--out", tmp_path / "own").code == 0
