"docker/train.sbatch under a real Slurm of two nodes: the two hosts, with a controller and munge of their own."
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import PATIENCE, arguments, losses
from test_grid import table, write_grid, write_notebook

from fwi_i2sb.training.checkpoint import checkpoints

SCRIPT = Path(__file__).parents[2] / "docker" / "train.sbatch"
CONFIG = """
ClusterName=two
SlurmctldHost={here}({addresses[0]})
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
NodeName={names[0]} NodeHostname={here} NodeAddr={addresses[0]} CPUs=2 Gres=gpu:1
NodeName={names[1]} NodeHostname={here} NodeAddr={addresses[1]} CPUs=2 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES
"""


@pytest.fixture(scope="module")
def slurm(hosts, tmp_path_factory):
    "Call a command of Slurm on the first host; returns what it prints."
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "slurm.conf").write_text(CONFIG.format(here=socket.gethostname().split(".")[0],
        folder=folder, **vars(hosts)))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    (folder / "state").mkdir()
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def call(*words, host=hosts.names[0]):
        print("$", *words)
        return subprocess.run(["ip", "netns", "exec", host, *map(str, words)], env=env, stdout=subprocess.PIPE,
            text=True, timeout=PATIENCE, check=True).stdout

    daemons = [["munged", "--force", "--foreground", f"--key-file={folder}/key", f"--socket={folder}/munge.sock",
                f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log",
                f"--seed-file={folder}/seed"], ["slurmctld", "-D"],
                *(["slurmd", "-D", "-N", name] for name in hosts.names)]
    where = (hosts.names[0], hosts.names[0], *hosts.names)
    running = []
    try:
        for host, words in zip(where, daemons):
            running.append(subprocess.Popen(["ip", "netns", "exec", host, *words], env=env, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL))
            time.sleep(1)
        yield call
        call("scancel", "--user", "root")
    finally:
        for process in reversed(running): process.terminate()
        for process in running: process.wait()


def submit(slurm, data, root, options, *more) -> str:
    "The number of a job."
    return slurm("sbatch", "--parsable", f"--output={root}/log", *options, SCRIPT,
        *arguments(data, root, "run", *more)).strip()


def until(slurm, job, state, also=lambda: True):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        shown = slurm("scontrol", "show", "job", job)
        if f"JobState={state} " in shown and also(): return shown
        assert "JobState=FAILED" not in shown, shown
        time.sleep(0.2)
    raise TimeoutError(shown)


@pytest.mark.parametrize("options, more", [([], ["--proc-per-node", 2]), (["--ntasks-per-node=2"], [])])
def test_a_job_over_two_nodes_gives_the_losses_of_one_process(slurm, data, alone, tmp_path, options, more):
    job = submit(slurm, data, tmp_path, options, "--num-itr", 6, *more)
    try: until(slurm, job, "COMPLETED")
    finally: print((tmp_path / "log").read_text())
    np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=1e-5)


def test_a_job_that_must_leave_saves_queues_again_and_goes_on(slurm, data, alone, tmp_path):
    run, length = tmp_path / "run", ["--save-every", 10**6, "--val-every", 10**6]
    # without an end: it is still at work when the signal comes
    job = submit(slurm, data, tmp_path, [], "--num-itr", 10**6, *length)
    until(slurm, job, "RUNNING", lambda: losses(run))
    slurm("scancel", "--signal=TERM", job)
    until(slurm, job, "PENDING")
    left = len(losses(run))
    assert [path.name for path in checkpoints(run)] == [f"step-{left}"]
    # in the second of its end Slurm would still hold the old start for the new one
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now+5")
    assert "Restarts=1" in until(slurm, job, "RUNNING", lambda: len(losses(run)) >= max(left + 2, len(alone)))
    slurm("scancel", job)
    until(slurm, job, "CANCELLED")
    np.testing.assert_allclose(losses(run)[: len(alone)], alone, rtol=1e-5)


def grid(slurm, path, meanwhile=":", *options) -> str:
    "Run a grid on Slurm, something else while its second cell runs, and return the last word: the exit code."
    wait = f"until [ -e '{path.parent}/results/size=2/began' ]; do sleep 0.2; done"
    return slurm("bash", "-c", f"fwi-i2sb experiment {path} --slurm --minutes 5 {' '.join(options)} & grid=$!; {wait}; "
        f"{meanwhile}; wait $grid; echo $?").split()[-1]


def test_a_grid_runs_as_jobs_and_goes_on_after_cells_that_fail_or_are_killed(slurm, tmp_path):
    write_notebook(tmp_path / "tiny.ipynb")
    path = write_grid(tmp_path, cross=dict(size=[1, 2, 3]), fixed=dict(pause=-1.0))  # they wait for the file "go"
    kill = f"scancel $(squeue --noheader --array --format=%i --states=RUNNING | grep _1); touch {tmp_path}/go"
    assert grid(slurm, path, kill, "--cpus", "1", "--jobs", "2") == "1"
    rows = table(tmp_path)
    assert [row["state"] for row in rows.values()] == ["finished", "failed", "failed"]
    assert "killed by signal" in rows["size=2"]["error"] and "three is too many" in rows["size=3"]["error"]

    before = (tmp_path / "results" / "size=1" / "metrics.json").stat().st_mtime_ns
    assert grid(slurm, write_grid(tmp_path, cross=dict(size=[1, 2]), fixed=dict(pause=-1.0))) == "0"
    assert [row["metrics"]["total"] for row in table(tmp_path).values()] == [0.5, 1.0]
    assert (tmp_path / "results" / "size=1" / "metrics.json").stat().st_mtime_ns == before


def test_an_interrupted_grid_ends_its_jobs_and_a_second_one_is_refused(slurm, tmp_path):
    write_notebook(tmp_path / "tiny.ipynb")
    path = write_grid(tmp_path, cross=dict(size=[2]), fixed=dict(pause=200.0))
    assert grid(slurm, path, f"fwi-i2sb experiment {path} --slurm; [ $? = 2 ] && kill $grid") == "143"
    while slurm("squeue", "--noheader"): time.sleep(1)
