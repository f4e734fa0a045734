"The first hour: every command and snippet of README.md and the tutorials runs as it stands there, in order, smaller."
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# what is smaller here than in the text; nothing else of a command is changed
SMALLER = [
    (r"^make demo(?= )", "make demo DEMO_ARGS='--records 1'"),
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


def blocks(text: str) -> list[tuple[str, str]]:
    "Fenced blocks as (language, content)."
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)


def notebook(name: str) -> str:
    cells = json.loads((ROOT / "nbs" / "tutorials" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER: text = re.sub(pattern, replacement, text)
    return text


def lines(block: str) -> list[str]:
    "The commands of a block, without comments; continued lines are one."
    joined = re.sub(r"\\\n\s*", " ", block).splitlines()
    return [line for line in (re.sub(r"(^|\s+)# .*", "", line) for line in joined) if line]


@pytest.fixture
def paste(fwi, tmp_path, monkeypatch):
    "Paste a text's blocks into the shell and the Python of one folder."
    monkeypatch.chdir(tmp_path)
    for name in ("Makefile", "settings.ini", "setup.py", "constraints.txt", "nbs"):
        (tmp_path / name).symlink_to(ROOT / name)
    made = [f"VENV={sys.prefix}", "--assume-old", f"{sys.prefix}/installed"]

    def make(words):
        "The command of a target, in this process where it is ours."
        # a make above this one would have it print directories, and hand it flags
        outer = {name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        said = subprocess.run(["make", "-n", *made, *words[1:]], capture_output=True, text=True, check=True,
                              env=outer).stdout
        for program, *rest in map(shlex.split, said.splitlines()):
            name = Path(program).name
            if name == "jupyter": answers(["make", *made, *words[1:]])
            elif name == "papermill": subprocess.run([program, *rest], capture_output=True, check=True)
            else:
                assert name == "fwi-i2sb", said
                run([name, *rest])

    def run(words):
        if words[0] == "make": return make(words)
        if words[:3] == ["python", "-m", "fwi_i2sb.train"]: words = ["fwi-i2sb", "train", *words[3:]]
        if words[:2] == ["python", "-c"]: return exec(words[2], {})
        assert words[0] == "fwi-i2sb", f"neither run nor excused: {words}"
        done = fwi(*words[1:])
        assert done.code == 0, (words, done.err)

    def paste(text):
        done = 0
        for language, block in blocks(text):
            if language == "python":
                exec(compile(smaller(block), "README", "exec"), {})
                done += 1
                continue
            for line in lines(block):
                if line.startswith("export "):
                    name, value = shlex.split(line)[1].split("=", 1)
                    monkeypatch.setenv(name, value)
                elif not any(re.search(pattern, line) for pattern in NOT_HERE):
                    run(shlex.split(os.path.expandvars(smaller(line))))
                    done += 1
        return done
    return paste


def answers(command: list[str]):
    "Start JupyterLab, as the user that runs this test, wait until it says its address, and end it."
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True)
    try:
        said = ""
        for line in server.stderr:
            said += line
            if re.search(r"http://\S+/lab\?token=", line): return
        raise AssertionError(said)
    finally:
        os.killpg(server.pid, 15)
        server.stderr.close()
        server.wait(timeout=60)


def test_the_first_hour(paste, tmp_path):
    assert paste((ROOT / "README.md").read_text(encoding="utf-8")) == 14
    for name in ("result/my_record.npz", "demo/demo.png", "demo/demo.ipynb", "demo-train/demo.png"):
        assert (tmp_path / name).exists(), name
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
