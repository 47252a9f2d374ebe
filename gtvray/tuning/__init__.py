"""Hyperparameter search: Ray Tune runs trials of one trainer over a search space."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
