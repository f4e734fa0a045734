"Several processes that train one model: the same losses, no orphan, no hang, and nothing lost when one dies."
import os
import random
import shutil
import signal
import socket
import time

import numpy as np
import psutil
import pytest
from processes import MPIRUN, arguments, assert_equal, finish, losses, python_train, wait_for, weights

from fwi_i2sb.training.run_dir import checkpoints, read_metrics


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    finish(python_train(*arguments(data, root, "alone", "--num-itr", 6, "--save-every", 2, "--val-every", 3)))
    return root / "alone"


def same(run, alone):
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)
    maes = [[r["val_mae"] for r in read_metrics(r) if "val_mae" in r] for r in (run, alone)]
    np.testing.assert_allclose(*maes, rtol=1e-4)


@pytest.mark.parametrize("launcher, flags", [
    ([*MPIRUN, "-np", "4"], []),
    ([], ["--proc-per-node", 2]),
    ([*MPIRUN, "-np", "1", "-npernode", "1"],
        ["--num-proc-node", 1, "--node-rank", 0, "--master-address", "127.0.0.1", "--proc-per-node", 2]),
])
def test_every_launcher_gives_the_losses_of_one_process(data, alone, tmp_path, launcher, flags):
    port = random.randrange(20000, 30000)
    finish(python_train(
        *arguments(data, tmp_path, "many", "--num-itr", 6, "--val-every", 3, "--master-port", port, *flags),
        launcher=launcher))
    same(tmp_path / "many", alone)


def test_two_nodes_started_by_hand_are_one_run(data, alone, tmp_path):
    words = arguments(data, tmp_path, "nodes", "--num-itr", 6, "--val-every", 3, "--num-proc-node", 2,
        "--master-address", "127.0.0.1", "--master-port", random.randrange(20000, 30000))
    nodes = [python_train(*words, "--node-rank", str(rank)) for rank in (1, 0)]
    for node in nodes: finish(node)
    same(tmp_path / "nodes", alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_the_job_and_the_last_checkpoint_resumes_on_one(data, alone, tmp_path, rank):
    words = arguments(data, tmp_path, "dead", "--num-itr", 6, "--save-every", 2, "--val-every", 3)
    nodes = ["--num-proc-node", "2", "--master-address", "127.0.0.1", "--master-port",
        str(random.randrange(20000, 30000))]
    jobs = [python_train(*words, *nodes, "--node-rank", str(r)) for r in (0, 1)]
    wait_for(lambda: checkpoints(tmp_path / "dead"), jobs[0])
    jobs[rank].kill()
    began = time.monotonic()
    err = finish(jobs[1 - rank], 1)
    assert "gone: repeat the command" in err and "Traceback" not in err and time.monotonic() - began < 60
    finish(python_train(*words))
    same(tmp_path / "dead", alone)


def test_a_signal_to_the_parent_saves_and_a_killed_child_takes_all_along(data, alone, tmp_path):
    words = arguments(data, tmp_path, "family", "--num-itr", 6, "--save-every", 100, "--val-every", 3,
        "--proc-per-node", 2, "--master-port", random.randrange(20000, 30000))
    parent = python_train(*words)
    wait_for(lambda: losses(tmp_path / "family"), parent)
    parent.send_signal(signal.SIGTERM)
    finish(parent, 128 + signal.SIGTERM)
    assert checkpoints(tmp_path / "family")
    parent = python_train(*words)
    wait_for(lambda: len(children(parent)) == 2, parent)
    young = children(parent)
    young[1].kill()
    assert "killed by signal 9" in finish(parent, 1)
    assert all(p.status() == psutil.STATUS_ZOMBIE for p in psutil.wait_procs(young, timeout=10)[1])
    finish(python_train(*words))
    same(tmp_path / "family", alone)


def children(process) -> list[psutil.Process]:
    "The ranks among a process's children."
    return [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]


def test_bad_data_is_one_sentence_however_many_processes(tmp_path):
    (tmp_path / "CurveVel_A").mkdir()
    err = finish(python_train(*arguments(tmp_path / "CurveVel_A", tmp_path / "runs", "bad", "--proc-per-node", 2,
        "--master-port", random.randrange(20000, 30000))), 2)
    assert err.count("error: ") == 1 and "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_a_port_in_use_and_a_rank_that_exists_twice_are_named(data, tmp_path):
    words = arguments(data, tmp_path, "port", "--num-proc-node", 4, "--master-address", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        err = finish(python_train(*words, "--node-rank", "0", "--master-port", str(taken.getsockname()[1])), 2)
    assert "--master-port" in err and "in use" in err
    port = str(random.randrange(20000, 30000))
    jobs = [python_train(*words, "--node-rank", rank, "--master-port", port) for rank in "011"]
    wait_for(lambda: any(job.poll() is not None for job in jobs[1:]), jobs[0])
    second = next(job for job in jobs[1:] if job.poll() is not None)
    assert "two processes have rank 1" in finish(second, 2)
    for job in jobs: job.kill()


@pytest.mark.parametrize("ranks", [2, 4])
def test_run_after_run_no_crash_and_no_hang(data, tmp_path, ranks):
    for k in range(int(os.environ.get("REPEATS", 2))):
        words = arguments(data, tmp_path, f"run{k}", "--num-itr", 2, "--master-port", random.randrange(20000, 30000))
        finish(python_train(*words, launcher=[*MPIRUN, "-np", str(ranks)]))
        assert len(losses(tmp_path / f"run{k}")) == 2
        shutil.rmtree(tmp_path / f"run{k}")


def test_killed_at_random_moments_the_weights_are_those_of_an_undisturbed_run(data, tmp_path):
    kills, chance = int(os.environ.get("KILLS", 4)), random.Random(0)
    length = ["--num-itr", 8 * kills + 4, "--save-every", 2]
    finish(python_train(*arguments(data, tmp_path, "calm", *length)))
    words, run = arguments(data, tmp_path, "killed", *length), tmp_path / "killed"
    for _ in range(kills):
        more = chance.randrange(4)  # steps to let pass; with 0 the kill comes while the process starts
        goal = more + (int(checkpoints(run)[0].name[5:]) if checkpoints(run) else 0)
        process = python_train(*words)
        if more: wait_for(lambda: len(losses(run)) >= goal, process)
        time.sleep(chance.uniform(0, 0.2 if more else 2))
        assert process.poll() is None
        process.kill()
        process.communicate()
    finish(python_train(*words))
    assert_equal(weights(run), weights(tmp_path / "calm"))
    assert losses(run) == losses(tmp_path / "calm")
