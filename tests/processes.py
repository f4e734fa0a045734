"Training as a process of its own: its command line, its end, and what it left."
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from fwi_i2sb.training.run_dir import checkpoints, read_metrics

SMALL = ["--model", "tiny", "--batch-size", "8", "--microbatch", "4", "--log-every", "1", "--val-batches", "1",
         "--val-nfe", "1", "--device", "cpu", "--precision", "fp32", "--lr", "1e-3", "--log-writer", "none"]
MPIRUN = [str(Path(sys.executable).parent / "mpirun"), "--allow-run-as-root", "--oversubscribe"]


def arguments(data, result_dir, name, *more):
    return ["--result-dir", str(result_dir), "--dataset-dir", str(data), "--dataset-name", "CurveVel_A", "--name", name,
        *SMALL, *map(str, more)]


def python_train(*words, launcher=(), **how):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*launcher, sys.executable, "-m", "fwi_i2sb.train", *words], env=env,
        stderr=subprocess.PIPE, text=True, **how)


def finish(process, code=0):
    _, err = process.communicate(timeout=400)
    assert process.returncode == code, err
    return err


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def losses(run: Path) -> list[float]: return [row["loss"] for row in read_metrics(run) if "loss" in row]


def weights(run: Path) -> dict:
    return {path.stem: load_file(path) for path in checkpoints(run)[0].glob("*.safetensors")}


def assert_equal(a: dict, b: dict):
    for part in a:
        assert a[part].keys() == b[part].keys()
        for key in a[part]: np.testing.assert_array_equal(a[part][key], b[part][key])
