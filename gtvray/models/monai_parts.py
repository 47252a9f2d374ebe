"""The parts of MONAI that networks and losses are made of, imported without the rest of MONAI.

`import monai` imports every module of MONAI and then executes each of them once more, with the experiment trackers
that they find installed. On one core of the test machine this takes 4 s in every process: commands, workers of trials,
replicas. Here only the modules that are needed are imported, in 2 s. A later `import monai.x` works as usual.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def _without_submodules() -> Iterator[None]:
    """Within the block, `import monai` finds no submodules to import beforehand."""
    if "monai" in sys.modules:
        yield
        return

    def nothing(*_: Any, **__: Any) -> Iterator[pkgutil.ModuleInfo]:
        return iter(())

    with patch.object(pkgutil, "walk_packages", nothing):
        yield
    # MONAI keeps the function under a name of its own.
    sys.modules["monai.utils.module"].__dict__["walk_packages"] = pkgutil.walk_packages


with _without_submodules():
    # MONAI's modules import each other in a circle: this is the one with which it begins itself.
    import monai.apps  # noqa: F401
    from monai.losses.dice import DiceLoss
    from monai.losses.focal_loss import FocalLoss
    from monai.networks.blocks.convolutions import Convolution
    from monai.networks.blocks.dynunet_block import UnetBasicBlock, get_conv_layer
    from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer
    from monai.networks.nets.dynunet import DynUNet

__all__ = ["ChannelSELayer", "Convolution", "DiceLoss", "DynUNet", "FocalLoss", "UnetBasicBlock", "get_conv_layer"]
