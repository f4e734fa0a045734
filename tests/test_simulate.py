"Training on records that are made meanwhile: pure functions, equal losses, and what is refused."
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from processes import arguments, assert_equal, finish, losses, python_train, weights

from fwi_i2sb.core.errors import InputError
from fwi_i2sb.data.generate import generate
from fwi_i2sb.data.geology import sample_velocity
from fwi_i2sb.data.scale import VelocityScale
from fwi_i2sb.data.simulated import CHUNK, make_recipe, recipe_maps, recipe_records, SimulateOptions, write_chunk
from fwi_i2sb.physics.filters import decimate
from fwi_i2sb.physics.wave import simulate, surface_survey
from fwi_i2sb.training.pool import Pool
from fwi_i2sb.training.run_dir import read_config, read_metrics
from fwi_i2sb.training.pool_schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
SURVEY, SCALE = surface_survey(16, 2, nt=200), VelocityScale(1500., 4500.)


def recipe(seed=0, **options):
    return make_recipe(SimulateOptions(simulate=64, **options), seed, ("CurveVel_A",), SURVEY, SCALE, (16, 16), 4)


def test_a_record_is_its_map_simulated():
    made = recipe(seed=5)
    velocity, seismic = recipe_records(made, 2)
    for row in (0, CHUNK - 1):
        own = sample_velocity("CurveVel_A", 1, shape=(16, 16), seed=2**63 + 5, first=2 * CHUNK + row)
        assert torch.equal(velocity[row], own[0])
        expected = decimate(simulate(own, SURVEY), 4).half()
        torch.testing.assert_close(seismic[row], expected[0], rtol=2e-3, atol=1e-3)
    # never a map that generate makes
    assert not torch.equal(velocity[0], sample_velocity("CurveVel_A", 1, shape=(16, 16), seed=5, first=2 * CHUNK)[0])


def test_what_a_recipe_asks_is_what_records_have():
    plain, _ = recipe_records(recipe(), 0)
    noisy = recipe_records(recipe(snr=(10.0,)), 0)
    clean = recipe_records(recipe(), 0)[1].float()
    assert torch.equal(noisy[0], plain)
    noise = (noisy[1].float() - clean).square().flatten(1).mean(1)
    ratio = 10 * torch.log10(clean.square().flatten(1).mean(1) / noise)
    assert (ratio - 10).abs().max() < 1
    shots = recipe_records(recipe(missing_shots=1), 0)[1]
    lost = (shots == 0).flatten(2).all(-1).sum(1)
    assert set(lost.tolist()) == {0, 1}
    traces = (recipe_records(recipe(missing_traces=0.5), 0)[1] == 0).all(-2).flatten(1).double().mean(1)
    assert traces.max() <= 0.5 and len(traces.unique()) > 4
    mixed = recipe(mixture="FlatVel_A:3,Style_A:1")
    whole = [bool((v == v.round()).all()) for v in recipe_maps(mixed, 0, 80)]  # Style maps are not whole numbers
    assert 45 <= sum(whole) <= 75
    two = recipe_maps(recipe(layers=(2, 2)), 0, 8)
    assert all(len(v.unique()) == 2 for v in two)
    both = recipe_maps(recipe(mixture="FlatVel_A:3,Style_A:1", layers=(2, 2)), 0, 80)
    assert [len(v.unique()) == 2 for v in both] == whole  # of the family that has layers
    with pytest.raises(InputError, match="Style_A has no layers"): recipe(mixture="Style_A,Style_B", layers=(2, 2))


def test_frequencies_are_drawn_in_their_range():
    asked = recipe(freq=(12.0, 18.0))
    peaks = []
    for chunk in range(4):
        velocity, seismic = recipe_records(asked, chunk)
        fit = lambda f: (decimate(simulate(velocity[:1], replace(SURVEY, freq=f)), 4) - seismic[:1]).norm()
        peaks.append(min(np.arange(11, 19.25, 0.25), key=fit))
    assert 11.75 <= min(peaks) < max(peaks) <= 18.25


def test_records_of_a_pool_do_not_depend_on_who_makes_them(tmp_path):
    made, schedule = recipe(), Schedule(20, 2, seed=1)

    def read(pools, step):
        numbers = [schedule.record(p) for p in range(4 * step, 4 * step + 4)]
        kept = torch.empty(4, 1, 16, 16), torch.empty(4, 2, 50, 16, dtype=torch.float16)
        for pool in pools: pool.reach(step)
        for pool in pools[::-1]: pool.read(numbers, *kept)
        return kept
    one = [Pool(tmp_path / "one", made, schedule, 4, range(30))]
    three = [Pool(tmp_path / "three", made, schedule, 4, range(30), rank=rank, world=3) for rank in range(3)]
    for step in range(30): assert all(map(torch.equal, read(one, step), read(three, step)))
    assert one[0].report()["reuse"] == pytest.approx(2, rel=0.3)


def test_a_maker_that_fails_ends_the_wait(tmp_path):
    made = recipe()
    pool = Pool(tmp_path / "pool", made, Schedule(20, 2, seed=1), 4, range(3), processes=1)
    shutil.rmtree(tmp_path / "pool")
    (tmp_path / "pool").write_text("")
    pool.reach(0)
    with pytest.raises((OSError, ChildProcessError)):
        pool.read([0], torch.empty(1, 1, 16, 16), torch.empty(1, 2, 50, 16, dtype=torch.float16))
    pool.close()
    assert not pool.makers.thread.is_alive()


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    "A data set of validation records alone."
    return generate(tmp_path_factory.mktemp("data"), "CurveVel_A", n_train=0, n_val=4, shape=(16, 16), survey=SURVEY,
        seed=9)


WORDS = ("--num-itr", 6, "--simulate", 24, "--reuse", 2, "--simulate-proc", 0, "--save-every", 3)


@pytest.fixture(scope="module")
def plain(validation, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    finish(python_train(*arguments(validation, root, "plain", *WORDS)))
    return root / "plain"


def test_losses_are_equal_with_makers_with_two_ranks_and_after_an_interruption(plain, validation, tmp_path):
    assert len(losses(plain)) == 6 and not (plain / "pool").exists()
    finish(python_train(*arguments(validation, tmp_path, "makers", *WORDS, "--simulate-proc", 1)))
    assert losses(tmp_path / "makers") == losses(plain)
    assert_equal(weights(tmp_path / "makers"), weights(plain))
    finish(python_train(*arguments(validation, tmp_path, "ranks", *WORDS, "--proc-per-node", 2)))
    np.testing.assert_allclose(losses(tmp_path / "ranks"), losses(plain), rtol=1e-5)
    finish(python_train(*arguments(validation, tmp_path, "stopped", *WORDS), interrupted=(4, 15)), 128 + 15)
    assert list((tmp_path / "stopped" / "pool").glob("*/chunk-*.npy"))
    finish(python_train(*arguments(validation, tmp_path, "stopped", *WORDS)))
    assert losses(tmp_path / "stopped") == losses(plain)
    assert_equal(weights(tmp_path / "stopped"), weights(plain))


def test_the_log_says_how_many_records_and_who_waits(plain):
    rows = [row for row in read_metrics(plain) if "loss" in row]
    assert [row["records_made"] for row in rows] == [4, 8, 12, 16, 20, 24]
    assert all(row["reuse"] == 1 and 0 <= row["training_waits"] <= 1 for row in rows)
    options, spec = read_config(plain)
    assert options.simulate == SimulateOptions(24, reuse=2, simulate_proc=0) and spec.records == 24


def test_every_sample_can_be_a_new_record(fwi, validation, tmp_path):
    words = ("--num-itr", 3, "--simulate", "all", "--simulate-proc", 0, "--snr", 5, 20, "--freq", 14, "--layers", 3, 5)
    done = fwi("train", *arguments(validation, tmp_path, "all", *words))
    assert done.code == 0, done.err
    assert [row["records_made"] for row in read_metrics(tmp_path / "all") if "loss" in row] == [4, 8, 12]


def test_what_cannot_be_is_refused(refused, validation, tmp_path):
    words = ("train", *arguments(validation, tmp_path, "bad"))
    on = (*words, "--simulate", 24)
    refused(*words, "--reuse", 3, saying=("--reuse has no effect without --simulate",))
    refused(*words, "--snr", 3, saying=("--snr has no effect without",))
    refused(*on, "--part", "1/2", saying=("--part", "no effect with --simulate"))
    refused(*on, "--loader-workers", 2, saying=("--loader-workers",))
    refused(*on, "--condition", "seismic,residual", saying=("remove one",))
    refused(*words, "--simulate", "all", "--reuse", 2, saying=("no record is used twice",))
    refused(*words, "--simulate", 0, saying=("--simulate must be",))
    refused(*on, "--freq", 18, 12, saying=("--freq takes",))
    refused(*on, "--freq", 200, saying=("--freq 200",))
    refused(*on, "--mixture", "CurveVelA", saying=("CurveVel_A",))
    refused(*on, "--mixture", "", saying=("''",))
    refused(*on, "--layers", 3, 40, saying=("--layers must be two rising whole numbers",))
    refused(*on, "--missing-shots", 2, saying=("--missing-shots",))
    path = tmp_path / "survey.json"
    path.write_text(json.dumps(surface_survey(16, 3, nt=200).to_dict()))
    refused(*on, "--survey", path, saying=("as many shots",))
    assert not (tmp_path / "bad").exists()


def test_a_damaged_file_is_named(tmp_path):
    made, schedule = recipe(), Schedule(16, 1, seed=1)
    write_chunk(str(tmp_path), json.loads(json.dumps(asdict(made))), 0)
    path = next(tmp_path.glob("*.npy"))
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 1
    path.write_bytes(damaged)
    pool = Pool(tmp_path, made, schedule, 4, range(3))
    kept = torch.empty(1, 1, 16, 16), torch.empty(1, 2, 50, 16, dtype=torch.float16)
    pool.read([3], *kept)
    with pytest.raises(InputError, match="is damaged"): pool.read([CHUNK - 1], *kept)


def test_noise_of_a_record_has_a_key_of_its_own():
    a, b = (recipe_records(recipe(snr=(0.0,)), chunk)[1].float() - recipe_records(recipe(), chunk)[1].float()
        for chunk in (0, 1))
    pairs = torch.corrcoef(torch.cat([a, b]).flatten(1))
    assert (pairs - torch.eye(len(pairs))).abs().max() < 0.25
