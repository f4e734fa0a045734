"""Trained runs: load, invert, explore."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

from . import invert  # noqa: E402, F401  its functions are methods of a run, wherever that is imported from
