"Grids of runs: crossing, skipping, failures, changes, kills, and what is refused."
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from forkserver import PATIENCE, start
from processes import wait_for

from fwi_i2sb.sweeps import equal_budget as compare, run_cell
from fwi_i2sb.sweeps.jobs import threads_each
from fwi_i2sb.sweeps.run_cell import prepare_cell
from fwi_i2sb.sweeps.runner import await_cells, experiment_command, ExperimentOptions
from fwi_i2sb.sweeps.grid import read_grid
from fwi_i2sb.sweeps.grid_table import collect, write_tables
from fwi_i2sb.core.errors import InputError
from fwi_i2sb.core.commands import run_command
from fwi_i2sb.methods.options import ModelOptions
from fwi_i2sb.training.options import DataOptions

PARAMETERS = 'size: int = 1\nname: str = "a"\nrate: float = 0.5\npause: float = 0.0\nout_dir: str = ""'
WORK = """import json, pathlib, time
pathlib.Path(out_dir, "began").write_text("")
time.sleep(max(0, pause))
while pause < 0 and not pathlib.Path(out_dir).parents[1].joinpath("go").exists(): time.sleep(0.1)
assert size != 3, "three is too many"
found = dict(total=size * rate, word="good", rows=[1, 2])
if size != 4: pathlib.Path(out_dir, "metrics.json").write_text(json.dumps(found))"""
PYTHON = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))


def write_notebook(path: Path, work: str = WORK, parameters: str = PARAMETERS):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(work)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=PYTHON), path)


def write_grid(folder: Path, **entries) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(dict(notebook="tiny.ipynb", out="results") | entries))
    return path


pytestmark = pytest.mark.usefixtures("forked_cells")


@pytest.fixture
def folder(tmp_path) -> Path:
    write_notebook(tmp_path / "tiny.ipynb")
    return tmp_path


@pytest.fixture
def experiment(capsys):
    "Run the command here; returns its exit code and what it printed on stderr."
    def run(*words):
        capsys.readouterr()
        try: run_command(experiment_command, ExperimentOptions, [str(w) for w in words])
        except SystemExit as stop: return stop.code or 0, capsys.readouterr().err
        return 0, capsys.readouterr().err
    return run


def table(folder: Path) -> dict:
    return {row["cell"]: row for row in json.loads((folder / "results" / "table.json").read_text())}


def times(folder: Path) -> dict:
    return {p.parent.name: p.stat().st_mtime_ns for p in (folder / "results").glob("*/metrics.json")}


def test_lists_are_crossed_and_failed_cells_do_not_stop_the_others(folder, experiment):
    path = write_grid(folder, fixed=dict(rate=2.0), cross=dict(size=[1, 3]),
        cells=[dict(name="a"), dict(name="b", pause=0.1)])
    code, said = experiment(path, "--jobs", 2)
    rows = table(folder)
    assert code == 1 and list(rows) == ["name=a,size=1", "name=a,size=3", "name=b,pause=0.1,size=1",
        "name=b,pause=0.1,size=3"]
    assert [row["state"] for row in rows.values()] == ["finished", "failed"] * 2
    assert rows["name=a,size=1"]["metrics"] == dict(total=2.0, word="good")
    assert ("three is too many" in said and str(folder / "results" / "name=a,size=3" / "log.txt") in said
        and said.splitlines()[-1].startswith("error: 2 of 4 cells failed"))
    lines = list(csv.DictReader((folder / "results" / "table.csv").open()))
    assert lines[0] | dict(seconds="") == dict(cell="name=a,size=1", state="finished", rate="2.0", name="a", size="1",
        pause="", total="2.0", word="good", seconds="")
    assert (folder / "results" / "table.md").read_text().endswith('|\n\nAll cells: "rate": 2.0\n')


def add_texts_and_outputs(path: Path):
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# A title"))
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="shown")]
    nbformat.write(notebook, path)


def test_only_what_is_new_changed_or_failed_runs(folder, experiment):
    assert experiment(write_grid(folder, cross=dict(size=[1, 4])), "--jobs", 2)[0] == 1
    first = times(folder)
    assert "no metrics.json" in table(folder)["size=4"]["error"]

    add_texts_and_outputs(folder / "tiny.ipynb")
    assert experiment(write_grid(folder, cross=dict(size=[2, 1])))[0] == 0
    second = times(folder)
    assert set(second) == {"size=1", "size=2"} and second["size=1"] == first["size=1"]

    code, said = experiment(write_grid(folder, fixed=dict(rate=1.0), cross=dict(size=[1])))
    assert code == 0 and "size=1: its parameters changed" in said and times(folder)["size=1"] > first["size=1"]

    write_notebook(folder / "tiny.ipynb", WORK + "\n# a remark")
    code, said = experiment(write_grid(folder, fixed=dict(rate=1.0), cross=dict(size=[1])))
    assert code == 0 and "size=1: the notebook's code changed" in said


def finish(cell, metrics: str):
    "Leave what a cell that ended well leaves, with this text for its metrics."
    prepare_cell(cell)
    (cell.folder / "metrics.json").write_text(metrics)
    (cell.folder / "cell.json").write_text(json.dumps(cell.identity() | dict(state="finished", seconds=1.0)))


def test_a_finished_cell_is_recognised_by_its_values_as_json(folder):
    write_notebook(folder / "tiny.ipynb", parameters=PARAMETERS + "\nextra: list = []")
    path = write_grid(folder, fixed=dict(size=1, rate=1))
    path.write_text(path.read_text() + "cells: [{extra: !!omap [a: 1]}]")
    finish(read_grid(path).cells[0], "{}")
    assert read_grid(path).cells[0].finished(), "pairs come back from JSON as lists"
    path.write_text(path.read_text().replace("rate: 1", "rate: 1.0"))
    assert read_grid(path).cells[0].stale() == "its parameters changed"


def test_a_change_of_the_package_makes_a_finished_cell_stale(folder, monkeypatch):
    path = write_grid(folder, cross=dict(size=[1]))
    finish(read_grid(path).cells[0], "{}")
    assert read_grid(path).cells[0].finished()
    monkeypatch.setattr("fwi_i2sb.sweeps.grid.package_digest", lambda: "0.1.0 another")
    assert (collect(read_grid(path))[0]["state"] == "changed"
        and read_grid(path).cells[0].stale() == "the code of fwi_i2sb changed")


def test_a_damaged_file_is_a_cell_that_runs_again(folder, experiment):
    path = write_grid(folder, cross=dict(size=[1, 2]))
    one, two = read_grid(path).cells
    for damage in ("", "[]", "3", '{"state": "fin'):
        for cell in (one, two): finish(cell, "{}")
        for file in (one.folder / "cell.json", two.folder / "metrics.json"): file.write_text(damage)
        assert (not one.finished() and not two.finished()
            and [row["state"] for row in collect(read_grid(path))] == ["changed", "failed"])
    code, said = experiment(path, "--jobs", 2)
    assert (code == 0 and "size=1: its cell.json is damaged, it runs again" in said
        and "size=2: its metrics.json is missing or damaged, it runs again" in said), said
    assert [row["state"] for row in table(folder).values()] == ["finished"] * 2


def test_small_numbers_reach_the_notebook_as_numbers(folder, experiment):
    write_notebook(folder / "tiny.ipynb",
        WORK.replace("import json", "assert rate == 1e-5 and name == '\N{SNOWMAN} 1e-5'\nimport json"))
    assert experiment(write_grid(folder, fixed=dict(rate=1e-5, name="\N{SNOWMAN} 1e-5")))[0] == 0, (
        (folder / "results" / "single" / "log.txt").read_text())


def test_a_metric_does_not_hide_a_column_of_the_same_name(folder):
    write_notebook(folder / "tiny.ipynb", parameters=PARAMETERS + "\nseconds: float = 1.0")
    path = write_grid(folder, cross=dict(size=[1, 2]), fixed=dict(seconds=9.0))
    for cell in read_grid(path).cells: finish(cell, json.dumps(dict(size=7, cell="c", seconds=5.0, total=3.0)))
    write_tables(read_grid(path))
    lines = list(csv.reader((folder / "results" / "table.csv").open()))
    assert lines[0] == ["cell", "state", "parameters.seconds", "size", "metrics.size", "metrics.cell",
        "metrics.seconds", "total", "seconds"]
    assert lines[1] == ["size=1", "finished", "9.0", "1", "7", "c", "5.0", "3.0", "1.0"]
    assert "| size=2 | finished | 2 | 7 | c | 5 | 3 | 1 |" in (folder / "results" / "table.md").read_text()


@pytest.mark.parametrize("given, threads", [("3", 3), ("4,2", 4), ("", None), (" ", None)])
def test_threads_follow_the_environment(monkeypatch, given, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share = threads_each(2)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_each(2) == (threads or share)


def test_a_number_of_threads_that_is_none_is_refused_before_anything_is_written(folder, experiment, monkeypatch):
    for wrong in ("many", "0", "-1"):
        monkeypatch.setenv("OMP_NUM_THREADS", wrong)
        code, said = experiment(write_grid(folder))
        assert code == 2 and "OMP_NUM_THREADS" in said and not (folder / "results").exists()


def start_grid(path: Path, *words, **env) -> subprocess.Popen:
    code = ("from types import SimpleNamespace as Has; from fwi_i2sb.sweeps import run_cell; "
        f"run_cell.sys = Has(executable={run_cell.sys.executable!r}); "
        "from fwi_i2sb.sweeps.runner import *; from fwi_i2sb.core.commands import run_command; "
        "run_command(experiment_command, ExperimentOptions)")
    return start([sys.executable, "-c", code, str(path), *words], stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True, env=os.environ | env)


def at_work(folder: Path) -> list[str]:
    "Command lines of papermill and of kernels in this folder."
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if (("papermill" in words and str(folder) in words)
                    or ("ipykernel" in words and process.cwd() == str(folder))):
                found.append(words)
    return found


def test_ctrl_c_ends_the_cells_and_the_repeated_command_continues(folder, experiment, monkeypatch):
    path = write_grid(folder, cells=[dict(size=1), dict(size=2, pause=60.0)])
    grid = start_grid(path)
    wait_for((folder / "results" / "pause=60.0,size=2" / "began").exists)
    grid.send_signal(signal.SIGINT)
    assert grid.wait(PATIENCE) == 130, grid.stderr.read()
    wait_for(lambda: not at_work(folder))
    assert times(folder).keys() == {"size=1"} and table(folder)["pause=60.0,size=2"]["state"] == "stopped"
    stopped, before = json.loads((folder / "results" / "pause=60.0,size=2" / "cell.json").read_text()), times(folder)
    assert stopped["state"] == "stopped"
    # whoever edits the package meanwhile
    monkeypatch.setattr("fwi_i2sb.sweeps.grid.package_digest", lambda: stopped["package"])
    assert experiment(write_grid(folder, cells=[dict(size=1), dict(size=2)]))[0] == 0
    assert times(folder)["size=1"] == before["size=1"]


def test_two_runs_of_a_grid_do_not_meet_even_if_the_first_is_killed(folder, experiment):
    path = write_grid(folder, cross=dict(size=[1]), fixed=dict(pause=-1.0))
    grid = start_grid(path)
    wait_for((folder / "results" / "size=1" / "began").exists)
    code, said = experiment(path)
    assert code == 2 and "is in use" in said
    grid.kill()
    grid.wait()
    assert experiment(path)[0] == 2, "its cell still runs"
    (folder / "go").write_text("")
    wait_for(lambda: not at_work(folder))
    assert experiment(write_grid(folder, cross=dict(size=[1])))[0] == 0


def test_a_job_that_leaves_the_queue_without_a_result_is_a_failed_cell(folder, monkeypatch):
    cell = read_grid(write_grid(folder)).cells[0]
    prepare_cell(cell)
    answers = [None, {"7"}, *[set()] * 9]
    monkeypatch.setattr("fwi_i2sb.sweeps.runner.queue", lambda name: answers.pop(0))
    ended = []
    await_cells({"7": cell}, "name", folder, ended.append, every=0.05, patience=0.1)
    assert ended == [cell] and cell.state()["state"] == "failed" and "ended without a result" in cell.state()["error"]


@pytest.fixture
def cluster(folder):
    "Writes commands that stand for Slurm's; the PATH on which they are found first."
    def write(**scripts) -> str:
        (folder / "bin").mkdir()
        for name, script in (dict(srun="", squeue="", sbatch="", scancel="echo noise >&2; exit 1") | scripts).items():
            (folder / "bin" / name).write_text(f"#!/bin/sh\necho {name} >> {folder}/called\n{script}\n")
            (folder / "bin" / name).chmod(0o755)
        return f"{folder}/bin:{os.environ['PATH']}"
    return write


@pytest.mark.parametrize("squeue, saying", [("exit 1", "squeue does not answer"), ("echo 7_0", "still in the queue")])
def test_no_job_is_submitted_while_others_may_run(folder, experiment, cluster, monkeypatch, squeue, saying):
    path = write_grid(folder, cross=dict(size=[1, 2]))
    prepare_cell(read_grid(path).cells[0])
    monkeypatch.setenv("PATH", cluster(squeue=squeue))
    code, said = experiment(path, "--slurm")
    assert code == 2 and saying in said and (folder / "called").read_text().split() == ["squeue"]
    assert read_grid(path).cells[0].state()["state"] == "running" and not read_grid(path).cells[1].folder.exists()


def test_jobs_that_slurm_refuses_are_failed_cells(folder, cluster):
    path = write_grid(folder, cross=dict(size=[1, 2]))
    grid = start_grid(path, "--slurm", PATH=cluster(sbatch="echo 'sbatch: error: invalid partition' >&2; exit 1"))
    said = grid.communicate(timeout=PATIENCE)[1]
    assert grid.returncode == 2 and "invalid partition" in said and "noise" not in said, said
    rows = table(folder).values()
    assert [row["state"] for row in rows] == ["failed"] * 2 and all("invalid partition" in row["error"] for row in rows)
    assert all("invalid partition" in cell.state()["error"] for cell in read_grid(path).cells)


def test_cells_whose_jobs_are_ended_are_stopped(folder, cluster):
    path = write_grid(folder, cross=dict(size=[1, 2]))
    grid = start_grid(path, "--slurm", PATH=cluster(sbatch="echo Submitted batch job 7"))
    wait_for(lambda: (folder / "called").exists() and "sbatch" in (folder / "called").read_text())
    grid.send_signal(signal.SIGTERM)
    said = grid.communicate(timeout=PATIENCE)[1]
    assert grid.returncode == 128 + signal.SIGTERM and "noise" not in said, said
    assert (folder / "called").read_text().split()[-1] == "scancel"
    assert [row["state"] for row in table(folder).values()] == ["stopped"] * 2


@pytest.mark.parametrize("option, value", [("--cpus", 0), ("--minutes", 0), ("--minutes", -5), ("--gpus", -1),
    ("--mem-gb", 0), ("--mem-gb", -1.5), ("--jobs", -1)])
def test_numbers_of_a_job_that_cannot_be_are_refused(folder, experiment, option, value):
    code, said = experiment(write_grid(folder), "--slurm", option, value)
    assert code == 2 and option in said and not (folder / "results").exists(), said


WRONG = {
    "no YAML": ("notebook: [", "is not YAML"),
    "no mapping": ("- 1", "entries notebook, out and cross"),
    "unknown entry": (dict(crossed={}), "did you mean 'cross'"),
    "unknown parameter": (dict(cross=dict(sizes=[1])), "did you mean 'size'"),
    "no output folder": ("notebook: tiny.ipynb", "no entry 'out'"),
    "missing notebook": (dict(notebook="none.ipynb"), "there is no notebook"),
    "no notebook": (dict(notebook="grid.yaml"), "is not a notebook"),
    "no cells": (dict(notebook="empty.ipynb"), "is not a notebook"),
    "damaged notebook": (dict(notebook="odd.ipynb"), "odd.ipynb cannot be run: "),
    "notebook of NUL": (dict(notebook="a\0b"), "is no name of a file"),
    "output of NUL": (dict(out="a\0b"), "is no name of a file"),
    "too many cells": (dict(cross=dict(size=[*range(300)], rate=[n / 2 for n in range(300)])), "it has 90000 cells: "),
    "no output name": (dict(out=""), "out must be"),
    "empty list": (dict(cross=dict(size=[])), "at least one value"),
    "no list": (dict(cross=dict(size=1)), "at least one value"),
    "value twice": (dict(cross=dict(size=[1, 1])), "holds 1 twice"),
    "key twice": ("notebook: tiny.ipynb\nout: results\nfixed: {size: 1, size: 2}", "'size' stands there twice"),
    "cell twice": (dict(cells=[dict(size=1), dict(size=1)]), "twice"),
    "cell that is no mapping": (dict(cells=[1]), "must be a mapping"),
    "parameter twice": (dict(fixed=dict(size=1), cross=dict(size=[1])), "given twice"),
    "type": (dict(fixed=dict(size="one")), "must be of type int"),
    "exponent": ("notebook: tiny.ipynb\nout: results\nfixed: {rate: 1e-3}", "write 1.0e-3"),
    "out_dir": (dict(fixed=dict(out_dir="x")), "every cell gets its own folder"),
    "date": ("notebook: tiny.ipynb\nout: results\ncross: {name: [2020-01-01]}", "cannot be a parameter"),
    "fixed date": ("notebook: tiny.ipynb\nout: results\nfixed: {name: 2020-01-01}", "cannot be a parameter"),
    "date in a cell": ("notebook: tiny.ipynb\nout: results\ncells: [{name: 2020-01-01}]", "cannot be a parameter"),
    "no finite number": (dict(fixed=dict(rate=float("nan"))), "give finite numbers"),
    "infinite": (dict(cross=dict(rate=[float("inf")])), "give finite numbers"),
    "key that is a list": ("notebook: tiny.ipynb\nout: results\ncross: {? [1, 2] : [3]}", "the key [1, 2] is not text"),
    "key that is a number": ("notebook: tiny.ipynb\nout: results\nfixed: {name: {1: 2}}", "the key 1 is not text"),
}


@pytest.mark.parametrize("wrong, saying", WRONG.values(), ids=WRONG)
def test_bad_grids_are_refused_before_anything_is_written(folder, experiment, wrong, saying):
    (folder / "empty.ipynb").write_text('{"cells": 3}')
    (folder / "odd.ipynb").write_text('{"cells": [{"cell_type": "code", "source": "", "metadata": {"tags": null}}]}')
    path = write_grid(folder, **wrong) if isinstance(wrong, dict) else folder / "grid.yaml"
    if isinstance(wrong, str): path.write_text(wrong)
    code, said = experiment(path)
    assert code == 2 and said.startswith("error: ") and saying in said and said.count("\n") == 1, said
    assert not (folder / "results").exists()


def test_notebooks_that_cannot_report_and_folders_of_others_are_refused(folder, experiment):
    write_notebook(folder / "tiny.ipynb", parameters="size: int = 1")
    assert "no parameter out_dir" in experiment(write_grid(folder))[1]
    write_notebook(folder / "tiny.ipynb")
    (folder / "results" / "size=1").mkdir(parents=True)
    (folder / "results" / "size=1" / "thesis.txt").write_text("")
    code, said = experiment(write_grid(folder, cross=dict(size=[1])))
    assert code == 2 and "not made by a grid" in said
    assert [path.name for path in (folder / "results").rglob("*")] == ["size=1", "thesis.txt"]


def test_options_that_would_change_nothing_are_refused(folder, experiment):
    path = write_grid(folder)
    assert experiment(path, "--jobs", 0)[0] == 2 and "add --slurm" in experiment(path, "--gpus", 1)[1]
    if not any(Path(p, "sbatch").exists() for p in os.environ["PATH"].split(":")):
        assert "no command sbatch" in experiment(path, "--slurm")[1]


@pytest.mark.parametrize("n_critic, timed", [(1, 4), (3, 6), (4, 4), (5, 5)])
def test_whole_turns_of_a_gan_are_timed(data, tmp_path, monkeypatch, n_critic, timed):
    monkeypatch.setattr(compare, "_stepper", lambda *about: contextlib.nullcontext())
    monkeypatch.setattr(compare, "_time", lambda step, steps, device: steps)
    model = ModelOptions("velocitygan", method="gan", n_critic=n_critic)
    assert compare.seconds_per_step(compare.recipe(tmp_path, "gan", model, DataOptions(data, "CurveVel_A"), steps=1,
        batch_size=4)) == timed


@pytest.mark.parametrize("given, saying", [
    (dict(seconds=60.0, steps=dict(bridge=0)), "bridge: steps must be 1 or more"),
    (dict(steps={}), "bridge has neither a budget nor a number of steps"),
])
def test_no_steps_and_no_budget_are_refused(data, tmp_path, given, saying):
    with pytest.raises(InputError, match=saying):
        compare.train_equally(tmp_path / "runs", dict(bridge=ModelOptions("tiny")), DataOptions(data, "CurveVel_A"),
            **given)
    assert not (tmp_path / "runs").exists()
