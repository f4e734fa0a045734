"""Equations as MathML, which browsers draw themselves: pages need neither a network nor a script."""
import re
import unicodedata

from docutils import nodes
from latex2mathml.converter import convert

VARIANTS = {"script": "SCRIPT", "double-struck": "DOUBLE-STRUCK", "bold": "BOLD"}


def letter(found: re.Match) -> str:
    "Browsers know no mathvariant: the letter itself, such as a script N."
    for name in (f"MATHEMATICAL {VARIANTS[found[1]]} CAPITAL {found[2]}", f"{VARIANTS[found[1]]} CAPITAL {found[2]}"):
        try: return f"<mi>{unicodedata.lookup(name)}</mi>"
        except KeyError: continue
    return found[0]


def mathml(latex: str, display: str = "inline") -> str:
    latex = re.sub(r"(\\[bB]igg?[lrm]?)\s*\\(?:\||[lr]?Vert)(?![a-zA-Z])", "\\1‖", latex)  # not known there
    return re.sub(rf'<mi mathvariant="({"|".join(VARIANTS)})">([A-Z])</mi>', letter, convert(latex, display=display))


def inline(self, node):
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def block(self, node):
    latex = node.astext().strip()
    if r"\\" in latex and r"\begin" not in latex: latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    self.body.append(f'<div class="equation">{mathml(latex, "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
