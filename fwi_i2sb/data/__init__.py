"""Records and maps: velocity scales, OpenFWI's files, generated data, the store, starting models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
