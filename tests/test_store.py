"The store under interruption, company, bad files, full disks and readers in other processes."
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
import zlib
from types import SimpleNamespace

import lmdb
import numpy as np
import psutil
import pytest
from forkserver import PATIENCE, start
from torch.utils.data import DataLoader

from fwi_i2sb.core.files import read_row
from fwi_i2sb.data import build, openfwi
from fwi_i2sb.data.check import verify_store
from fwi_i2sb.data.multi_family import MultiFamilyStore
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.core.sealed import write_sealed
from fwi_i2sb.data.scale import OPENFWI_SCALE, VelocityScale
from fwi_i2sb.data.manifest import read_manifest
from fwi_i2sb.data.openfwi import open_pair
from fwi_i2sb.data.openfwi_config import load_ranges
from fwi_i2sb.data.sources import source_digests
from fwi_i2sb.data.store import convert, StoreDataset
from fwi_i2sb.physics.wave import OPENFWI, surface_survey

# two shots of 40 samples over a map of 12 x 12 cells: conversions take milliseconds
SMALL = surface_survey(12, 2, nt=40)
OPTIONS = dict(time_samples=20, survey=SMALL)


def write_files(folder, counts=(("data1", 150), ("data2", 50), ("data49", 100)), survey=SMALL, cells=(12, 12),
        name="FlatVel_A"):
    "A family folder in the original layout with random records; returns it."
    rng, root = np.random.default_rng(0), folder / name
    shape = len(survey.sources), survey.nt, len(survey.receivers)
    for sub in ("data", "model"): (root / sub).mkdir(parents=True, exist_ok=True)
    for file, n in counts:
        np.save(root / "data" / f"{file}.npy", rng.standard_normal((n, *shape), dtype="float32"))
        np.save(root / "model" / f"{file.replace('data', 'model')}.npy",
            rng.uniform(1500, 4500, (n, 1, *cells)).astype("float32"))
    return root


def values(root, split):
    "Every stored value, and nothing else in the database."
    with lmdb.open(str(root / split / "database.lmdb"), subdir=False, readonly=True, lock=False) as env:
        with env.begin() as reader: found = list(reader.cursor())
    assert [int.from_bytes(key, "big") for key, _ in found] == list(range(len(found)))
    return [value for _, value in found]


def everything(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def python(code, *words, start=start):
    "Start Python on an indented piece of code; `words` become `sys.argv[1:]`."
    head = ("import os, sys, signal\nfrom pathlib import Path\nfrom fwi_i2sb.data.openfwi import InputError\n"
        "from fwi_i2sb.data.store import convert\nfrom fwi_i2sb.physics.wave import OPENFWI, surface_survey\n")
    head += "SMALL = surface_survey(12, 2, nt=40)\n"
    return start([sys.executable, "-c", head + textwrap.dedent(code), *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


KILLED = """
    def progress(done, total):
        if done >= int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
    convert(sys.argv[1], "FlatVel_A", time_samples=20, survey=SMALL, workers=int(sys.argv[3]), progress=progress)
"""


@pytest.mark.parametrize("at, workers", [(64, 0), (200, 1)])
def test_killed_and_continued_gives_the_same_values(tmp_path, at, workers):
    whole = convert(write_files(tmp_path / "whole"), "FlatVel_A", workers=0, **OPTIONS)
    root = tmp_path / "killed" / "FlatVel_A"
    shutil.copytree(whole, root, ignore=shutil.ignore_patterns("train", "val"))
    job = python(KILLED, root, at, workers)
    job.communicate(timeout=PATIENCE)  # returns when its workers have left too: they hold the same pipes
    assert job.returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="not a store"): StoreDataset(root, "train")
    steps = []
    assert convert(root, "FlatVel_A", workers=0, progress=lambda *step: steps.append(step), **OPTIONS) == root
    assert steps[0][0] > at and steps[-1] == (300, 300)
    assert_equal(root, whole)


def assert_equal(root, whole):
    """Every key, every value and the manifests of two stores.

    Nothing else lies in their folders but the file of a lock that died."""
    for split in ("train", "val"):
        assert values(root, split) == values(whole, split)
        assert read_manifest(root / split) == read_manifest(whole / split)
    assert set(everything(root)) - {".lock"} == set(everything(whole))


AT_RANDOM = """
    import random, time
    import torch
    torch.set_num_threads(1)
    moments, kills = random.Random(1), 0
    while True:
        child = os.fork()  # so that torch is imported once, not for every attempt
        if not child:
            convert(sys.argv[1], "FlatVel_A", time_samples=20, survey=SMALL, workers=0)
            os._exit(0)
        time.sleep(moments.uniform(0, 0.02 + 0.002 * kills)); os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0: break
        kills += 1
    print(kills)
"""


def test_killed_at_random_moments_until_done(tmp_path):
    counts = (("data1", 700), ("data2", 300), ("data49", 200))
    whole = convert(write_files(tmp_path / "whole", counts), "FlatVel_A", workers=0, **OPTIONS)
    root = tmp_path / "killed" / "FlatVel_A"
    shutil.copytree(whole, root, ignore=shutil.ignore_patterns("train", "val"))
    out, err = python(AT_RANDOM, root).communicate(timeout=PATIENCE)
    assert int(out) >= 5, (out, err)
    assert_equal(root, whole)


def test_interrupted_and_a_file_repaired_meanwhile(tmp_path):
    root = write_files(tmp_path)
    class Stop(Exception): "Stands for an interruption that no handler of ours sees."
    def progress(done, total):
        if done > 200: raise Stop
    with pytest.raises(Stop): convert(root, "FlatVel_A", workers=0, progress=progress, **OPTIONS)
    with pytest.raises(InputError, match="repeat fwi-i2sb convert to finish"): StoreDataset(root, "train")
    with pytest.raises(InputError, match="time_samples 20, not 10"):
        convert(root, "FlatVel_A", workers=0, **OPTIONS | dict(time_samples=10))
    repaired = np.load(root / "data" / "data1.npy"); repaired[0] = 7
    np.save(root / "data" / "data1.npy", repaired)
    convert(root, "FlatVel_A", workers=0, accept=["silent"], **OPTIONS)
    np.testing.assert_allclose(StoreDataset(root, "train").physical(0)[1], 7, rtol=1e-3)
    assert verify_store(root, "train") == 200 and verify_store(root, "val") == 100


def test_two_processes_at_once_build_one_store(tmp_path):
    root = write_files(tmp_path)
    code = """
        steps = []
        convert(sys.argv[1], "FlatVel_A", time_samples=20, survey=SMALL, workers=0,
                progress=lambda *step: steps.append(step))
        print(len(steps))
    """
    jobs = [python(code, root) for _ in range(3)]
    out = [job.communicate(timeout=PATIENCE) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], out
    assert sorted(int(o[0]) > 0 for o in out) == [False, False, True]  # one built, two found it there
    assert verify_store(root, "train") == 200 and not (root / ".lock").exists()


def test_reading_from_spawned_workers(tmp_path):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    ds = StoreDataset(root, "val"); ds[0]  # opened here first: the workers must open it for themselves
    kept = StoreDataset(root, "val", in_memory=True)
    # it needs the file no more
    (root / "val" / "database.lmdb").rename(tmp_path / "away"); assert len(kept.value(99)) == len(kept.value(-1)) > 0
    (tmp_path / "away").rename(root / "val" / "database.lmdb")
    for source, context in ((ds, "spawn"), (ds, "fork"), (MultiFamilyStore([kept]), "spawn")):
        batches = list(DataLoader(source, batch_size=32, num_workers=2, multiprocessing_context=context))
        assert sum(len(b["index"]) for b in batches) == 100
        for b in batches[::2]:
            for k, i in enumerate(b["index"].tolist()):
                assert (b["seismic"][k] == ds[i]["seismic"]).all() and (b["velocity"][k] == ds[i]["velocity"]).all()


def test_raw_records_come_back_exactly(tmp_path):
    root = write_files(tmp_path, (("data1", 2), ("data49", 1)), OPENFWI, (70, 70))
    for workers in (0, 2):
        out = convert(root, "FlatVel_A", store_dir=tmp_path / f"store{workers}", time_samples=1000, dtype="float32",
            workers=workers)
        for split, file in (("train", 1), ("val", 49)):
            ds = StoreDataset(out, split)
            for i in range(len(ds)):
                velocity, seismic = ds.physical(i)
                np.testing.assert_array_equal(seismic, np.load(root / f"data/data{file}.npy")[i])
                np.testing.assert_array_equal(velocity, np.load(root / f"model/model{file}.npy")[i])
    assert not (root / "train").exists()
    assert ((tmp_path / "store0/train/database.lmdb").read_bytes()
        == (tmp_path / "store2/train/database.lmdb").read_bytes())


def spoil(root, how):
    "Damage one source file; returns its name."
    data, model = root / "data" / "data2.npy", root / "model" / "model2.npy"
    if how == "truncated": data.write_bytes(data.read_bytes()[:-4])
    if how == "NaN": np.load(data, mmap_mode="r+")[49, 1, 39, 11] = np.nan
    if how == "infinite map": np.load(model, mmap_mode="r+")[3, 0, 0, 0] = np.inf
    if how == "too large": np.load(data, mmap_mode="r+")[7] *= 1e5
    if how == "pickled": np.save(model, np.array([None] * 50, dtype=object))
    if how == "wrong shape": np.save(data, np.zeros((50, 2, 41, 12), "float32"))
    if how == "wrong map": np.save(model, np.zeros((50, 1, 12, 13), "float32"))
    return model.name if how in ("pickled", "wrong map", "infinite map") else data.name


@pytest.mark.parametrize("how, words", [("truncated", "truncated"), ("NaN", "record 49 holds NaN"),
                                        ("infinite map", "record 3 has a map with NaN"),
                                        ("too large", "--dtype float32"), ("pickled", "pickled"),
                                        ("wrong shape", r"\(2, 41, 12\)"),
                                        ("wrong map", r"\(12, 13\)")])
def test_a_bad_source_file_leaves_nothing_behind(tmp_path, how, words):
    root = write_files(tmp_path); name = spoil(root, how); before = everything(tmp_path)
    for options in (dict(), dict(store_dir=tmp_path / "deep" / "store")):
        options |= OPTIONS | dict(workers=0, val_files=["data2.npy"])  # in the split that is built first
        with pytest.raises(InputError, match=words) as caught: convert(root, "FlatVel_A", **options)
        assert name in str(caught.value) and "\n" not in str(caught.value)
        assert everything(tmp_path) == before


def test_a_bad_file_found_by_a_worker(tmp_path):
    root = write_files(tmp_path); spoil(root, "NaN"); good = np.load(root / "data" / "data2.npy"); good[49] = good[48]
    with pytest.raises(InputError, match="data2.npy.*record 49"): convert(root, "FlatVel_A", workers=1, **OPTIONS)
    assert not (root / "train").exists() and not (root / "val").exists()  # nothing of this call
    np.save(root / "data" / "data2.npy", good)
    assert verify_store(convert(root, "FlatVel_A", workers=0, **OPTIONS), "train") == 200


def test_a_killed_worker_is_said_and_continued(tmp_path):
    root = write_files(tmp_path); code = """
        import multiprocessing
        def progress(done, total): multiprocessing.active_children()[0].kill()
        if __name__ == "__main__":
            try: convert(sys.argv[1], "FlatVel_A", time_samples=20, survey=SMALL, workers=1, progress=progress)
            except ChildProcessError as error: print(error)
    """
    write_files(tmp_path, (("data2", 3000),))
    out, err = python(code, root).communicate(timeout=PATIENCE)
    assert "repeat the command to continue" in out and out.count("\n") == 1, (out, err)
    assert verify_store(convert(root, "FlatVel_A", workers=0, **OPTIONS), "train") == 3150


def test_another_store_is_never_reused(tmp_path):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    for wish, words in ((dict(time_samples=10), "time_samples 20, not 10"),
                        (dict(dtype="float32"), "dtype float16, not float32"),
                        (dict(val_files=["data2.npy"]),
                            "source files 1 .data/data49.npy to data/data49.npy., not 1 .data/data2.npy")):
        with pytest.raises(InputError, match=words): convert(root, "FlatVel_A", **OPTIONS | wish)
    files = write_files(tmp_path / "other", name="FlatVel_B")
    with pytest.raises(InputError, match="family FlatVel_A, not FlatVel_B"):
        convert(files, "FlatVel_B", store_dir=root, time_samples=10, survey=SMALL)
    with pytest.raises(InputError, match="of FlatVel_A, not of CurveVel_A"):
        StoreDataset(root, "train", family="CurveVel_A")
    write_files(tmp_path, (("data2", 51),))
    with pytest.raises(InputError, match="source file .*data2.npy"): convert(root, "FlatVel_A", **OPTIONS)


def test_a_store_travels_without_its_source_files(tmp_path):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    shutil.rmtree(root / "data"); shutil.rmtree(root / "model"); moved = root.rename(tmp_path / "elsewhere")
    assert convert(moved, "FlatVel_A", time_samples=20) == moved and verify_store(moved, "val") == 100
    with pytest.raises(InputError, match="time_samples 20, not 40"): convert(moved, "FlatVel_A", time_samples=40)
    with pytest.raises(InputError, match="family FlatVel_A, not Style_A"): convert(moved, "Style_A", time_samples=20)
    (moved / "train" / "manifest.json").unlink()
    with pytest.raises(InputError, match="no FlatVel_A files"): convert(moved, "FlatVel_A", time_samples=20)


def as_first_format(folder):
    "Write a manifest as the first format had it: the family's range in an entry of its own, no range of velocities."
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("checksum"), manifest["seismic"].pop("measured")
    low, high = (manifest["seismic"].pop(end) for end in ("low", "high"))
    for end in ("low", "high"): manifest["velocity"].pop(end)
    manifest |= dict(format="fwi_i2sb store 1", family=dict(name=manifest["family"], data_min=low, data_max=high))
    text = json.dumps(manifest, sort_keys=True)
    path.write_text(json.dumps(manifest | dict(checksum=f"{zlib.crc32(text.encode()):08x}")))


def test_a_store_of_the_first_format_is_read_and_kept(tmp_path):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    new = [StoreDataset(root, "train")[i] for i in (0, 199)]
    for split in ("train", "val"): as_first_format(root / split)
    before = (root / "train" / "manifest.json").read_bytes()
    assert convert(root, "FlatVel_A", time_samples=20) == root and verify_store(root, "train") == 200
    store = StoreDataset(root, "train")
    assert store.velocity == OPENFWI_SCALE and store.fingerprint == json.loads(before)["checksum"]
    for i, pair in zip((0, 199), new):
        assert (store[i]["seismic"] == pair["seismic"]).all() and (store[i]["velocity"] == pair["velocity"]).all()
    assert (root / "train" / "manifest.json").read_bytes() == before
    with pytest.raises(InputError, match="velocity range 1500 to 4500, not 1500 to 5000"):
        convert(root, "FlatVel_A", time_samples=20, scale=VelocityScale(1500, 5000))


def test_a_file_is_closed_when_its_last_reader_is_gone(tmp_path):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    is_open = lambda: str(root / "val" / "database.lmdb") in open("/proc/self/maps").read()
    one, two = StoreDataset(root, "val"), StoreDataset(root, "val")
    assert (one[0]["seismic"] == two[0]["seismic"]).all() and is_open()
    del one; assert is_open()
    del two; assert not is_open()


def test_no_warning_is_silenced(tmp_path):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store, kept = StoreDataset(root, "val"), StoreDataset(root, "val", in_memory=True)
        assert (store[3]["seismic"] == kept[3]["seismic"]).all()


def edit(path, change):
    manifest = json.loads(path.read_text()); change(manifest); path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage, words", [
    (lambda f: edit(f / "manifest.json", lambda m: m.update(count=10)), "edited"),
    (lambda f: edit(f / "manifest.json", lambda m: m.pop("checksum")), "edited"),
    (lambda f: (f / "manifest.json").write_text("{"), "damaged"),
    (lambda f: (f / "manifest.json").write_text("[1]"), "damaged"),
    (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "damaged"),
    (lambda f: os.truncate(f / "database.lmdb", 8192), "cut short to 8192"),
    (lambda f: (f / "database.lmdb").unlink(), "No such file"),
    (lambda f: os.truncate(f / "database.lmdb", (f / "database.lmdb").stat().st_size - 1), "cut short"),
    (lambda f: (f / "database.lmdb").write_bytes(bytes((f / "database.lmdb").stat().st_size)), "damaged"),
    (lambda f: shutil.copy(f.parent / "val" / "manifest.json", f), "200 records, its manifest says 100")])
def test_a_store_without_a_valid_manifest_is_refused(tmp_path, damage, words):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    damage(root / "train")
    with pytest.raises(InputError, match=words): StoreDataset(root, "train")
    with pytest.raises(InputError): convert(root, "FlatVel_A", workers=0, **OPTIONS)


def test_the_check_command_verifies_every_value(tmp_path, fwi, refused):
    files = write_files(tmp_path)
    root = convert(files, "FlatVel_A", store_dir=tmp_path / "store", workers=0, **OPTIONS)
    for folder, records in ((root, (200, 100)), (root / "val", (100,))):
        outcome = fwi("check", folder)
        assert outcome.code == 0 and all(f"records {n}" in outcome.out for n in records), outcome
    content = bytearray((root / "train" / "database.lmdb").read_bytes())
    content[content.index(StoreDataset(root, "train").value(160)) + 7] ^= 1
    (root / "train" / "database.lmdb").unlink(); (root / "train" / "database.lmdb").write_bytes(content)
    refused("check", root, saying=("data2.npy are damaged", "convert again"))
    refused("check", tmp_path, "--family", "FlatVel_B", saying=("no FlatVel_B",))
    refused("check", root / "val", "--family", "FlatVel_B", saying=("of FlatVel_A, not of FlatVel_B",))
    assert fwi("check", root / "val").code == 0
    (root / "val" / "manifest.json").rename(tmp_path / "lost.json")
    for folder in (root, root / "val"):
        refused("check", folder)
        assert "val/database.lmdb has no manifest" in fwi("check", folder).out
    # files and store in one folder
    convert(files, "FlatVel_A", workers=0, **OPTIONS); (files / "val" / "manifest.json").write_text("{")
    outcome = fwi("check", files)
    assert (outcome.code == 2 and "problem       " in outcome.out and "manifest.json is damaged" in outcome.out
        and "store train" in outcome.out and "files 2, records 200" in outcome.out)


def test_a_database_of_another_program_is_left_alone(tmp_path):
    root = write_files(tmp_path); (root / "train").mkdir(); (root / "train" / "database.lmdb").write_bytes(b"precious")
    before = everything(tmp_path)
    with pytest.raises(InputError, match="has no manifest"): convert(root, "FlatVel_A", workers=0, **OPTIONS)
    assert (root / "train" / "database.lmdb").read_bytes() == b"precious" and everything(tmp_path) == before


LIMITED = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # as on a full disk, amid training
    try: convert(sys.argv[1], "FlatVel_A", time_samples=20, survey=SMALL, workers=0)
    except InputError as error: print(error)
"""


def full_disk(whole, root, store):
    "The store is in the middle of the training split; it continues there, and equals an undisturbed one."
    with lmdb.open(str(store / "train" / "database.lmdb"), subdir=False, readonly=True, lock=False) as env:
        done = env.stat()["entries"]
    assert 0 < done < 200
    steps = []
    convert(root, "FlatVel_A", store_dir=store, workers=0, progress=lambda *step: steps.append(step), **OPTIONS)
    assert steps[0][0] > 100 + done
    for split in ("train", "val"):
        assert (values(store, split) == values(whole, split)
            and read_manifest(store / split) == read_manifest(whole / split))
    assert verify_store(store, "train") == 200


def test_a_full_disk_loses_nothing(tmp_path):
    root = write_files(tmp_path / "files")
    whole = convert(root, "FlatVel_A", store_dir=tmp_path / "whole", workers=0, **OPTIONS)
    for _ in range(2):  # the second attempt gets no further, and loses nothing either
        out, err = python(LIMITED, root).communicate(timeout=PATIENCE)
        assert "cannot write the store" in out and "free disk space and repeat" in out and out.count("\n") == 1, ((out,
            err))
    full_disk(whole, root, root)


def test_a_really_full_disk_loses_nothing(tmp_path):
    root = write_files(tmp_path / "files")
    whole = convert(root, "FlatVel_A", store_dir=tmp_path / "whole", workers=0, **OPTIONS)
    disk = tmp_path / "disk"; disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    def fill(done, total):
        if done > 200:
            with open(disk / "filler", "wb", buffering=0) as file:
                while True: file.write(bytes(4096))
    try:
        with pytest.raises(InputError, match="No space left on device.*free disk space and repeat"):
            convert(root, "FlatVel_A", store_dir=disk / "store", workers=0, progress=fill, **OPTIONS)
        with pytest.raises(InputError, match="GB are free"):
            convert(root, "FlatVel_A", store_dir=disk / "store", workers=0, **OPTIONS)
        (disk / "filler").unlink()
        full_disk(whole, root, disk / "store")
    finally: subprocess.run(["umount", "--lazy", disk], check=True)


def test_unwritable_folder(tmp_path):
    root = write_files(tmp_path); (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the store .*--store-dir"):
        convert(root, "FlatVel_A", store_dir=tmp_path / "file" / "store", **OPTIONS)


def test_not_enough_disk_is_known_beforehand(tmp_path, monkeypatch):
    root = write_files(tmp_path); before = everything(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5))
    with pytest.raises(InputError, match="0.0001 GB are free"): convert(root, "FlatVel_A", workers=0, **OPTIONS)
    assert everything(tmp_path) == before


def test_another_geometry_needs_its_survey(tmp_path):
    root = write_files(tmp_path)
    with pytest.raises(InputError, match=r"shape \(2, 40, 12\), but the survey gives \(5, 1000, 70\)"):
        convert(root, "FlatVel_A")
    with pytest.raises(InputError, match="lies outside the map"):
        convert(root, "FlatVel_A", time_samples=20, survey=surface_survey(12, 2, nt=40, dx=10.)
               .__class__(**{**SMALL.to_dict(), "sources": ((0., 10.), (500., 10.))}))
    with pytest.raises(InputError, match="does not divide the 40"):
        convert(root, "FlatVel_A", time_samples=30, survey=SMALL)
    assert StoreDataset(convert(root, "FlatVel_A", workers=0, **OPTIONS), "val").survey == SMALL


def test_memory_stays_far_below_a_shard(tmp_path):
    for sub in ("data", "model"): (tmp_path / "FlatVel_A" / sub).mkdir(parents=True)
    for k, n in ((1, 300), (49, 1)):  # files with a hole: 420 MB long, nothing on the disk
        np.lib.format.open_memmap(tmp_path / f"FlatVel_A/data/data{k}.npy", "w+", "float32", (n, 5, 1000, 70))
        np.lib.format.open_memmap(tmp_path / f"FlatVel_A/model/model{k}.npy", "w+", "float32", (n, 1, 70, 70))
    code = """
        import resource
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        before = peak(); convert(sys.argv[1], "FlatVel_A", workers=0, accept=("silent", "units"))
        print(peak() - before)
    """
    out, err = python(code, tmp_path, start=subprocess.Popen).communicate(timeout=PATIENCE)
    assert float(out) < 150, err  # MB


def test_too_little_memory_is_said_beforehand(tmp_path, monkeypatch):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**5))
    with pytest.raises(InputError, match="0.0001 GB are free: remove --in-memory"):
        StoreDataset(root, "val", in_memory=True)


def flip(path, value):
    "Flip a bit in the middle of a stored value."
    content = bytearray(path.read_bytes())
    content[content.index(value) + len(value) // 2] ^= 4
    path.unlink(); path.write_bytes(content)


def stopped(root, at, **options):
    "A conversion that ends in the middle, as by a kill."
    class Stop(Exception): "Stands for an interruption that no handler of ours sees."
    def progress(done, total):
        if done > at: raise Stop
    with pytest.raises(Stop): convert(root, "FlatVel_A", workers=0, progress=progress, **OPTIONS | options)


def test_a_flipped_bit_is_found_by_whoever_reads_the_record_first(tmp_path):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    before = StoreDataset(root, "train"); sound = before[17]["seismic"]
    flip(root / "train" / "database.lmdb", before.value(160))
    with pytest.raises(InputError, match="replaced by another file while it was read"): before[17]
    after = StoreDataset(root, "train")
    assert (after[17]["seismic"] == sound).all()
    with pytest.raises(InputError, match="record 160 .* is damaged: remove"): after[160]
    with pytest.raises(InputError, match="record 160 .* is damaged"): StoreDataset(root, "train", in_memory=True)
    with pytest.raises(InputError, match="record 160 .* is damaged"):
        for _ in DataLoader(after, 10, num_workers=1, multiprocessing_context="spawn"): pass


@pytest.mark.parametrize("record", [0, 61])
def test_what_is_committed_is_verified_before_a_conversion_goes_on(tmp_path, record):
    whole = convert(write_files(tmp_path / "whole"), "FlatVel_A", workers=0, **OPTIONS)
    root = tmp_path / "stopped" / "FlatVel_A"
    shutil.copytree(whole, root, ignore=shutil.ignore_patterns("train", "val"))
    stopped(root, 200)
    flip(root / "train" / "database.lmdb", StoreDataset(whole, "train").value(record))
    with pytest.warns(UserWarning, match=f"record {record} of the unfinished .* made again"):
        convert(root, "FlatVel_A", workers=0, **OPTIONS)
    for split in ("train", "val"):
        assert values(root, split) == values(whole, split) and verify_store(root, split)
        assert read_manifest(root / split) == read_manifest(whole / split)


@pytest.mark.parametrize("left", [0, 5000, 20000])
def test_an_unfinished_store_that_was_cut_short_is_made_again(tmp_path, left):
    root = write_files(tmp_path); stopped(root, 200)
    os.truncate(root / "train" / "database.lmdb", left)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        convert(root, "FlatVel_A", workers=0, **OPTIONS)
    assert not left or any("cut short" in str(w.message) for w in told)
    assert verify_store(root, "train") == 200


def assert_as_fresh(root, tmp_path, options):
    "A store has the values and facts of one that is made anew of the same files."
    fresh = tmp_path / "fresh" / "FlatVel_A"
    shutil.copytree(root, fresh, ignore=shutil.ignore_patterns("train", "val"))
    convert(fresh, "FlatVel_A", workers=0, **options)
    for split in ("train", "val"):
        assert values(root, split) == values(fresh, split)
        assert read_manifest(root / split) == read_manifest(fresh / split)


def km_per_s(root): np.save(root / "model" / "model2.npy", np.load(root / "model" / "model2.npy") / 2)
def one_record(root): np.load(root / "data" / "data1.npy", mmap_mode="r+")[77] *= 2
def shuffled(root): d = np.load(root / "data" / "data49.npy"); np.save(root / "data" / "data49.npy", d[::-1])


def one_trace(root): np.load(root / "data" / "data2.npy", mmap_mode="r+")[3, 1, :, 0] = 0
def one_row(root): np.load(root / "model" / "model1.npy", mmap_mode="r+")[5, 0, -1] += 100


@pytest.mark.parametrize("change, name", [(km_per_s, "model2"), (one_record, "data1"), (shuffled, "data49"),
    (one_trace, "data2"), (one_row, "model1")])
def test_files_that_were_corrected_are_converted_again(tmp_path, change, name):
    root = write_files(tmp_path)
    model = np.load(root / "model" / "model2.npy"); model[:] = np.clip(model, 3100, 4400)
    np.save(root / "model" / "model2.npy", model)
    convert(root, "FlatVel_A", workers=0, **OPTIONS)
    times = [(f, f.stat()) for f in root.glob("*/*.npy")]
    change(root)
    for f, stat in times: os.utime(f, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # even where the times are put back
    with pytest.raises(InputError, match="no finished store of these files"):
        with pytest.warns(UserWarning, match=f"{name}.npy has changed since"):
            convert(root, "FlatVel_A", build=False, **OPTIONS)
    convert(root, "FlatVel_A", workers=0, **OPTIONS)
    assert_as_fresh(root, tmp_path, OPTIONS)


# 38 kB a record, of which the digest of a beginning sees 4 kB in the middle
LONG = surface_survey(12, 2, nt=400)
WIDE = dict(time_samples=20, survey=LONG)


def write_long(folder): return write_files(folder, (("data1", 80), ("data2", 20), ("data49", 30)), LONG)


def unseen(root, record, factor=3.0):
    "Correct a record of the first file where no sample of a digest lies, and put its times back."
    path = root / "data" / "data1.npy"
    stat = path.stat()
    np.load(path, mmap_mode="r+")[record, 0, :90] *= factor
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_beginnings_of_a_digest_do_not_see_every_value(tmp_path):
    root = write_long(tmp_path)
    pair = open_pair(root / "data" / "data1.npy", root / "model" / "model1.npy")
    before = source_digests(pair)
    unseen(root, 3)
    after = source_digests(pair)
    assert after[1] == before[1] and after[0][:16] == before[0][:16] and after[0] != before[0]


def test_a_conversion_does_not_go_on_with_a_file_that_was_corrected(tmp_path):
    root = write_long(tmp_path)
    stopped(root, 90, **WIDE)  # 30 for validation, 64 of 100 for training
    unseen(root, 3)
    convert(root, "FlatVel_A", workers=0, **WIDE)
    assert_as_fresh(root, tmp_path, WIDE)


def test_a_correction_while_a_store_is_made_again_has_its_own_pressure_range(tmp_path):
    root = write_long(tmp_path)
    convert(root, "FlatVel_A", workers=0, **WIDE)
    unseen(root, 3)
    with pytest.warns(UserWarning, match="data1.npy has changed since"): stopped(root, 90, **WIDE)
    unseen(root, 70, factor=50.0)
    convert(root, "FlatVel_A", workers=0, **WIDE)
    assert_as_fresh(root, tmp_path, WIDE)


def test_a_store_that_is_made_again_goes_on_after_an_interruption(tmp_path):
    root, told = write_long(tmp_path), []
    convert(root, "FlatVel_A", workers=0, **WIDE)
    unseen(root, 3)
    with pytest.warns(UserWarning, match="data1.npy has changed since"): stopped(root, 90, **WIDE)
    convert(root, "FlatVel_A", workers=0, progress=lambda done, total: told.append(done), **WIDE)
    assert told == [130]  # 94 were there
    assert_as_fresh(root, tmp_path, WIDE)


@pytest.mark.parametrize("begun", [False, True])
def test_a_correction_during_the_conversion_is_refused_even_where_the_times_are_put_back(tmp_path, begun):
    root = write_long(tmp_path)
    if begun: stopped(root, 90, **WIDE)
    def progress(count, total):
        if count == 130: unseen(root, 3)
    with pytest.raises(InputError, match="data1.npy (and 1 more .* have|has) changed while the store was made: repeat"):
        convert(root, "FlatVel_A", workers=0, progress=progress, **WIDE)
    convert(root, "FlatVel_A", workers=0, **WIDE)
    assert_as_fresh(root, tmp_path, WIDE)


def test_a_file_that_is_only_touched_during_the_conversion_is_no_reason_to_refuse(tmp_path):
    root = write_long(tmp_path)
    def progress(count, total):
        if count == 130: (root / "data" / "data1.npy").chmod(0o600)
    convert(root, "FlatVel_A", workers=0, progress=progress, **WIDE)
    assert_as_fresh(root, tmp_path, WIDE)


def test_a_correction_after_the_last_look_is_noticed_the_next_time(tmp_path, monkeypatch):
    root = write_long(tmp_path)
    look = build.prove_sources
    def looked(*given):
        found = look(*given)
        if given[0][0].seismic.name == "data1.npy": unseen(root, 3)
        return found
    monkeypatch.setattr(build, "prove_sources", looked)
    convert(root, "FlatVel_A", workers=0, **WIDE)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="data1.npy has changed since"):
        convert(root, "FlatVel_A", workers=0, **WIDE)
    assert_as_fresh(root, tmp_path, WIDE)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_conversion_reads_every_record_once(tmp_path, workers, monkeypatch):
    digests = lambda root: [s["digest"] for split in ("train", "val") for s in read_manifest(root / split)["sources"]]
    root = convert(write_files(tmp_path), "FlatVel_A", workers=workers, **OPTIONS)
    pairs = [open_pair(root / "data" / f"data{k}.npy", root / "model" / f"model{k}.npy") for k in (1, 2, 49)]
    assert digests(root) == list(map(source_digests, pairs))
    if workers: return
    seen = []
    monkeypatch.setattr(openfwi, "read_row", lambda array, i: seen.append(i) or read_row(array, i))
    for split in ("train", "val"): shutil.rmtree(root / split)
    convert(root, "FlatVel_A", workers=0, **OPTIONS)
    assert len(seen) == 2 * 300 and digests(root) == list(map(source_digests, pairs))
    seen.clear(); convert(root, "FlatVel_A", workers=0, **OPTIONS)
    assert not seen
    os.utime(root / "data" / "data2.npy"); convert(root, "FlatVel_A", build=False, **OPTIONS)
    assert len(seen) == 2 * 50


def test_a_copy_of_the_files_is_not_a_change(tmp_path):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    before = (root / "train" / "manifest.json").read_bytes()
    for file in root.glob("*/*.npy"):
        copy = file.with_suffix(".copy"); shutil.copy(file, copy); copy.replace(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(root, "FlatVel_A", build=False, **OPTIONS)
        convert(root, "FlatVel_A", workers=0, **OPTIONS)
    assert (root / "train" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("key", ["data_min", "label_max"])
@pytest.mark.parametrize("value", ["true", "false", "null", '"-30"', "[1]", "Infinity", "-Infinity", "NaN", "1e400",
    "1e300", "9" * 400, "9" * 5000])
def test_a_range_that_is_no_number_is_refused(tmp_path, key, value):
    entry = dict(data_min=-26.95, data_max=52.77, label_min=1500, label_max=4500) | {key: None}
    (tmp_path / "ranges.json").write_text(json.dumps({"flatvel-a": entry}).replace("null", value))
    with pytest.raises(InputError, match=f"ranges.json.*({key}|is not a JSON file)") as caught:
        load_ranges(tmp_path / "ranges.json", "FlatVel_A")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("more", ["", "0123abcd"])  # of parts, and of all by another sum
def test_a_store_of_an_earlier_version_says_what_it_cannot_tell(tmp_path, more):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    path = root / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    for source in manifest["sources"]: source["digest"] = [digest[:16] + more for digest in source["digest"]]
    write_sealed(path, manifest)
    (root / "train" / "sources.json").unlink()
    with pytest.warns(UserWarning, match="earlier version made .* if they were corrected, remove it"):
        convert(root, "FlatVel_A", build=False, **OPTIONS)
    manifest["sources"][0]["digest"] = ["0" * 16 + more] * 2
    write_sealed(path, manifest)
    with pytest.warns(UserWarning, match="data1.npy .* have changed since"), pytest.raises(InputError, match="unasked"):
        convert(root, "FlatVel_A", build=False, **OPTIONS)


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1}', '{"a": {"digest": 3}}'])
def test_what_was_seen_of_the_files_is_only_a_help(tmp_path, content):
    root = convert(write_files(tmp_path), "FlatVel_A", workers=0, **OPTIONS)
    (root / "train" / "sources.json").write_text(content)
    assert convert(root, "FlatVel_A", build=False, **OPTIONS) == root


def test_a_file_that_changes_while_it_is_converted_is_said(tmp_path):
    root = write_files(tmp_path)
    def progress(done, total):
        if done == 228: one_record(root)
    with pytest.raises(InputError, match="data1.npy has changed while the store was made: repeat"):
        convert(root, "FlatVel_A", workers=0, progress=progress, **OPTIONS)
    assert not (root / "train").exists()
    assert verify_store(convert(root, "FlatVel_A", workers=0, **OPTIONS), "train") == 200
