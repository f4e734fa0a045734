"Runs: options, the run directory, batches, steps, processes."

from .options import (
    DataOptions as DataOptions, DeviceOptions as DeviceOptions, LogOptions as LogOptions,
    OptimOptions as OptimOptions, RunOptions as RunOptions, TrainOptions as TrainOptions,
)
from .checkpoint import checkpoints as checkpoints, read_checkpoint as read_checkpoint
from .optimisers import OPTIMIZERS as OPTIMIZERS
from .schedules import SCHEDULERS as SCHEDULERS
from .run_dir import read_config as read_config, read_metrics as read_metrics
