"Seismic full-waveform inversion with conditional image-to-image Schroedinger bridges."

from . import (
    bench as bench, core as core, data as data, diffusion as diffusion, evaluation as evaluation,
    inference as inference, methods as methods, metrics as metrics, models as models, physics as physics,
    sweeps as sweeps, training as training,
)
from .core.errors import InputError as InputError
from .data.generate import generate as generate
from .data.scale import VelocityScale as VelocityScale
from .data.store import convert as convert
from .diffusion.bridge import Bridge as Bridge
from .diffusion.sampling import sample as sample
from .evaluation.evaluate import evaluate as evaluate
from .examples import mini_run as mini_run
from .explore import explore as explore
from .inference.figure import plot_result as plot_result
from .inference.run import load_run as load_run
from .methods.options import ModelOptions as ModelOptions
from .metrics.accuracy import mae as mae, misfit as misfit, rmse as rmse, ssim as ssim
from .physics.wave import OPENFWI as OPENFWI, Survey as Survey, simulate as simulate
from .plot import plot_gather as plot_gather, plot_maps as plot_maps
from .train import train as train
from .training.options import (
    DataOptions as DataOptions, DeviceOptions as DeviceOptions, LogOptions as LogOptions,
    OptimOptions as OptimOptions, RunOptions as RunOptions, TrainOptions as TrainOptions,
)

__version__: str
