"""Preprocessing: from a scan to the network's input, and from its output to a mask; shared by training and serving."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
