"Trained runs: load, invert, explore."

from .command import InvertOptions as InvertOptions
from .explorer import Explorer as Explorer
from .inversion import Inversion as Inversion
from .run import load_run as load_run, TrainedRun as TrainedRun
