from .manager import Candidate as Candidate
from .manager import VersionManager as VersionManager
from .pointer import Pointer as Pointer
from .pointer import Versions as Versions
from .served import Served as Served
