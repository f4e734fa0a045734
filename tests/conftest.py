"Fixtures shared by all tests: the cached mini run, its data, and commands run in this process."
import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# pytest's workers share the cores
if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1")
# a shell's background job ignores it, and so would every command started here
signal.signal(signal.SIGINT, signal.default_int_handler)

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fwi_i2sb import cli
from fwi_i2sb.examples import mini_run


# the longest first, so that two workers end together
LONGEST = ("test_options", "test_processes", "test_train", "test_faults", "test_methods", "test_joint", "test_grid",
    "test_experiments", "test_store", "test_card", "test_cli")


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="module")
def one_thread():
    "Small tensors are faster on one thread."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def mini() -> Path:
    "A trained run."
    return mini_run()


@pytest.fixture(scope="session")
def data(mini) -> Path:
    "Its data set: original files and store."
    return mini.parent.parent / "data" / "CurveVel_A"


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def fwi(capsys):
    "Run a command of fwi-i2sb here; returns exit code and what was printed."
    def run(*words) -> Outcome:
        capsys.readouterr()
        try: cli.main([str(w) for w in words])
        except SystemExit as stop: code = stop.code or 0
        else: code = 0
        return Outcome(code, *capsys.readouterr())
    return run


@pytest.fixture
def refused(fwi):
    "Run a command that must be refused: exit code 2 and one sentence that holds the given words."
    def check(*words, saying: tuple[str, ...] = ()):
        outcome = fwi(*words)
        last = outcome.err.strip().splitlines()[-1]
        assert outcome.code == 2, outcome
        assert last.startswith("error: ") and "Traceback" not in outcome.err
        for part in saying: assert part in last, last
        return last
    return check
