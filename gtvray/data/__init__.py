"""Data: datasets and their checks, splits and who looked at them, the prepared-case cache, training patches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
