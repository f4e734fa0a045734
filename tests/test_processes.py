"Several processes that train one model: the same losses, no orphan, no hang, and nothing lost when one dies."
import os
import random
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from processes import (MPIRUN, PATIENCE, arguments, assert_equal, children, finish, free_port, losses, pristine,
    python_train, wait_for, weights)

from fwi_i2sb.training.checkpoint import checkpoints
from fwi_i2sb.training.run_dir import read_metrics


ENDLESS = ["--num-itr", "1000000"]
repeated = pytest.mark.skipif("REPEATS" not in os.environ, reason="make test-system runs it ten and twenty times")


def longer(eight, data, root, length):
    "The run of one process, continued to another length."
    pristine(eight, root / "eight")
    finish(python_train(*arguments(data, root, "eight", "--save-every", 2, "--val-every", 4, *length)))
    return root / "eight"


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
def test_every_launcher_gives_the_losses_of_one_process(data, eight, tmp_path, launcher, flags):
    finish(python_train(
        *arguments(data, tmp_path, "many", "--num-itr", 8, "--val-every", 4, "--master-port", free_port(), *flags),
        launcher=launcher))
    same(tmp_path / "many", eight)


def test_two_nodes_started_by_hand_are_one_run(data, eight, tmp_path):
    words = arguments(data, tmp_path, "nodes", "--num-itr", 8, "--val-every", 4, "--num-proc-node", 2,
        "--master-address", "127.0.0.1", "--master-port", free_port())
    nodes = [python_train(*words, "--node-rank", str(rank)) for rank in (1, 0)]
    for node in nodes: finish(node)
    same(tmp_path / "nodes", eight)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_the_job_and_the_last_checkpoint_resumes_on_one(data, eight, tmp_path, rank):
    words = arguments(data, tmp_path, "dead", "--save-every", 2, "--val-every", 4)
    nodes = ["--num-proc-node", "2", "--master-address", "127.0.0.1", "--master-port", str(free_port())]
    jobs = [python_train(*words, *ENDLESS, *nodes, "--node-rank", str(r)) for r in (0, 1)]
    wait_for(lambda: checkpoints(tmp_path / "dead"), jobs[0])
    jobs[rank].kill()
    err = finish(jobs[1 - rank], 1)
    assert "gone: repeat the command" in err and "Traceback" not in err
    length = ["--num-itr", str(len(losses(tmp_path / "dead")) + 8)]
    finish(python_train(*words, *length))
    same(tmp_path / "dead", longer(eight, data, tmp_path, length))


def test_a_signal_to_the_parent_saves_and_a_killed_child_takes_all_along(data, eight, tmp_path):
    words = arguments(data, tmp_path, "family", "--save-every", 10**6, "--val-every", 4, "--proc-per-node", 2,
        "--master-port", free_port())
    parent = python_train(*words, *ENDLESS)
    wait_for(lambda: losses(tmp_path / "family"), parent)
    parent.send_signal(signal.SIGTERM)
    finish(parent, 128 + signal.SIGTERM)
    assert checkpoints(tmp_path / "family")
    words += ["--num-itr", str(len(losses(tmp_path / "family")) + 8)]
    parent = python_train(*words)
    wait_for(lambda: len(children(parent)) == 2, parent)
    young = children(parent)
    young[1].kill()
    assert "killed by signal 9" in finish(parent, 1)
    assert all(p.status() == psutil.STATUS_ZOMBIE for p in psutil.wait_procs(young, timeout=PATIENCE)[1])
    finish(python_train(*words))
    same(tmp_path / "family", longer(eight, data, tmp_path, words[-2:]))


def test_a_signal_ends_a_process_that_waits_for_a_stopped_one(data, tmp_path):
    words = arguments(data, tmp_path, "stopped", "--save-every", 2, *ENDLESS)
    nodes = ["--num-proc-node", "2", "--master-address", "127.0.0.1", "--master-port", str(free_port())]
    jobs = [python_train(*words, *nodes, "--node-rank", str(r)) for r in (0, 1)]
    try:
        wait_for(lambda: checkpoints(tmp_path / "stopped"), jobs[0])
        jobs[1].send_signal(signal.SIGSTOP)
        time.sleep(1)
        jobs[0].send_signal(signal.SIGTERM)
        err = finish(jobs[0], 128 + signal.SIGTERM)
        assert "process 1 of 2 does not answer, and this one was told to end: repeat" in err and "Traceback" not in err
    finally:
        jobs[1].kill()
        jobs[1].communicate()


def test_bad_data_is_one_sentence_however_many_processes(tmp_path):
    (tmp_path / "CurveVel_A").mkdir()
    err = finish(python_train(*arguments(tmp_path / "CurveVel_A", tmp_path / "runs", "bad", "--proc-per-node", 2,
        "--master-port", free_port())), 2)
    assert err.count("error: ") == 1 and "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_a_port_in_use_and_a_rank_that_exists_twice_are_named(data, tmp_path):
    words = arguments(data, tmp_path, "port", "--num-proc-node", 4, "--master-address", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        err = finish(python_train(*words, "--node-rank", "0", "--master-port", str(taken.getsockname()[1])), 2)
    assert "--master-port" in err and "in use" in err
    port = str(free_port())
    jobs = [python_train(*words, "--node-rank", rank, "--master-port", port) for rank in "011"]
    wait_for(lambda: any(job.poll() is not None for job in jobs[1:]), jobs[0])
    second = next(job for job in jobs[1:] if job.poll() is not None)
    assert "two processes have rank 1" in finish(second, 2)
    for job in jobs: job.kill()


@repeated
@pytest.mark.parametrize("ranks", [2, 4])
def test_run_after_run_no_crash_and_no_hang(data, tmp_path, ranks):
    for k in range(int(os.environ["REPEATS"])):
        words = arguments(data, tmp_path, f"run{k}", "--num-itr", 2, "--master-port", free_port())
        finish(python_train(*words, launcher=[*MPIRUN, "-np", str(ranks)]))
        assert len(losses(tmp_path / f"run{k}")) == 2
        shutil.rmtree(tmp_path / f"run{k}")


def kill_again_and_again(kills: int, seed: int, words, run) -> int:
    "Kill an endless training at random moments, some while it starts; the last step that was written down."
    chance = random.Random(seed)
    for _ in range(kills):
        more = chance.randrange(4)  # steps to let pass; with 0 the kill comes while the process starts
        goal = more + (int(checkpoints(run)[0].name[5:]) if checkpoints(run) else 0)
        process = python_train(*words, *ENDLESS)
        if more: wait_for(lambda: len(losses(run)) >= goal, process)
        time.sleep(chance.uniform(0, 0.2 if more else 2))
        assert process.poll() is None
        process.kill()
        process.communicate()
    return len(losses(run))


@repeated
def test_killed_at_random_moments_the_weights_are_those_of_an_undisturbed_run(data, tmp_path):
    kills = int(os.environ["KILLS"])
    names, rarely = ("first", "second"), ["--val-every", 10**6, "--save-every", 2]
    words = {name: arguments(data, tmp_path, name, *rarely) for name in ("calm", *names)}

    def work(name):
        return kill_again_and_again(kills // 2, names.index(name), words[name], tmp_path / name)

    with ThreadPoolExecutor(2) as pool: last = 2 + max(pool.map(work, names))
    runs = [python_train(*words[name], "--num-itr", str(last)) for name in words]
    for run in runs: finish(run)
    for name in names:
        assert_equal(weights(tmp_path / name), weights(tmp_path / "calm"))
        assert losses(tmp_path / name) == losses(tmp_path / "calm")
