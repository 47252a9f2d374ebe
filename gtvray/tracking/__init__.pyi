from .recorder import SweepRecorder as SweepRecorder
from .spool import Spool as Spool
from .store import connect_mlflow as connect_mlflow
from .store import experiment_id as experiment_id
from .store import find_or_create_run as find_or_create_run
from .trials import Trial as Trial
from .trials import TrialRecord as TrialRecord
from .trials import read_trials as read_trials
