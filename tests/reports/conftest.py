"""Fixtures shared with the evaluation tests."""

from ..evaluation.conftest import artifacts, balls, client, one_thread

__all__ = ["artifacts", "balls", "client", "one_thread"]
