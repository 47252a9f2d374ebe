from .case import CaseJob as CaseJob
from .case import Patch as Patch
from .predictor import Predictor as Predictor
from .schedule import gaussian_weights as gaussian_weights
from .schedule import patch_starts as patch_starts
