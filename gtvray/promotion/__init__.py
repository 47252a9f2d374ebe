"""Promotion: the gate between a trained model and the served one, and the log of its decisions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
