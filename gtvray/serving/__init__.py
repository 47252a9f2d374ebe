"""Serving: an HTTP API without torch, model replicas that share batches among requests, and the HTTP client."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
