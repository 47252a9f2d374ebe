"""Parts shared by sweeps, trainings and cross-validations: data, run record, folds and tasks on the cluster."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
