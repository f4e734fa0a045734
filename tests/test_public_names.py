"What `fwi_i2sb` and its chapters offer by name: on demand, in any order, and without the libraries of the extras."
import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forkserver import run

import fwi_i2sb

HOME = Path(fwi_i2sb.__file__).parent
PACKAGES = ["fwi_i2sb", *sorted(f"fwi_i2sb.{path.parent.name}" for path in HOME.glob("*/__init__.py"))]


def python(code: str, fresh=False) -> str:
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True) if fresh else run(words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stub(package: str) -> dict[str, str]:
    "The names in a package's stub, and where they come from."
    tree = ast.parse((HOME.parent / package.replace(".", "/") / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert all(alias.asname == alias.name for node in imports for alias in node.names), "editors ignore others"
    return {alias.name: node.module or "" for node in imports for alias in node.names}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there_and_listed(package):
    module, names = importlib.import_module(package), stub(package)
    assert set(module.__all__) == set(dir(module)) == set(names) and module.__doc__
    for name, place in names.items():
        value = getattr(module, name)
        if not inspect.ismodule(value): assert value is getattr(importlib.import_module(f"{package}.{place}"), name)
    with pytest.raises(AttributeError): module.no_such_name


@pytest.mark.parametrize("package", PACKAGES)
def test_there_are_few_names_and_none_hides_a_module(package):
    names = stub(package)
    assert 3 <= len([name for name, place in names.items() if place]) <= (28 if package == "fwi_i2sb" else 13)
    folder = HOME.parent / package.replace(".", "/")
    hidden = {name for name, place in names.items() if place and (folder / f"{name}.py").exists()}
    assert hidden == ({"explore", "train"} if package == "fwi_i2sb" else set())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_stub_is_read_in_every_locale(package):
    "It is read with the locale's encoding."
    assert (HOME.parent / package.replace(".", "/") / "__init__.pyi").read_bytes().isascii()


def test_importing_changes_nothing_and_loads_nothing():
    python("""
import os, sys, warnings
before, filters = dict(os.environ), list(warnings.filters)
import fwi_i2sb
import fwi_i2sb.inference, fwi_i2sb.sweeps, fwi_i2sb.data
loaded = {"torch", "numpy", "ipywidgets", "matplotlib"} & set(sys.modules)
assert not loaded, loaded
assert dict(os.environ) == before and list(warnings.filters) == filters
fwi_i2sb.load_run
assert dict(os.environ) == before
""", fresh=True)


WAYS = {
    "name": "from fwi_i2sb import {0}; call = {0}",
    "module": "import fwi_i2sb.{0} as m; m.{0}; call = m",
    "from module": "from fwi_i2sb.{0} import {0}; call = {0}",
    "attribute": "import fwi_i2sb; call = fwi_i2sb.{0}",
}


@pytest.mark.parametrize("first", WAYS)
def test_a_name_that_is_a_module_too_is_both_in_any_order(first):
    ways = [WAYS[first], *WAYS.values()]
    checks = [f"{way.format(name)}; assert {parameter!r} in inspect.signature(call).parameters and callable(call)"
        for name, parameter in (("train", "options"), ("explore", "run")) for way in ways]
    python("\n".join(["import inspect", *checks]))


def test_the_command_of_training_is_in_the_module():
    import fwi_i2sb.train as module
    from fwi_i2sb import train

    assert train is module and module.main and inspect.signature(train) == inspect.signature(module.train)
    with pytest.raises(SystemExit): module.main(["--help"])


def test_training_is_called_by_its_name(tmp_path):
    from fwi_i2sb import DataOptions, InputError, RunOptions, train, TrainOptions

    with pytest.raises(InputError, match="nowhere"):
        train(TrainOptions(RunOptions(tmp_path), DataOptions(tmp_path / "nowhere", "CurveVel_A")))


@pytest.mark.parametrize("module", ["fwi_i2sb", "fwi_i2sb.inference", "fwi_i2sb.inference.run"])
def test_a_run_has_its_methods_from_any_import_path(module):
    python(f"from {module} import load_run; import sys; run = sys.modules['fwi_i2sb.inference.run'].TrainedRun; "
        f"run.invert, run.states, run.classical")


# without the libraries that not everybody needs

EXTRAS = {"papermill": "sweeps", "submitit": "sweeps", "scipy": "bench", "scoringrules": "eval", "segyio": "segy",
    "wandb": "track", "mlflow": "track", "ipywidgets": "notebook", "jupyterlab": "notebook", "IPython": "notebook",
    "ipykernel": "notebook", "optuna": "sweeps", "onnx": "export", "onnxruntime": "export", "onnxscript": "export",
    "fastapi": "serve", "limits": "serve", "h5py": "vectors", "timm": "zoo", "httpx2": "bench", "modal": "modal"}
HIDE = f"""
import sys
from importlib.machinery import PathFinder


class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {sorted(EXTRAS)} else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Hidden
"""


def bare(code: str, *words) -> subprocess.CompletedProcess:
    "Run Python without the extras' libraries."
    return subprocess.run([sys.executable, "-c", HIDE + code, *map(str, words)], capture_output=True, text=True)


def test_a_command_names_the_extra_that_it_needs(tmp_path):
    train = "train --result-dir runs --dataset-dir data --dataset-name CurveVel_A --log-writer"
    commands = {"experiment grid.yaml": "papermill", "bench wave": "scipy", f"{train} wandb": "wandb",
        f"{train} mlflow": "mlflow", "export run --onnx net.onnx": "onnx",
        f"{train} none".replace("train", "hpo", 1): "optuna"}
    done = bare(f"""
import os; os.chdir({str(tmp_path)!r})
from fwi_i2sb.cli import main
for words in {list(commands)}:
    try: main(words.split())
    except SystemExit as stop: assert stop.code == 2
""")
    assert done.returncode == 0, done.stderr
    for line, library in zip(done.stderr.splitlines(), commands.values(), strict=True):
        assert line.endswith(f"needs the package {library}: pip install 'fwi_i2sb[{EXTRAS[library]}]'")
    assert not any(tmp_path.iterdir())


def test_the_explorer_names_the_extra_that_it_needs():
    done = bare("""
import fwi_i2sb.inference
fwi_i2sb.inference.load_run
try: fwi_i2sb.explore
except fwi_i2sb.InputError as error: print(error)
""")
    assert done.stdout == "the explorer needs the package ipywidgets: pip install 'fwi_i2sb[notebook]'\n", done.stderr


def test_other_parts_name_the_extra_that_they_need(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    done = bare(f"""
import asyncio, importlib
def load():
    from fwi_i2sb.bench.load import load
    asyncio.run(load("http://127.0.0.1:9", 1, clients=1))
def model():
    from fwi_i2sb.models.backbones import import_timm
    import_timm()
def array():
    from fwi_i2sb.data.arrays import open_arrays
    from pathlib import Path
    with open_arrays(Path({str(tmp_path / 'x.h5')!r})): pass
def named(name): return lambda: getattr(importlib.import_module("fwi_i2sb.serving"), name)
for act in (load, model, array, named("Settings"), named("create_app"), named("Settings")):
    try: act()
    except ValueError as error: print(error)
""")
    said = done.stdout.splitlines()
    for line, (library, extra) in zip(said, (("httpx2", "bench"), ("timm", "zoo"), ("h5py", "vectors"),
            ("limits", "serve"), ("fastapi", "serve"), ("limits", "serve")), strict=True):
        assert line.endswith(f"needs the package {library}: pip install 'fwi_i2sb[{extra}]'"), done.stderr


def test_no_private_name_crosses_modules():
    "Neither in an import, nor as an attribute of something that another module of the package made."
    found = []
    for path in [*HOME.rglob("*.py"), *Path(__file__).parent.glob("*.py")]:
        tree, own = ast.parse(path.read_text(encoding="utf-8")), HOME in path.parents
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        ours = [node for node in imports if node.level or (node.module or "").startswith("fwi_i2sb")]
        private = lambda name: name.startswith("_") and not name.startswith("__")
        found += [(path.name, alias.name) for node in ours for alias in node.names if private(alias.name)]
        if not own or path.name == "_modidx.py": continue
        foreign = {(alias.asname or alias.name).split(".")[0] for node in ast.walk(tree)
            if isinstance(node, ast.Import) or isinstance(node, ast.ImportFrom) and node not in ours
            for alias in node.names}
        made = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")}
        made |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        found += [(path.name, ast.unparse(node)) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
            and private(node.attr) and node.attr not in made | {"_replace", "_asdict"}
            and isinstance(node.value, ast.Name) and node.value.id not in foreign | {"self", "cls"}]
    for path in (HOME.parent / "nbs").rglob("*.ipynb"):
        found += [(path.name, name) for name in re.findall(r'^ *"from fwi_i2sb[\w.]* import .*\b(_[a-z]\w*)',
            path.read_text(encoding="utf-8"), re.M)]
    assert not found


def test_the_base_installation_trains_inverts_and_evaluates(data, tmp_path):
    done = bare(f"""
from pathlib import Path
from fwi_i2sb import (DataOptions, DeviceOptions, evaluate, load_run, LogOptions, mae, ModelOptions, OptimOptions,
    RunOptions, train, TrainOptions)
from fwi_i2sb.cli import main
options = TrainOptions(RunOptions({str(tmp_path)!r}, "bare"), DataOptions({str(data)!r}, "CurveVel_A"),
    ModelOptions("tiny"), OptimOptions(batch_size=2, microbatch=2, num_itr=2),
    LogOptions(val_batches=1, val_nfe=1), DeviceOptions(device="cpu"))
folder = train(options, progress=False)
main(["invert", str(folder), "--records", "1", "--samples", "2", "--nfe", "2"])
main(["evaluate", str(folder), "--records", "2", "--samples", "2", "--nfe", "2", "--misfit-records", "1"])
import json
card = json.loads((folder / "evaluation" / "card.json").read_text())
rows = {{row["method"]: row for row in card["rows"]}}
assert "crps" not in rows["bridge"] and rows["bridge"]["mae"] and rows["starting model"]["crps"]
""")
    assert done.returncode == 0, done.stderr
    assert "CRPS of several samples needs the package scoringrules: pip install 'fwi_i2sb[eval]'" in done.stdout


def test_the_extras_of_the_metadata_are_those_that_are_named():
    settings = (HOME.parent / "settings.ini").read_text()
    for library, extra in EXTRAS.items():
        if library == "IPython": continue
        line = next(line for line in settings.splitlines() if line.startswith(f"{extra}_requirements"))
        assert library in line.replace("mlflow-skinny", "mlflow")
        base = next(line for line in settings.splitlines() if line.startswith("requirements"))
        assert f" {library}" not in base
