"The service at a port: it keeps to its own OpenAPI schema, whatever schemathesis asks, and to its time."
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

import uvicorn
from processes import free_port

from fwi_i2sb.serving.app import create_app
from fwi_i2sb.serving.settings import read_settings

KEY = "secret-of-tests"


@pytest.fixture
def address(mini):
    "A service at a port of this machine."
    app = create_app(read_settings(secret_api_key=KEY, model_artifacts_dir=mini.parent, device="cpu",
        api_rate_limit="100000/minute", body_seconds=1.0, queue_size=1))
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started: time.sleep(0.05)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()


def test_no_answer_breaks_the_schema(address, tmp_path):
    # that a record which fits the schema fits no model is no fault: sizes are those of a survey; nor that a job can be
    # seen after its DELETE, which cancels it, or comes too late
    words = ["run", f"{address}/openapi.json", "--exclude-checks", "positive_data_acceptance,use_after_free",
        "--header", f"X-API-Key: {KEY}", "--max-examples", "6", "--seed", "1", "--max-failures", "10", "--warnings",
        "off", "--request-timeout", "60"]
    done = subprocess.run([str(Path(sys.executable).with_name("schemathesis")), *words], cwd=tmp_path,
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr


def test_a_body_that_stops_is_told_and_its_place_is_free(address):
    def begin():
        client = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30)
        client.sendall(f"POST /api/v1/predict/mini HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Type: "
            "application/octet-stream\r\nContent-Length: 1000\r\n\r\nhalf a body".encode())
        return client

    def status(client): return int(client.recv(100).split()[1])

    first = begin()
    time.sleep(0.3)
    assert status(begin()) == 503  # the only place is taken
    assert status(first) == 408
    left = begin()
    left.close()
    time.sleep(0.3)
    assert status(begin()) == 408
