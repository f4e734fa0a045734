"Trained runs: load, invert, explore."

from .command import InvertOptions as InvertOptions
from .explorer import Explorer as Explorer
from .invert import Inversion as Inversion, TrainedRun as TrainedRun
from .run import load_run as load_run
