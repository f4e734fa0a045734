"The commands of the guides run as they stand there, in order, smaller: WaveDL's in our spelling among them."
import csv
import json
import re
import sys

import h5py
import numpy as np
import pytest
from pasting import blocks, changed, lines, ROOT
from processes import wait_for

from fwi_i2sb import load_run
from fwi_i2sb.data.generate import generate
from fwi_i2sb.models.registry import MODELS

pytestmark = pytest.mark.usefixtures("names_leave", "one_thread", "forked_trainings")
GUIDES = ("wavedl", "vectors", "search", "export")

# what is smaller here than in the text; nothing else of a command is changed
SMALLER = [
    (r"--num-itr (\d)000", r"--num-itr \1"),
    (r"--model (ratenet|mine)$", r"\g<0> --num-itr 2"),
    (r"--dataset-dir (waves|plates)", r"\g<0> --batch-size 8 --microbatch 4 --device cpu --precision fp32"),
    (r"--preset small", "--model tiny --batch-size 2 --microbatch 2 --num-itr 2 --val-nfe 1 --val-maps 0 --device cpu"),
    (r"--trials 50", "--trials 2"),
    (r"--trials 30", "--trials 1"),
    (r"--folds 5", "--folds 2"),
    (r"--val-every 250", "--val-every 1"),
]

# what is not run here, and why
NOT_HERE = {r"^pip install": "fetches packages: .ci/run installs into a fresh environment"}


def guide(name: str) -> str: return (ROOT / "docs" / "guides" / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture
def paste(paste_text, monkeypatch):
    monkeypatch.setattr(MODELS, "own", {name: model for name, model in MODELS.own.items() if name != "mine"})
    return lambda name: paste_text(guide(name), SMALLER, NOT_HERE)


def waves(records: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    y = np.stack([rng.uniform(1, 3, records), rng.uniform(2000, 4000, records)], 1)
    return dict(x=np.sin(y[:, :1] * np.arange(64)) * y[:, 1:] / 3000, y=y)


def steps(run) -> list[str]:
    with (run / "history.csv").open() as file: return [row["step"] for row in csv.DictReader(file)]


def test_a_day_of_wavedl(paste, tmp_path):
    for name, records in (("train", 30), ("test", 9), ("new", 5)): np.savez(tmp_path / f"{name}.npz", **waves(records))
    assert paste("wavedl") == 12
    out = tmp_path / "out"
    assert steps(out / "first") == ["2", "4"]
    for name in ("two", "own", "logged"): assert load_run(out / name, plugin=tmp_path / "mine.py").step == 2
    # W&B's own process writes it
    wait_for(lambda: list((out / "logged" / "logs" / "wandb").glob("offline-run-*/*.wandb")))
    pictures = list((out / "first").glob("evaluation/**/*.p*"))
    assert len([path for path in pictures if path.suffix in (".png", ".pdf")]) == 20
    with np.load(tmp_path / "found.npz", allow_pickle=False) as found:
        assert found["answer"].shape == (5, 2) and list(found["units"]) == ["mm", "m/s"]
    assert json.loads((tmp_path / "net.json").read_text())["names"] == ["thickness", "velocity"]
    assert json.loads((out / "search" / "best.json").read_text())["command"].startswith("fwi-i2sb train")
    assert json.loads((out / "folds" / "cv_summary.json").read_text())["records"] == [12, 12]


def test_the_guide_to_numbers(paste, tmp_path):
    with h5py.File(tmp_path / "plates.mat", "w", userblock_size=512) as file:
        for name, values in waves(30).items(): file[name] = values.T
    with open(tmp_path / "plates.mat", "r+b") as file: file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    np.savez(tmp_path / "new.npz", x=waves(5)["x"])
    assert paste("vectors") == 13
    with np.load(tmp_path / "together.npz", allow_pickle=False) as found: assert (found["spread"] > 0).all()


def test_the_guides_to_search_and_export(paste, mini, tmp_path, monkeypatch):
    generate(tmp_path / "data", "CurveVel_A", n_train=2, n_val=1, layers=(2, 3), shard_size=1)
    assert paste("search") == 2
    for name in ("search/best.json", "cv/cv_summary.json"): assert (tmp_path / "runs" / name).exists()
    (tmp_path / "runs" / "first").symlink_to(mini)
    spec, rng = load_run(mini, device="cpu").spec, np.random.default_rng(0)
    np.save(tmp_path / "record.npy", rng.normal(0, 5, (2, *spec.gathers)).astype("f4"))
    np.save(tmp_path / "start.npy", rng.uniform(1600, 3600, (2, 1, *spec.map_size)).astype("f4"))
    monkeypatch.setitem(sys.modules, "first", None)  # forgotten at the end
    del sys.modules["first"]
    assert paste("export") == 2
    assert json.loads((tmp_path / "first.json").read_text())["steps"]


def test_nothing_is_changed_or_excused_that_is_not_there():
    found = [line for name in GUIDES for language, block in blocks(guide(name)) if language != "python"
        for line in lines(block)]
    for pattern in NOT_HERE: assert any(re.search(pattern, line) for line in found), pattern
    for k, (pattern, _) in enumerate(SMALLER):
        assert any(re.search(pattern, changed(SMALLER[:k], line)) for line in found), pattern
