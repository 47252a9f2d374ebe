from .api import Evaluation as Evaluation
from .api import Model as Model
from .api import Promotion as Promotion
from .api import SweepRun as SweepRun
from .api import evaluate as evaluate
from .api import load_model as load_model
from .api import predict_folder as predict_folder
from .api import promote as promote
from .api import rollback as rollback
from .api import sweep as sweep
from .api import train as train

NOTICE: str
__version__: str
