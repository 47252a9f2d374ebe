"""Training: `fit` gives a report an epoch and knows nothing of Ray; `ray.py` spreads it over workers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
