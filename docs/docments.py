"""Parameter comments of the sources (`x: int = 1,  # meaning`) as tables of the API pages: a hook of autodoc."""
import ast
import inspect
import io
import re
import sys
import textwrap
import tokenize

HEAD = ("name", "type", "default", "meaning")


def docments(obj) -> list[tuple[str, str, str, str]]:
    "Rows (name, type, default, meaning) of a function's parameters and return value, or of a class's fields."
    lines = textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))
    tokens = tokenize.generate_tokens(io.StringIO(lines).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    node = ast.parse(lines).body[0]
    if isinstance(node, ast.ClassDef):
        fields = [(part.target.id, part, part.value) for part in node.body if isinstance(part, ast.AnnAssign)]
        if fields: return _rows(fields, comments)
        node = next((part for part in node.body if getattr(part, "name", "") == "__init__"), node)
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): return []  # a lambda, or a class without fields
    if node.returns is None: return _rows(_parameters(node.args), comments)
    returned = ("returns", _text(node.returns), "", comments.pop(node.returns.end_lineno, ""))
    return _rows(_parameters(node.args), comments) + [returned] * (returned[1] != "None")


def _parameters(args: ast.arguments) -> list[tuple]:
    plain = [*args.posonlyargs, *args.args]
    known = [(arg.arg, arg, default) for arg, default in zip(plain[::-1], args.defaults[::-1] + [None] * len(plain))]
    known += [(arg.arg, arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults)]
    known += [(stars + arg.arg, arg, None) for stars, arg in (("*", args.vararg), ("**", args.kwarg)) if arg]
    known.sort(key=lambda one: (one[1].lineno, one[1].col_offset))
    return [one for one in known if one[0] not in ("self", "cls")]


def _rows(known: list[tuple], comments: dict) -> list[tuple[str, str, str, str]]:
    ends = [max(node.end_lineno, getattr(default, "end_lineno", 0)) for _, node, default in known]
    last = dict(zip(ends, range(len(ends))))  # a comment belongs to the last parameter of its line
    return [(name, _text(node.annotation), _text(default), comments.get(end, "") if last[end] == place else "")
            for place, ((name, node, default), end) in enumerate(zip(known, ends))]


def _text(node) -> str: return ast.unparse(node) if node else ""


def to_rst(text: str) -> str:
    "One line of a docstring as reStructuredText: what stands in backticks is literal, nothing else is markup."
    parts = re.split(r"(`+)(.+?)\1", text)
    plain = [re.sub(r"([\\*`|_])", r"\\\1", part) for part in parts[::3]]
    code = [f"\\ ``{part}``\\ " for part in parts[2::3]]
    return "".join(word for pair in zip(plain, [*code, ""]) for word in pair)


def table(rows: list[tuple[str, str, str, str]]) -> list[str]:
    "The rows as lines of a list-table; columns without any entry are left out."
    kept = [place for place in range(4) if place == 0 or any(row[place] for row in rows)]
    cells = [[HEAD[place] for place in kept]]
    shown = lambda row, place: row[place] and (to_rst(row[place]) if place == 3 else f"``{row[place]}``")
    cells += [[shown(row, place) for place in kept] for row in rows]
    lines = [f"   {'*' if place == 0 else ' '} - {cell}".rstrip() for row in cells for place, cell in enumerate(row)]
    return ["", ".. list-table::", "   :header-rows: 1", "   :class: docments", "", *lines, ""]


def add_table(app, what, name, obj, options, lines):
    "autodoc-process-docstring: the docstring as reStructuredText, then its table."
    lines[:] = [to_rst(line) for line in lines]
    if what not in ("function", "method", "class", "exception"): return
    try: rows = docments(obj)
    except (OSError, TypeError): return  # made at run time: there is no source to read
    if what == "method" and not _static(name): rows = [row for row in rows if row[0] != _first(obj)]
    if any(any(row[1:]) for row in rows): lines += table(rows)


def _static(name: str) -> bool:
    module, kind, method = name.rsplit(".", 2)
    return isinstance(inspect.getattr_static(getattr(sys.modules[module], kind), method), staticmethod)


def _first(method) -> str:
    return "" if inspect.ismethod(method) else next(iter(inspect.signature(method).parameters), "")
