"""A candidate version beside the served one: it sees a share of the requests, and its masks are compared."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
