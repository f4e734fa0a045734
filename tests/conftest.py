"Fixtures shared by all tests: the cached mini run, its data, and commands run in this process."
import gc
import os
import re
import shlex
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# pytest's workers share the cores
if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1")
# a shell's background job ignores it, and so would every command started here
signal.signal(signal.SIGINT, signal.default_int_handler)

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forkserver import interpreter
from pasting import paste_text  # noqa: F401 (a fixture)
from processes import arguments, finish, python_train

from fwi_i2sb import cli
from fwi_i2sb.core import registry
from fwi_i2sb.core.config_file import flags
from fwi_i2sb.core.locks import locked
from fwi_i2sb.examples import mini_run
from fwi_i2sb.sweeps import run_cell, train_job


# the longest first, so that two workers end together
LONGEST = ("test_readme", "test_docs", "test_guides", "test_methods", "test_experiments", "test_generate",
    "test_weights", "test_options", "test_processes", "test_pipeline", "test_card", "test_store", "test_hostile",
    "test_train", "test_faults", "test_parts")


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish():
    "What is imported stays: the collector need not look through all of torch again and again."
    gc.collect()
    gc.freeze()


@pytest.fixture
def names_leave(monkeypatch):
    "What a test registers is forgotten after it, and so are the plug-in files that it imports."
    for kind in registry.Registry.every:
        monkeypatch.setattr(kind, "own", dict(kind))
        monkeypatch.setattr(kind, "files", dict(kind.files))
    monkeypatch.setattr(registry, "_IMPORTED", set(registry._IMPORTED))


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


@pytest.fixture(scope="session")
def train_once(data, tmp_path_factory):
    "Train a run that several files of tests look at, once for all of pytest's workers; the run directory."
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ: root = root.parent

    def train(name, steps, *words) -> Path:
        with locked(root / "trained" / f"lock-{name}"):
            if not (root / "trained" / name / "checkpoints" / f"step-{steps}" / "state.json").exists():
                finish(python_train(*arguments(data, root / "trained", name, "--num-itr", steps, *words)))
        return root / "trained" / name
    return train


@pytest.fixture(scope="session")
def four(train_once) -> Path:
    "Four steps of one process, with a checkpoint after two."
    return train_once("four", 4, "--save-every", 2)


@pytest.fixture(scope="session")
def eight(train_once) -> Path:
    "Eight steps of one process, with a checkpoint every two and a validation, with its figure, every four."
    return train_once("eight", 8, "--save-every", 2, "--val-every", 4, "--val-maps", 4)


@pytest.fixture
def forked_cells(monkeypatch):
    "The cells of grids are run by forks that have papermill already: it takes three seconds of a core to load."
    monkeypatch.setattr(run_cell, "sys", SimpleNamespace(executable=interpreter("papermill.cli")))


@pytest.fixture
def forked_trainings(monkeypatch, tmp_path_factory):
    "The trainings of folds and trials are forks; these end with the process that stands in for them."
    program = tmp_path_factory.mktemp("program") / "python"
    program.write_text(f'#!/bin/sh\nshift 3\nexec {shlex.quote(interpreter())} -m fwi_i2sb.train "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(train_job, "sys", SimpleNamespace(executable=str(program)))


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
def trained(fwi, data, tmp_path):
    "Train a run by the command; the run directory."
    def train(name, *words):
        outcome = fwi("train", *arguments(data, tmp_path, name, *words))
        assert outcome.code == 0, outcome.err
        return tmp_path / name
    return train


def foreign(words: list[str], said: str) -> list[str]:
    "The options in a sentence that its command does not have: neither given, nor said to be of another command."
    known = {"--help", "--config", "--preset"} | flags(cli.COMMANDS[words[0]].load()[1])
    other = r"\b(train|trained|convert|generate|hpo|kfold|evaluate-targets|docker|ulimit)\b"
    return [found[0] for found in re.finditer(r"(?<![\w-])--[a-z][\w-]*", said)
        if not {found[0], found[0].replace("--no-", "--")} & known and not re.search(other, said[:found.start()])
        and not any(word.startswith(found[0]) for word in words)]


@pytest.fixture
def refused(fwi):
    "Run a command that must be refused: exit code 2 and one sentence with the given words, and its own options only."
    def check(*words, saying: tuple[str, ...] = ()):
        outcome = fwi(*words)
        last = outcome.err.strip().splitlines()[-1]
        assert outcome.code == 2, outcome
        assert last.startswith("error: ") and "Traceback" not in outcome.err
        for part in saying: assert part in last, last
        if words[0] in cli.COMMANDS: assert not foreign([str(w) for w in words], last), last
        return last
    return check
