"""Seismic full-waveform inversion with conditional image-to-image Schrödinger bridges."""

__version__ = "0.1.0"

import importlib

import lazy_loader

# the names and where they are: `__init__.pyi`, which editors read too; nothing is imported before it is asked for
_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name):
    "`train` and `explore` are modules that can be called like the function they are named after."
    return importlib.import_module(f"{__name__}.{name}") if name in ("train", "explore") else _lazy(name)
