"The evaluation card of a run."

from .card import Tally as Tally
from .card_text import markdown as markdown, table as table
from .command import EvaluateOptions as EvaluateOptions
from .diagnostics import PLOTS as PLOTS
