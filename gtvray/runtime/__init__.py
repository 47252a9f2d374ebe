"""Ray clusters: connection, start and cleanup; resources of the host, its environment and its proxies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
