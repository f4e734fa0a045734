"The evaluation card of a run."

from .card import markdown as markdown, table as table
from .card_figure import card_figure as card_figure
from .evaluate import EvaluateOptions as EvaluateOptions
