"""Reading and writing files: damaged input is refused, and writes are atomic."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
