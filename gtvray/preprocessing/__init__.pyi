from .path import AIR_HU as AIR_HU
from .path import PREPROCESSING_VERSION as PREPROCESSING_VERSION
from .path import Prepared as Prepared
from .path import check_hu as check_hu
from .path import prepare as prepare
from .path import prepare_mask as prepare_mask
from .path import restore_mask as restore_mask
from .path import to_channels as to_channels
