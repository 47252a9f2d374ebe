from .recorder import SweepRecorder as SweepRecorder
from .spool import Spool as Spool
from .store import connect_mlflow as connect_mlflow
