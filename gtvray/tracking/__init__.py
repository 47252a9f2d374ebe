"""Tracking: MLflow runs of sweeps and trials, queued on disk so that MLflow being away costs nothing."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
