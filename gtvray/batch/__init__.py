"""Prediction of many scans, in this process or by actors on a cluster; an interrupted prediction can be continued."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
