"""The parts of MONAI that networks and losses are made of, imported without the rest of MONAI.

`import monai` imports every module of MONAI, including installed experiment trackers, and then executes each module a
second time. On one core of the test machine this takes 4 s in every process (commands, workers of trials, replicas).
This module imports only what is needed, in 1.4 s. A later `import monai.x` works as usual, except that the modules of
MONAI imported here take the packages of `_UNUSED` for not installed.
"""

from __future__ import annotations

import pkgutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any
from unittest.mock import patch

# Optional packages of MONAI's profiler, notebooks, ultrasound transform and embedding metric.
_UNUSED = ("matplotlib", "pandas", "scipy.signal", "sklearn")


class _Absent(MetaPathFinder):
    """Makes the packages of `_UNUSED` missing for imports of the thread that created it; others may need them."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname in _UNUSED and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{fullname} is not imported for MONAI", name=fullname)


@contextmanager
def _without_the_rest() -> Iterator[None]:
    """Prevent `import monai` from importing all submodules and optional packages within a `with` block."""
    if "monai" in sys.modules:
        yield
        return

    def nothing(*_: Any, **__: Any) -> Iterator[pkgutil.ModuleInfo]:
        return iter(())

    absent = _Absent()
    sys.meta_path.insert(0, absent)
    try:
        with patch.object(pkgutil, "walk_packages", nothing):
            yield
    finally:
        sys.meta_path.remove(absent)
    # MONAI keeps the function under a name of its own.
    sys.modules["monai.utils.module"].__dict__["walk_packages"] = pkgutil.walk_packages


with _without_the_rest():
    # MONAI has circular imports; this module must come first, as in MONAI itself.
    import monai.apps  # noqa: F401
    from monai.losses.dice import DiceLoss
    from monai.losses.focal_loss import FocalLoss
    from monai.networks.blocks.convolutions import Convolution
    from monai.networks.blocks.dynunet_block import UnetBasicBlock, get_conv_layer
    from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer
    from monai.networks.nets.dynunet import DynUNet

__all__ = ["ChannelSELayer", "Convolution", "DiceLoss", "DynUNet", "FocalLoss", "UnetBasicBlock", "get_conv_layer"]
