from .case import CaseJob as CaseJob
from .case import Patch as Patch
from .case import largest_component as largest_component
from .predictor import Predictor as Predictor
from .predictor import forward_batch as forward_batch
from .predictor import run_to_end as run_to_end
from .schedule import gaussian_weights as gaussian_weights
from .schedule import patch_starts as patch_starts
