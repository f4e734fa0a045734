"The service: what it answers, refuses and survives; real runs, and no server where the app alone shows it."
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient
from processes import PATIENCE, free_port, pristine

from fwi_i2sb import load_run
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.inference.run import resimulate
from fwi_i2sb.physics.filters import decimate
from fwi_i2sb.physics.wave import simulate
from fwi_i2sb.serving.app import create_app
from fwi_i2sb.serving.depends import caller
from fwi_i2sb.serving.logs import request_id
from fwi_i2sb.serving.models import Models
from fwi_i2sb.serving.requests import Asked, check_asked, prepare
from fwi_i2sb.serving.settings import read_settings, Settings
from fwi_i2sb.training.checkpoint import newest_checkpoint, save_checkpoint
from fwi_i2sb.training.run_dir import read_config, write_config

KEY = {"X-API-Key": "secret-of-tests"}
FAST = dict(nfe=1, samples=1)


def npy(values) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def npz(**values) -> bytes:
    file = io.BytesIO()
    np.savez(file, **values)
    return file.getvalue()


@pytest.fixture(scope="module")
def runs(mini):
    return mini.parent


@pytest.fixture(scope="module")
def record(data):
    return np.load(data / "data" / "data49.npy", mmap_mode="r")[0]


def service(runs, **settings):
    return create_app(read_settings(**dict(secret_api_key=KEY["X-API-Key"], model_artifacts_dir=runs, device="cpu",
        api_rate_limit="1000/minute") | settings))


@pytest.fixture(scope="module")
def client(runs):
    with TestClient(service(runs), raise_server_exceptions=False) as client: yield client


def predict(client, content, name="mini", headers=KEY, **asked):
    kind = {"content-type": "application/octet-stream"}
    return client.post(f"/api/v1/predict/{name}", content=content, params=asked, headers=kind | headers)


def test_a_run_is_listed_described_and_predicts_as_in_python(client, runs, record):
    assert client.get("/api/v1/models").json() == {"models": ["mini"]}
    about = client.get("/api/v1/models/mini").json()
    assert about["input_shape"] == [5, 1000, 70] and about["output_shape"] == [70, 70]
    assert client.get("/api/v1/models/details").json() == [about]
    table = client.get("/api/v1/models/mini/tabulate").json()["tabulated_summary"]
    assert "weights" in table and "GFLOP" in table
    answer = predict(client, npy(record), seed=3, **FAST)
    assert answer.status_code == 200
    with np.load(io.BytesIO(answer.content)) as file: found = {name: file[name] for name in file.files}
    result = load_run(runs / "mini", device="cpu").invert(record, seed=3, **FAST)
    np.testing.assert_allclose(found["map"], result.mean[0, 0], atol=0.01)
    assert found["map"].shape == found["std"].shape == (70, 70) and found["trust"].shape == ()
    about = json.loads(str(found["provenance"]))
    assert about["run"] == "mini" and about["seed"] == 3 and str(runs) not in str(found["provenance"])


def test_json_bytes_batches_and_seeds_agree(client, record):
    lists = dict(data=np.asarray(record, dtype=float).round(6).tolist(), seed=5, nfe=2, samples=2)
    answer = client.post("/api/v1/predict/mini", json=lists, headers=KEY)
    assert answer.status_code == 200 and answer.json()["request_id"] == answer.headers["x-request-id"]
    again = client.post("/api/v1/predict/mini", json=lists, headers=KEY).json()
    assert again["output_map"] == answer.json()["output_map"] and np.shape(again["output_map"]) == (70, 70)
    both = predict(client, npz(seismic=np.stack([record, record])), seed=5, nfe=2, samples=2)
    with np.load(io.BytesIO(both.content)) as file: maps, trust = file["map"], file["trust"]
    assert maps.shape == (2, 70, 70) and trust.shape == (2,)
    np.testing.assert_allclose(maps[0], again["output_map"], atol=0.3)
    assert np.abs(maps[0] - maps[1]).max() > 0.01  # another record number, other noise


def test_requests_of_one_moment_are_answered_together(runs, record):
    with TestClient(service(runs, batch_wait_ms=300, batch_size=8)) as client:
        together, alone = {}, {}
        def one(seed, found): found[seed] = arrays(predict(client, npy(record), seed=seed, nfe=2, samples=1))
        threads = [threading.Thread(target=one, args=(seed, together)) for seed in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        text = client.get("/metrics").text
        for seed in 0, 3: one(seed, alone)
    for seed, answer in together.items(): assert json.loads(str(answer["provenance"]))["seed"] == seed
    for seed, answer in alone.items():  # m/s: rounding of convolutions of another size
        np.testing.assert_allclose(together[seed]["map"], answer["map"], atol=0.5)
    assert np.abs(together[0]["map"] - together[3]["map"]).max() > 1
    numbers = {line.split()[0]: float(line.split()[-1]) for line in text.splitlines() if not line.startswith("#")}
    assert numbers["fwi_i2sb_batch_records_sum"] == 4 and numbers["fwi_i2sb_batch_records_count"] < 4
    assert numbers['fwi_i2sb_model_seconds_count{model="mini"}'] >= 1


def test_other_sizes_are_interpolated_and_said_and_other_counts_of_shots_refused(client, record):
    said = client.post("/api/v1/predict/mini", json=dict(data=record[:, ::2, :60].tolist(), nfe=1, samples=1),
        headers=KEY).json()["warnings"]
    assert "500 x 60" in said[0] and "1000 x 70" in said[0]
    refused = predict(client, npy(record[:4]))
    assert refused.status_code == 400 and "4 shots" in refused.json()["detail"]


def arrays(answer) -> dict:
    assert answer.status_code == 200, answer.text
    with np.load(io.BytesIO(answer.content)) as file: return {name: file[name] for name in file.files}


def test_a_browser_gets_a_page_of_the_service_alone_and_others_a_message(client):
    page = client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html") and page.headers["vary"] == "accept"
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    files = re.findall(r'(?:src|href)="(static/[^"]+)"', page.text)
    assert len(files) == 3 and all(client.get(f"/{name}").status_code == 200 for name in files)
    for accept in ("application/json", "*/*"):
        assert client.get("/", headers={"accept": accept}).json() == {"docs_url": "/docs",
            "message": "Velocity maps from seismic records"}
    about = client.get("/static/page.json").json()
    assert about["examples"] == 10 and len(about["colours"]["batlow"]) == 256
    assert client.get("/static/page/../../settings.py").status_code == 404


def test_an_example_is_a_record_that_the_model_reads_and_its_map(client, runs):
    ask = lambda **asked: client.get("/api/v1/models/mini/example", params=asked, headers=KEY)
    record, velocity = (np.load(io.BytesIO(ask(part=part).content)) for part in ("record", "map"))
    again = simulate(torch.from_numpy(velocity)[None, None], load_run(runs / "mini", device="cpu").survey)
    np.testing.assert_array_equal(record, again[0])
    assert not np.array_equal(np.load(io.BytesIO(ask(number=1, part="map").content)), velocity)
    assert ask(number=10).status_code == 422 and client.get("/api/v1/models/mini/example").status_code == 401
    assert client.get("/api/v1/models/none/example", headers=KEY).status_code == 404
    assert predict(client, ask().content, **FAST).status_code == 200


def test_an_answer_holds_the_record_of_its_map_and_has_the_form_that_is_accepted(client, runs, record):
    asked = dict(FAST, resimulate=True)
    found = arrays(predict(client, npz(seismic=np.stack([record] * 2)), **asked))
    run = load_run(runs / "mini", device="cpu")
    assert found["record"].shape == found["resimulated"].shape == (2, *run.spec.gathers)
    again = resimulate(run, torch.from_numpy(found["map"])[:, None])
    np.testing.assert_allclose(found["resimulated"], again, atol=1e-4 * float(again.abs().max()))
    np.testing.assert_allclose(found["record"][1], decimate(torch.tensor(record), run.spec.factor), atol=1e-5)
    lists = predict(client, npy(record), headers=KEY | {"accept": "application/json"}, **asked).json()
    np.testing.assert_allclose(lists["resimulated"], found["resimulated"][0], atol=1e-4 * float(again.abs().max()))
    assert "resimulated" not in arrays(predict(client, npy(record), **FAST))


def test_a_checkpoint_that_is_swapped_answers_as_one_of_both_and_then_as_the_new_one(runs, record, tmp_path):
    pristine(runs / "mini", tmp_path / "own")
    old = newest_checkpoint(tmp_path / "own")
    state = {name: value for name, value in old.state.items() if name not in ("step", "sha256")}
    ema = {name: 1.02 * value for name, value in old.tensors["ema"].items()}
    with TestClient(service(tmp_path)) as client:
        ask = lambda: arrays(predict(client, npy(record), name="own", **FAST))["map"]
        before, seen, over = ask(), [], threading.Event()

        def go():
            while not over.is_set(): seen.append(ask())

        asking = threading.Thread(target=go)
        asking.start()
        save_checkpoint(tmp_path / "own", old.step + 1, state, dict(ema=ema))
        while len(seen) < 6: time.sleep(0.01)
        over.set()
        asking.join()
        after = ask()
        assert np.abs(after - before).max() > 1
        assert all(np.array_equal(one, before) or np.array_equal(one, after) for one in seen)
        # one that cannot be loaded is told without a path, and the service goes on
        (tmp_path / "own" / "config.json").write_text("{}")
        save_checkpoint(tmp_path / "own", old.step + 2, state, dict(ema=ema))
        broken = predict(client, npy(record), name="own", **FAST)
        assert broken.status_code == 500 and broken.json()["detail"] == "the model own cannot be loaded"
        assert client.get("/health").status_code == 200


def test_sentences_name_no_folder_of_the_machine(client, runs, record):
    answer = predict(client, npy(record), start="first-guess")
    assert answer.status_code == 400 and str(runs) not in answer.text and "first-guess" in answer.json()["detail"]


def state_of(client, sent, *ends, seconds=PATIENCE) -> dict:
    "The state of a job that was sent, when it is one of some."
    assert sent.status_code == 202, sent.text
    until = time.time() + seconds
    while (state := client.get(f"/jobs/{sent.json()['id']}", headers=KEY).json())["state"] not in ends:
        assert time.time() < until, state
        time.sleep(0.02)
    return state


def send(client, content, **asked):
    return client.post("/jobs", params=dict(model="mini") | asked, content=content, headers=KEY | {"content-type":
        "application/octet-stream"})


def test_a_run_that_names_another_folder_tells_it_to_nobody(runs, record, tmp_path):
    pristine(runs / "mini", tmp_path / "own")
    options, spec = read_config(tmp_path / "own")
    write_config(tmp_path / "own", replace(options, model=replace(options.model,
        corrupt="first-guess:/srv/private/run")), spec)
    with TestClient(service(tmp_path)) as client:
        answer = predict(client, npy(record), name="own", **FAST)
        assert answer.status_code == 400 and "and run is not a run" in answer.json()["detail"], answer.text
        job = state_of(client, send(client, npy(record), model="own", **FAST), "failed")
        assert job["error"] == answer.json()["detail"] and "/srv" not in answer.text + str(job)
        result = client.get(f"/jobs/{job['id']}/result", headers=KEY)
        assert result.status_code == 409 and "/srv" not in result.text
        assert "private" not in client.get("/api/v1/models/own").text


BOMB = io.BytesIO()
with zipfile.ZipFile(BOMB, "w", zipfile.ZIP_DEFLATED) as archive: archive.writestr("a.npy", bytes(200_000_000))
GOOD = np.zeros((5, 40, 7), np.float32)
HEADER = npy(GOOD)
MALFORMED = {
    "empty": b"", "text": b"hello", "cut off": HEADER[:-5], "half a header": HEADER[:20], "too long": HEADER + b"xx",
    "objects": npy(np.array([{}], dtype=object)), "text array": npy(np.array(["a"])), "complex": npy(GOOD + 1j),
    "claims terabytes": HEADER.replace(b"(5, 40, 7)", b"(5, 4**9)"),
    "negative": HEADER.replace(b"(5, 40, 7)", b"(5,-40, 7)"),
    "no counts": npy(GOOD[:1, :1, :1]).replace(b"(1, 1, 1)", b"(True,1,)"),
    "other type": HEADER.replace(b"'<f4'", b"'<f8'"), "NaN": npy(GOOD * np.nan), "infinite": npy(GOOD + np.inf),
    "no values": npy(GOOD[:, :0]), "flat": npy(GOOD[0]), "five axes": npy(GOOD[None, None]),
    "too many": npy(np.zeros((17, 5, 4, 4), np.float32)), "other shots": npy(GOOD[:2]), "bomb": BOMB.getvalue(),
    "no archive": b"PK\x03\x04 nothing", "two arrays": npz(a=GOOD, b=GOOD), "a text": npz(a=np.array("x")),
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94."}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_bytes_are_one_sentence(client, what):
    answer = predict(client, MALFORMED[what])
    assert 400 <= answer.status_code < 500 and set(answer.json()) == {"detail", "request_id"}, answer.text
    assert "\n" not in answer.json()["detail"] and "/" + "root" not in answer.text


def packed(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive: archive.writestr("a.npy", HEADER)
    return file.getvalue()


def damaged(count: int):
    "Arrays and archives with bytes that were changed at random, or cut off."
    chance, whole = random.Random(1), [HEADER, *map(packed, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED,
        zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))]
    for _ in range(count):
        body = bytearray(chance.choice(whole))
        for _ in range(chance.choice((1, 2, 4))):
            place = chance.randrange(80)  # headers are at the beginning, of archives at the end, too
            body[place if chance.random() < 0.7 else -1 - place] = chance.randrange(256)
        yield bytes(body[: chance.choice((None, None, chance.randrange(len(body))))])


def header(text: str, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 * version, "little") + text.encode() + bytes(560)


@pytest.mark.filterwarnings("ignore:Reading")  # one looks like an array of Python 2
def test_damaged_bytes_never_harm_the_service(client):
    deep = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
    bodies = [*damaged(80), header("(" * 9000), header("-" * 9000 + "1"), header(deep % ("-" * 4000 + "1")),
        header(deep % "(5L, 4L, 7L)"), header(deep % f"({10**30}, 7)"), header("{'descr': [" + "[" * 3000, 2)]
    answers = [predict(client, body, **FAST) for body in bodies]
    assert {answer.status_code for answer in answers} <= {200, 400}  # a changed value is another record
    assert all("\n" not in answer.json()["detail"] for answer in answers if answer.status_code == 400)
    assert sum(answer.status_code == 400 for answer in answers) >= 60 and client.get("/ready").status_code == 200


LISTS = {"no object": "[]", "no JSON": "{", "no data": "{}", "text": '{"data": "x"}',
    "ragged": '{"data": [[[1],[1,2]]]}',
    "many lists": '{"data": [' + "[]," * 100_001 + "[]]}", "later": json.dumps(dict(data=GOOD.tolist()))[:-4] + "}",
    "words": '{"data": [[["a"]]]}', "numbers in words": json.dumps(dict(data=[[["1"] * 3] * 4] * 5)),
    "truths": json.dumps(dict(data=[[[True, 1.5, 2]] * 4] * 5)), "null": '{"data": [[[null]]]}', "deep": "[" * 100_000,
    "unknown": '{"data": [[[1]]], "x": 1}',
    "seed": '{"data": [[[1]]], "seed": -1}', "path": '{"data": [[[1]]], "start": "/etc/passwd"}',
    "huge": '{"data": [[[1e999]]]}', "samples": '{"data": [[[1]]], "samples": 10000}', "dict": '{"data": {"a": 1}}'}


@pytest.mark.parametrize("what", LISTS)
def test_malformed_json_is_one_sentence(client, what):
    answer = client.post("/api/v1/predict/mini", content=LISTS[what],
        headers=KEY | {"content-type": "application/json"})
    assert 400 <= answer.status_code < 500 and set(answer.json()) == {"detail", "request_id"}, answer.text


def test_who_has_no_key_or_asks_for_nothing_that_is_there(client, record):
    for headers in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": "secret-of-test"}):
        assert predict(client, npy(record), headers=headers).status_code == 401
    missing = predict(client, npy(record), name="minni")
    assert missing.status_code == 404 and "mini" in missing.json()["detail"]
    for name in ("..", "%2e%2e", "a%2Fb", "x" * 300, "%C3%BC" * 150):
        assert client.get(f"/api/v1/models/{name}").status_code in (404, 422)
    table = client.post("/api/v1/predict/mini", content=b"x", headers=KEY | {"content-type": "text/csv"})
    assert table.status_code == 415
    long = service(client.app.state.service.settings.model_artifacts_dir, max_body_bytes=1000)
    with TestClient(long) as small: assert predict(small, npy(record)).status_code == 413
    with TestClient(service(client.app.state.service.settings.model_artifacts_dir, max_json_bytes=1000)) as small:
        lists = small.post("/api/v1/predict/mini", json=dict(data=GOOD.tolist()), headers=KEY)
        assert lists.status_code == 413 and ".npy" in lists.json()["detail"]
        assert len(npy(GOOD)) > 1000 and predict(small, npy(GOOD), **FAST).status_code == 200
    twice = client.post("/api/v1/predict/mini?seed=1&seed=2", content=npy(record), headers=KEY)
    assert twice.status_code == 422 and "seed is given twice" in twice.json()["detail"]
    refused = predict(client, npy(record), refine=31)
    assert refused.status_code == 400 and "/jobs" in refused.json()["detail"]


def test_a_limit_counts_per_key(runs, record):
    with TestClient(service(runs, api_rate_limit="3/minute", secret_api_key="one,two")) as client:
        ask = lambda key: predict(client, b"", headers={"X-API-Key": key})
        assert [ask("one").status_code for _ in range(4)] == [400, 400, 400, 429]
        assert int(ask("one").headers["retry-after"]) <= 60 and ask("two").status_code == 400


def test_headers_origins_and_pages(client, runs):
    answer = client.get("/docs")
    assert "sha256-" in answer.headers["content-security-policy"] and "unsafe-eval" not in str(answer.headers)
    script = client.get("/static/docs/swagger-ui-bundle.js")
    assert script.status_code == 200 and "http" not in answer.text.replace("https://github.com", "")
    assert answer.headers["x-frame-options"] == "DENY" and answer.headers["x-content-type-options"] == "nosniff"
    numbers = {client.get("/health", headers={"X-Request-ID": "mine"}).headers["x-request-id"] for _ in range(2)}
    assert len(numbers) == 2 and "mine" not in numbers
    origin = {"Origin": "https://one.example"}
    for allowed, credentials in (("https://one.example", "true"), ("*", None)):
        with TestClient(service(runs, cors_allowed_origins=allowed)) as other:
            found = other.get("/health", headers=origin).headers
            assert found["access-control-allow-origin"] == ("*" if allowed == "*" else "https://one.example")
            assert found.get("access-control-allow-credentials") == credentials


def test_information_comes_from_the_cache_until_the_weights_change(runs, tmp_path):
    pristine(runs / "mini", tmp_path / "own")
    with TestClient(service(tmp_path)) as client:
        ask = lambda: client.get("/api/v1/models/own")
        assert [ask().headers["x-cache"] for _ in range(2)] == ["miss", "hit"]
        newest = max((tmp_path / "own" / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
        assert client.get("/api/v1/models/own").json()["model_configuration"]["step"] == 60
        state = json.loads((newest / "state.json").read_text())
        assert state["step"] == 60
        shutil.rmtree(newest)
        assert ask().status_code == 404 and client.get("/ready").status_code == 503


def test_jobs_are_sent_watched_fetched_cancelled_and_their_senders_own(runs, record):
    with TestClient(service(runs, secret_api_key="secret-of-tests,other")) as client:
        sent = send(client, npy(record), **FAST)
        assert sent.status_code == 202 and sent.json()["state"] == "queued"
        job = f"/jobs/{state_of(client, sent, 'done')['id']}"
        with np.load(io.BytesIO(client.get(f"{job}/result", headers=KEY).content)) as file:
            assert file["map"].shape == (70, 70)
        assert client.get(job, headers={"X-API-Key": "other"}).status_code == 404
        sent = send(client, npy(record), nfe=20, samples=64)
        client.delete(long := f"/jobs/{sent.json()['id']}", headers=KEY)
        state_of(client, sent, "cancelled")
        assert client.get(f"{long}/result", headers=KEY).status_code == 409
        gone = client.get(f"/jobs/{'0' * 24}", headers=KEY)
        assert gone.status_code == 404 and "memory" in gone.json()["detail"]


def test_the_example_of_the_pages_is_accepted_with_the_defaults_beside_it(client):
    paths = client.get("/openapi.json").json()["paths"]
    def ask(path, place, name, **more):
        about = paths[path]["post"]
        query = {one["name"]: one["schema"]["default"] for one in about["parameters"] if one["in"] == "query" and
            one["schema"].get("default") is not None}
        assert {"seed", "resimulate"} <= set(query)
        body = about["requestBody"]["content"]["application/json"]["example"] | name
        return client.post(place, params={key: json.dumps(value) for key, value in (query | more).items()}, json=body,
            headers=KEY)
    answer = ask("/api/v1/predict/{name}", "/api/v1/predict/mini", {})
    assert answer.status_code == 200 and "interpolated" in answer.json()["warnings"][0], answer.text
    assert np.shape(answer.json()["output_map"]) == (70, 70)
    state_of(client, ask("/jobs", "/jobs", dict(model="mini")), "done")
    other = ask("/api/v1/predict/{name}", "/api/v1/predict/mini", {}, seed=7)
    assert other.status_code == 400 and "seed" in other.json()["detail"]


def test_a_pipeline_does_by_itself_what_it_was_made_for():
    models, settings = Models("nowhere", ["curvevel-a"], "cpu"), read_settings(secret_api_key="key")
    record = np.ones((5, 1000, 70), np.float32)
    own = models.get("curvevel-a").usual
    assert own["refine_mean"] > settings.max_refine > own["refine"] and own["samples"] < settings.max_samples
    ask = lambda **asked: prepare(models, "curvevel-a", record, Asked(**asked), settings, False)
    for asked in ({}, dict(samples=1), dict(refine=settings.max_refine), dict(samples=settings.max_samples)):
        assert ask(**asked).records.shape == (1, 5, 1000, 70)
    with pytest.raises(InputError, match="refine must be 30 or less here .*/jobs"): ask(refine=31)
    with pytest.raises(InputError, match="samples must be 64 or less here"): ask(samples=65)


def test_a_pipeline_that_refines_its_samples_is_not_asked_for_more_of_them():
    settings, own = read_settings(secret_api_key="key"), dict(samples=2, refine=45, refine_mean=45)
    for asked in ({}, dict(samples=1), dict(refine=45), dict(samples=settings.max_samples, refine=0)):
        check_asked(Asked(**asked), settings, own, False)
    for asked in (dict(refine=46), dict(samples=3)):
        with pytest.raises(InputError, match="refine must be 30 or less here .*/jobs"):
            check_asked(Asked(**asked), settings, own, False)


def test_a_sampler_is_one_of_the_models_own(client, record):
    assert "ode" in client.get("/api/v1/models/mini").json()["model_configuration"]["samplers"]
    found = arrays(predict(client, npy(record), sampler="ode", **FAST))
    assert json.loads(str(found["provenance"]))["sampler"] == "ode"
    refused = predict(client, npy(record), sampler="draws", **FAST)
    assert refused.status_code == 400 and "unknown sampler 'draws'" in refused.json()["detail"]
    assert "ode" in refused.json()["detail"]


def test_a_refinement_shows_its_steps_and_ends_when_it_is_cancelled(client, record):
    sent = send(client, npy(record), refine=1000, snr=200, **FAST)
    job = f"/jobs/{sent.json()['id']}"
    until = time.time() + PATIENCE
    while not (state := client.get(job, headers=KEY).json())["progress"]: assert time.time() < until, state
    assert 0 < state["progress"] < 0.1 and state["state"] == "running"
    client.delete(job, headers=KEY)
    state_of(client, sent, "cancelled", seconds=20)


def test_jobs_that_are_cancelled_leave_their_places_and_faults_are_in_the_log(runs, caplog):
    app, go, seen = service(runs, max_jobs=2), threading.Event(), []
    with TestClient(app) as client:
        def broken(given, progress):
            go.wait(30)
            seen.append(request_id.get())
            raise RuntimeError("/secret/path")
        app.state.service.jobs.work = broken
        first = send(client, npy(GOOD))
        state_of(client, first, "running")
        waiting = [send(client, npy(GOOD)).json()["id"] for _ in range(2)]
        assert send(client, npy(GOOD)).status_code == 503
        for name in waiting: assert client.delete(f"/jobs/{name}", headers=KEY).json()["state"] == "cancelled"
        others = [send(client, npy(GOOD)) for _ in range(2)]
        go.set()
        job, _ = state_of(client, first, "failed"), [state_of(client, other, "failed") for other in others]
        assert job["request_id"] == first.headers["x-request-id"] and "noted" in job["error"]
        assert seen == [one.headers["x-request-id"] for one in (first, *others)]
        # the thread of the model knows for whom it works, too
        app.state.service.batches.work = lambda key, given: seen.append(request_id.get())
        assert predict(client, npy(GOOD)).headers["x-request-id"] == seen[-1]
        # what has not begun when the service ends is lost, and says so
        app.state.service.jobs._ends.set()
        assert "send it again" in state_of(client, send(client, npy(GOOD)), "lost")["error"]
    faults = [line for line in caplog.records if line.exc_info and "/secret/path" in str(line.exc_info[1])]
    assert len(faults) == 3


DOCKER = Path(__file__).resolve().parents[1] / "docker"


def test_the_container_files_fit_the_service(client):
    compose = yaml.safe_load((DOCKER / "compose.serve.yaml").read_text())["services"]
    docker = (DOCKER / "Dockerfile.serve").read_text()
    place = re.search(r"MODEL_ARTIFACTS_DIR=(\S+)", docker)[1]
    assert compose["api"]["volumes"][0].split(":")[-2:] == [place, "ro"] and f'VOLUME ["{place}"]' in docker
    assert re.search(r"^USER fwi$", docker, re.M) and "/health" in docker and docker.count("FROM ${BASE}") == 2
    for name in ("Dockerfile", "Dockerfile.serve"):  # Ubuntu 24.04 has a user of number 1000
        assert re.findall(r"useradd (?!--non-unique)", (DOCKER / name).read_text()) == []
    assert compose["api"]["environment"]["SECRET_API_KEY"].startswith("${SECRET_API_KEY:?")
    assert compose["api"]["depends_on"]["redis"]["condition"] == "service_healthy" and compose["redis"]["healthcheck"]
    assert {name for name, about in compose.items() if "profiles" in about} == {"prometheus", "grafana"}
    known = {field.upper() for field in Settings.model_fields}
    assert set(compose["api"]["environment"]) <= known
    example = re.findall(r"^([A-Z_]+)=", (DOCKER / ".env.example").read_text(), re.M)
    assert set(example) <= known and "SECRET_API_KEY" in example
    # what is watched is what the service counts
    client.get("/health")
    counted = set(re.findall(r"^# TYPE (\w+)", client.get("/metrics").text, re.M))
    watched = "".join((DOCKER / "monitoring" / name).read_text() for name in ("alerts.yml", "dashboard.json"))
    names = set(re.findall(r"\b((?:fwi_i2sb|http)_\w+?)(?:_bucket|_sum|_count)?(?=[\[{\")]|$)", watched))
    assert names and {name for name in names if name != "fwi_i2sb"} <= counted, names - counted
    for path in (DOCKER / "monitoring").glob("*.yml"): assert yaml.safe_load(path.read_text())


def test_a_full_queue_says_when_to_come_again(runs, record):
    app = service(runs, queue_size=1, batch_size=1, batch_wait_ms=0)
    with TestClient(app) as client:
        held, go = threading.Event(), threading.Event()

        def slow(key, given):
            held.set()
            go.wait(30)
            raise InputError("enough")

        app.state.service.batches.work = slow
        codes = []
        ask = lambda: codes.append(predict(client, npy(record), **FAST))
        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        held.wait(30)
        threads[1].start()
        while len(app.state.service.batches) < 1: time.sleep(0.01)
        began = time.time()
        full = predict(client, npy(record), **FAST)
        assert full.status_code == 503 and int(full.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200 and time.time() - began < 10  # the loop listens all the time
        go.set()
        for thread in threads: thread.join()
    assert [answer.status_code for answer in codes] == [400, 400]


def test_an_error_inside_shows_nothing_of_it(runs, record):
    app = service(runs)
    app.dependency_overrides[caller] = lambda: "anybody"
    with TestClient(app, raise_server_exceptions=False) as client:
        def broken(key, given): raise RuntimeError("/secret/path")
        app.state.service.batches.work = broken
        answer = predict(client, npy(record), headers={})
        assert answer.status_code == 500 and "secret" not in answer.text
        number = answer.headers["x-request-id"]
        assert answer.json()["request_id"] == number and len(number) == 16
        assert answer.headers["x-frame-options"] == "DENY"


def test_a_folder_without_runs_is_told_and_not_ready(mini, tmp_path, caplog):
    with TestClient(service(tmp_path, hub_models=""), raise_server_exceptions=False) as client:
        assert caplog.text.count("no model in") == 1 and str(tmp_path) in caplog.text
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
        for name in ("later", ".later"): assert client.get(f"/api/v1/models/{name}").status_code == 404
        pristine(mini, tmp_path / "later")
        assert client.get("/ready").status_code == 200
        assert client.get("/api/v1/models/later").json()["model_name"] == "later"


def test_a_run_on_arrays_is_no_model_and_a_damaged_one_is_a_fault_wherever_it_is_asked_for(mini, record, tmp_path):
    (pristine(mini, tmp_path / "numbers") / "config.json").write_text('{"data_spec": {"kind": "targets"}}')
    (tmp_path / "joint").mkdir()
    (tmp_path / "joint" / "ensemble.json").write_text("x")
    assert [*Models(tmp_path).folders()] == ["joint"]
    with TestClient(service(tmp_path), raise_server_exceptions=False) as client:
        asked = [client.get("/api/v1/models/joint"), predict(client, npy(record), "joint")]
        assert [answer.status_code for answer in asked] == [500, 500], [answer.text for answer in asked]
        assert client.get("/api/v1/models/numbers").status_code == 404


def test_the_command_serves_logs_json_and_ends_in_order(runs, record, refused, monkeypatch, tmp_path):
    monkeypatch.delenv("SECRET_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    refused("serve", runs, saying=("SECRET_API_KEY is not set",))
    monkeypatch.setenv("SECRET_API_KEY", KEY["X-API-Key"])
    (tmp_path / "file").write_text("no folder")
    for words in (("none",), ("file",), ("none", "--hub", "curvevel-a"), ("file", "--hub", "curvevel-a")):
        refused("serve", *words, saying=(f"{words[0]} is no folder of runs",))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused("serve", runs, "--port", taken.getsockname()[1], saying=("cannot be listened at", "in use"))
    (tmp_path / ".env").write_bytes(b"SECRET_API_KEY=\xff")
    refused("serve", runs, saying=(".env is not UTF-8",))
    (tmp_path / ".env").unlink()
    for host in ("203.0.113.1", "999.1.1.1"):  # another machine's, and none
        refused("serve", runs, "--host", host, saying=("cannot be listened at",))
    for end in ("here:x/0", "here/0?socket_timeout=word", "here/0?word=1", "here/word"):
        monkeypatch.setenv("REDIS_URL", f"redis://:word@{end}")
        assert "word" not in refused("serve", runs, saying=("REDIS_URL: it must be an address",))
    monkeypatch.delenv("REDIS_URL")
    if not torch.cuda.is_available(): refused("serve", runs, "--device", "cuda", saying=("no CUDA device",))
    for limit in ("0/minute", "5/0minute", "5/second;1/minute"):
        with monkeypatch.context() as patch:
            patch.setenv("API_RATE_LIMIT", limit)
            refused("serve", runs, saying=(f"{limit!r} is no limit such as 60/minute",))
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "fwi_i2sb", "serve", str(runs), "--port", str(port), "--device",
        "cpu"], stderr=subprocess.PIPE, text=True, env=os.environ | {"LOG_LEVEL": "INFO"})
    try:
        place, until = f"http://127.0.0.1:{port}", time.time() + PATIENCE
        while True:
            try: answer = urllib.request.urlopen(f"{place}/ready", timeout=5)
            except OSError: assert time.time() < until and process.poll() is None
            else: break
        asked = urllib.request.Request(f"{place}/api/v1/predict/mini?nfe=1&samples=1", data=npy(record),
            headers=KEY | {"Content-Type": "application/octet-stream"})
        codes = []
        ask = lambda: codes.append(urllib.request.urlopen(asked, timeout=PATIENCE).headers["x-request-id"])
        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        thread.join()
        err = process.communicate(timeout=PATIENCE)[1]
    finally: process.kill()
    lines = [json.loads(line) for line in err.splitlines()]
    assert process.returncode in (0, -signal.SIGTERM) and len(codes) == 1 and answer.status == 200
    assert any(line["request_id"] == codes[0] and line.get("status") == 200 for line in lines)
