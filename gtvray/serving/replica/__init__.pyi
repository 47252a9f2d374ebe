from .budget import MemoryBudget as MemoryBudget
from .deployment import Model as Model
from .quarantine import Quarantine as Quarantine
from .scheduler import PatchScheduler as PatchScheduler
