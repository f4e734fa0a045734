"The documentation: the site builds without a warning, and holds what it promises."
import html
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
sys.path.insert(0, str(ROOT / "docs"))
notebooks, docments, pages = map(importlib.import_module, ("notebooks", "docments", "pages"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, ROOT / "docs" / "build.py", folder / "site", folder / "work"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def words(page: Path) -> str:
    "The text of a page."
    text = re.sub(r"<(style|script).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.S)
    return html.unescape(re.sub(r"<[^>]*>", "", text))


def test_a_guide_names_one_notebook_or_the_site_is_not_built():
    build = importlib.import_module("build")
    chapters = build.find_chapters(NBS)
    assert build.notebook_of(chapters, "training", "starts").startswith("`07_training/")
    assert build.notebook_of(chapters, "hub").endswith("_hub`")
    for words, saying in ((("settings",), "11_serving/.*A0_core/"), (("training", "losses"), "no notebook")):
        with pytest.raises(ValueError, match=saying): build.notebook_of(chapters, *words)


def test_every_notebook_has_a_page_without_directives_and_no_link_leads_nowhere(site):
    for path in NBS.rglob("*.ipynb"):
        if path.stem == "index" or ".ipynb_checkpoints" in path.parts: continue
        page = site / path.relative_to(NBS).with_suffix(".html")
        assert page.exists() and not re.search(r"^#\s*\|", words(page), re.M), page
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#?:]+)(?:[#?][^":]*)?"', page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page, target)


def test_pages_load_nothing_from_elsewhere(site):
    outside = re.compile(r'<(?:script|img|link)[^>]*(?:src|href)="(?:https?:)?//')
    for page in site.rglob("*.html"): assert not outside.search(page.read_text(encoding="utf-8")), page


def test_no_equation_shows_a_command_of_latex(site):
    for page in site.rglob("*.html"):
        for equation in re.findall(r"<math.*?</math>", page.read_text(encoding="utf-8"), re.S):
            assert "\\" not in re.sub(r"<[^>]*>", "", equation) and "merror" not in equation, (page, equation)


def test_options_and_commands_are_those_of_the_package(site):
    options = words(site / "reference" / "options.html")
    assert re.search(r"--beta-max\s+0\.3\s+0\.3\s+the noise schedule peaks", options)
    from fwi_i2sb.cli import COMMANDS
    for name in COMMANDS: assert f"usage: fwi-i2sb {name}" in words(site / "reference" / "commands" / f"{name}.html")


def test_the_api_names_everything_public_and_shows_parameter_comments(site):
    import fwi_i2sb
    for module in pages.modules(fwi_i2sb):
        page = (site / "reference" / "api" / f"{module.__name__}.html").read_text(encoding="utf-8")
        for name in module.__all__: assert f'id="{module.__name__}.{name}"' in page, (module, name)
    all_pages = (site / "reference" / "api").glob("*.html")
    found = next(page for page in all_pages if re.search(r'id="[\w.]+\.simulate"', page.read_text(encoding="utf-8")))
    head = r"simulate\(.*?name\s+type\s+default\s+meaning\s+"
    assert re.search(head + r"velocity\s+\(batch, 1, depth, x\) in m/s", words(found), re.S)


def test_results_are_the_stored_ones(site):
    for path in (NBS / "experiments" / "results").glob("*.json"):
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        page = words(site / "results" / f"{path.stem}.html")
        for row in rows:
            score = row["mae"] if "mae" in row else row["mape"]
            assert f"{score:.1f}" in page or f"{score:.4g}" in page, (path, row)


def test_chapters_come_in_order_with_titles_from_their_folder_or_page(tmp_path):
    physics = ["01_physics/00_wave", "01_physics/01_filters"]
    for name in ("02_data/00_scale", *physics[::-1], "A0_core/00_errors", "tutorials/01_own_folder", "index"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.ipynb").write_text("{}")
    (tmp_path / "02_data" / "index.md").write_text("# Data and stores\n\nHow they are kept.\n")
    found = notebooks.find_chapters(tmp_path).values()
    assert [(c.title, c.notebooks) for c in found if notebooks.is_book(c)] == [
        ("Physics", physics), ("Data and stores", ["02_data/00_scale"]), ("Core", ["A0_core/00_errors"])]


def example(x,  # depth (m)
            y: int = 1, *,  # number of `layers`
            z="a") -> float:  # speed (m/s)
    "An example."


def test_parameter_comments_become_rows():
    assert docments.docments(example) == [
        ("x", "", "", "depth (m)"), ("y", "int", "1", "number of `layers`"), ("z", "", "'a'", ""),
        ("returns", "float", "", "speed (m/s)")]
    assert docments.to_rst("a `b_c` *d* e_") == r"a \ ``b_c``\  \*d\* e\_"


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_bytes()
    assert text.count(b"\n") <= 120 and len(text) <= 9000
