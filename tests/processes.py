"Training as a process of its own: its command line, its end, and what it left."
import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import psutil
from forkserver import PATIENCE, behind, start
from safetensors.numpy import load_file

from fwi_i2sb.methods.command import TEMPLATE
from fwi_i2sb.training.checkpoint import checkpoints
from fwi_i2sb.training.run_dir import read_metrics

SMALL = ["--model", "tiny", "--batch-size", "4", "--microbatch", "2", "--log-every", "1", "--val-batches", "1",
         "--val-nfe", "1", "--val-maps", "0", "--device", "cpu", "--precision", "fp32", "--lr", "1e-3",
         "--log-writer", "none"]
MPIRUN = [str(Path(sys.executable).parent / "mpirun"), "--allow-run-as-root", "--oversubscribe"]


def pristine(source: Path, target: Path) -> Path:
    "A copy of a shared run or data set as it was made, whatever other tests add to it meanwhile."
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns("starts-*", "evaluation", ".*"))


def arguments(data, result_dir, name, *more):
    return ["--result-dir", str(result_dir), "--dataset-dir", str(data), "--dataset-name", "CurveVel_A", "--name", name,
        *SMALL, *map(str, more)]


# the training's own command line, in a process that gets a signal when it has written down a certain step
INTERRUPTED = """import os, sys
from fwi_i2sb import train
step, number, real = *map(int, sys.argv[1:3]), train.Journal.write
def write(journal, now, **values):
    real(journal, now, **values)
    if now == step and "loss" in values: os.kill(os.getpid(), number)
train.Journal.write = write
train.main(sys.argv[3:])"""


def python_train(*words, launcher=(), interrupted: tuple[int, int] | None = None, **settings):
    "A training as a process; `interrupted` sends itself a signal after a step: (step, signal)."
    program = ["-c", INTERRUPTED, *(str(int(n)) for n in interrupted)] if interrupted else ["-m", "fwi_i2sb.train"]
    program = [sys.executable, *program, *words]
    return start([*launcher, *behind(program)] if launcher else program, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, text=True, **settings)


def free_port() -> int:
    "A port that nobody uses now, nor gives to an outgoing connection; each worker of pytest has numbers of its own."
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10
    while True:
        port = random.randrange(20000 + 1000 * worker, 21000 + 1000 * worker)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)): return port


def finish(process, code=0):
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    return err


def wait_for(condition, process=None):
    "Wait until the condition holds, for as long as the process lives."
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def killed_search(words: list[str], folder: Path, begun: int) -> set[Path]:
    "Begin a search, and kill it when so many of its trials have written something down; the folders of these trials."
    process = start([sys.executable, "-m", "fwi_i2sb", *words], env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL)
    there = lambda: {path.parent for path in folder.glob("trial-*/metrics.jsonl") if read_metrics(path.parent)}
    wait_for(lambda: len(there()) >= begun, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return there()


def children(process) -> list[psutil.Process]:
    "The ranks or readers among a process's children."
    return [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join([p.name(), *p.cmdline()])]


@cache
def own_network() -> Path:
    "A copy of the template of a network; the same for all tests of a process, which imports it once."
    folder = Path(tempfile.mkdtemp(prefix="network-"))
    atexit.register(shutil.rmtree, folder)
    shutil.copyfile(TEMPLATE, folder / "mine.py")
    return folder / "mine.py"


def losses(run: Path) -> list[float]: return [row["loss"] for row in read_metrics(run) if "loss" in row]


def weights(run: Path) -> dict:
    return {path.stem: load_file(path) for path in checkpoints(run)[0].glob("*.safetensors")}


def assert_equal(a: dict, b: dict):
    for part in a:
        assert a[part].keys() == b[part].keys()
        for key in a[part]: np.testing.assert_array_equal(a[part][key], b[part][key])
