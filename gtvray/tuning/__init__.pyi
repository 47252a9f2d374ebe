from .space import decode as decode
from .space import tune_space as tune_space
from .sweep import SweepResult as SweepResult
from .sweep import TrialResult as TrialResult
from .sweep import run_sweep as run_sweep
from .trainable import SegmentationTrial as SegmentationTrial
from .trainable import TrialContext as TrialContext
from .watch import SweepStatus as SweepStatus
