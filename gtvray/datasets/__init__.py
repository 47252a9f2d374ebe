"""Datasets on disk: layouts, checks, descriptions, phantoms, splits, folds and the ledger of held-out scores."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
