"""The notebooks as pages: found by globbing nbs/, freed from directives, linked to each other and to the API."""
import importlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

DIRECTIVE = re.compile(r"^#\s*\|\s*(\w+):?(.*)\n?", re.M)
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)]*)?(\))")
FENCED = re.compile(r"(^```.*?^```[ \t]*$)", re.M | re.S)


class Chapter(NamedTuple):
    name: str  # folder below nbs/, or "" for notebooks that stand in no folder
    title: str
    notebooks: list[str]  # paths below nbs/ without suffix, in order


def find_chapters(nbs: Path) -> dict[str, Chapter]:
    "Every folder of notebooks below `nbs`, and the loose numbered ones as the chapter `\"\"`, in sorted order."
    found = {}
    for path in sorted(nbs.rglob("*.ipynb")):
        name = path.parent.relative_to(nbs).as_posix().replace(".", "")
        if path.stem == "index" or any(part.startswith(".") for part in path.relative_to(nbs).parts): continue
        found.setdefault(name, []).append(path.relative_to(nbs).with_suffix("").as_posix())
    return {name: Chapter(name, chapter_title(nbs, name), notebooks) for name, notebooks in found.items()}


def chapter_title(nbs: Path, name: str) -> str:
    "From the folder's index.md, else from its name: 07_training is Training."
    page = nbs / name / "index.md"
    if name and page.exists(): return re.search(r"^# (.*)$", page.read_text(encoding="utf-8"), re.M)[1]
    return re.sub(r"^[0-9A-Z]\d*_", "", name).replace("_", " ").capitalize() or "Notebooks"


def is_book(chapter: Chapter) -> bool: return not chapter.name or bool(re.match(r"[0-9A-Z]\w*_", chapter.name))


def opening(notebook: dict) -> tuple[str, str]:
    "Title, and the quoted line below it (else the first sentence), of a notebook or of one page of Markdown."
    text = "\n\n".join("".join(c["source"]) for c in notebook["cells"][:4] if c["cell_type"] == "markdown")
    title = re.search(r"^# (.*)$", text, re.M)
    quoted = re.search(r"(?:^> ?.*\n?)+", text, re.M)
    first = re.split(r"(?<=[.:])\s", text[title.end():].strip())[0]
    about = re.sub(r"^> ?", "", quoted[0], flags=re.M) if quoted else first
    return title[1], " ".join(about.split())


class Stage:
    "Writes what has changed below `root`, and removes what nobody wrote this time."

    def __init__(self, root: Path): self.root, self.written = root, set()

    def write(self, path: str, content: str | bytes):
        target, data = self.root / path, content.encode() if isinstance(content, str) else content
        self.written.add(target)
        if target.exists() and target.read_bytes() == data: return
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def finish(self):
        for path in self.root.rglob("*"):
            if path.is_file() and path not in self.written: path.unlink()


class Links:
    "Relative links of repository files, turned into links between pages."

    def __init__(self, repo: Path, nbs: Path, git_url: str):
        self.repo, self.nbs, self.git_url = repo, nbs, git_url
        paths = [p.relative_to(nbs).as_posix() for p in nbs.rglob("*.ipynb") if "/." not in p.as_posix()]
        keys = [(key, path) for path in paths for key in {path[:-6], Path(path).stem}]
        self.notebooks = {key: path for key, path in keys if sum(key == other for other, _ in keys) == 1}
        self.word = re.compile(r"(?<![\[`])`(?:nbs/)?((?:\w+/)?\w+)(?:\.ipynb)?`(?!`|\]\()")

    def page(self, origin: Path, target: str) -> str | None:
        "Where a link of the file `origin` leads on the site: a path below its root."
        path = Path(os.path.normpath(origin.parent / target))
        for root in (self.nbs, self.repo / "docs"):
            if path.is_relative_to(root) and path.exists(): return path.relative_to(root).as_posix()
        if path.suffix == ".ipynb": return self.notebooks.get(path.stem)
        return f"images/{path.name}" if (self.nbs / "images" / path.name).is_file() else None

    def __call__(self, text: str, origin: Path, here: str) -> str:
        "The Markdown `text` of the file `origin` for the page `here`; names of notebooks in backticks become links."
        up = lambda page: os.path.relpath(page, Path(here).parent).replace(os.sep, "/")

        def link(found):
            page = self.page(origin, found[2])
            if page == "index.ipynb": page = "index.md"  # the front page is rendered from it
            if page: return f"{found[1]}{up(page)}{found[3] or ''}{found[4]}"
            path = Path(os.path.normpath(origin.parent / found[2]))
            if not (path.exists() and path.is_relative_to(self.repo)): return found[0]
            return f"{found[1]}{self.git_url}/blob/main/{path.relative_to(self.repo).as_posix()}{found[4]}"

        def name(found):
            page = self.notebooks.get(found[1], "index.ipynb")
            return f"[{found[0]}]({up(page)})" if page not in (here, "index.ipynb") else found[0]

        parts = FENCED.split(text)
        return "".join(part if part.startswith("```") else self.word.sub(name, LINK.sub(link, part)) for part in parts)


def page_of(path: Path, here: str, links: Links, package: str) -> str:
    "A notebook as the site shows it: JSON of the notebook without directives, hidden cells and nbdev's own."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells, module = [], None
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown": cells.append(cell | {"source": links(source, path, here)})
        if cell["cell_type"] != "code": continue
        directives = dict(DIRECTIVE.findall(source))
        module = directives.get("default_exp", "").strip() or module
        source = DIRECTIVE.sub("", source).strip("\n")
        tags = [tag.replace("_", "-") for tag in cell["metadata"].get("tags", [])]
        if not source or {"hide", "default_exp"} & set(directives) or "nbdev_export()" in source: continue
        cells.append(cell | {"source": source, "metadata": {"tags": tags} if tags else {}})
    if module: _name_module(cells, module, here, package)
    return json.dumps(notebook | {"cells": cells}, ensure_ascii=False)


def _name_module(cells: list[dict], module: str, here: str, package: str):
    "Below the title: the module that the notebook writes, as a link to its API page where it has public names."
    target = os.path.relpath(f"reference/api/{package}.{module}.rst", Path(here).parent)
    first = next(cell for cell in cells if cell["cell_type"] == "markdown")
    name = f"`{package}.{module}`"
    if importlib.import_module(f"{package}.{module}").__all__: name = f"[{name}]({target})"
    line = f"\n\n*Module:* {name}\n"
    first["source"] = re.sub(r"^(# .*)$", lambda found: found[0] + line, first["source"], count=1, flags=re.M)
