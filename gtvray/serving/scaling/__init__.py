"""The number of model replicas: what a replica reports, the policy that decides, and how many there are."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
