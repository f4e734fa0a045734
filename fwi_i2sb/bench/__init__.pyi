"Measurements of speed and size against plain ways of doing the same."

from .timing import Result as Result, Setting as Setting, Timing as Timing, race as race, trial as trial
