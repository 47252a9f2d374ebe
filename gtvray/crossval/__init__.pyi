from .progress import FoldStatus as FoldStatus
from .scores import CrossValidation as CrossValidation
from .train import TrainJob as TrainJob
from .train import TrainOutcome as TrainOutcome
from .train import TrainRequest as TrainRequest
