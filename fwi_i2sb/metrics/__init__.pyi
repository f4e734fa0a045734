"How good a map is, and how honest its uncertainty."

from .accuracy import mae as mae, misfit as misfit, rmse as rmse, ssim as ssim
from .calibration import bootstrap as bootstrap, coverage as coverage, crps as crps, spread_skill as spread_skill
from .recalibration import Recalibration as Recalibration, recalibrate as recalibrate
