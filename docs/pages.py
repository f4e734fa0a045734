"""Pages that are made when the site is built: tables of results, options, commands, and the API."""
import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
from pathlib import Path
from types import ModuleType

from docments import to_rst

from fwi_i2sb.core.tables import markdown_table

SCORES = {"SSIM": ("ssim", ".3f"), "CRPS (m/s)": ("crps", ".1f"), "misfit": ("misfit", ".3f"),
          "spread / error": ("spread_skill", ".2f"), "in 90 %": ("coverage_90", ".2f"), "calls": ("network_calls", "g")}
SEEN = "\\* the start is the true map, blurred: it has seen the answer"


# ---- results
def number(value, form: str = "g") -> str:
    if isinstance(value, float): return format(value, form)
    return "–" if value is None else str(value)


def read_rows(path: Path) -> list[dict]: return json.loads(path.read_text(encoding="utf-8"))["rows"]


def score_rows(rows: list[dict], names: list[str]) -> str:
    "Rows of evaluation cards; where the start has seen the truth, a star in the column of starts, else in the first."
    marked = "start" if "start" in names else names[0]
    lines = []
    for row in rows:
        words = [number(row[name]) + "\\*" * (name == marked and row["sees_truth"]) for name in names]
        interval = "\u00a0({:.1f}\u2060–\u2060{:.1f})".format(*row["mae_interval"]) if row["mae_interval"] else ""
        scores = [number(row[key], form) for key, form in SCORES.values()]
        lines.append([*words, number(row["mae"], ".1f") + interval, *scores])
    table = markdown_table([*names, "MAE (m/s)", *SCORES], lines)
    return table + f"\n\n{SEEN}" * any(row["sees_truth"] for row in rows)


def all_rows(rows: list[dict]) -> str:
    "A whole table of results: what describes a row, then its scores; other rows than a card's are shown as they are."
    keys = list(rows[0])
    if "sees_truth" not in keys:
        return markdown_table(keys, [[number(row[key], ".4g") for key in keys] for row in rows])
    names = [key for key in keys[:keys.index("start") + 1] if not isinstance(rows[0][key], (list, dict))]
    more = [key for key in ("nfe",) if key.upper() not in names and len({row[key] for row in rows}) > 1]
    return score_rows(rows, [*names, *more])


def rows_table(results: Path, name: str, *words: str) -> str:
    "`rows NAME column column key=value,value`: some columns and rows of results/NAME.json; `_` in a value is a space."
    names = [word for word in words if "=" not in word]
    given = [word.replace("_", " ").split("=") for word in words if "=" in word]
    wanted = lambda row: all(str(row[key]) in value.split(",") for key, value in given)
    rows = list(filter(wanted, read_rows(results / f"{name}.json")))
    return score_rows(rows, names) if names else all_rows(rows)


def seeds_table(results: Path, name: str) -> str:
    "`seeds NAME`: the trained rows of results/NAME.json beside those of the other seeds, grids/NAME/seed=*.json."
    files = [results / f"{name}.json", *sorted((results.parent / "grids" / name).glob("seed=*.json"))]
    seeds = ", ".join(["0", *[path.stem.partition("=")[2] for path in files[1:]]])
    lines = []
    for rows in zip(*[[row for row in read_rows(path) if row["steps"]] for path in files]):
        scores = [", ".join(f"{row[key]:.1f}" for row in rows) for key in ("mae", "crps")]
        lines.append([rows[0]["name"], rows[0]["start"] + "\\*" * rows[0]["sees_truth"], *scores])
    return markdown_table(["name", "start", f"MAE (m/s) of seeds {seeds}", "CRPS (m/s)"], lines) + f"\n\n{SEEN}"


def result_page(results: Path, name: str, notebook: str | None, title: str, about: str, image: bool) -> str:
    "The page of one stored result that nobody has written by hand."
    asked = f" `{Path(notebook).stem}` asks the question and reads the answer." if notebook else ""
    words = [f"# Results: {title[0].lower()}{title[1:]}", about,
             f"Every row of `results/{name}.json`, at full size.{asked}",
             f"![{title}](nbs/images/{name}.png)" if image else "", f"<!-- rows {name} -->"]
    return "\n\n".join(word for word in words if word) + "\n"


# ---- options and commands
def find(package: ModuleType, name: str):
    "The public object of that name, wherever in the package it lives."
    return next(getattr(module, name) for module in modules(package) if name in module.__all__)


def options_page(commands: dict, option_table) -> str:
    "One section for each command; the groups of a command as they stand in its --help."
    parts = ["# Options", "`--a-b` and `--a_b` are the same option. Those of `train` carry the names of the published "
             "scripts; `python -m fwi_i2sb.train` is the same command. A word in capitals is given by its place."]
    for name, (_, options) in ((name, command.load()) for name, command in commands.items()):
        table = option_table(options)
        for field in dataclasses.fields(options):
            flag, place = f"| `--{field.name.replace('_', '-')}` |", f"| `{field.name.upper()}` |"
            if "Positional" in str(field.type): table = table.replace(flag, place)
        grouped = all(dataclasses.is_dataclass(field.type) for field in dataclasses.fields(options))
        table = re.sub(r"^\*\*(.*)\*\*$", r"\1", table, flags=re.M)
        parts += [f"## {name}", *[f"*{options.__doc__}*"] * grouped, table]
    return "\n\n".join(parts) + "\n"


def help_text(main, argv: list[str]) -> str:
    "What a command prints for --help, on 100 columns without colours."
    told, before = io.StringIO(), dict(os.environ)
    os.environ.update(COLUMNS="100", NO_COLOR="1", TERM="dumb")
    try:
        with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit): main([*argv, "--help"])
    finally:
        os.environ.clear()
        os.environ.update(before)
    return re.sub(r"\x1b\[[0-9;]*m", "", told.getvalue()).rstrip()


def command_pages(commands: dict, main) -> dict[str, str]:
    "The overview, and a page for each command."
    rows = [[f"[`{name}`](commands/{name}.md)", command.about] for name, command in commands.items()]
    tree = "\n".join(["```{toctree}", ":hidden:", "", *[f"commands/{name}" for name in commands], "```"])
    about = ("`fwi-i2sb COMMAND [options]`, in the order of their use. Every command can be interrupted "
             "and repeated; a mistake is one sentence and exit code 2.")
    table = markdown_table(["command", "what it does"], rows)
    pages = {"commands": "\n\n".join(["# Command line", about, table, tree])}
    for name, command in commands.items():
        about = command.load()[1].__doc__
        pages[f"commands/{name}"] = f"# {name}\n\n{about}\n\n```text\n{help_text(main, [name])}\n```\n"
    return {name: page + "\n" for name, page in pages.items()}


# ---- the API
def modules(package: ModuleType) -> list[ModuleType]:
    "Every module with public names of its own, sub-packages included."
    walk = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    names = [found.name for found in walk if not found.ispkg and not found.name.endswith("_modidx")]
    return [module for module in map(importlib.import_module, names) if getattr(module, "__all__", None)]


def heading(text: str, line: str) -> list[str]: return [text, line * len(text), ""]


def members(kind: type) -> list[str]:
    "Public methods and properties that the class itself defines; fields are in its table."
    known = {*getattr(kind, "_fields", ()), *getattr(kind, "__dataclass_fields__", ())}
    own = {name: value for name, value in vars(kind).items() if not (name.startswith("_") or name in known)}
    methods = {name for name, value in own.items() if callable(getattr(kind, name)) and not isinstance(value, type)}
    return [name for name, value in own.items() if name in methods or isinstance(value, property)]


def entry(module: ModuleType, name: str) -> list[str]:
    "autodoc's directive for one public name."
    value = getattr(module, name)
    full = f"{module.__name__}.{name}"
    if inspect.isclass(value) and value.__module__ == module.__name__:
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        listed = [f"   :members: {', '.join(members(value))}", "   :undoc-members:"] if members(value) else []
        return [f".. {kind}:: {full}", *listed, ""]
    if inspect.isroutine(inspect.unwrap(value)) and hasattr(value, "__name__"): return [f".. autofunction:: {full}", ""]
    found = re.search(rf"^{name}\b[^=\n]*= (\S.*?)(?:  # (.*))?$", inspect.getsource(module), re.M)
    short = found and len(found[1]) <= 88 and found[1][-1] not in "([{,"
    about = constant(value, found and found[2])
    return [f".. py:data:: {name}", *[f"   :value: {found and found[1]}"] * bool(short), "", f"   {about}", ""]


def constant(value, comment: str | None) -> str:
    "The trailing comment of a constant, else its type; and the keys of a dictionary."
    about = to_rst(comment or type(value).__name__)
    keys = value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else ()
    return about + ": " * bool(keys) + ", ".join(f"``{key}``" for key in keys)


def api_pages(package: ModuleType, notebook_of) -> dict[str, str]:
    "The overview, a page for each sub-package, and one for each module."
    found, pages, shelves = modules(package), {}, {package.__name__: []}
    for module in found:
        shelves.setdefault(module.__name__.rpartition(".")[0], []).append(module)
        about = [*heading(f"``{module.__name__}``", "="), f".. py:currentmodule:: {module.__name__}", ""]
        source = re.search(r"File to edit: \S*?nbs/(\S+)\.ipynb", inspect.getsource(module))
        if source and (page := notebook_of(source[1])): about += [f"Written in :doc:`/{page}`.", ""]
        if module.__doc__: about[3:3] = [first_line(module), ""]
        pages[module.__name__] = "\n".join([*about, *[line for name in module.__all__ for line in entry(module, name)]])
    for shelf, kept in shelves.items():
        inside = sorted({name for name in shelves if name.rpartition(".")[0] == shelf})
        title = "API" if shelf == package.__name__ else f"``{shelf}``"
        doc = inspect.getdoc(importlib.import_module(shelf)) or ""
        listed = [f"   * - :doc:`{m.__name__}`\n     - {first_line(m)}" for m in kept]
        below = [*inside, *(module.__name__ for module in kept)]
        tree = [".. toctree::", "   :hidden:", "", *[f"   {name}" for name in below], ""]
        shown = [".. list-table::", "   :widths: 34 66", "", *listed, ""] if kept else []
        names = lambda package: ", ".join(module.__name__.rpartition(".")[2] for module in shelves[package])
        packages = [f"- :doc:`{name}`: {names(name)}" for name in inside]
        page = [*heading(title, "="), doc, "", *packages, "", *shown, *tree]
        pages["index" if title == "API" else shelf] = "\n".join(page)
    return pages


def first_line(module: ModuleType) -> str: return to_rst((module.__doc__ or "").strip().partition("\n")[0])
