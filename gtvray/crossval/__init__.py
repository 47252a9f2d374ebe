"""Training one network or all folds of a cross-validation, out-of-fold scores and the ensemble."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
