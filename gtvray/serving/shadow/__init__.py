"""The shadow version: a candidate that segments a share of the requests, for comparison with the served version."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
