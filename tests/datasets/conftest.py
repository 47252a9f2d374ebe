"""Fixtures shared with the tests of `gtvray.data`."""

from ..data.conftest import dataset_folder

__all__ = ["dataset_folder"]
