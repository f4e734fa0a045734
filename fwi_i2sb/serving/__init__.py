"""Trained runs as a service: predictions by HTTP, jobs, keys, limits, metrics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
