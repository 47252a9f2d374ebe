from .data import open_data as open_data
from .data import versions as versions
from .folds import Fold as Fold
from .folds import plan_folds as plan_folds
from .folds import train_folds as train_folds
from .tasks import keep as keep
from .tasks import on_cluster as on_cluster
