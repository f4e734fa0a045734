"Two hosts: network namespaces with their own addresses and names, joined by a veth pair. Needs root."
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import arguments, losses

from fwi_i2sb.data.generate import generate

NAMES = tuple(f"fwi{os.getpid()}h{i}" for i in range(2))
ADDRESSES = ("10.199.77.1", "10.199.77.2")


def ip(*words): subprocess.run(["ip", *words], check=True)


@pytest.fixture(scope="session")
def hosts():
    "Two hosts that know each other's names: `names` and `addresses`."
    try:
        for name in NAMES:
            table = Path("/etc/netns") / name / "hosts"  # what `ip netns exec` shows as /etc/hosts
            table.parent.mkdir(parents=True)
            table.write_text("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for a, n in zip(ADDRESSES, NAMES)))
            ip("netns", "add", name)
        ip("link", "add", "up0", "netns", NAMES[0], "type", "veth", "peer", "name", "up0", "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "up0")
            for link in ("lo", "up0"): ip("-n", name, "link", "set", link, "up")
        yield SimpleNamespace(names=NAMES, addresses=ADDRESSES)
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name])
            (Path("/etc/netns") / name / "hosts").unlink(missing_ok=True)
            (Path("/etc/netns") / name).rmdir()
        # a mount that the first `ip netns add` makes
        if not any(Path("/run/netns").iterdir()): subprocess.run(["umount", "/run/netns"])


@pytest.fixture
def link(hosts):
    "The cable between the two hosts, plugged in again afterwards."
    yield lambda state: ip("-n", hosts.names[0], "link", "set", "up0", state)
    ip("-n", hosts.names[0], "link", "set", "up0", "up")


@pytest.fixture
def start():
    "Start a command on a host (None: here); what still runs at the end of the test is killed with all it started."
    running = []

    def begin(host, *words):
        inside = ["ip", "netns", "exec", host] if host else []
        print("$", *inside, *words)
        running.append(subprocess.Popen([*inside, *map(str, words)], env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True))
        return running[-1]

    yield begin
    for process in running:
        try: os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        process.wait()


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    "A small data set."
    return generate(tmp_path_factory.mktemp("data"), "CurveVel_A", n_train=16, n_val=4, layers=(4, 8), shard_size=16)


@pytest.fixture(scope="session")
def alone(data, tmp_path_factory) -> list[float]:
    "The losses of six steps of one process."
    root = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "fwi_i2sb.train", *arguments(data, root, "one", "--num-itr", 6)], check=True)
    return losses(root / "one")
