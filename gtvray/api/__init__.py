"""The Python API: load a model and predict, train, sweep, evaluate, promote. The commands call these functions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
