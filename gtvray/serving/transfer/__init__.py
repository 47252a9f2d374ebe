"""Encrypted scans and masks between gateway and replicas: the upload spool, its stream, and the messages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
