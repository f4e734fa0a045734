"The first hour: every command and snippet of README.md and the tutorials runs as it stands there, in order, smaller."
import json
import re
import subprocess
from functools import partial

import pytest
from pasting import blocks, lines, ROOT

# what is smaller here than in the text; nothing else of a command is changed
SMALLER = [
    (r"^make demo$", "make demo DEMO_ARGS='--records 1'"),
    (r"^make demo-train", "make demo-train "
        "DEMO_ARGS='--train 3 --val 2 --steps 2 --batch-size 2 --records 2 --samples 2 --nfe 2'"),
    (r"^make lab LAB=\.", "make lab LAB=. LAB_ARGS='--no-browser --port 0 --port-retries 0'"),
    (r"generate data --family CurveVel_A", r"\g<0> --train 3 --val 2 --workers 1"),
    (r"--preset small", r"\g<0> --batch-size 2 --microbatch 2 --num-itr 2 --warmup 0 --val-nfe 1"),
    (r"invert runs/first$", r"\g<0> --records 1 --samples 1 --nfe 1"),
    (r"invert hub:curvevel-a --record", r"invert hub:curvevel-a --refine 0 --record"),
    (r"evaluate runs/first", r"\g<0> --records 2 --samples 1 --nfe 1 --misfit-records 1"),
    (r"run\.invert\(seismic\)", "run.invert(seismic, refine=0)"),
    (r"samples=8", "samples=2, nfe=2"),
    (r"n_train=2400, n_val=100", "n_train=2, n_val=1, workers=1"),
]

# what is not run here, and why
NOT_HERE = {
    r"^pip install|^make setup": "fetches 145 packages: .ci/run installs into a fresh environment",
    r"^make test": "runs this test",
    r"^tensorboard": "a server: tests/system/browser.py looks at it in a browser",
    r"--proc-per-node|--num-proc-node|^torchrun|^mpirun|^srun": "several processes: tests/test_processes.py and "
        "tests/system/hosts.py start them",
    r"sbatch": "a cluster: tests/system/slurm.py has one",
    r"^docker": "a container engine: tests/system/image.sh builds and tries the image",
}


def notebook(name: str) -> str:
    cells = json.loads((ROOT / "nbs" / "tutorials" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.fixture
def paste(paste_text): return partial(paste_text, changes=SMALLER, excused=NOT_HERE)


def test_the_first_hour(paste, tmp_path):
    assert paste((ROOT / "README.md").read_text(encoding="utf-8")) == 14
    for name in ("result/my_record.npz", "demo/demo.png", "demo/demo.ipynb", "demo-train/demo.png"):
        assert (tmp_path / name).exists(), name
    # the pipeline that comes with the package, on a record that it has not seen
    row, = json.loads((tmp_path / "demo" / "demo.json").read_text())["rows"]
    assert row["mae"] < row["start_mae"] and row["misfit"] < 0.03 and row["trust"] and 0.75 < row["inside"] < 1
    # what it made is no part of the repository
    made = [path.name + "/" * path.is_dir() for path in tmp_path.iterdir() if not path.is_symlink()]
    told = subprocess.run(["git", "check-ignore", "--no-index", *made], cwd=ROOT, capture_output=True, text=True)
    assert sorted(told.stdout.split()) == sorted(made)
    assert paste(notebook("02_own_record")) == 2
    assert paste(notebook("04_reading_the_card")) == 1
    (tmp_path / "runs" / "first").rename(tmp_path / "runs" / "from-the-readme")
    assert paste(notebook("01_own_folder")) == 5
    assert paste(notebook("20_many_nodes")) == 1


def test_nothing_is_excused_that_is_not_there():
    texts = [(ROOT / "README.md").read_text(encoding="utf-8"),
        *(notebook(path.stem) for path in (ROOT / "nbs" / "tutorials").glob("*.ipynb"))]
    commands = [line for text in texts for language, block in blocks(text) if language != "python"
        for line in lines(block)]
    for pattern in NOT_HERE: assert any(re.search(pattern, line) for line in commands), pattern
    snippets = [block for text in texts for _, block in blocks(text)]
    for pattern, _ in SMALLER: assert any(re.search(pattern, line) for line in [*commands, *snippets]), pattern
