from .decisions import Decision as Decision
from .decisions import DecisionLog as DecisionLog
from .desk import promote as promote
from .desk import rollback as rollback
from .evidence import gather_evidence as gather_evidence
from .gate import Evidence as Evidence
from .gate import judge as judge
from .probe import answers_alike as answers_alike
