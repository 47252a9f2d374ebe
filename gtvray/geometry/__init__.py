"""Geometry: a volume knows where each of its voxels is, and every step away from its grid can be undone."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
