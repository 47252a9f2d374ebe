"""Tracking: MLflow runs of sweeps and trainings, written through a durable queue that bridges outages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
