"""Build the site: python docs/build.py OUT [WORK]. Nothing is executed or fetched; a warning is an error."""
import configparser
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT, NBS = HERE.parent, HERE.parent / "nbs"
sys.path[:0] = [str(HERE), str(ROOT)]
import pages
from notebooks import Chapter, Links, Stage, find_chapters, is_book, opening, page_of

from fwi_i2sb.core.tables import markdown_table

settings = configparser.ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf-8")
PACKAGE = settings["DEFAULT"]["lib_name"]
RESULTS = NBS / "experiments" / "results"


def contents(paths: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", "", *[f"/{path}" for path in paths], "```"])


def read(notebook: str) -> dict: return json.loads((NBS / f"{notebook}.ipynb").read_text(encoding="utf-8"))


def listed(notebooks: list[str], folder: str) -> str:
    "Title and one line about each notebook, as links from a page in `folder`."
    rows = [(path, *opening(read(path))) for path in notebooks]
    up = "../" * bool(folder)
    cells = [[f"[{title}]({up}{path}.ipynb)", about] for path, title, about in rows]
    return markdown_table(["notebook", "what it is about"], cells)


def chapter_page(chapter: Chapter) -> str:
    "The folder's own index.md, or its title; then its notebooks."
    page = NBS / chapter.name / "index.md"
    text = page.read_text(encoding="utf-8") if chapter.name and page.exists() else f"# {chapter.title}\n"
    return f"{text}\n{listed(chapter.notebooks, chapter.name)}\n\n{contents(chapter.notebooks)}\n"


def chapter_index(chapter: Chapter) -> str: return f"{chapter.name or 'notebooks'}/index"


def placeholders(chapters: dict[str, Chapter]) -> dict:
    "What `<!-- NAME words -->` of a page in docs/ stands for."
    book = [chapter for chapter in chapters.values() if is_book(chapter)]
    whole = lambda: "\n\n".join(f"## [{c.title}]({chapter_index(c)}.md)\n\n{listed(c.notebooks, '')}" for c in book)
    stored = sorted({path.stem for path in RESULTS.glob("*.json")})
    return {
        "readme": lambda: (ROOT / "README.md").read_text(encoding="utf-8"),
        "book": whole,
        "chapters": lambda: "\n".join(f"/{chapter_index(chapter)}" for chapter in book),
        "notebooks": lambda name: "\n".join(f"/{path}" for path in chapters[name].notebooks),
        "listed": lambda name: listed(chapters[name].notebooks, "here"),
        "nb": lambda *words: notebook_of(chapters, *words),
        "results": lambda: "\n".join(f"/results/{name}" for name in stored),
        "code": lambda path: f"```python\n{(HERE / path).read_text(encoding='utf-8')}```",
        "rows": lambda *words: pages.rows_table(RESULTS, *words),
        "seeds": lambda name: pages.seeds_table(RESULTS, name),
    }


def notebook_of(chapters: dict[str, Chapter], *words: str) -> str:
    "`nb CHAPTER NAME` or `nb NAME`: the only notebook of the book that is called so, without numbers."
    called = lambda path: [part.split("_", 1)[1] for part in path.split("/")]
    names = [path for chapter in chapters.values() if is_book(chapter) for path in chapter.notebooks]
    found = [path for path in names if called(path)[-len(words):] == list(words)]
    if len(found) != 1: raise ValueError(f"nb {' '.join(words)}: {', '.join(found) or 'no notebook'}")
    return f"`{found[0]}`"


def result_pages(chapters: dict[str, Chapter]) -> dict[str, str]:
    "A page for every stored table that docs/results has none for."
    made = {}
    for name in (path.stem for path in RESULTS.glob("*.json")):
        if (HERE / "results" / f"{name}.md").exists(): continue
        asked = [path for path in chapters["experiments"].notebooks if path.endswith(f"_{name}")]
        title, about = opening(read(asked[0])) if asked else (name.capitalize(), "")
        image = (NBS / "images" / f"{name}.png").exists()
        made[name] = pages.result_page(RESULTS, name, asked[0] if asked else None, title, about, image)
    return made


def stage(work: Path):
    "Write everything that Sphinx reads below `work`."
    out, chapters = Stage(work), find_chapters(NBS)
    links = Links(ROOT, NBS, settings["DEFAULT"]["git_url"])
    fill = placeholders(chapters)

    def filled(text: str) -> str:
        return re.sub(r"<!-- (\w+) ?(.*?) ?-->", lambda found: fill[found[1]](*found[2].split()), text)

    for chapter in chapters.values():
        for name in chapter.notebooks:
            path = f"{name}.ipynb"
            out.write(path, page_of(NBS / path, path, links, PACKAGE))
        page = f"{chapter_index(chapter)}.md"
        if is_book(chapter): out.write(page, links(chapter_page(chapter), NBS / chapter.name / "index.md", page))
    for path in HERE.rglob("*.md"):
        name = path.relative_to(HERE).as_posix()
        origin = ROOT / "README.md" if name == "index.md" else path  # the front page is the README and the contents
        out.write(name, links(filled(path.read_text(encoding="utf-8")), origin, name))
    for name, text in result_pages(chapters).items():
        out.write(f"results/{name}.md", links(filled(text), ROOT / "README.md", f"results/{name}.md"))
    for path in NBS.rglob("*"):
        if path.suffix in (".png", ".svg", ".jpg"): out.write(path.relative_to(NBS).as_posix(), path.read_bytes())
    reference(out, links)
    out.finish()


def reference(out: Stage, links: Links):
    "Options, command line and API, from the package as it is imported."
    package = importlib.import_module(PACKAGE)
    cli = importlib.import_module(f"{PACKAGE}.cli")
    out.write("reference/options.md", pages.options_page(cli.COMMANDS, pages.find(package, "option_table")))
    for name, text in pages.command_pages(cli.COMMANDS, cli.main).items(): out.write(f"reference/{name}.md", text)
    written = lambda path: links.notebooks.get(path, "").removesuffix(".ipynb")
    for name, text in pages.api_pages(package, written).items(): out.write(f"reference/api/{name}.rst", text)


def build(out: Path, work: Path) -> int:
    "Stage, then Sphinx, then a copy of the pages to `out`; Sphinx's exit code."
    if out.exists() and any(out.iterdir()) and not (out / "objects.inv").exists():
        raise SystemExit(f"{out} holds something else than a site: name another folder")
    stage(work / "source")
    from sphinx.cmd.build import main
    options = ["-W", "--keep-going", "-q", "-j", "auto", "-b", "html", "-c", str(HERE), "-d", str(work / "doctrees")]
    code = main([*options, str(work / "source"), str(work / "html")])  # the folder's parent gets outputs of notebooks
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(work / "html", out, ignore=shutil.ignore_patterns(".buildinfo*"))
    return code


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    raise SystemExit(build(target, Path(sys.argv[2]).resolve() if sys.argv[2:] else ROOT / "_proc" / "docs"))
