"Work in parts: equal results for any split, continued, by processes here and by submitit's local executor."
import json
import shutil
import sys

import numpy as np
import pytest
from forkserver import run as python

from fwi_i2sb.core.commands import options_to_dict
from fwi_i2sb.core.slurm import run_jobs, SlurmOptions
from fwi_i2sb.data.command import GenerateOptions
from fwi_i2sb.physics.wave import surface_survey

pytestmark = pytest.mark.usefixtures("one_thread")


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


SHAPE = ("--shape", 16, 16, "--train", 6, "--val", 3, "--shard-size", 2, "--family", "FlatVel_A", "--device", "cpu")


@pytest.fixture
def survey(tmp_path):
    path = tmp_path / "survey.json"
    path.write_text(json.dumps(surface_survey(16, 2, nt=40).to_dict()))
    return path


def test_generated_parts_are_the_whole(fwi, survey, tmp_path):
    words = (*SHAPE, "--survey", survey)
    assert fwi("generate", tmp_path / "whole", *words).code == 0
    first = fwi("generate", tmp_path / "parts", *words, "--part", "2/3")
    assert first.code == 0 and "part 2/3" in first.out
    there = contents(tmp_path / "parts")
    assert len(there) == 1 + 2 * len([k for k in range(5) if k % 3 == 1])
    # the others as jobs: submitit's own executor for one machine
    options = GenerateOptions(tmp_path / "parts", "FlatVel_A", train=6, val=3, shard_size=2, shape=(16, 16),
        survey=survey, device="cpu")
    tasks = [dict(work="fwi_i2sb.data.command:generate_part", options=options_to_dict(options), part=f"{k}/2", first=k,
        count=1) for k in (1, 2)]
    done = run_jobs(tasks, tmp_path / ".slurm", "test", SlurmOptions(minutes=5), "local", every=0.1)
    assert {task["part"] for task in done} == {"1/2", "2/2"}
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_what_cannot_be_split_is_refused(refused, survey, tmp_path):
    words = ("generate", tmp_path / "out", *SHAPE, "--survey", survey)
    refused(*words, "--part", "4/3", saying=("--part must be", "2/8"))
    refused(*words, "--part", "x", saying=("--part must be",))
    refused(*words, "--jobs", 2, saying=("--jobs", "--workers"))
    refused(*words, "--slurm", saying=("--slurm needs --jobs",))
    refused(*words, "--slurm", "--jobs", 2, saying=("squeue",) if shutil.which("sbatch") else ("needs Slurm",))
    refused(*words, "--gpus", 1, saying=("add --slurm",))
    refused(*words, "--part", "1/2", "--slurm", "--jobs", 2, saying=("remove one",))
    refused("generate", tmp_path / "out", "--layout", "speed-structure", "--part", "1/2", saying=("no effect",))
    refused("generate", tmp_path / "out", "--layout", "speed-structure", "--device", "cuda", saying=("no effect",))
    assert not (tmp_path / "out").exists()


def card(folder):
    "The card without what a clock says."
    found = json.loads((folder / "card.json").read_text())
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in found["rows"]], found["settings"]


def test_an_evaluation_in_parts_is_the_whole(fwi, mini, tmp_path):
    words = ("--records", 5, "--batch-size", 2, "--samples", 1, "--nfe", 1, "--starts", "linear", "--misfit-records", 1,
        "--device", "cpu")
    # in two processes
    together = fwi("evaluate", mini, *words, "--jobs", 2, "--out", tmp_path / "jobs")
    assert together.code == 0, together.err
    # by hand: the last part writes the card, and a damaged batch is made again
    first = fwi("evaluate", mini, *words, "--part", "2/2", "--out", tmp_path / "parts")
    assert first.code == 0 and "part 2/2 is done" in first.out and not (tmp_path / "parts" / "card.json").exists()
    kept, = (tmp_path / "parts").glob(".parts-*")
    batch, = kept.glob("*.npz")
    batch.write_bytes(batch.read_bytes()[:-50])
    assert fwi("evaluate", mini, *words, "--part", "1/2", "--out", tmp_path / "parts").code == 0
    assert fwi("evaluate", mini, *words, "--out", tmp_path / "parts").code == 0 and not kept.exists()
    assert card(tmp_path / "parts") == card(tmp_path / "jobs")
    late = fwi("evaluate", mini, *words, "--part", "2/2", "--out", tmp_path / "parts")
    assert late.code == 0 and "written already" in late.out and not list((tmp_path / "parts").glob(".parts-*"))


def results(path):
    with np.load(path) as found: return {name: found[name] for name in found.files if name != "provenance"}


def test_an_inversion_in_parts_is_the_whole(fwi, mini, data, tmp_path, monkeypatch):
    monkeypatch.setattr("fwi_i2sb.inference.command._batches", lambda *given: iter([(0, 2), (2, 4), (4, 5)]))
    words = ("invert", mini, "--records", 5, "--samples", 2, "--nfe", 2, "--device", "cpu")
    first = fwi(*words, "--part", "2/2", "--out", tmp_path / "parts")
    assert first.code == 0 and "part 2/2 is done" in first.out
    assert [path.name[:7] for path in (tmp_path / "parts").iterdir()] == [".parts-"]
    done = fwi(*words, "--part", "1/2", "--out", tmp_path / "parts")
    assert done.code == 0, done.err
    made = ["validation-5.npz", "validation-5.png"]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == made
    late = fwi(*words, "--part", "2/2", "--out", tmp_path / "parts")
    assert late.code == 0 and "written already" in late.out
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == made
    assert fwi(*words, "--out", tmp_path / "whole").code == 0
    parts, whole = (results(tmp_path / name / "validation-5.npz") for name in ("parts", "whole"))
    for name, values in whole.items(): np.testing.assert_array_equal(parts[name], values)
    # an interruption: the finished batches are not inverted again
    from fwi_i2sb.inference import command
    real, asked = command._one_batch, []

    def stops(options, run, work, i, j, progress):
        asked.append(i)
        if asked == [0, 2]: raise KeyboardInterrupt
        return real(options, run, work, i, j, progress)
    monkeypatch.setattr(command, "_one_batch", stops)
    assert fwi(*words, "--out", tmp_path / "stopped").code == 130
    assert fwi(*words, "--out", tmp_path / "stopped").code == 0 and asked == [0, 2, 2, 4]
    again = results(tmp_path / "stopped" / "validation-5.npz")
    for name, values in whole.items(): np.testing.assert_array_equal(again[name], values)


def test_a_result_that_was_written_and_not_drawn_is_finished(fwi, mini, data, tmp_path, monkeypatch):
    record = np.load(next((data / "data").glob("*.npy")), mmap_mode="r")
    (tmp_path / "in").mkdir()
    for k in range(2): np.save(tmp_path / "in" / f"r{k}.npy", record[k])
    words = ("invert", mini, "--record", tmp_path / "in", "--samples", 1, "--nfe", 1, "--device", "cpu", "--out",
        tmp_path / "out")
    with monkeypatch.context() as change:
        def interrupted(*given, **named): raise KeyboardInterrupt
        change.setattr("fwi_i2sb.inference.command._draw", interrupted)
        assert fwi(*words).code == 130
    before = results(tmp_path / "out" / "r0.npz")
    assert fwi(*words).code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["r0.npz", "r0.png", "r1.npz", "r1.png"]
    after = results(tmp_path / "out" / "r0.npz")
    for name, values in before.items(): np.testing.assert_array_equal(after[name], values)


def test_a_spool_leaves_nothing_of_a_process_that_is_killed(tmp_path):
    code = ("import os, sys, torch; from fwi_i2sb.inference.records import Spool\n"
        "with Spool(sys.argv[1]) as spool:\n"
        "    spool.add(mean=torch.ones(2, 3)); assert spool.tensors()['mean'].sum() == 6; os.kill(os.getpid(), 9)")
    assert python([sys.executable, "-c", code, tmp_path / "out"]).returncode == -9
    assert list((tmp_path / "out").iterdir()) == []


def test_files_in_parts_each_have_their_result(fwi, mini, data, tmp_path):
    record = np.load(next((data / "data").glob("*.npy")), mmap_mode="r")
    (tmp_path / "in").mkdir()
    for k in range(3): np.save(tmp_path / "in" / f"r{k}.npy", record[k, :, ::4])
    words = ("invert", mini, "--record", tmp_path / "in", "--samples", 1, "--nfe", 1, "--device", "cpu", "--out",
        tmp_path / "out")
    assert fwi(*words, "--part", "2/2").code == 0
    made = tmp_path / "out" / "r1.npz"
    assert [path.name for path in (tmp_path / "out").glob("*.npz")] == ["r1.npz"]
    before = made.stat().st_mtime_ns
    done = fwi(*words, "--jobs", 2)
    assert done.code == 0 and "wrote 3 of 3 results" in done.out, done.err
    assert made.stat().st_mtime_ns == before and len(list((tmp_path / "out").glob("*.npz"))) == 3
