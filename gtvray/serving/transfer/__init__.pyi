from .spool import Body as Body
from .spool import Spool as Spool
from .stream import BodyStream as BodyStream
from .work import Prediction as Prediction
from .work import Work as Work
