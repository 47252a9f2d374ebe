"""Served versions: following the champion, and the pointer that names the version of new requests."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
