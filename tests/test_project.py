"The project itself: what the package promises to whoever installs or reads it."
import configparser
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from forkserver import run as python

from fwi_i2sb.core.commands import options_to_dict, parse
from fwi_i2sb.training.options import TrainOptions

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


def test_importing_the_package_loads_no_torch_and_load_run_comes_when_asked():
    subprocess.run([sys.executable, "-c", "import sys, fwi_i2sb; assert 'torch' not in sys.modules; from fwi_i2sb "
        "import load_run; assert callable(load_run)"], check=True)


EACH_FIRST = """
import importlib, pkgutil, sys
import fwi_i2sb
names = [found.name for found in pkgutil.walk_packages(fwi_i2sb.__path__, "fwi_i2sb.")]
for name in names:
    if name.endswith("__main__"): continue
    for known in [known for known in sys.modules if known.split(".")[0] == "fwi_i2sb"]: del sys.modules[known]
    importlib.import_module(name)
assert len(names) > 100
"""


def test_every_module_can_be_the_first_that_is_imported():
    python([sys.executable, "-c", EACH_FIRST], check=True)


def test_what_is_installed_has_the_files_that_are_no_modules(tmp_path):
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info", "-e", tmp_path, "build_py", "-d", tmp_path / "built"],
        cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    for folder in ("templates", "weights", "serving/static"):
        files = [path for path in (ROOT / "fwi_i2sb" / folder).rglob("*") if path.is_file()]
        assert files
        for path in files:
            assert (tmp_path / "built" / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_carry_their_outputs_and_no_error(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    assert notebook.stem == "index" or outputs
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert notebook.stat().st_size < 300_000


CHAPTERS = [p for p in NOTEBOOKS if re.match(r"[0-9A]\d_", p.parent.name)]


def place(notebook: Path) -> tuple[bool, str]:
    "Where a chapter stands: the tools that all of them use are an appendix."
    return not notebook.parent.name.startswith("A"), notebook.parent.name


def test_notebooks_are_in_the_order_of_thought():
    codes = {path: ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"] for path in CHAPTERS}
    written = {found[1]: path for path, cells in codes.items() for cell in cells
        if (found := re.search(r"^#\|\s*default_exp\s+(\S+)", cell, re.M))}
    assert len(written) > 200
    for path, cells in codes.items():
        for cell in cells:
            # a name of the package itself stands for the chapter that offers it: readers know those from the README
            others = [written[name] for name in re.findall(r"^from fwi_i2sb\.([\w.]+) import", cell, re.M)
                if name in written and name != "examples"]
            later = [other for other in others if place(other) > place(path)]
            assert not later, f"{path.stem} needs what a later chapter brings: {later}"
            if re.search(r"^#\|\s*exporti?\b", cell, re.M):
                later = [other for other in others if other.parent == path.parent and other > path]
                assert not later, f"{path.stem} is built on later notebooks: {later}"


def test_nothing_in_the_product_unpickles():
    for module in (ROOT / "fwi_i2sb").rglob("*.py"):
        assert (not re.search(r"allow_pickle=True|pickle\.loads?\(|weights_only=False|torch\.load\(",
            module.read_text(encoding="utf-8"))), module


def test_every_requirement_is_pinned_by_the_constraints():
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    names = {re.split(r"[<>=!]", word)[0].lower()
        for key, words in settings["DEFAULT"].items() if key.endswith("requirements") for word in words.split()}
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    assert names <= pinned


def sources(path: Path) -> str:
    "What a file says: of a notebook its cells, without outputs."
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb": return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


WRITTEN = [*NOTEBOOKS, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.sh")),
    *sorted(path for path in (ROOT / "docker").iterdir() if path.is_file()),
    ROOT / "README.md", ROOT / "Makefile", ROOT / "setup.py", ROOT / "settings.ini"]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_notebooks_that_are_named_exist(path):
    text = sources(path)
    for name in set(re.findall(r"\bfwi_i2sb((?:\.[a-z_]\w*)+)", text)):
        assert exists(name[1:].split(".")), f"fwi_i2sb{name}"
    for name in set(re.findall(r"\bfwi_i2sb/([\w/]+\.py)", text)): assert (ROOT / "fwi_i2sb" / name).is_file(), name
    for chapter, name in set(re.findall(r"\b(?:(\w\d_[a-z]\w*)/)?(\d\d_[a-z]\w*)\b", text)):
        assert list((ROOT / "nbs").glob(f"{chapter}/{name}.ipynb" if chapter else f"**/{name}*")), f"{chapter}/{name}"


def exists(parts: list[str]) -> bool:
    "Whether a dotted name below the package is a module, or an attribute of one."
    found = importlib.import_module("fwi_i2sb")
    for part in parts:
        if hasattr(found, "__path__") and importlib.util.find_spec(name := f"{found.__name__}.{part}"):
            found = importlib.import_module(name)
        elif hasattr(found, part): found = getattr(found, part)
        else: return False
    return True


def compose() -> dict: return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]


def test_the_container_files_are_consistent():
    docker, services = (ROOT / "docker" / "Dockerfile").read_text(), compose()
    assert ("constraints.txt" in docker and re.search(r"^USER fwi", docker, re.M)
        and re.search(r"^ARG BASE=nvidia/cuda:13\.0", docker, re.M))
    for name, port in (("lab", "8888"), ("lab-cuda", "8888"), ("tensorboard", "6006")):
        assert port in docker and services[name]["ports"] == [f"{port}:{port}"]
    for service in services.values():
        assert ({volume.rpartition(":")[2] for volume in service["volumes"]}
            == set(json.loads(re.search(r"VOLUME (.*)", docker)[1])) == {"/data", "/results"})
        assert set(service["build"]["args"]) <= set(re.findall(r"ARG (\w+)=", docker))
        assert service["init"] and service["stop_grace_period"] == "10m"
        assert service["environment"]["JUPYTER_TOKEN"].startswith("${JUPYTER_TOKEN:?")  # refuses none and an empty one
    assert {name: service.get("profiles") for name, service in services.items() if "deploy" in service} == {
        "lab-cuda": ["cuda"]}
    assert services["lab-cuda"]["deploy"]["resources"]["reservations"]["devices"] == [{"driver": "nvidia",
        "count": "all", "capabilities": ["gpu"]}]


def test_the_container_serves_nothing_without_a_token(tmp_path):
    docker = (ROOT / "docker" / "Dockerfile").read_text()
    command = json.loads(re.search(r"^CMD (.*)", docker, re.M)[1])
    (tmp_path / "jupyter").write_text("#!/bin/sh\necho started $*")
    (tmp_path / "jupyter").chmod(0o755)
    for token, code in (("", 2), ("word", 0), (None, 0)):
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin"} | ({} if token is None else {"JUPYTER_TOKEN": token})
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == code and ("started lab" in done.stdout) == (code == 0), done
    assert "is empty" in subprocess.run(command, env={"PATH": "/bin", "JUPYTER_TOKEN": ""}, capture_output=True,
        text=True).stderr
    assert compose()["tensorboard"]["command"].endswith("--path_prefix /${JUPYTER_TOKEN}")


def test_a_build_from_another_folder_says_what_to_type(tmp_path):
    check = re.search(r"^RUN (\[ -f /source/settings.ini(?:.*\\\n)*.*)", (ROOT / "docker" / "Dockerfile").read_text(),
        re.M)[1].replace("/source/", f"{tmp_path}/")
    done = subprocess.run(["sh", "-c", check], capture_output=True, text=True)
    assert done.returncode == 2 and "    docker build -f docker/Dockerfile -t fwi-i2sb ." in done.stderr
    assert subprocess.run(["sh", "-c", check.replace(f"{tmp_path}/", f"{ROOT}/")]).returncode == 0


def test_shell_scripts_parse_and_the_slurm_job_saves_before_it_ends():
    for script in (ROOT / ".ci" / "run", *(ROOT / "docker").glob("*.sbatch"), *(ROOT / "tests").rglob("*.sh")):
        subprocess.run(["bash", "-n", script], check=True)
    job = (ROOT / "docker" / "train.sbatch").read_text()
    for line in (("#SBATCH --ntasks-per-node=1", "#SBATCH --signal=TERM@300", "#SBATCH --requeue",
            'python -m fwi_i2sb.train "$@"')):
        assert line in job


PUBLISHED = """result-dir dataset-dir dataset-name name seed master-port ckpt gpu model image-size corrupt
val-batches t0 T interval beta-max drop_cond pred-x0 ot-ode clip-denoise batch-size microbatch num-itr
lr lr-gamma clip_grad_norm ema log-writer json-data-config num-proc-node node-rank master-address""".split()


def test_every_option_of_the_published_scripts_exists_under_its_name():
    given = dict(zip(PUBLISHED, [None] * len(PUBLISHED))) | {
        "result-dir": "r", "dataset-dir": "d", "dataset-name": "Style_B", "name": "n", "seed": "3",
        "master-port": "6021", "ckpt": "c", "gpu": "0", "model": "unet_ch64",
        "image-size": "64", "corrupt": "linear", "val-batches": "7", "t0": "1e-3", "T": "0.9", "interval": "500",
        "beta-max": "0.2", "drop_cond": "0.5", "batch-size": "64",
        "microbatch": "4", "num-itr": "9", "lr": "1e-4", "lr-gamma": "0.9", "clip_grad_norm": "1", "ema": "0.9",
        "log-writer": "tensorboard", "json-data-config": "j",
        "num-proc-node": "2", "node-rank": "1", "master-address": "10.0.0.1"}
    words = [word for name, value in given.items()
        for word in ([f"--{name}"] if value is None else [f"--{name}", value])]
    values = {k: v for group in options_to_dict(parse(TrainOptions, words)).values() for k, v in group.items()}
    for name, value in given.items():
        got = values[name.replace("-", "_")]
        assert got is True if value is None else type(got)(value) == got, name
