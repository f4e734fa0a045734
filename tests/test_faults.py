"Faults around a training: signals, a full disk, a disk that does not answer, ranks that disagree, two commands."
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from forkserver import start
from processes import (MPIRUN, PATIENCE, arguments, assert_equal, children, finish, free_port, losses, pristine,
    python_train, wait_for, weights)

from torch.utils.data import DataLoader

from fwi_i2sb.core.workers import lost_reader, read_ahead
from fwi_i2sb.evaluation import evaluate as evaluate_module
from fwi_i2sb.inference import kept as invert_kept
from fwi_i2sb.training import checkpoint as checkpoint_module
from fwi_i2sb.training.checkpoint import checkpoints
from fwi_i2sb.training.run_dir import read_config, write_config

LONG = ["--num-itr", 10**6, "--save-every", 10**6, "--val-every", 10**6]


def logged(run, count=1): return lambda: len(losses(run)) >= count


def test_a_signal_to_the_whole_group_saves_though_processes_read_ahead(data, tmp_path):
    process = python_train(*arguments(data, tmp_path, "group", *LONG, "--loader-workers", 2), start_new_session=True)
    wait_for(logged(tmp_path / "group"), process)
    os.killpg(process.pid, signal.SIGTERM)
    assert "terminate called" not in finish(process, 128 + signal.SIGTERM)
    assert checkpoints(tmp_path / "group")


def test_a_killed_reader_is_one_sentence(data, tmp_path):
    process = python_train(*arguments(data, tmp_path, "reader", *LONG, "--loader-workers", 1))
    wait_for(logged(tmp_path / "reader"), process)
    children(process)[0].kill()
    err = finish(process, 1)
    assert "a reading process was lost" in err and "Traceback" not in err


class Tensors:
    "Records that are handed over in shared memory."
    def __len__(self): return 100
    def __getitem__(self, i): return torch.full((100_000,), float(i))


def test_readers_end_with_a_training_that_is_killed_while_they_start(data, tmp_path):
    process = python_train(*arguments(data, tmp_path, "orphans", *LONG, "--loader-workers", 2))
    wait_for(lambda: len(children(process)) == 2, process)
    readers = children(process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not psutil.wait_procs(readers, timeout=PATIENCE)[1]


def test_a_reader_that_ends_while_it_hands_over_is_one_sentence(monkeypatch):
    others = set(children(psutil.Process()))
    batches = read_ahead(DataLoader(Tensors(), 2, num_workers=1, multiprocessing_context="spawn"))
    next(batches)
    time.sleep(1)  # the next ones lie in the queue: what they hold is fetched from their reader
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the socket may close before the signal arrives
    try:
        reader, = {*children(psutil.Process())} - others
        reader.kill(), reader.wait()
        with pytest.raises(ChildProcessError, match="a reading process was lost"): list(batches)
    finally: signal.signal(signal.SIGCHLD, before)


class Wrong(Tensors):
    "A class of one's own with a fault."
    def __getitem__(self, i): raise RuntimeError("shapes do not match")


def test_a_fault_in_a_reader_is_not_called_a_lost_one():
    with pytest.raises(RuntimeError, match="shapes do not match") as told:
        list(read_ahead(DataLoader(Wrong(), 2, num_workers=1, multiprocessing_context="spawn")))
    assert lost_reader(told.value) is None


def test_a_killed_preparing_process_is_one_sentence_and_the_conversion_goes_on(data, tmp_path):
    words = [sys.executable, "-m", "fwi_i2sb", "convert", data, "--family", "CurveVel_A", "--store-dir", tmp_path,
        "--workers", "1"]
    process = start(words, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: children(process), process)
    children(process)[0].kill()
    err = finish(process, 1)
    assert "a reading process was lost" in err and "fewer --workers" in err and "Traceback" not in err
    finish(start(words))


def test_mpirun_passes_sigusr1_on_and_the_ranks_save(data, tmp_path):
    process = python_train(*arguments(data, tmp_path, "usr1", *LONG, "--master-port", free_port()),
        launcher=[*MPIRUN, "-np", "2"])
    wait_for(logged(tmp_path / "usr1"), process)
    process.send_signal(signal.SIGUSR1)
    finish(process, 128 + signal.SIGUSR1)
    assert checkpoints(tmp_path / "usr1")


@pytest.mark.parametrize("started", [1, 2])
def test_a_signal_while_processes_start_counts_as_one(data, tmp_path, started):
    process = python_train(*arguments(data, tmp_path, "early", *LONG, "--proc-per-node", 2, "--master-port",
        free_port()))
    wait_for(lambda: len(children(process)) >= started, process)
    process.send_signal(signal.SIGTERM)
    assert "Traceback" not in finish(process, 128 + signal.SIGTERM)


def test_a_full_disk_at_a_checkpoint_is_one_sentence_and_the_one_before_stays(data, four, tmp_path):
    words = arguments(data, tmp_path, "four", "--num-itr", 4, "--save-every", 2)
    pristine(four, tmp_path / "four")
    shutil.rmtree(tmp_path / "four" / "checkpoints" / "step-4")
    # the disk fills up during the training: one that is too small from the beginning is refused
    process = python_train(*words, "--num-itr", "1000000", "--save-every", "60")
    wait_for(logged(tmp_path / "four", 5), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    err = finish(process, 2)
    assert "error: cannot write checkpoint" in err and "free disk space" in err and "Traceback" not in err
    assert [p.name for p in (tmp_path / "four" / "checkpoints").iterdir()] == ["step-2"]
    finish(python_train(*words))
    assert_equal(weights(tmp_path / "four"), weights(four))


def test_a_disk_that_does_not_answer_costs_no_checkpoint(fwi, data, four, tmp_path, monkeypatch):
    pristine(four, tmp_path / "four")
    def broken(path): raise OSError(errno.EIO, "Input/output error", str(path))
    monkeypatch.setattr(checkpoint_module, "sha256", broken)
    outcome = fwi("train", *arguments(data, tmp_path, "four", "--num-itr", 6, "--save-every", 2))
    assert outcome.code == 2 and "Input/output error" in outcome.err
    assert [p.name for p in checkpoints(tmp_path / "four")] == ["step-4", "step-2"]


def test_another_processor_and_a_damaged_log_do_not_stop_a_run(fwi, data, four, tmp_path):
    run = tmp_path / "four"
    pristine(four, run)
    options, spec = read_config(run)
    write_config(run, options, replace(spec, linear=tuple(v * (1 + 1e-12) for v in spec.linear)))
    with open(run / "metrics.jsonl", "ab") as file: file.write(b"\0\0\xff{\n")
    assert fwi("train", *arguments(data, tmp_path, "four", "--num-itr", 5)).code == 0
    assert len(losses(run)) == 5


def test_a_disk_that_gives_something_else_back_ends_invert_but_not_evaluate(fwi, refused, mini, tmp_path, monkeypatch):
    def cutting(write):
        def cut(path, *given): write(path, *given); os.truncate(path, path.stat().st_size // 2)
        return cut
    monkeypatch.setattr(invert_kept, "keep_batch", cutting(invert_kept.keep_batch))
    monkeypatch.setattr(evaluate_module, "write_tallies", cutting(evaluate_module.write_tallies))
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match="batch-000000.npz is damaged"):
        refused("invert", mini, "--records", 2, "--out", out, saying=("does not give back what was written to it",))
    assert not [*out.glob("*.npz"), *out.glob("*.png")]
    # one process judges all batches and has their tallies still
    quick = ("--samples", 1, "--nfe", 1, "--starts", "linear", "--fwi-records", 0)
    assert fwi("evaluate", mini, "--records", 2, *quick, "--out", tmp_path / "card").code == 0
    assert (tmp_path / "card" / "card.json").exists()


def test_a_fine_tuned_run_continues_without_its_source(fwi, data, four, tmp_path):
    pristine(four, tmp_path / "source")
    words = arguments(data, tmp_path, "tuned", "--fine-tune", tmp_path / "source", "--save-every", 1)
    assert fwi("train", *words, "--num-itr", 1).code == 0
    shutil.rmtree(tmp_path / "source")
    assert fwi("train", *words, "--num-itr", 2).code == 0 and len(losses(tmp_path / "tuned")) == 2


def test_two_commands_do_not_train_one_run(refused, data, tmp_path):
    words = arguments(data, tmp_path, "twice", *LONG)
    process = python_train(*words)
    wait_for(logged(tmp_path / "twice"), process)
    refused("train", *words, saying=("is being trained by another process",))
    process.kill()
    process.communicate()


@pytest.mark.parametrize("what", ["options", "result"])
def test_processes_that_disagree_are_refused(data, four, tmp_path, what):
    pristine(four, tmp_path / "runs" / "four")
    port = free_port()
    jobs = []
    for rank in (0, 1):
        name, place = (("new", tmp_path / "runs") if what == "options"
            else ("four", tmp_path / ("runs" if rank == 0 else "elsewhere")))
        words = ["--num-proc-node", 2, "--node-rank", rank, "--master-address", "127.0.0.1", "--master-port", port]
        if what == "options" and rank: words += ["--drop-cond", 0.9]
        jobs.append(python_train(*arguments(data, place, name, "--num-itr", 6, *words)))
    errs = [job.communicate(timeout=PATIENCE)[1] for job in jobs]
    assert jobs[1].returncode == 2 and jobs[0].returncode != 0
    assert (("--drop-cond 0.9, process 0 0.25" if what == "options" else "step 0, process 0 4") in errs[1]
        and "Traceback" not in "".join(errs))


@pytest.mark.parametrize("variable, value", [("MASTER_PORT", "abc"), ("RANK", "")])
def test_a_launcher_that_says_nonsense_is_named(refused, data, tmp_path, monkeypatch, variable, value):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv(variable, value)
    refused("train", *arguments(data, tmp_path, "bad"), saying=(variable,))


@pytest.mark.parametrize("free, readers", [(None, 0), (2**20, 0), (2 * 2**20, 1)])
def test_little_shared_memory_is_less_reading_ahead_and_one_warning(fwi, data, tmp_path, monkeypatch, free, readers):
    from fwi_i2sb.core import files, workers

    files._TOLD.discard("shared memory")
    monkeypatch.setattr(workers, "SHARED", str(tmp_path / "shm"))
    if free is not None:
        (tmp_path / "shm").mkdir()
        real = shutil.disk_usage
        monkeypatch.setattr(shutil, "disk_usage", lambda place: real(place) if place != workers.SHARED
            else SimpleNamespace(free=free))
    seen, start = [], workers.DataLoader._get_iterator
    monkeypatch.setattr(workers.DataLoader, "_get_iterator", lambda self: seen.append(self.num_workers) or start(self))
    with pytest.warns(UserWarning, match=f"{readers or 'none'} of 2 will read ahead"):
        done = fwi("train", *arguments(data, tmp_path, "little", "--num-itr", 1, "--loader-workers", 2))
    assert done.code == 0 and seen[0] == readers and losses(tmp_path / "little")
