"The page that says where a new thing is added: what it names exists, its examples work, and no list is missing."
import importlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fwi_i2sb.core.errors import InputError
from fwi_i2sb.core.registry import import_plugin, Registry
from fwi_i2sb.data.augment import AUGMENTATIONS
from fwi_i2sb.diffusion.sampling import SAMPLERS
from fwi_i2sb.methods.losses import LOSSES

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "guides" / "extending.md").read_text(encoding="utf-8")
CELL = r" `?(.*?)`? \|"
ROWS = [row for row in re.findall(rf"^\|{CELL * 5}$", PAGE, re.M) if row[0] not in ("to add", "---")]
LISTS = [row for row in ROWS if isinstance(getattr(importlib.import_module(row[2]), row[1]), Registry)]


pytestmark = pytest.mark.usefixtures("names_leave")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_the_page_names_is_there(row):
    _, name, module, notebook, _ = row
    cells = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    assert f"#| default_exp {module.removeprefix('fwi_i2sb.')}\n" in source + "\n"
    assert re.search(rf"^(class |def )?{name}\b", source, re.M) and hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("row", LISTS, ids=lambda row: row[0])
def test_an_example_adds_one_name(row):
    _, name, module, _, example = row
    scope = vars(importlib.import_module(module)).copy()
    before = set(scope[name])
    exec(example, scope)
    (added,) = set(scope[name]) - before
    assert f'"{added}"' in example and scope[name][added] is not None


def test_every_list_of_the_package_is_on_the_page():
    made = {(found, "fwi_i2sb." + path.relative_to(ROOT / "fwi_i2sb").with_suffix("").as_posix().replace("/", "."))
        for path in (ROOT / "fwi_i2sb").rglob("*.py")
        for found in re.findall(r"^(\w+) = (?:sampler_r|R)egistry\(", path.read_text(encoding="utf-8"), re.M)}
    assert len(made) > 15 and made == {(row[1], row[2]) for row in LISTS}


def test_the_file_on_the_page_is_a_plug_in(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(re.search(r"```python\n(.*?)```", PAGE, re.S)[1])
    import_plugin(file)
    assert "cubic" in LOSSES and not SAMPLERS["halfway"].stochastic
    file.with_name("again.py").write_text(file.read_text())
    with pytest.raises(InputError, match="already"): import_plugin(file.with_name("again.py"))


@pytest.mark.parametrize("change", [Path.unlink, lambda file: file.write_text("raise SystemExit('edited')")])
def test_another_process_gets_what_a_plug_in_held_when_it_was_imported(tmp_path, change):
    file = tmp_path / "mine.py"
    file.write_text("from fwi_i2sb.data.augment import AUGMENTATIONS\n"
        f"AUGMENTATIONS.register('{tmp_path.name}')('as it was')\n")
    import_plugin(file)
    # a reading process that needs no loss does not run files that add one
    assert file in AUGMENTATIONS.files and file not in LOSSES.files
    change(file)
    there = subprocess.run([sys.executable, "-c", "import pickle, sys; "
        f"print(pickle.load(sys.stdin.buffer)['{tmp_path.name}'])"],
        input=pickle.dumps(AUGMENTATIONS), capture_output=True, timeout=300)
    assert there.stdout == b"as it was\n", there
