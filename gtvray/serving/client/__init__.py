"""The HTTP client of an endpoint, blocking and asynchronous; it loads neither torch nor ray."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
