"""One config schema for command line, YAML, search spaces and MLflow; torch-free."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
