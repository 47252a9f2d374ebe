"""The gateway: the HTTP API, access, and handing requests to model replicas."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
