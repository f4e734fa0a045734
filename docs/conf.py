"""Sphinx: the site is built by docs/build.py, from the pages that it prepares."""
import configparser
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import docments

settings = configparser.ConfigParser(delimiters=["="])
settings.read(HERE.parent / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project, author, copyright = settings["title"], settings["author"], settings["copyright"]
version = release = settings["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "mathml"]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".rst": "restructuredtext"}

default_role = "literal"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"{project} {version}"
html_math_renderer = "mathml"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "friendly"


def open_branch(app, pagename, templatename, context, doctree):
    "The sidebar opens only the branch of the page: with all of them open, most of the building time goes there."
    whole = context.get("toctree")
    if whole: context["toctree"] = lambda **options: whole(**options | {"collapse": True})


def setup(app):
    app.connect("autodoc-process-docstring", docments.add_table)
    app.connect("html-page-context", open_branch, priority=400)
