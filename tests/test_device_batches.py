"Batches made on the device: counter-based draws, where the records lie, and losses that do not depend on either."
import json
import shutil

import numpy as np
import pytest
import torch
from processes import arguments, finish, python_train
from safetensors.torch import load_file
from scipy.stats import kstest

from fwi_i2sb.core.philox import Draws, normal_of, philox
from fwi_i2sb.core.sealed import seal
from fwi_i2sb.data.scale import normalize_stored, PressureRange
from fwi_i2sb.diffusion.sampling import STREAMS
from fwi_i2sb.methods.options import ModelOptions
from fwi_i2sb.physics.smoothing import blur_custom
from fwi_i2sb.training.preparation import draw_t_index, Preparation
from fwi_i2sb.training.records import ResidentRecords, StoredRecords
from fwi_i2sb.training.run_dir import without_places, make_start, open_store, read_config


@pytest.fixture(scope="module")
def stored(mini):
    options, spec = read_config(mini)
    return options, spec, open_store(options)[0]


def batch_of(stored, corrupt="blur-openfwi_custom", seed=0, places=range(8), step=3, model=None, device="cpu"):
    options, spec, store = stored
    start = make_start(corrupt, spec)
    keys = [(step, place, place % len(store)) for place in places]
    return Preparation(store, start, model or options.model, seed, device)(
        StoredRecords(store, start, seed).__getitems__(keys))


@pytest.mark.parametrize("words, answer", [
    ((0, 0, 0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((2**32 - 1,) * 6, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ((0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0), "d16cfe09 94fdcceb 5001e420 24126ea1")])
def test_philox_gives_the_published_answers(words, answer):
    found = philox([torch.tensor([word]) for word in words[:4]], words[4:])
    assert " ".join(f"{word.item():08x}" for word in found) == answer


def test_draws_are_the_words_of_seed_stream_step_and_place():
    "Counter: number of the draw, place, step, stream; key: the two halves of the seed."
    seed = 7 + (11 << 32)
    draws = Draws(seed, 3, 1234, [0, 70000])
    large = draws.words(9)
    for row, place in zip(large, (0, 70000)):
        blocks = philox([torch.arange(3), torch.tensor(place), torch.tensor(1234), torch.tensor(3)], (7, 11))
        assert row.tolist() == torch.cat(blocks)[:9].tolist()
    assert not torch.equal(draws.words(9), large)
    assert torch.equal(Draws(seed, 3, 1234, [70000]).words(9), large[1:])


def test_normal_numbers_have_the_distribution_and_no_neighbours_in_common():
    first, second = (Draws(5, stream, 9, range(40)).normal((1, 30, 30)) for stream in (2, 3))
    assert first.dtype == torch.float32 and kstest(first.flatten().numpy(), "norm").pvalue > 1e-3
    pairs = torch.stack([first.flatten(), second.flatten()])
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.02
    assert torch.corrcoef(first.flatten(1))[0, 1:].abs().max() < 0.15
    keyed = normal_of(torch.tensor([1, 2**61 + 5, 1]), (50, 50))
    assert torch.equal(keyed[0], keyed[2]) and not torch.equal(keyed[0], keyed[1])


def test_a_batch_is_what_its_options_say_sample_by_sample(stored):
    options, _, store = stored
    batch = batch_of(stored)
    draws = Draws(0, STREAMS["start"], 3, range(8))
    draws.choices()
    amount, width = draws.uniform(0, 0.2), draws.uniform(8, 16)
    noise = draws.normal((1, 70, 70))
    for k in range(8):
        velocity, seismic = store.physical(k)
        x0 = store.velocity.normalize(velocity)[None]
        assert torch.equal(batch["x0"][k], x0[0])
        assert torch.equal(batch["seismic"][k], store.input_scale.normalize(seismic))
        alone = blur_custom(x0, amount[k:k + 1], width[k:k + 1], noise[k:k + 1])
        torch.testing.assert_close(batch["x1"][k], alone[0], rtol=0, atol=1e-6)
    assert batch["t_index"].dtype == torch.int64 and set(batch["keep"].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("corrupt, model", [("blur-openfwi_custom:0.5,linear:0.5", {}),
    ("linear", dict(base_noise=0.2, drop_traces=0.3, drop_shots=0.5, step_power=2.0))])
def test_samples_do_not_depend_on_the_batch_around_them(stored, corrupt, model):
    model = ModelOptions("tiny", corrupt=corrupt, **model)
    whole = batch_of(stored, corrupt, model=model)
    parts = [batch_of(stored, corrupt, places=places, model=model) for places in (range(3), range(3, 8))]
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.cat([part[name] for part in parts]), rtol=0, atol=1e-6)
    other = batch_of(stored, corrupt, step=4, model=model)
    assert not torch.equal(other["noise"], whole["noise"]) and not torch.equal(other["t_index"], whole["t_index"])


def test_missing_traces_keep_to_their_shares(stored):
    model = ModelOptions("tiny", corrupt="linear", drop_traces=0.25, drop_shots=0.4)
    seismic = batch_of(stored, "linear", places=range(400), model=model)["seismic"]
    mask = seismic[:, 5:, 0]  # silence, and more where a trace is missing
    gone = mask > mask.min() + 0.25
    shots = gone.all(-1)
    assert shots.sum(1).max() == 2 and 0.4 < (~gone.flatten(1).any(1)).double().mean() < 0.62
    traces = (gone & ~shots[..., None]).sum(-1).amax(1)
    assert traces.max() == 17 and len(traces.unique()) > 12


def test_time_indices_are_even_or_grow_with_a_power():
    words = Draws(1, 2, 3, range(20_000)).words(1)[:, 0]
    assert kstest(draw_t_index(words, 1000).numpy() / 1000, "uniform").statistic < 0.012
    drawn = draw_t_index(words, 1000, 3.0).numpy()
    assert kstest((drawn + 0.5) / 1000, lambda x: np.clip(x, 0, 1) ** 4).statistic < 0.012 and drawn.max() == 999


def test_stored_numbers_are_scaled_by_table_as_by_formula():
    every = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.float16)
    finite = every[every.isfinite()]
    scale = PressureRange(-27.11, 55.10)
    assert torch.equal(normalize_stored(scale, finite), scale.normalize(finite.float()))
    low, high = np.sign(-27.11) * np.log1p(27.11), np.log1p(55.10)
    values = finite.double().numpy()
    expected = 2 * (np.sign(values) * np.log1p(np.abs(values)) - low) / (high - low) - 1
    np.testing.assert_allclose(normalize_stored(scale, finite), expected, atol=2e-6)


def test_a_store_in_the_device_gives_what_is_read(stored):
    options, spec, store = stored
    start, keys = make_start("linear", spec), [(0, place, record) for place, record in enumerate((47, 3, 3))]
    held, read = ResidentRecords(store, "cpu").__getitems__(keys), StoredRecords(store, start, 0).__getitems__(keys)
    assert torch.equal(held.velocity, read.velocity) and torch.equal(held.seismic, read.seismic)
    assert read.seismic.dtype == torch.float16 and read.places == [0, 1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_batch(stored):
    model = ModelOptions("tiny", drop_traces=0.3, base_noise=0.1)
    here, there = (batch_of(stored, model=model, device=device) for device in ("cpu", "cuda"))
    for name, value in here.items(): torch.testing.assert_close(there[name].cpu(), value, rtol=1e-5, atol=1e-5)


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_losses_are_the_same_wherever_records_lie_however_many_processes_and_after_an_interruption(
        data, trained, four, tmp_path):
    words = ("--num-itr", 4, "--log-every", 1)
    plain = trained("plain", *words)
    for place in ("device", "host"):
        assert losses(trained(place, *words, "--data-on", place)) == losses(plain)
    finish(python_train(*arguments(data, tmp_path, "ranks", *words, "--proc-per-node", 2)))
    np.testing.assert_allclose(losses(tmp_path / "ranks"), losses(plain), rtol=1e-5)
    first = trained("parts", "--num-itr", 4, "--log-every", 1, "--save-every", 2)
    shutil.rmtree(first / "checkpoints" / "step-4")
    trained("parts", "--num-itr", 4, "--log-every", 1, "--save-every", 2, "--data-on", "device")
    assert losses(first) == losses(plain)
    weights = [load_file(run / "checkpoints" / "step-4" / "weights.safetensors") for run in (first, plain)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_what_does_not_go_together_is_refused(data, tmp_path, refused):
    words = ("train", *arguments(data, tmp_path, "bad"))
    refused(*words, "--data-on", "disk", "--in-memory", saying=("--in-memory", "--data-on disk"))
    refused(*words, "--data-on", "device", "--augment", "flip", saying=("--augment", "host or disk"))
    assert not (tmp_path / "bad").exists()


def test_a_run_of_an_earlier_version_is_not_continued_with_other_draws(trained, refused, data, tmp_path):
    run = trained("old", "--num-itr", 2)
    config = json.loads((run / "config.json").read_text())
    config["format"] = 3
    (run / "config.json").write_text(json.dumps(config | dict(checksum=seal(without_places(config)))))
    refused("train", *arguments(data, tmp_path, "old", "--num-itr", 2), saying=("earlier version", "--ckpt"))
    trained("new", "--num-itr", 4, "--ckpt", run)
