"""The one way from a scan to what the network sees, and back; training and serving both take it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
