"""Registry: bundles as versions of an MLflow registered model, found by alias and verified by digest."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
