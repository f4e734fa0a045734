"Bridges and diffusions: tables, one step, whole trajectories."

from .bridge import Bridge as Bridge
from .ddpm import Diffusion as Diffusion
from .gaussian_mixture import GaussianMixtureBridge as GaussianMixtureBridge
from .sampling import TrajectoryPoint as TrajectoryPoint, sample as sample, t_sequence as t_sequence
