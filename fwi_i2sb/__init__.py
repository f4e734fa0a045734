__version__ = "0.1.0"

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads: threads that spin while they wait slow deepwave down twenty times on a busy machine


def __getattr__(name):
    "`from fwi_i2sb import load_run`, without loading torch at `import fwi_i2sb`."
    if name != "load_run": raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .inference.invert import load_run
    return load_run
