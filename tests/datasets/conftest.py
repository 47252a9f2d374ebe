"""The small dataset of the data tests."""

from ..data.conftest import dataset_folder

__all__ = ["dataset_folder"]
