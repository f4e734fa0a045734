"Waves and velocities: simulation, filters, smoothing, classical inversion. Tensors in, tensors out."

from .filters import decimate as decimate, low_band as low_band
from .smoothing import blur_benchmark as blur_benchmark, blur_custom as blur_custom
from .wave import (
    ENGINES as ENGINES, OPENFWI as OPENFWI, Survey as Survey, simulate as simulate, surface_survey as surface_survey,
)
from .waveform_inversion import descend as descend
