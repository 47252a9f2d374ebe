"""Dataset layouts: finding the cases of a folder, and writing datasets in another layout.

To add a layout, follow `gtvray.datasets.layouts.registry`.
"""

from typing import Literal

LayoutName = Literal["structseg", "nnunet", "msd"]
