"The service keeps to its own OpenAPI schema, whatever is asked: requests made from the schema by schemathesis."
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
        api_rate_limit="100000/minute"))
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started: time.sleep(0.05)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()


def test_no_answer_breaks_the_schema(address, tmp_path):
    # that a record which fits the schema fits no model is no fault: sizes are those of a survey
    words = ["run", f"{address}/openapi.json", "--exclude-checks", "positive_data_acceptance", "--header",
        f"X-API-Key: {KEY}", "--max-examples", "6", "--seed", "1", "--max-failures", "10", "--warnings", "off",
        "--request-timeout", "60"]
    done = subprocess.run([str(Path(sys.executable).with_name("schemathesis")), *words], cwd=tmp_path,
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
