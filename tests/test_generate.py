"""Generation as a process: killed and continued, worker deaths, refusals, and files that discovery reads."""
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from forkserver import PATIENCE, run as python, start

import fwi_i2sb.data.generate as module
from fwi_i2sb.data.generate import generate
from fwi_i2sb.core import tasks
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.data.openfwi import discover
from fwi_i2sb.data.store import convert
from fwi_i2sb.physics.wave import surface_survey

SMALL = dict(n_train=150, n_val=30, shard_size=100, shape=(16, 16), survey=surface_survey(16, 2, nt=60), seed=3)

SCRIPT = """
import sys
from fwi_i2sb.data.generate import generate
from fwi_i2sb.physics.wave import surface_survey
generate(sys.argv[1], "FlatFault_A", n_train=150, n_val=30, shard_size=100, shape=(16, 16), seed=3, workers=1,
         survey=surface_survey(16, 2, nt=60), progress=lambda done, total: print(done, flush=True))
"""


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def workers_of(pid):
    return [int(p) for p in os.listdir("/proc") if p.isdigit() and os.path.exists(f"/proc/{p}/stat")
            and open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()[1] == str(pid)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("whole"), "FlatFault_A", **SMALL)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_leaves_no_worker_and_continues_to_the_same_bytes(tmp_path, undisturbed, stop):
    # the program itself comes from standard input
    run = start([sys.executable, "-", str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True)
    run.stdin.write(SCRIPT)
    run.stdin.close()
    assert [run.stdout.readline().strip() for _ in range(3)] == ["0", "25", "50"]
    workers = workers_of(run.pid)
    assert workers
    run.send_signal(stop)
    assert run.wait(timeout=PATIENCE) != 0
    run.stdout.close()
    end = time.monotonic() + PATIENCE
    while any(os.path.exists(f"/proc/{w}") for w in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{w}") for w in workers)

    seen = []
    folder = generate(tmp_path, "FlatFault_A", **SMALL, workers=1, progress=lambda done, total: seen.append(done))
    assert seen[0] >= 50 and seen[-1] == 180
    assert contents(folder) == contents(undisturbed)


def test_a_finished_set_is_left_alone_and_other_settings_are_refused(undisturbed):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    generate(undisturbed.parent, "FlatFault_A", **SMALL)
    for change, name in ((dict(seed=4), "seed"), (dict(n_train=151), "n_train"), (dict(layers=(2, 3)), "layers"),
                         (dict(survey=surface_survey(16, 2, nt=61)), "survey")):
        with pytest.raises(InputError, match=name):
            generate(undisturbed.parent, "FlatFault_A", **{**SMALL, **change})
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}


def test_bad_settings_leave_nothing_behind(tmp_path):
    for change in (dict(n_val=-1), dict(shard_size=0), dict(workers=0), dict(engine="wave"), dict(shape=(16, 12)),
                   dict(survey=surface_survey(16, dt=1.5e-3), engine="openfwi")):
        with pytest.raises(InputError):
            generate(tmp_path, "FlatFault_A", **{**SMALL, **change})
    assert not list(tmp_path.iterdir())
    (tmp_path / "FlatFault_A").mkdir()
    (tmp_path / "FlatFault_A" / "seis2_1_0.npy").write_bytes(b"somebody else's")
    with pytest.raises(InputError, match="not made by generate"):
        generate(tmp_path, "FlatFault_A", **SMALL)


def test_a_dying_worker_is_an_error_not_a_hang(tmp_path, undisturbed, monkeypatch):
    started = []

    def shot(*given, start=tasks.start_worker):
        started.append(start(*given))
        started[-1].kill()
        return started[-1]

    monkeypatch.setattr(tasks, "start_worker", shot)
    with pytest.raises(ChildProcessError, match="died"):
        generate(tmp_path, "FlatFault_A", **SMALL, workers=2)
    assert all(worker.poll() is not None for worker in started)
    monkeypatch.undo()
    assert contents(generate(tmp_path, "FlatFault_A", **SMALL)) == contents(undisturbed)


LIMITED = """
import os, resource, sys
from fwi_i2sb.data.generate import generate
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.physics.wave import surface_survey
limit = int(sys.argv[2])
if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # the files of a full disk end here
try:
    generate(sys.argv[1], "FlatFault_A", n_train=150, n_val=30, shard_size=100, shape=(16, 16), seed=3, workers=1,
             survey=surface_survey(16, 2, nt=60))
except InputError as error: print(error)
"""


@pytest.mark.parametrize("limit, chunks", [(500_000, 4), (100_000, 0)], ids=["a shard", "a chunk"])
def test_a_full_disk_loses_nothing(tmp_path, undisturbed, limit, chunks):
    run = python([sys.executable, "-c", LIMITED, tmp_path, str(limit)])
    assert (run.stdout.count("\n") == 1 and "File too large" in run.stdout
        and "free disk space and repeat" in run.stdout), run
    made = len(list(tmp_path.rglob("chunk-*.npz")))  # the next may be there already
    assert chunks <= made <= 2 * chunks and not list(tmp_path.rglob("seis*.npy"))
    seen = []
    folder = generate(tmp_path, "FlatFault_A", **SMALL, workers=1, progress=lambda done, total: seen.append(done))
    assert seen[0] == 25 * made and contents(folder) == contents(undisturbed)


def test_a_folder_that_cannot_be_written_is_not_called_full(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Not a directory.*choose a folder that can be written"):
        generate(tmp_path / "file", "FlatFault_A", **SMALL)
    (tmp_path / "locked").mkdir(); (tmp_path / "locked").chmod(0o555)
    powerless = [] if os.geteuid() else ["setpriv", "--bounding-set=-all"]  # root without its right to write everywhere
    run = python([*powerless, sys.executable, "-c", LIMITED, tmp_path / "locked", "0"])
    assert run.stdout.count("\n") == 1 and "Permission denied; name another folder" in run.stdout, run


def test_too_small_a_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage",
        lambda path: module.shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5))
    with pytest.raises(InputError, match="0.0001 GB are free"): generate(tmp_path, "FlatFault_A", **SMALL)
    assert not list(tmp_path.iterdir())


def test_two_calls_at_once_make_one_set(tmp_path, undisturbed):
    runs = [start([sys.executable, "-c", SCRIPT, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    out = [run.communicate(timeout=PATIENCE)[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and sorted(len(o) for o in out) == [1, 9], out
    assert contents(tmp_path / "FlatFault_A") == contents(undisturbed)


def test_discovery_finds_the_official_split(undisturbed):
    train, val = (discover(undisturbed.parent, "FlatFault_A", split=split) for split in ("train", "val"))
    assert [p.seismic.name for p in train] == ["seis2_1_0.npy", "seis2_1_1.npy"] and sum(p.count for p in train) == 150
    assert [(p.seismic.name, p.velocity.name, p.count) for p in val] == [("seis2_1_32.npy", "vel2_1_32.npy", 30)]
    seismic, velocity = (np.load(path, allow_pickle=False) for path in (val[0].seismic, val[0].velocity))
    assert seismic.shape == (30, 2, 60, 16) and velocity.shape == (30, 1, 16, 16)
    assert seismic.dtype == velocity.dtype == np.float32


def cut(file): os.truncate(file, file.stat().st_size - 1)
def emptied(file): os.truncate(file, 0)
def of_another_shape(file): np.save(file, np.load(file)[:-1])
def of_another_type(file): np.save(file, np.load(file).astype("float64"))


def test_files_of_its_own_that_are_not_whole_are_made_again(tmp_path, undisturbed):
    shutil.copytree(undisturbed, folder := tmp_path / undisturbed.name)
    files = sorted(folder.glob("*.npy"))
    for file, damage in zip(files, (cut, emptied, of_another_shape, of_another_type)): damage(file)
    with pytest.warns(UserWarning) as told: generate(tmp_path, "FlatFault_A", **SMALL, workers=1)
    said = [str(w.message) for w in told]
    assert all(any(file.name in text and "it is made again" in text for text in said) for file in files[:4]), said
    assert contents(folder) == contents(undisturbed)


def test_a_folder_in_place_of_a_file_is_refused_before_anything_is_simulated(tmp_path, undisturbed):
    shutil.copytree(undisturbed, folder := tmp_path / undisturbed.name)
    file = sorted(folder.glob("*.npy"))[0]
    file.unlink(); file.mkdir()
    with pytest.raises(InputError, match=f"{file.name} is a folder where a file must be"):
        generate(tmp_path, "FlatFault_A", **SMALL, workers=1)
    assert not (folder / ".parts").exists()


def test_a_file_in_place_of_a_folder_is_refused_before_anything_is_simulated(tmp_path):
    folder = tmp_path / "CurveVel_A"
    asked = dict(SMALL, n_train=1, n_val=1, workers=1)
    generate(tmp_path, "CurveVel_A", **asked)
    shutil.rmtree(folder / "model")
    (folder / "model").touch()
    with pytest.raises(InputError, match="model is a file where a folder must be"):
        generate(tmp_path, "CurveVel_A", **asked)
    assert not (folder / ".parts").exists()


def test_a_damaged_part_of_an_interrupted_run_is_made_again(tmp_path, undisturbed):
    class Stop(Exception): "Stands for an interruption that no handler of ours sees."
    def stop(done, total):
        if done >= 50: raise Stop
    with pytest.raises(Stop): generate(tmp_path, "FlatFault_A", **SMALL, workers=1, progress=stop)
    parts = sorted((tmp_path / "FlatFault_A" / ".parts").glob("*.npz"))
    content = bytearray(parts[0].read_bytes()); content[5000] ^= 1; parts[0].write_bytes(content)
    cut(parts[1])
    with pytest.warns(UserWarning, match="is damaged: it is made again"):
        folder = generate(tmp_path, "FlatFault_A", **SMALL, workers=1)
    assert contents(folder) == contents(undisturbed)


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"seed": 1}', "[" * 10000, '{"a": NaN}', "digit"])
def test_settings_that_were_damaged_are_said(tmp_path, undisturbed, content):
    shutil.copytree(undisturbed, folder := tmp_path / undisturbed.name)
    file = folder / "generate.json"
    file.write_text(content if content != "digit" else file.read_text().replace('"seed": 3', '"seed": 7'))
    for use in (lambda: generate(tmp_path, "FlatFault_A", **SMALL), lambda: convert(folder, "FlatFault_A")):
        with pytest.raises(InputError, match="generate.json is damaged") as caught: use()
        assert "\n" not in str(caught.value)
