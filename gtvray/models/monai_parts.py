"""The parts of MONAI that networks and losses are made of, imported without the rest of MONAI.

`import monai` imports every module of MONAI, including installed experiment trackers, and then executes each module a
second time. On one core of the test machine this takes 4 s in every process (commands, workers of trials, replicas).
This module imports only what is needed, in 2 s. A later `import monai.x` works as usual.
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
    """Prevent `import monai` from importing all submodules within a `with` block."""
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
    # MONAI has circular imports; this module must come first, as in MONAI itself.
    import monai.apps  # noqa: F401
    from monai.losses.dice import DiceLoss
    from monai.losses.focal_loss import FocalLoss
    from monai.networks.blocks.convolutions import Convolution
    from monai.networks.blocks.dynunet_block import UnetBasicBlock, get_conv_layer
    from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer
    from monai.networks.nets.dynunet import DynUNet

__all__ = ["ChannelSELayer", "Convolution", "DiceLoss", "DynUNet", "FocalLoss", "UnetBasicBlock", "get_conv_layer"]
