"Machines, folders and runs of strangers: each works, degrades with one warning, or is refused at the start."
import errno
import fcntl
import gc
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from forkserver import run as python
from processes import PATIENCE, arguments, assert_equal, free_port, pristine, weights
from torch.utils.data import DataLoader, dataloader

from fwi_i2sb.core import files
from fwi_i2sb.core.commands import exit_codes, parse
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.core.files import atomic, open_npy, read_json, write_text
from fwi_i2sb.core.locks import check_writable, claim, locked
from fwi_i2sb.core.workers import end_on_failure, read_ahead
from fwi_i2sb.data.check import inspect_folder
from fwi_i2sb.data.openfwi import discover, find_root
from fwi_i2sb.data.store import StoreDataset
from fwi_i2sb.inference.records import Spool
from fwi_i2sb.training import checkpoint as checkpoint_module
from fwi_i2sb.training.options import DataOptions, DeviceOptions, first_difference, RunOptions, TrainOptions
from fwi_i2sb.training.processes import environment, join, open_accelerator, rank_variables
from fwi_i2sb.training.ranks import find_ranks, Ranks
from fwi_i2sb.training.checkpoint import checkpoints, read_checkpoint, save_checkpoint
from fwi_i2sb.training.run_dir import check_links, read_config, read_metrics, write_config
from fwi_i2sb.training.watch import stop_signal


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    "A process gives each warning once, and tests share one."
    monkeypatch.setattr(files, "_TOLD", set())
    monkeypatch.setattr(files, "_SWEPT", set())


def everything(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def saying(number): return OSError(number, os.strerror(number))


def failing(number, when=lambda *given: True, real=None):
    "Stands for a call that a file system does not know."
    def call(*given, **named):
        if when(*given): raise saying(number)
        return real(*given, **named)
    return call


# file systems

@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_folder_that_cannot_be_flushed_or_locked_costs_one_warning_each(tmp_path, monkeypatch, number):
    folder = lambda handle: os.path.isdir(f"/proc/self/fd/{handle}")
    monkeypatch.setattr(os, "fsync", failing(number, folder, os.fsync))
    monkeypatch.setattr(fcntl, "flock", failing(number if number != errno.EINVAL else errno.ENOLCK))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            check_writable(tmp_path / "run", "config.json")
            with locked(tmp_path / "run"): write_text(tmp_path / "run" / "config.json", "{}")
            claim(tmp_path / "run", "taken").close()
    assert sorted(str(w.message).split(" cannot ")[-1].split(" has ")[-1].split(" (")[0] for w in told) == [
        "flush a folder", "no locks"]
    assert all(".trial" not in str(w.message) for w in told)
    assert everything(tmp_path) == ["run", "run/.lock", "run/config.json"]


@pytest.mark.parametrize("spoil", [lambda file: os.truncate(file, 2**42), lambda file: os.truncate(file, 1000),
    lambda file: file.write_bytes(b"\xff" * 64), lambda file: file.write_bytes(b"\2" + bytes(7) + b"[]")],
    ids=["giant", "cut", "length", "header"])
def test_weights_of_another_length_than_they_say_are_not_read_through(mini, tmp_path, monkeypatch, spoil):
    shutil.copytree(checkpoints(mini)[0], folder := tmp_path / checkpoints(mini)[0].name)
    spoil(folder / "ema.safetensors")
    monkeypatch.setattr(checkpoint_module, "sha256", lambda path: pytest.fail("all of it was read"))
    with pytest.raises(InputError, match="ema.safetensors has changed since it was written"): read_checkpoint(folder)


@pytest.mark.parametrize("module, name, number, call", [(os, "mkdir", errno.EROFS, "mkdir"),
    (os, "fsync", errno.EIO, "fsync"), (os, "replace", errno.EXDEV, "rename"), (os, "rename", errno.EPERM,
    "rename of a folder"), (fcntl, "flock", errno.EIO, "lock")])
def test_a_folder_that_cannot_take_a_checkpoint_is_refused_before_the_first_step(refused, data, tmp_path, monkeypatch,
        module, name, number, call):
    monkeypatch.setattr(module, name, failing(number))
    refused("train", *arguments(data, tmp_path / "a" / "runs", "one"),
        saying=(str(tmp_path / "a" / "runs" / "one"), f"{call} says {os.strerror(number)}", "--result-dir"))
    assert everything(tmp_path) == []


def test_a_disk_without_rights_keeps_its_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "copymode", failing(errno.EPERM))
    with pytest.warns(UserWarning, match="rights of files"):
        for step in (3, 4): save_checkpoint(tmp_path, step, dict(seed=0, next_sample=0, skipped=0), dict(ema={}))
    assert [p.name for p in checkpoints(tmp_path)] == ["step-4", "step-3"]


@pytest.mark.parametrize("number, advice", [(errno.EDQUOT, "free disk space"), (errno.EACCES, "can be written")])
def test_a_checkpoint_that_fails_leaves_nothing_and_says_why(tmp_path, monkeypatch, number, advice):
    monkeypatch.setattr(checkpoint_module, "sha256", failing(number))
    with pytest.raises(InputError, match=advice): save_checkpoint(tmp_path, 7, {}, dict(ema={}))
    assert everything(tmp_path) == ["checkpoints"]


def test_all_files_of_a_run_have_the_rights_that_its_user_gives(fwi, data, tmp_path):
    before = os.umask(0o077)
    try:
        for steps in (1, 2): assert fwi("train", *arguments(data, tmp_path, "run", "--num-itr", steps)).code == 0
    finally: os.umask(before)
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_clock_that_jumps_and_a_link_to_the_data_change_nothing(fwi, data, four, tmp_path, monkeypatch):
    pristine(data, tmp_path / "disk" / "CurveVel_A")
    for k, path in enumerate(sorted((tmp_path / "disk").rglob("*.npy"))): os.utime(path, (k % 2 * 2**32,) * 2)
    (tmp_path / "CurveVel_A").symlink_to(tmp_path / "disk" / "CurveVel_A")
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1)**next(jumps) * 1e9)
    for place, steps in ((tmp_path, 2), (tmp_path / "disk", 4)):
        words = arguments(place / "CurveVel_A", tmp_path, "run", "--num-itr", steps, "--save-every", 2)
        assert (done := fwi("train", *words)).code == 0, done.err
    assert "-" not in done.err.partition(" left")[0].rpartition(", ")[2]
    assert_equal(weights(tmp_path / "run"), weights(four))


def test_a_killed_writer_is_swept_up_after_and_a_living_one_is_not(tmp_path):
    code = ("import os, sys; from pathlib import Path; from fwi_i2sb.core.files import atomic\n"
        "with atomic(Path(sys.argv[1]) / 'card.md') as part: part.write_text('half'); os.kill(os.getpid(), 9)")
    python([sys.executable, "-c", code, tmp_path])
    (tmp_path / ".precious.part").write_text("not ours")
    assert len(everything(tmp_path)) == 2
    with atomic(tmp_path / "other.md") as part:
        part.write_text("whole")
        files._SWEPT.clear()
        write_text(tmp_path / "card.md", "whole")
        assert part.exists()
    assert everything(tmp_path) == [".precious.part", "card.md", "other.md"]


def test_a_disk_too_small_for_a_checkpoint_is_refused_before_the_first_step(refused, data, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=300_000))
    refused("train", *arguments(data, tmp_path / "runs", "tight"), saying=("0.0003 GB are free", "--result-dir"))
    refused("train-pipeline", "--out", tmp_path / "pipe", "--dataset-dir", data, "--dataset-name", "CurveVel_A",
        "--parts", 1, 1, 2, saying=("0.0003 GB are free", "--out"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(total=0, free=0))  # it does not tell
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**20, 2**20))
    refused("train", *arguments(data, tmp_path / "runs", "tight"), saying=("0.00105 GB here", "ulimit -f"))
    assert everything(tmp_path) == []


# memory

GREEDY = {"text": (lambda: torch.empty(2**50), "when 4503599627370496 bytes more"),
    "python": (lambda: [0] * 2**60, "of this machine"), "map": (lambda: load_file("empty", 2**60), "of this machine")}


def load_file(name, size):
    "As safetensors says it."
    raise RuntimeError(f"unable to mmap {size} bytes from file <{name}>: Cannot allocate memory (12)")


@pytest.mark.parametrize("kind", GREEDY)
def test_memory_that_runs_out_is_one_sentence(refused, data, tmp_path, monkeypatch, kind):
    greedy, words = GREEDY[kind]
    monkeypatch.setattr("fwi_i2sb.train.train_step", lambda *given: greedy())
    refused("train", *arguments(data, tmp_path, "greedy"), saying=("ran out", words, "--microbatch"))
    monkeypatch.setattr("fwi_i2sb.data.prepare.decimate", lambda *given: greedy())
    refused("convert", data, "--family", "CurveVel_A", "--store-dir", tmp_path / "store", "--workers", 0,
        saying=("ran out",))


def test_the_memory_of_a_gpu_is_told_from_the_machines(capsys):
    def work(): raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total ...")
    with pytest.raises(SystemExit) as stop, exit_codes(): work()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: the memory of the GPU ran out when 20.00 MiB more were asked for")
    with pytest.raises(RuntimeError, match="a bug"), exit_codes(): raise RuntimeError("a bug")


@pytest.mark.parametrize("error", [BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
    RuntimeError("can't start new thread")])
def test_a_limit_of_processes_is_named(capsys, error):
    with pytest.raises(SystemExit) as stop, exit_codes(): raise error
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: no further process or thread could be started: raise the limit")


def test_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "small.json").write_text("[1, 2]")
    tracemalloc.start()
    assert read_json(tmp_path / "small.json") == [1, 2]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_without_shared_memory_nothing_is_held_there(data, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", failing(errno.ENOENT))
    with pytest.raises(InputError, match="0 GB are free: remove --in-memory"): StoreDataset(data, "val", in_memory=True)


# standard streams

CLOSED = """
import os, sys
for number, name in enumerate(("stdin", "stdout", "stderr")):
    os.close(number)
    setattr(sys, name, None)
    setattr(sys, f"__{name}__", None)
"""
LOST = """
import os, sys
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
"""
BROKEN = """
import os, sys
there, here = os.pipe()
os.close(there)
os.dup2(here, {0})
os.close(here)
"""
COMMAND = """
from fwi_i2sb import cli
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("streams", [CLOSED, LOST, BROKEN.format(2)], ids=["closed", "full", "broken"])
def test_a_training_goes_on_where_nobody_listens(data, tmp_path, streams):
    words = arguments(data, tmp_path, "deaf", "--num-itr", 2, "--store-dir", tmp_path / "store")
    assert python([sys.executable, "-c", streams + COMMAND, "train", *words]).returncode == 0
    assert [p.name for p in checkpoints(tmp_path / "deaf")] == ["step-2"]
    # nothing was printed into them
    assert not inspect_folder(tmp_path / "store").problems and len(read_metrics(tmp_path / "deaf")) == 3


@pytest.mark.parametrize("words", [["--help"], ["models"], ["check", "--help"]], ids=" ".join)
def test_output_that_nobody_takes(words):
    done = python([sys.executable, "-c", BROKEN.format(1) + COMMAND, *words])
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    done = python([sys.executable, "-c", LOST.replace(", 2)", ", 1)") + COMMAND, *words])
    assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")


# what a run of a stranger holds decides nothing about where is written

@pytest.mark.parametrize("name", ["samples", "checkpoints", "metrics.jsonl", "logs", ".lock", "checkpoints/step-2",
    "checkpoints/step-2/state.json", "logs/mlflow/1", "set-aside/x/deep"])
def test_a_link_in_a_run_is_not_followed(refused, data, four, tmp_path, name):
    run, outside = tmp_path / "runs" / "four", tmp_path / "outside"
    pristine(four, run)
    place = run / name
    if place.is_dir(): shutil.move(place, outside)
    else: outside.write_text("precious"); place.unlink(missing_ok=True); place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside)
    before = everything(tmp_path)
    refused("train", *arguments(data, tmp_path / "runs", "four", "--num-itr", 6), saying=("link", name))
    assert everything(tmp_path) == before and (outside.is_dir() or outside.read_text() == "precious")


@pytest.mark.parametrize("given", ["dataset_dir", "store_dir"])
def test_a_run_that_is_read_builds_a_store_only_where_the_user_says(fwi, refused, mini, data, tmp_path, given):
    run, planted, files_only = tmp_path / "run", tmp_path / "planted", tmp_path / "CurveVel_A"
    pristine(mini, run)
    for name in ("data", "model", "generate.json"):
        copy = shutil.copytree if (data / name).is_dir() else shutil.copy
        copy(data / name, (files_only.mkdir(exist_ok=True), files_only / name)[1])
    config = json.loads((run / "config.json").read_text())
    config["data"] |= dict(store_dir=str(planted), dataset_dir=str(files_only))
    (run / "config.json").write_text(json.dumps(config))
    before = everything(tmp_path)
    words = ("evaluate", run, "--records", 2, "--nfe", 1, "--samples", 1, "--misfit-records", 1, "--starts", "linear",
        "--out", tmp_path / "out")
    refused(*words, saying=(str(planted), "--store-dir"))
    assert everything(tmp_path) == before
    place = dict(dataset_dir=files_only, store_dir=tmp_path / "mine")[given]
    assert fwi(*words, f"--{given.replace('_', '-')}", place).code == 0
    assert (place / "val" / "manifest.json").exists() and not planted.exists()


def test_results_are_not_written_through_a_link_in_a_run(refused, mini, tmp_path):
    pristine(mini, tmp_path / "run")
    (tmp_path / "outside").mkdir()
    link = tmp_path / "run" / "evaluation"
    link.symlink_to(tmp_path / "outside")
    refused("invert", tmp_path / "run", "--records", 1, "--nfe", 1, saying=("link inside a run", "--out"))
    link.unlink(), link.mkdir()
    (link / "card.json").write_text("{}")  # so that the next card goes into a folder of its own
    (link / "starts-linear,misfit-records-1,records-2").symlink_to(tmp_path / "outside")
    few = ("--records", 2, "--misfit-records", 1, "--starts", "linear")
    refused("evaluate", tmp_path / "run", *few, saying=("link inside a run", "--out"))
    assert everything(tmp_path / "outside") == []


@pytest.mark.parametrize("mark", ["pipeline.json", "ensemble.json"])
def test_a_link_below_a_pipeline_or_an_ensemble_is_no_place_for_results(tmp_path, mark):
    (tmp_path / "one").mkdir(), (tmp_path / "outside").mkdir()
    (tmp_path / "one" / mark).write_text("{}")
    (tmp_path / "one" / "evaluation").symlink_to(tmp_path / "outside")
    (tmp_path / "named").symlink_to(tmp_path / "one")
    for below in ("evaluation", "evaluation/deep/down"):
        with pytest.raises(InputError, match="link inside a run"): check_writable(tmp_path / "one" / below)
    check_writable(tmp_path / "named" / "results")  # the user's own link


def test_trackers_may_link_to_their_own_files(tmp_path):
    place = tmp_path / "logs" / "wandb"
    (place / "run-1").mkdir(parents=True)
    (place / "latest-run").symlink_to("run-1")
    check_links(tmp_path)
    (place / "run-2").symlink_to(tmp_path)
    with pytest.raises(InputError, match="logs/wandb/run-2"): check_links(tmp_path)


def test_a_name_that_was_guessed_is_not_written_to(tmp_path):
    (tmp_path / "victim").write_text("precious")
    for name in ("card.json.part", ".card.json.part"): (tmp_path / name).symlink_to(tmp_path / "victim")
    write_text(tmp_path / "card.json", "{}")
    os.link(tmp_path / "victim", tmp_path / "table.md")
    write_text(tmp_path / "table.md", "new")
    assert (tmp_path / "victim").read_text() == "precious"


# processes that read, and signals

def test_reading_processes_work_from_standard_input_and_in_a_job_with_a_long_name(data, tmp_path):
    scratch = tmp_path / ("scratch_" * 14)
    scratch.mkdir()
    code = f"""
        from pathlib import Path
        from fwi_i2sb import cli
        cli.main(["train", *{arguments(data, tmp_path, "piped", "--num-itr", 1, "--loader-workers", 1)!r}])
    """
    done = python([sys.executable, "-"], input=textwrap.dedent(code),
        env=os.environ | dict(TMPDIR=str(scratch), OMP_NUM_THREADS="1"), cwd=tmp_path)
    assert done.returncode == 0 and checkpoints(tmp_path / "piped"), done.stderr


@pytest.mark.parametrize("how", ["script", "standard input"])
def test_a_plain_script_converts_with_several_processes(tmp_path, how):
    small_files(tmp_path / "FlatVel_A", [(f"data/data{k}.npy", f"model/model{k}.npy") for k in (1, 49)])
    code = ("from fwi_i2sb.data.store import convert\nfrom fwi_i2sb.physics.wave import surface_survey\n"
        "print('begun')\n"
        "convert('FlatVel_A', 'FlatVel_A', survey=surface_survey(4, 2, nt=8), time_samples=8, workers=2)\n")
    (tmp_path / "plain.py").write_text(code)
    done = subprocess.run([sys.executable, "plain.py" if how == "script" else "-"], cwd=tmp_path, timeout=PATIENCE,
        input=code if how != "script" else "", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "begun\n", done.stderr
    assert (tmp_path / "FlatVel_A" / "val" / "manifest.json").exists()


class Unsendable:
    "Stands for what a reading process cannot hand over."
    def __len__(self): return 4
    def __getitem__(self, i): return lambda: i


def same(batch): return batch


def start(worker): end_on_failure()


def test_a_reader_that_cannot_hand_over_ends_the_wait(capfd):
    began = time.monotonic()
    loader = DataLoader(Unsendable(), 1, num_workers=1, collate_fn=same, worker_init_fn=start,
        multiprocessing_context="spawn")
    with pytest.raises(RuntimeError, match="DataLoader worker"): list(read_ahead(loader))
    assert "cannot hand over" in capfd.readouterr().err and time.monotonic() - began < 60


class Spoilt:
    "Stands for what cannot be read."
    def __init__(self, error): self.error = error
    def __len__(self): return 4
    def __getitem__(self, i): raise self.error


def test_a_reader_says_what_it_could_not_read_and_the_end_of_the_others_does_not_hide_it(monkeypatch):
    loader = lambda error=None: DataLoader(Spoilt(error), 1, num_workers=2, multiprocessing_context="spawn")
    for error, words in ((InputError("record 3 is gone: convert again"), "record 3 is gone: convert again"),
            (saying(errno.EIO), "[Errno 5] Input/output error")):
        with pytest.raises(type(error)) as raised:
            try: list(read_ahead(loader(error)))
            finally: time.sleep(0.3)  # a signal handler may raise anywhere
        assert str(raised.value) == words
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "_try_get_data", lambda *given, **named:
        exec('raise RuntimeError("Too many open files. Communication with the workers is no longer possible.")'))
    with pytest.raises(ChildProcessError, match="ulimit -n"):
        try: list(read_ahead(loader()))
        finally: time.sleep(0.3)


def test_processes_that_cannot_start_are_one_sentence(monkeypatch):
    said, start = [], BaseProcess.start
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    for possible in (0, 1):  # the limit of processes is reached at the first, or at the second
        room, others = [None] * possible, {*multiprocessing.active_children()}
        monkeypatch.setattr(BaseProcess, "start", failing(errno.EAGAIN, lambda process: not room or room.pop(), start))
        with pytest.raises(ChildProcessError, match="cannot start .*temporarily"):
            list(read_ahead(DataLoader(Unsendable(), 1, num_workers=2, multiprocessing_context="spawn")))
        gc.collect()
        assert not said and {*multiprocessing.active_children()} == others


def test_a_signal_ends_a_training_whose_batch_does_not_come(monkeypatch):
    monkeypatch.setattr("fwi_i2sb.training.watch.PATIENCE", 0.5)
    waiting = [time.monotonic()]
    with pytest.raises(KeyboardInterrupt), stop_signal(waiting) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped() == signal.SIGTERM
        time.sleep(60)


@pytest.mark.parametrize("library", ["numpy", "torch"])  # with the list of commands, with a command
def test_ctrl_c_while_libraries_are_loaded_ends_without_a_word(tmp_path, library):
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(f"""
        import builtins, os, signal, sys
        real = builtins.__import__
        def look(name, *rest, **named):
            if name == {library!r} and name not in sys.modules: os.kill(os.getpid(), signal.SIGINT)
            return real(name, *rest, **named)
        builtins.__import__ = look
        signal.signal(signal.SIGINT, signal.default_int_handler)
        """))
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), str(Path(files.__file__).parents[2])]))
    done = subprocess.run([sys.executable, "-m", "fwi_i2sb", "models"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_help_without_docstrings():
    done = subprocess.run([sys.executable, "-OO", "-m", "fwi_i2sb", "train", "--help"], capture_output=True, text=True,
        env=os.environ | dict(PYTHONPATH=str(Path(files.__file__).parents[2])))
    said = " ".join(done.stdout.split())
    assert done.returncode == 0 and "--dataset-dir PATH" in said and "] --preset small" in said


# launchers

def test_who_waits_for_others_says_so_and_a_signal_ends_it(capsys):
    ranks = Ranks(0, 3, port=free_port(), told_by="Slurm's variables")
    with environment(rank_variables(ranks)):
        with pytest.raises(ChildProcessError, match="not all 3"): join(ranks, patience=1.5, silence=0.2)
        assert "waiting for 2 of 3 processes" in (told := capsys.readouterr().err) and "Slurm's variables" in told
        ranks = Ranks(1, 2, port=free_port())
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt): join(ranks, silence=0.1)
        signal.signal(signal.SIGALRM, before)
        assert "waiting for process 0" in capsys.readouterr().err


OPEN_MPI = dict(OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_LOCAL_RANK="0",
    OMPI_COMM_WORLD_LOCAL_SIZE="2")  # mpirun -np 2 on one host
MPICH = dict(PMI_RANK="2", PMI_SIZE="3", MPI_LOCALRANKID="2", MPI_LOCALNRANKS="3")


@pytest.mark.parametrize("flags, env, words", [
    (dict(num_proc_node=3, node_rank=2), MPICH, ("--num-proc-node 3", "MPICH started 3 processes")),
    (dict(num_proc_node=2, node_rank=0), OPEN_MPI, ("--num-proc-node 2", "Open MPI started 2 processes, 2 of them on")),
    (dict(num_proc_node=2), MPICH | dict(MPI_LOCALRANKID="0", MPI_LOCALNRANKS="1"), ("--num-proc-node 2",)),
    ({}, dict(RANK="1", WORLD_SIZE="4"), ("RANK=1 and WORLD_SIZE=4", "MASTER_ADDR", "unset")),
    ({}, MPICH | dict(RANK="0", WORLD_SIZE="1"), ("RANK=0", "MPICH says process 2 of 3", "unset")),
    ({}, dict(RANK="0", WORLD_SIZE="2", MASTER_ADDR="10.0.0.1", MASTER_PORT="70000"), ("MASTER_PORT=70000",))])
def test_flags_and_variables_that_contradict_each_other(flags, env, words):
    with pytest.raises(InputError) as error: find_ranks(DeviceOptions(device="cpu", **flags), env)
    for word in words: assert word in str(error.value)


@pytest.mark.parametrize("env, word", [(dict(WORLD_SIZE="8"), "WORLD_SIZE=8 is ignored"),
    (dict(OMPI_COMM_WORLD_RANK="1"), "OMPI_COMM_WORLD_RANK=1 is ignored"),
    (dict(SLURM_NTASKS="4", SLURM_PROCID="0"), "srun did not start")])
def test_what_an_earlier_command_left_is_named_and_ignored(env, word):
    with pytest.warns(UserWarning, match=word): assert find_ranks(DeviceOptions(device="cpu"), env) == Ranks()


@pytest.mark.parametrize("env", [dict(OMPI_COMM_WORLD_SIZE="2"), dict(PMI_SIZE="3"), dict(MV2_COMM_WORLD_SIZE="2"),
    dict(LOCAL_RANK="first"), dict(WORLD_SIZE="4", LOCAL_RANK="1")], ids=str)
def test_half_of_a_launchers_variables_starts_no_group(tmp_path, monkeypatch, env):
    for name, value in env.items(): monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_accelerator(DeviceOptions(device="cpu"), tmp_path) as (accelerator, peers):
            assert accelerator.num_processes == 1 and peers.store is None
    assert {name: os.environ[name] for name in env} == env


# paths

def test_the_home_directory_is_meant_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = parse(TrainOptions, ["--result-dir=~/runs", "--ckpt=~/old", "--dataset-dir", "~/data", "--dataset-name",
        "Style_A"])
    assert (options.run.result_dir, options.run.ckpt, options.data.dataset_dir) == (tmp_path / "runs",
        tmp_path / "old", tmp_path / "data")
    np.save(tmp_path / "map.npy", np.ones((2, 2)))
    assert open_npy("~/map.npy").shape == (2, 2)
    with pytest.raises(InputError, match="~nobody_of_that_name"): RunOptions("~nobody_of_that_name/runs")


@pytest.mark.parametrize("words", [["experiment"], ["check"], ["serve"], ["convert", "data", "--store-dir"],
    ["models", "--import"]], ids=" ".join)
def test_a_link_that_leads_to_itself_is_refused(refused, tmp_path, words):
    (tmp_path / "loop").symlink_to("loop")
    refused(*words, tmp_path / "loop", saying=("loop is a link that leads to itself",))


@pytest.mark.parametrize("words, option", [(["invert", "run", "--out"], "--out"),
    (["check", "data", "--json"], "--json"),
    (["prepare", "x.npz", "--out="], "--out"), (["evaluate-targets", "run", "--data"], "--data"),
    (["generate"], "an argument"), (["predict", "run", "x.npz", "--out", "y.npz", "--also"], "--also")])
def test_a_path_without_a_name_is_no_working_folder(refused, tmp_path, monkeypatch, words, option):
    monkeypatch.chdir(tmp_path)
    words = words if words[-1].endswith("=") else [*words, ""]
    refused(*words, saying=(f"{option} must be the name of a file or a folder (got '')",))
    assert everything(tmp_path) == []


@pytest.mark.parametrize("words", [["invert", "run", "--record"], ["convert", "data", "--accept", "--workers", "1"],
    ["evaluate", "run", "--starts", "--nfe", "1"], ["hpo", "--models"],
    ["predict", "run", "x.npz", "--out", "y", "--also"], ["prepare", "x.npz", "--out", "y", "--units"]], ids=" ".join)
def test_a_list_without_a_value_is_refused(refused, words):
    [flag] = {"--record", "--accept", "--starts", "--models", "--also", "--units"} & {*words}
    refused(*words, saying=(f"{flag} needs a value",))


def test_a_name_that_libraries_cannot_open_is_refused(refused, mini, data, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    pristine(data / "val", os.path.join(odd, "val"))
    for words in (["check", odd], ["convert", data, "--family", "CurveVel_A", "--store-dir", odd],
            ["train", *arguments(data, odd, "one")], ["invert", mini, "--out", odd],
            ["generate", odd, "--family", "FlatVel_A"]):
        refused(*words, saying=("not UTF-8",))
    assert everything(tmp_path) == [os.fsdecode(b"caf\xe9" + tail) for tail in (b"", b"/val", b"/val/database.lmdb",
        b"/val/manifest.json", b"/val/sources.json")]


def test_files_of_ones_own_in_the_working_folder_are_not_libraries(tmp_path):
    for name in ("random", "json", "torch"): (tmp_path / f"{name}.py").write_text("raise SystemExit('mine')")
    env = os.environ | dict(PYTHONPATH=str(Path(files.__file__).parents[2]), MPLBACKEND="brush")
    for words, err in ((["check", "nothing"], "error: there is no folder nothing\n"), (["invert", "nothing"],
            "error: MPLBACKEND=brush is no backend of matplotlib: unset it\n")):
        done = subprocess.run([sys.executable, "-m", "fwi_i2sb", *words], cwd=tmp_path, env=env, capture_output=True,
            text=True)
        assert (done.returncode, done.stderr) == (2, err)


@pytest.mark.parametrize("words", ["-m fwi_i2sb", "-c 'from fwi_i2sb.__main__ import main; main()'"])
def test_a_working_folder_that_is_gone_is_one_sentence(tmp_path, words):
    (tmp_path / "gone").mkdir()
    command = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {sys.executable} {words} check data"
    env = os.environ | dict(PYTHONPATH=str(Path(files.__file__).parents[2]))
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: the working folder has been removed: cd to another\n")


def test_numbers_that_a_disk_does_not_take_are_told_as_a_full_disk(tmp_path, capsys):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with Spool(tmp_path) as spool, pytest.raises(OSError) as error: spool.add(mean=torch.zeros(4, 1000))
        with pytest.raises(SystemExit) as stop, exit_codes(): np.save(tmp_path / "map.npy", np.zeros(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert error.value.errno == errno.EFBIG and stop.value.code == 2
    assert capsys.readouterr().err == "error: the disk is full\n"


def test_a_run_is_read_and_continued_from_other_folders(mini, tmp_path, monkeypatch):
    options, spec = read_config(mini)
    monkeypatch.chdir(tmp_path)
    relative = TrainOptions(RunOptions("runs"), DataOptions("data", "CurveVel_A", store_dir="store"))
    write_config(tmp_path / "run", relative, spec)
    write_config(tmp_path / "old", options, spec)
    monkeypatch.chdir("/")
    stored = read_config(tmp_path / "run")[0]
    assert (stored.data.dataset_dir, stored.data.store_dir) == (tmp_path / "data", tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    assert first_difference(stored, relative) is first_difference(relative, relative) is None


def test_data_that_are_gone_are_asked_for(refused, mini, tmp_path):
    pristine(mini, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["dataset_dir"] = "once/CurveVel_A"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    refused("invert", tmp_path / "run", "--records", 1, "--out", tmp_path / "out",
        saying=("once/CurveVel_A", "--dataset-dir"))
    assert not (tmp_path / "out").exists()


def small_files(folder, names):
    "Files with headers that fit, as pairs of a seismic and a velocity file."
    for seismic, velocity in names:
        for name, shape in ((seismic, (2, 2, 8, 4)), (velocity, (2, 1, 4, 4))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(folder / name, np.linspace(1500, 4500, np.prod(shape), dtype=np.float32).reshape(shape))
    return folder


@pytest.mark.parametrize("names, trap", [
    ([("seis2_1_0.npy", "vel2_1_0.npy"), ("seis2_1_33.npy", "vel2_1_33.npy")], "._seis2_1_0.npy"),
    ([("train/data/a.npy", "train/model/a.npy"), ("val/data/b.npy", "val/model/b.npy")], "train/model/.~a.npy")])
def test_files_that_another_system_left_are_passed_over(tmp_path, names, trap):
    root = small_files(tmp_path / "CurveFault_A", names)
    (root / trap).write_bytes(bytes(64))
    assert [pair.seismic.name for pair in discover(root, "CurveFault_A", split="train")] == [Path(names[0][0]).name]


@pytest.mark.parametrize("name", ["flatfault-b", "FlatFault-B", "train_samples/FLATFAULT_B"])
def test_a_family_is_found_in_every_spelling_of_its_folder(tmp_path, name):
    small_files(tmp_path / name, [("seis6_1_0.npy", "vel6_1_0.npy")])
    assert find_root(tmp_path, "FlatFault_B") == tmp_path / name
    with pytest.raises(InputError, match="holds FlatFault_B, not FlatFault_A"):
        find_root(tmp_path / name, "FlatFault_A")


@pytest.mark.parametrize("half", ["data", "model"])
def test_half_of_a_data_set_names_the_whole(refused, tmp_path, half):
    folder = small_files(tmp_path / "FlatFault_A", [("data/data1.npy", "model/model1.npy")]) / half
    for words in (("check", folder), ("check", folder, "--family", "FlatFault_A"),
            ("convert", folder, "--family", "FlatFault_A"), ("train", *arguments(folder, tmp_path / "runs", "half"))):
        assert refused(*words).endswith(f"one half of a data set: name the folder above it, {tmp_path / 'FlatFault_A'}")
    assert not (tmp_path / "runs").exists()


def test_a_folder_called_data_beside_one_called_model_is_no_half(tmp_path):
    (tmp_path / "model").mkdir()
    whole = small_files(tmp_path / "data" / "FlatFault_A", [("data/data1.npy", "model/model1.npy")])
    assert find_root(tmp_path / "data", "FlatFault_A") == whole
    flat = small_files(tmp_path / "data", [("data7.npy", "model7.npy")])
    assert find_root(flat, "FlatFault_A") == flat


@pytest.mark.parametrize("name, content, saying", [("data1.NPY", b"", ".npy file of another name"),
    ("data1.npy.gz", b"\x1f\x8b\x08" + bytes(60), "packed with gzip, and data1.npy is wanted: gunzip data1.npy.gz"),
    ("data1.mat", b"MATLAB 5.0 MAT-file" + bytes(200), "a MATLAB file, and data1.npy is wanted")])
def test_records_of_another_kind_in_a_data_set_are_named(refused, tmp_path, name, content, saying):
    for place in ("CurveVel_A", "CurveVel_B/val"):
        for half in ("data", "model"): (tmp_path / place / half).mkdir(parents=True)
        file = tmp_path / place / "data" / name
        if content: file.write_bytes(content)
        else:
            with open(file, "wb") as opened: np.save(opened, np.zeros((1, 5, 1000, 70), np.float32))
        root = tmp_path / place.partition("/")[0]
        refused("convert", root, "--family", root.name, saying=(f"data/{name}", saying))
    refused("train", *arguments(tmp_path / "CurveVel_A", tmp_path / "runs", "none"), saying=(saying,))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name, content, kind, why", [
    ("rec.sgy", 300 * b"\x01\xf0", "SEG-Y file", "it has 600 bytes, and its headers alone have 3600"),
    ("rec.SEGY", 9999 * b"\x01\xf0", "SEG-Y file", "the numbers in its first 3600 bytes fit no traces"),
    ("rec.su", 999 * b"\x01\xf0", "Seismic Unix file", "the first 240 bytes are no header of traces"),
    ("rec.npz", b"PK\3\4" + bytes(99), ".npz archive", "its list of arrays cannot be read"),
    ("rec.mat", bytes(999), "MATLAB file", "it begins neither as MATLAB 5 nor as HDF5"),
    ("rec.h5", b"no numbers", "HDF5 file", "it is text"), ("rec.nc", b"", "NetCDF file", "it is empty")])
def test_a_file_that_is_not_what_its_name_says_is_told_so(refused, tmp_path, name, content, kind, why):
    (tmp_path / name).write_bytes(content)
    for words in (["check"], ["prepare", "--out", tmp_path / "out"]):
        refused(*words, tmp_path / name, saying=(f"{name} is not the {kind} that its name promises ({why}",))
    assert not (tmp_path / "out").exists()


def test_runs_and_splits_are_no_data_sets_and_nothing_is_made_in_a_run(refused, mini, data, tmp_path):
    pristine(mini, run := tmp_path / "run")
    np.savez(tmp_path / "waves.npz", x=np.zeros((4, 8)), y=np.ones((4, 2)))
    before = everything(tmp_path)
    family, one = ("--family", "CurveVel_A"), ("--train", 1)
    for words in (("convert", run), ("convert", run, *family), ("convert", data, *family, "--store-dir", run),
            ("train", *arguments(run, tmp_path / "runs", "of-a-run")), ("check", run),
            ("generate", run, *family, *one, "--val", 1),
            ("generate", run, "--layout", "speed-structure", *one), ("prepare", tmp_path / "waves.npz", "--out", run),
            ("demo", "--out", run), ("demo-train", "--out", run)):
        refused(*words, saying=("is a trained run",))
    split = data / "train"
    for words in (("convert", split), ("convert", split, *family),
            ("train", *arguments(split, tmp_path / "runs", "of-a-split"))):
        refused(*words, saying=("one split of a store", f"above it, {data}"))
    refused("train-pipeline", "--out", tmp_path / "pipe", "--dataset-dir", tmp_path / "waves.npz", "--dataset-name",
        "CurveVel_A", saying=("is the store of waves, not of CurveVel_A", "--dataset-name"))
    train = ("train", *arguments(data, tmp_path / "runs", "from"))
    refused(*train, "--ckpt", data, saying=("and a run, or a checkpoint of one, is wanted",))
    refused(*train, "--fine-tune", tmp_path / "waves.npz", saying=("a .npz archive", "and a run, or a checkpoint of"))
    assert everything(tmp_path) == before


def test_a_pipe_is_no_record_and_no_place_for_a_report(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused("check", tmp_path / "pipe", saying=("is a pipe or a device",))
    refused("models", "--json", tmp_path / "pipe", saying=("is a pipe or a device",))
    with pytest.raises(InputError, match="pipe or a device"): write_text(tmp_path / "pipe", "text")
    assert everything(tmp_path) == ["pipe"] and (tmp_path / "pipe").is_fifo()


# files and numbers that would take all there is

def test_what_is_no_file_or_does_not_fit_is_not_read(refused, mini, tmp_path):
    for name in ("pipe.npy", "queue.npy"): os.mkfifo(tmp_path / name)
    for name, axes in (("long.npy", (10**6, 1000, 70)), ("wide.npy", (2, 5, 10**6, 7000))):
        np.lib.format.open_memmap(tmp_path / name, "w+", "u1", axes)
        refused("check", tmp_path / name, saying=(name, "GB of memory"))
        refused("invert", mini, "--record", tmp_path / name, "--out", tmp_path / "out",
            saying=("the run was trained on",))
    huge = np.lib.format.open_memmap(tmp_path / "huge.npy", "w+", "u1", (2 * 10**5, 5, 1000, 70))
    maps = np.lib.format.open_memmap(tmp_path / "maps.npy", "w+", "f8", (10**7, 70, 70))
    del huge, maps
    for option, name, reason in (("--record", "pipe.npy", "pipe or a device"),
            ("--start", "queue.npy", "pipe or a device"), ("--record", "huge.npy", "is all zeros"),
            ("--start", "maps.npy", "10000000 starting models")):
        more = () if option == "--record" else ("--records", 1)
        refused("invert", mini, "--nfe", 1, option, tmp_path / name, "--out", tmp_path / "out", *more, saying=(reason,))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "checkpoints/step-60/state.json",
    "checkpoints/step-60/ema.safetensors"])
def test_a_pipe_in_a_run_is_not_waited_for(refused, mini, tmp_path, name):
    pristine(mini, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    os.mkfifo(tmp_path / "run" / name)
    refused("invert", tmp_path / "run", "--records", 1, "--nfe", 1, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["database.lmdb", "manifest.json"])
def test_a_pipe_in_a_store_is_not_waited_for(refused, data, tmp_path, name):
    store = tmp_path / "store" / "CurveVel_A"
    pristine(data, store)
    (store / "train" / name).unlink()
    os.mkfifo(store / "train" / name)
    refused("train", *arguments(store, tmp_path / "runs", "piped"), saying=("pipe or a device",))
    assert not (tmp_path / "runs").exists()


def test_a_pipe_in_place_of_the_log_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(InputError, match="pipe or a device"): read_metrics(tmp_path)


def test_a_pipe_is_no_grid(refused, tmp_path):
    os.mkfifo(tmp_path / "grid.yaml")
    refused("experiment", tmp_path / "grid.yaml", saying=("pipe or a device",))


@pytest.mark.parametrize("option, value", [("--interval", 10**12), ("--image-size", 4096), ("--seed", 2**63),
    ("--seed", 10**25), ("--batch-size", 2**40), ("--num-itr", 10**10), ("--loader-workers", 10**4),
    ("--beta-max", 1e30), ("--t0", 1e200), ("--base-noise", 1e38), ("--cond-weight", 1e300), ("--keep", 10**18),
    ("--lr", 1e300), ("--num-proc-node", 10**7), ("--corrupt", "blur-openfwi_benchmark:5000"),
    ("--corrupt", "linear:1e300,blur-openfwi_benchmark:8:1")])
def test_numbers_without_an_end_are_refused_and_leave_nothing(refused, data, tmp_path, option, value):
    refused("train", *arguments(data, tmp_path / "runs", "huge", option, value))
    assert everything(tmp_path) == []


HUGE = {
    "evaluate": ("--snr", "--missing-shots", "--missing-traces", "--freq", "--records", "--samples", "--nfe", "--w",
        "--eta", "--seed", "--misfit-records", "--fwi-records", "--batch-size"),
    "invert": ("--dt", "--dx", "--fwi-iterations"),
    "demo": ("--records", "--seed"),
    "demo-train": ("--train", "--val", "--steps", "--batch-size", "--records", "--samples", "--nfe", "--seed"),
    "bench": ("--rounds",), "experiment": ("--jobs", "--minutes", "--cpus", "--gpus", "--mem-gb")}


@pytest.mark.parametrize("command", HUGE)
def test_no_number_of_a_command_is_without_an_end(refused, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    place = [] if command in ("demo", "demo-train", "bench") else [tmp_path / "nothing"]
    for flag in HUGE[command]:
        for value in (10**20, -10**20): refused(command, *place, f"{flag}={value}", saying=(f"{flag} must be",))
    assert everything(tmp_path) == []


@pytest.mark.parametrize("command, flag, usual", [("generate", "--shape", 70), ("generate", "--layers", 3),
    *((command, "--velocity-range", 1500) for command in ("generate", "check", "convert"))])
def test_no_pair_of_numbers_is_without_an_end(refused, tmp_path, command, flag, usual):
    for value in (10**20, -10**20):
        for pair in ((usual, value), (value, usual)):
            refused(command, tmp_path / "nothing", flag, *pair, saying=(f"{flag} must be",))
    assert everything(tmp_path) == []


@pytest.mark.parametrize("layout", [("--family", "CurveVel_A", "--val", 1),
    ("--layout", "speed-structure", "--test", 1)])
def test_maps_that_do_not_fit_into_memory_are_refused_before_they_are_drawn(refused, tmp_path, layout):
    refused("generate", tmp_path / "new", *layout, "--train", 1, "--shape", 10**5, 10**5,
        saying=("maps of 100000 x 100000 cells", "GB of memory"))
    assert everything(tmp_path) == []


@pytest.mark.parametrize("option", ["--loss", "--optimizer", "--scheduler", "--lr-schedule"])
def test_an_empty_name_is_none_of_those_that_exist(refused, data, tmp_path, option):
    name = dict(loss="mae", optimizer="adamw").get(option[2:], "cosine")
    refused("train", *arguments(data, tmp_path / "runs", "empty", f"{option}="), saying=(name,))
    refused("train", *arguments(data, tmp_path / "runs", "empty", option, ""), saying=(name,))
    assert everything(tmp_path) == []


def test_a_line_of_the_log_that_suffered_is_passed_over(tmp_path):
    lines = ['{"step": 1, "loss": 1.0}', '{"stfp": 2}', "3", "null", '{"step": "4"}', '{"step": true}', "[" * 9999, "{",
        '{"step": 5, "val_mae": "x1"}', '{"step": 6, "val_mae": [1.0]}', '{"step": 7, "loss": true}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9}', ""]))
    with pytest.warns(UserWarning, match="passed over") as told:
        assert [row["step"] for row in read_metrics(tmp_path)] == [1, 9]
    assert len(told) == 1


def test_a_report_that_cannot_be_written_is_refused_before_the_work(refused, data, tmp_path, monkeypatch):
    monkeypatch.setattr("fwi_i2sb.data.command.inspect_folder", lambda *given, **named: pytest.fail("work has begun"))
    refused("check", data, "--json", tmp_path, saying=("is a folder", "--json"))
    refused("models", "--json", "", saying=("--json",))


@pytest.mark.parametrize("words", [["check", "data"], ["models"], ["bench", "data"]], ids=" ".join)
def test_a_report_does_not_take_the_place_of_a_record(fwi, refused, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    np.save("record.npy", np.zeros(3))
    before = Path("record.npy").read_bytes()
    refused(*words, "--json", "record.npy", saying=("record.npy is there already", "--json"))
    assert Path("record.npy").read_bytes() == before
    if words == ["models"]:
        for _ in range(2): assert fwi(*words, "--json", "new/models.json").code == 0  # it may that of a former one
        assert read_json(Path("new/models.json"))[0]["name"] == "tiny"


@pytest.fixture(scope="module")
def giant(tmp_path_factory):
    "A sparse record that no memory holds."
    path = tmp_path_factory.mktemp("giant") / "data1.npy"
    np.lib.format.open_memmap(path, "w+", "u1", (4, 10**6, 1000, 70))
    return path


def test_a_record_that_no_memory_holds_is_refused_before_it_is_read(refused, mini, tmp_path, giant):
    refused("check", giant, saying=("a record of shape (1000000, 1000, 70) in", "are free"))
    for option in ("--record", "--start"):
        refused("invert", mini, option, giant, "--out", tmp_path, saying=("has shape (", "1000000, 1000, 70)"))
    for number in (1, 49):
        for kind in ("data", "model"): (tmp_path / kind).mkdir(exist_ok=True)
        os.link(giant, tmp_path / "data" / f"data{number}.npy")
        np.save(tmp_path / "model" / f"model{number}.npy", np.full((4, 1, 70, 70), 2000, np.float32))
    for command in ("check", "convert"):
        refused(command, tmp_path, "--family", "CurveVel_A", saying=("a record of shape (1000000, 1000, 70) in",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model"]


def test_an_array_that_no_memory_holds_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as end, exit_codes(): np.empty((10**6, 10**6, 10**3))
    said = capsys.readouterr().err
    assert end.value.code == 2 and "leaves of it, ran out when 7.11 PiB more were asked for" in said
