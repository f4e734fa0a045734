"The evaluation card of a run."

from .card import Tally as Tally, markdown as markdown, table as table
from .command import EvaluateOptions as EvaluateOptions
