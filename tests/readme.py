"""Render nbs/index.ipynb as README.md: python tests/readme.py README.md"""
import re
import sys
from pathlib import Path

from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor
from traitlets.config import Config

root = Path(__file__).resolve().parent.parent


def render() -> str:
    config = Config()
    config.TagRemovePreprocessor.remove_cell_tags = ("remove_cell",)
    config.TagRemovePreprocessor.remove_input_tags = ("remove_input",)
    exporter = MarkdownExporter(config=config)
    exporter.register_preprocessor(TagRemovePreprocessor(config=config), enabled=True)
    text, resources = exporter.from_filename(str(root / "nbs" / "index.ipynb"))
    if resources["outputs"]: raise SystemExit("index.ipynb must show figures as files under nbs/images, not as outputs")
    text = re.sub(r"(\]\(|src=\")(?!\w+:|#|/|\.\./)", r"\1nbs/", text)  # links are relative to nbs/ in the notebook
    text = re.sub(r"(\]\(|src=\")\.\./", r"\1", text)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    lines, size = text.count("\n"), len(text.encode())
    if lines > 120 or size > 9000:
        raise SystemExit(f"the README has {lines} lines and {size} bytes, at most 120 and 9000: move more to docs/")
    return text


Path(sys.argv[1]).write_text(render(), encoding="utf-8")
