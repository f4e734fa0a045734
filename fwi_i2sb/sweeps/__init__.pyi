"Grids of experiments, and methods compared at an equal budget."

from .equal_budget import train_equally as train_equally
from .grid import Cell as Cell, Grid as Grid, read_grid as read_grid
from .grid_table import collect as collect
from .runner import ExperimentOptions as ExperimentOptions, SlurmOptions as SlurmOptions, run_grid as run_grid
from .spaces import SPACES as SPACES
