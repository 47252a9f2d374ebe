"""Scaling of model replicas: the load that a replica reports, the autoscaling policy, and replica counts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
