"The service with a real Redis: limits over processes, jobs that outlive their process, faults and loads."
import asyncio
import http.client
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2 as httpx
import numpy as np
import psutil
import pytest
from processes import PATIENCE, free_port

from fwi_i2sb.bench.load import load, throughput

KEY = {"X-API-Key": "secret-of-tests"}
BYTES = KEY | {"Content-Type": "application/octet-stream"}


def wait(condition):
    until = time.time() + PATIENCE
    while not condition():
        assert time.time() < until
        time.sleep(0.1)


class Redis:
    "A server of its own, that can be killed and started again."

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.start()

    def start(self):
        self.process = subprocess.Popen(["redis-server", "--port", str(self.port), "--dir", str(self.folder), "--save",
            "", "--appendonly", "yes"], stdout=subprocess.DEVNULL)
        ping = ["redis-cli", "-p", str(self.port), "ping"]
        wait(lambda: "PONG" in subprocess.run(ping, capture_output=True, text=True).stdout)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis(tmp_path):
    assert shutil.which("redis-server"), "bash tests/system/setup.sh installs it"
    server = Redis(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def serve(mini, redis):
    "Start a service; its address and its process."
    started = []

    def start(limits=None, **settings):
        port = free_port()
        env = os.environ | {"SECRET_API_KEY": KEY["X-API-Key"], "REDIS_URL": f"redis://127.0.0.1:{redis.port}/0"}
        process = subprocess.Popen([sys.executable, "-m", "fwi_i2sb", "serve", str(mini.parent), "--port", str(port),
            "--device", "cpu"], env=env | settings, stderr=subprocess.PIPE, text=True, preexec_fn=limits)
        started.append(process)
        threading.Thread(target=lambda: setattr(process, "said", process.stderr.read()), daemon=True).start()
        address = f"http://127.0.0.1:{port}"
        wait(lambda: code(address + "/ready") == 200)
        return address, process

    yield start
    for process in started: process.kill(), process.wait()


def code(address):
    try: return httpx.get(address, timeout=10).status_code
    except httpx.HTTPError: return 0


@pytest.fixture(scope="module")
def record(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("record") / "record.npy"
    np.save(path, np.load(data / "data" / "data49.npy", mmap_mode="r")[0])
    return path.read_bytes()


def predict(address, record, **asked):
    return httpx.post(f"{address}/api/v1/predict/mini", params=dict(nfe=1, samples=1) | asked, content=record,
        headers=BYTES, timeout=PATIENCE)


def test_a_limit_holds_over_processes(serve, record):
    places = [serve(API_RATE_LIMIT="3/minute")[0] for _ in range(2)]
    codes = [predict(places[k % 2], record).status_code for k in range(5)]
    assert codes == [200] * 3 + [429] * 2


def test_redis_may_die_and_come_back_under_load(serve, redis, record):
    address, process = serve(API_RATE_LIMIT="10000/minute")
    codes, over = [], threading.Event()

    def ask():
        while not over.is_set(): codes.append(predict(address, record).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    wait(lambda: len(codes) > 2)
    redis.kill()
    wait(lambda: code(f"{address}/ready") == 503)
    before = len(codes)
    job = httpx.get(f"{address}/jobs/{'0' * 24}", headers=KEY, timeout=PATIENCE)
    assert job.status_code == 503 and "does not answer" in job.json()["detail"] and job.headers["retry-after"]
    assert code(f"{address}/health") == 200 and code(f"{address}/api/v1/models/mini") == 200
    wait(lambda: len(codes) > before + 2)
    redis.start()
    wait(lambda: code(f"{address}/ready") == 200)
    before = len(codes)
    wait(lambda: len(codes) > before + 2)
    over.set()
    asking.join()
    assert set(codes) == {200}
    process.terminate()
    process.wait(PATIENCE)
    wait(lambda: hasattr(process, "said"))
    assert "Redis does not answer" in process.said and "Traceback" not in process.said
    for line in process.said.splitlines(): json.loads(line)


def test_a_job_is_seen_by_all_and_lost_in_clear_words(serve, record):
    (first, process), (second, _) = serve(), serve()
    send = lambda **asked: httpx.post(f"{first}/jobs", params=dict(model="mini", **asked), content=record,
        headers=BYTES, timeout=PATIENCE).json()["id"]
    look = lambda name: httpx.get(f"{second}/jobs/{name}", headers=KEY).json()
    short = send(nfe=1, samples=1)
    wait(lambda: look(short)["state"] == "done")
    assert httpx.get(f"{second}/jobs/{short}/result", headers=KEY).status_code == 200
    long = send(nfe=100, samples=64)
    wait(lambda: look(long)["state"] == "running")
    process.kill()
    wait(lambda: look(long)["state"] == "lost")
    assert "send it again" in look(long)["error"]


def test_no_disk_and_a_full_redis_harm_no_prediction(serve, redis, record):
    def nothing_is_written(): resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    address, _ = serve(limits=nothing_is_written)
    subprocess.run(["redis-cli", "-p", str(redis.port), "config", "set", "maxmemory", "1"], check=True)
    assert [predict(address, record).status_code for _ in range(3)] == [200] * 3
    assert predict(address, b"x").status_code == 400 and code(f"{address}/api/v1/models/mini") == 200
    job = httpx.post(f"{address}/jobs", params=dict(model="mini"), content=record, headers=BYTES, timeout=PATIENCE)
    assert job.status_code == 503 and set(job.json()) == {"detail", "request_id"}


def test_an_idle_connection_is_left_to_its_client_to_close(serve):
    address, _ = serve()
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.connect()
    connection.auto_open = False  # once it is closed, a request fails
    for pause in (6.0, 0.0):  # longer than httpx and many others keep theirs
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        time.sleep(pause)


def ask(address, record, seconds, **kind):
    "A load of predictions; what became of them."
    return asyncio.run(load(f"{address}/api/v1/predict/mini", seconds, content=record, headers=BYTES,
        params=dict(nfe=1, samples=1), **kind))


def test_a_service_that_is_told_to_end_under_load_answers_what_it_accepted(serve, record):
    address, process = serve(API_RATE_LIMIT="1000000/minute")
    threading.Timer(3.0, process.send_signal, (signal.SIGTERM,)).start()
    answers = ask(address, record, 6.0, rate=40)
    process.wait(PATIENCE)
    wait(lambda: hasattr(process, "said"))
    lines = [json.loads(line) for line in process.said.splitlines()]
    done = [line["status"] for line in lines if line["message"] == "request" and "/predict/" in line["path"]]
    assert {answer.status for answer in answers} <= {200, 503, 0} and answers[-1].status == 0
    # every answer that the service gave has arrived
    for status in (200, 503): assert done.count(status) == sum(answer.status == status for answer in answers), status
    assert not [line for line in lines if line["levelname"] == "ERROR"]


def test_at_twice_the_capacity_no_answer_waits_longer_than_the_queue_and_nothing_is_lost(serve, record):
    address, process = serve(API_RATE_LIMIT="1000000/minute", QUEUE_SIZE="16")
    full = ask(address, record, 5.0, clients=12)
    capacity, memory = throughput(full), psutil.Process(process.pid).memory_info().rss
    answers = ask(address, record, 20.0, rate=2 * capacity)
    accepted = [answer for answer in answers if answer.status == 200]
    assert {answer.status for answer in answers} == {200, 503}
    # whatever else the machine does: how many answers others got while one was waited for; of an endless queue hundreds
    ends = np.sort([a.sent + a.seconds for a in accepted])
    others = [np.subtract(*np.searchsorted(ends, (a.sent + a.seconds, a.sent))) for a in accepted]
    assert len(accepted) > 100 and np.median(others) <= 2 * (16 + 2 * 8)  # queue, two batches
    numbers = {line.split()[0]: float(line.split()[-1]) for line in httpx.get(f"{address}/metrics").text.splitlines()
        if not line.startswith("#")}
    assert numbers["fwi_i2sb_batch_records_sum"] == len(full) + len(accepted)
    assert numbers["fwi_i2sb_queue_requests"] == 0
    assert psutil.Process(process.pid).memory_info().rss < memory + 150e6


MONITORING = Path(__file__).parents[2] / "docker" / "monitoring"


@pytest.fixture
def prometheus(tmp_path):
    "Start Prometheus with the configuration of docker/, which watches an address, once a second; its API."
    started = []

    def start(address):
        text = (MONITORING / "prometheus.yml").read_text()
        for old, new in (("api:8000", address.removeprefix("http://")), ("/etc/prometheus", str(MONITORING)),
                ("scrape_interval: 10s", "scrape_interval: 1s\n  evaluation_interval: 1s")):
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "prometheus.yml").write_text(text)
        subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], check=True)
        place = f"127.0.0.1:{free_port()}"
        started.append(subprocess.Popen(["prometheus", f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/series", f"--web.listen-address={place}"], stderr=subprocess.DEVNULL))
        wait(lambda: code(f"http://{place}/-/ready") == 200)

        def ask(what, **given):
            answer = httpx.get(f"http://{place}/api/v1/{what}", params=given, timeout=10).json()
            assert answer["status"] == "success", answer
            return answer["data"]
        return ask

    yield start
    for process in started: process.kill(), process.wait()


def test_prometheus_sees_what_the_dashboard_shows_and_warns_of_a_service_that_is_gone(serve, prometheus, record):
    address, process = serve(API_RATE_LIMIT="10000/minute")
    ask = prometheus(address)
    wait(lambda: [target["health"] for target in ask("targets")["activeTargets"]] == ["up"])
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    shown = {target["expr"] for panel in panels for target in panel["targets"]}

    def empty():  # a rate needs two readings, with requests between
        assert predict(address, record).status_code == 200
        return [query for query in shown if not ask("query", query=query)["result"]]

    wait(lambda: not empty())
    statuses = ask("query", query="sum by (status) (rate(http_requests_total[1m]))")["result"]
    assert "2xx" in {found["metric"].get("status") for found in statuses}
    state = lambda: {rule["name"]: (rule["health"], rule["state"]) for rule in ask("rules")["groups"][0]["rules"]}
    wait(lambda: {health for health, _ in state().values()} == {"ok"})
    assert {now for _, now in state().values()} == {"inactive"}
    process.kill()
    wait(lambda: state()["ServiceDown"] == ("ok", "pending"))
