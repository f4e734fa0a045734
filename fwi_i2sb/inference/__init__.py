"A trained run, a record and a starting model give velocity maps with their uncertainty."
from .invert import Inversion
from .run import load_run, TrainedRun
from .validation_data import validation_data
