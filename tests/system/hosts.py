"One training on two hosts, launched on each or by mpirun; a dead process or a pulled cable ends it, one continues it."
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import PATIENCE, arguments, children, losses

from fwi_i2sb.training.checkpoint import checkpoints


def training(*words) -> list[str]:
    return [sys.executable, "-m", "fwi_i2sb.train", *arguments(*words)]


def on_both(start, hosts, command, per_host):
    "One launch per host."
    nodes = ["--proc-per-node", per_host, "--num-proc-node", 2, "--master-address", hosts.addresses[0]]
    return [start(name, *command, *nodes, "--node-rank", rank) for rank, name in enumerate(hosts.names)]


@pytest.mark.parametrize("per_host", [1, 2])
def test_one_launch_per_host_gives_the_losses_of_one_process(start, hosts, data, alone, tmp_path, per_host):
    both = on_both(start, hosts, training(data, tmp_path, "run", "--num-itr", 6), per_host)
    assert [process.wait(PATIENCE) for process in both] == [0, 0]
    np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=1e-5)


def test_one_mpirun_over_two_hosts(start, hosts, data, alone, tmp_path):
    agent = tmp_path / "agent"  # in the place of ssh: HOST COMMAND...
    agent.write_text(f'#!/bin/sh\necho $1 >> {agent}.called\nhost=$1\nshift\n'
        f'exec ip netns exec $host unshare --uts sh -c "hostname $host; $*"\n')
    agent.chmod(0o755)
    command = shlex.join(training(data, tmp_path, "run", "--num-itr",
        6)) + f" --num-proc-node 2 --node-rank $OMPI_COMM_WORLD_RANK --master-address {hosts.addresses[0]}"
    mpirun = [Path(sys.executable).parent / "mpirun", "--allow-run-as-root", "--prtemca", "plm_ssh_agent", agent,
              "--prtemca", "prte_if_include", "up0",
              "--host", ",".join(f"{name}:1" for name in hosts.names), "-np", 2, "-npernode", 1, "bash", "-c", command]
    assert start(None, agent, hosts.names[0], shlex.join(map(str, mpirun))).wait(PATIENCE) == 0
    # on the first host by hand, on the second by mpirun
    assert Path(f"{agent}.called").read_text().split() == list(hosts.names)
    np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=1e-5)


SAVING = ["--save-every", 2, "--val-every", 10**6]


def endless(start, hosts, data, root, per_host):
    "A run on both hosts that goes on for ever, past its second checkpoint."
    both = on_both(start, hosts, training(data, root, "run", "--num-itr", 10**6, *SAVING), per_host)
    while len(checkpoints(root / "run")) < 2:
        assert [process.poll() for process in both] == [None, None]
        time.sleep(0.1)
    return both


def ends_and_resumes(both, start, data, root):
    "Both launches fail; one process continues from the newest checkpoint."
    assert 0 not in [process.wait(PATIENCE) for process in both]
    step = int(checkpoints(root / "run")[0].name.split("-")[1])
    assert start(None, *training(data, root, "run", "--num-itr", step + 2, *SAVING)).wait(PATIENCE) == 0
    assert len(losses(root / "run")) == step + 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_job_on_both_hosts(start, hosts, data, tmp_path, victim):
    both = endless(start, hosts, data, tmp_path, 2)
    children(both[victim])[-1].kill()
    ends_and_resumes(both, start, data, tmp_path)


def test_a_pulled_cable_ends_the_job_on_both_hosts(start, link, hosts, data, tmp_path):
    both = endless(start, hosts, data, tmp_path, 1)
    link("down")
    ends_and_resumes(both, start, data, tmp_path)
