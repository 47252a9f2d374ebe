"""The phantoms, settings and store of the tuning tests."""

from ..tuning.conftest import cases, client, config, selection, train

__all__ = ["cases", "client", "config", "selection", "train"]
