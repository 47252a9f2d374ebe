"""Inference: segment a scan patch by patch; the mask is on the grid of the scan."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
