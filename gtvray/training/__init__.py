"""Training: `fit` yields one report per epoch and does not depend on Ray; `ray.py` distributes it over workers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
