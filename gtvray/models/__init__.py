"""Models: networks, losses, the Checkpoint that resumes a training and the Bundle that is used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
