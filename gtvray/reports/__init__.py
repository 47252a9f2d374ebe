"""Reports: evaluation studies, HTML pages, charts and overlays, and sending them to MLflow."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
