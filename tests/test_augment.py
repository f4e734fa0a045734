"Augmentation: what physics says must come out, keys, and the commands; the speed-and-structure network at its sizes."
from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import assert_equal, weights

from fwi_i2sb import InputError, load_run
from fwi_i2sb.data.augment import Augment, parse_augment, Recording
from fwi_i2sb.data.scale import OPENFWI_SCALE
from fwi_i2sb.data.speed_structure import challenge_survey
from fwi_i2sb.diffusion.sampling import STREAMS
from fwi_i2sb.methods.options import ModelOptions
from fwi_i2sb.inference.validation_data import validation_records
from fwi_i2sb.models.speed_structure import PRESETS, SpeedStructure
from fwi_i2sb.physics.band_pass import band_pass
from fwi_i2sb.physics.mirror import flip_map, flip_record, mirror
from fwi_i2sb.physics.time_scaling import scale_time
from fwi_i2sb.physics.wave import ricker, simulate, Survey, surface_survey
from fwi_i2sb.training.batches import check_augment
from fwi_i2sb.training.preparation import Preparation
from fwi_i2sb.training.records import StoredRecords
from fwi_i2sb.training.options import DataOptions, RunOptions, TrainOptions
from fwi_i2sb.training.run_dir import make_start, open_store, read_config

pytestmark = pytest.mark.usefixtures("one_thread")
SURVEY = surface_survey(24, 3, nt=300)  # columns 0, 12 and 23: the middle one has no image of its own
SYMMETRIC = replace(SURVEY, sources=SURVEY.sources[::2])
WHERE = Recording(SYMMETRIC, 1e-3, OPENFWI_SCALE, 24)


@pytest.fixture(scope="module")
def velocity():
    z, x = np.mgrid[:20, :24]
    layers = np.where(z < 6 + 0.3 * x, 2000.0, np.where(z > 17 - 0.1 * x, 3300.0, 2600.0))
    return torch.tensor(layers, dtype=torch.float32)[None, None]


@pytest.fixture(scope="module")
def seismic(velocity):
    return simulate(velocity, SYMMETRIC)


def relative(found, true):
    return float((found - true).norm() / true.norm())


def test_the_flip_commutes_with_the_simulator_and_is_its_own_inverse(velocity, seismic):
    turned = mirror(SYMMETRIC, 24)
    true = simulate(velocity.flip(-1), SYMMETRIC)
    assert relative(flip_record(seismic, turned), true) < 1e-3
    assert relative(seismic.flip(-1), true) > 0.3 < relative(seismic.flip(1), true)  # receivers alone, shots alone
    assert torch.equal(flip_record(flip_record(seismic, turned), turned), seismic)
    assert flip_map(velocity)[0, 0, 3, 0] == velocity[0, 0, 3, 23]


@pytest.mark.parametrize("sources, columns, dx", [((0, 17, 34, 52, 69), 70, 10.0), ((0, 74, 149, 224, 299), 300, 1.0)])
def test_a_middle_source_without_an_image_is_taken_one_grid_step_off(sources, columns, dx):
    survey = Survey(dx, 1e-3, 10, 15.0, tuple((c * dx, 2 * dx) for c in sources),
        tuple((c * dx, dx) for c in range(0, columns)))
    turned = mirror(survey, columns)
    assert turned.sources == (4, 3, 2, 1, 0) and turned.error == pytest.approx(dx)
    with pytest.raises(InputError, match="no mirror image"):
        mirror(replace(survey, sources=((2 * dx, dx), *survey.sources[1:])), columns)


def test_a_flip_of_the_challenges_survey_is_off_by_one_and_two_metres():
    survey = challenge_survey((40, 300), nt=2001)
    turned, still = mirror(survey, 300), torch.full((1, 1, 40, 300), 2000.0)
    assert turned.sources == (4, 3, 2, 1, 0) and turned.receivers == tuple(range(30, -1, -1)) and turned.error == 1
    true = simulate(flip_map(still), survey)
    found = (flip_record(simulate(still, survey), turned) - true).flatten(2).norm(dim=2) / true.flatten(2).norm(dim=2)
    expected = 2 * torch.pi * 15 / 2000 * torch.tensor([1, 2, 2, 2, 1])  # in the far field, along the surface
    np.testing.assert_allclose(found[0] / expected, 0.93, atol=0.07)


def test_a_band_pass_keeps_a_ricker_at_a_tenth_of_a_millisecond_and_needs_dt():
    survey = surface_survey(31, 5, dx=1.0, dt=1e-4, nt=10_001)
    trace = torch.zeros(10_001, 1, dtype=torch.float64)
    w = ricker(survey)
    trace[3000:3000 + len(w), 0] = w
    kept = band_pass(trace, 5, 50, dt=1e-4)
    assert kept.square().sum() > 0.95 * trace.square().sum() and kept.argmax() == trace.argmax()
    with pytest.raises(InputError, match="needs the time between two samples"): band_pass(trace, 5, 50)
    with pytest.raises(InputError, match="needs the time between two samples"):
        Augment("band-pass:5:50", replace(WHERE, dt=None))


@pytest.mark.parametrize("factor", [0.85, 1.15])
def test_scaled_velocities_are_those_of_the_simulator(factor, velocity, seismic):
    true, made = simulate(factor * velocity, SYMMETRIC), scale_time(seismic, factor, SYMMETRIC)
    end = 300 if factor < 1 else int(300 / factor) - 70
    assert relative(made[..., :end, :], true[..., :end, :]) < 0.02 < relative(seismic, true)
    assert not made[..., int(np.ceil(300 / factor)):, :].any()


def test_velocities_stay_in_the_range_of_the_data(velocity, seismic):
    for key in range(20):
        v, _ = Augment("velocity:0.6:1.9@1", WHERE)(velocity, seismic, [key])
        assert OPENFWI_SCALE.holds(v)
        ratio = v / velocity
        torch.testing.assert_close(ratio, ratio[0, 0, 0, 0].expand_as(ratio), rtol=1e-4, atol=0)


def test_a_shift_fills_with_zeros_and_is_one_for_all_shots(velocity, seismic):
    seen = set()
    for key in range(20):
        _, d = Augment("shift:0.02@1", WHERE)(velocity, seismic, [key])
        pairs = [(d[0, s, :, 12].numpy(), seismic[0, s, :, 12].numpy()) for s in range(2)]
        delays = {int(np.argmax(np.correlate(*pair, "full"))) - 299 for pair in pairs}
        assert len(delays) == 1
        n, = delays
        assert abs(n) <= 20 and not (d[..., :n, :] if n > 0 else d[..., 300 + n:, :]).any()
        seen.add(n)
    assert len(seen) > 8


def test_missing_traces_stay_missing(velocity, seismic):
    d = seismic.clone()
    d[0, 1, :, 5] = 0
    for text in ("noise:0.1@1", "gain:0.5:2@1", "band-pass:5:50@1", "shift:0.01@1", "velocity:0.9:1@1"):
        assert not Augment(text, WHERE)(velocity, d, [1])[1][0, 1, :, 5].any(), text


@pytest.mark.parametrize("text, words", [("flop", "did you mean 'flip'"), ("noise", "noise:SHARE"),
    ("gain:2:3", "around 1"),
    ("flip@0", "probability"), ("flip,,noise:1", "no name"), ("flip,flip", "twice"), ("shift:1e-9", "one sample"),
    ("shift:nan", "number"), ("drop-shots:0.2", "give 0.5 or more"), ("band-pass:5:900", "hold only")])
def test_what_cannot_be_is_refused_in_one_sentence(text, words):
    with pytest.raises(InputError, match=words): Augment(text, WHERE)


def test_text_is_read_with_its_probability():
    assert parse_augment(" flip, gain:0.8:1.2@0.3 ") == (("flip", (), 0.5), ("gain", (0.8, 1.2), 0.3))


@pytest.fixture(scope="module")
def stored(mini):
    options, spec = read_config(mini)
    train, val = open_store(options)
    return options, spec, train, val


def test_starts_are_made_of_the_changed_record_and_draws_belong_to_step_and_slot(stored):
    options, spec, store, _ = stored
    start = make_start("linear:1600:4000", spec)
    where = Recording(store.survey, spec.dt, store.velocity, 70)
    prepare, change = Preparation(store, start, options.model, 3, "cpu"), Augment("flip@1,gain:0.5:2@1", where)
    batch = lambda augment, keys: prepare(StoredRecords(store, start, 3, augment).__getitems__(keys))
    keys = [(9, 0, 5), (9, 1, 6), (9, 2, 5)]
    a, b = batch(change, keys), batch(None, keys)
    assert torch.equal(a["x0"], b["x0"].flip(-1)) and torch.equal(a["x1"], b["x1"])
    assert all(torch.equal(a[name], b[name]) for name in ("noise", "t_index", "keep"))
    record = store.physical(5)[1]
    gain = np.random.default_rng((3, 9, 0, STREAMS["augment"]))
    gain.random(), gain.random()
    expected = flip_record(record, mirror(store.survey, 70)) * float(gain.uniform(0.5, 2))
    torch.testing.assert_close(a["seismic"][0], store.pressure.normalize(expected))
    alone = batch(change, keys[1:2])
    assert all(torch.equal(alone[name], a[name][1:2]) for name in a)


def test_training_with_augmentation_resumes_to_the_same_weights(fwi, data, tmp_path):
    words = ("train", "--result-dir", tmp_path, "--dataset-dir", data, "--dataset-name", "CurveVel_A", "--model",
        "speed-structure", "--batch-size", 2, "--microbatch", 2, "--val-every", 2, "--val-batches", 1, "--val-maps", 0,
        "--log-writer", "none", "--device", "cpu", "--augment", "flip,noise:0.05,velocity:0.9:1.1", "--save-every", 1)
    weights = lambda name: load_run(tmp_path / name).net.state_dict()
    assert fwi(*words, "--name", "whole", "--num-itr", 2).code == 0
    assert fwi(*words, "--name", "half", "--num-itr", 1).code == 0
    assert fwi(*words, "--name", "half", "--num-itr", 2).code == 0
    for name, value in weights("whole").items(): assert torch.equal(value, weights("half")[name]), name
    told = fwi(*(word if word != "flip,noise:0.05,velocity:0.9:1.1" else "flip" for word in words), "--name", "whole",
        "--num-itr", 2)
    assert told.code == 2 and "--augment" in told.err


def test_starts_that_are_kept_do_not_go_with_a_flip(tmp_path):
    asked = lambda text: TrainOptions(RunOptions(tmp_path), DataOptions(tmp_path, "CurveVel_A", augment=text),
        ModelOptions("tiny", corrupt="first-guess"))
    with pytest.raises(InputError, match="--augment flip .* was made before"): check_augment(asked("flip"))
    check_augment(asked("drop-traces:0.1,drop-shots:0.4"))


@pytest.mark.parametrize("words, saying", [(("--augment", "flap"), ("did you mean 'flip'",)),
    (("--augment", "noise:0.1", "--condition", "seismic,residual"), ("--augment noise", "was made before")),
    (("--augment", "shift:0.001"), ("one sample",))])
def test_bad_augmentations_are_refused_before_anything_is_written(refused, data, tmp_path, words, saying):
    refused("train", "--result-dir", tmp_path, "--dataset-dir", data, "--dataset-name", "CurveVel_A", "--model", "tiny",
        "--name", "bad", "--device", "cpu", *words, saying=saying)
    assert not (tmp_path / "bad").exists()


DROPPING = """
from fwi_i2sb.models.registry import register
from fwi_i2sb.models.speed_structure import Sizes, SpeedStructure

@register("dropping", methods=("regression",), about="a small one, with dropout", reads_map=False)
def build(shapes, options):
    return SpeedStructure(Sizes(16, 2, 2, 16, (4, 2), 9, 1, dropout=0.5), *shapes.reads, shapes.map_size)
"""


def test_dropout_continues_as_if_nothing_had_happened(trained, tmp_path, names_leave):
    (tmp_path / "dropping.py").write_text(DROPPING)
    words = ("--model", "dropping", "--import", tmp_path / "dropping.py", "--batch-size", 4, "--microbatch", 2)
    torch.manual_seed(1)
    whole = weights(trained("whole", "--num-itr", 4, *words))
    trained("halves", "--num-itr", 2, *words)
    torch.manual_seed(2)  # of no account
    assert_equal(whole, weights(trained("halves", "--num-itr", 4, *words)))
    run = load_run(tmp_path / "whole", device="cpu")
    seismic, truth, numbers = validation_records(run, 1)
    assert torch.equal(*(run.invert(seismic, record_ids=numbers).mean for _ in range(2)))


def test_the_network_at_the_sizes_of_the_challenge():
    torch.manual_seed(0)
    net = SpeedStructure(PRESETS["speed-structure"], 5, 10_001, 31, (1259, 300)).eval()
    d = torch.randn(1, 5, 10_001, 31)
    with torch.inference_mode():
        answer = lambda d: net(torch.zeros(1, 1, 1259, 300), None, net.encode(d))
        whole, swapped = answer(d), answer(d[:, [0, 2, 1, 3, 4]])
        d[:, 1] = 0.1
        lost, same = answer(d), answer(d.index_fill(1, torch.tensor([1]), -0.4))
    assert whole.shape == (1, 1, 1259, 300) and whole.abs().max() <= 1
    assert not torch.allclose(whole, swapped, atol=1e-4) and lost.isfinite().all()
    torch.testing.assert_close(lost, same)
    with torch.device("meta"):
        sizes = {name: SpeedStructure(PRESETS[f"speed-structure-{name}"]) for name in ("seed001", "seed002")}
    assert [len(n.compare) + len(n.ask) for n in sizes.values()] == [12, 6]
    assert [PRESETS[f"speed-structure-{name}"].members for name in sizes] == [5, 3]
