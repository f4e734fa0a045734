"Bridges and diffusions: tables, one step, whole trajectories."

from .bridge import Bridge as Bridge
from .ddpm import Diffusion as Diffusion
from .gaussian_mixture import GaussianMixtureBridge as GaussianMixtureBridge
from .samplers import Jump as Jump, Sampler as Sampler
from .sampling import SAMPLERS as SAMPLERS, TrajectoryPoint as TrajectoryPoint, sample as sample
from .sampling import t_sequence as t_sequence
