"""Prediction of many scans, in this process or by actors on a cluster, with a record from which it is continued."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
