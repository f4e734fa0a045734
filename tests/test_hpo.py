"The search for options: a kill, what it leaves, the command that it prints."
import csv
import json
import shlex

import numpy as np
import pytest
from processes import arguments, assert_equal, killed_search, weights

from fwi_i2sb.core.commands import parse
from fwi_i2sb.training.options import TrainOptions
from fwi_i2sb.training.run_dir import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_killed_search_continues_and_prints_what_trains_the_best(data, fwi, refused, forked_trainings, tmp_path):
    words = ["hpo", *arguments(data, tmp_path, "search", "--num-itr", 8, "--val-every", 4, "--trials", 3,
        "--optimizers", "sgd", "adamw", "--losses", "l1", "l2")]
    folder = tmp_path / "search"
    interrupted = killed_search(words, folder, 2)
    said = fwi(*words)
    assert said.code == 0, said.err
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert {folder / row["run"] for row in rows} >= interrupted and len({row["run"] for row in rows}) == 3
    for row in rows:
        maes = [line["val_mae"] for line in read_metrics(folder / row["run"]) if "val_mae" in line]
        assert float(row["value"]) == np.min(maes) and len(maes) == 2  # interrupted or not
    best = json.loads((folder / "best.json").read_text())
    assert best["value"] == min(float(row["value"]) for row in rows) and best["command"] in said.out
    options = parse(TrainOptions, shlex.split(best["command"])[2:])
    assert options.optim.lr == best["options"]["lr"] and options.folder.name == "search-best"
    assert fwi(*shlex.split(best["command"])[1:]).code == 0
    assert_equal(weights(folder / best["run"]), weights(tmp_path / "search-best"))
    assert fwi(*words).code == 0 and len(list(folder.glob("trial-*/"))) == 3  # finished: nothing more is tried
    refused(*words, "--space", "medium", saying=("begun with another the space",))
    refused(*words, "--lr-step", 7, saying=("begun with another --lr-step",))
    plan, journal = ((folder / name).read_bytes() for name in ("search.json", "journal.log"))
    for name, content, saying in (("search.json", b"[]", "search.json is damaged"),
            ("search.json", None, "has lost its search.json"),
            ("journal.log", journal + b"null\n", "journal.log is damaged")):
        (folder / "search.json").write_bytes(plan)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        refused(*words, saying=(saying,))


def test_what_cannot_be_searched_is_refused(data, refused, tmp_path):
    given = ["tune", *arguments(data, tmp_path, "search", "--num-itr", 2)]
    for words, saying in ((("--space", "huge"), "unknown search space"), (("--optimizers", "lion"), "unknown optimi"),
            (("--schedulers", "multistep"), "--milestones"), (("--losses", "l3"), "unknown loss"),
            (("--trials", 0), "--trials must be 1 or more"),
            (("--batch-sizes", 3), "does not divide"), (("--models", "net"), "unknown model"),
            (("--ckpt", tmp_path), "--ckpt is about a single run"), (("--best", "acc"), "unknown metric")):
        refused(*given, *words, saying=(saying,))
    assert not (tmp_path / "search").exists()


def test_a_search_in_which_nothing_works_says_why(data, fwi, forked_trainings, tmp_path):
    plugin = tmp_path / "nothing.py"
    plugin.write_text("from fwi_i2sb.methods.losses import LOSSES\n"
        "LOSSES.register('nan_trial')(lambda difference: difference * float('nan'))")
    said = fwi("hpo", *arguments(data, tmp_path, "search", "--num-itr", 1, "--trials", 1, "--max-skipped", 0,
        "--import", plugin, "--loss", "nan_trial"))
    assert said.code == 1 and "no trial was finished" in said.err and "the gradient was not finite" in said.err
    row, = csv.DictReader((tmp_path / "search" / "trials.csv").open())
    assert row["state"] == "fail" and "not finite" in row["error"] and not (tmp_path / "search" / "best.json").exists()
