from .last import Candidate as Candidate
from .last import last_file as last_file
from .last import read_last as read_last
from .manager import VersionManager as VersionManager
from .pointer import Pointer as Pointer
from .pointer import Versions as Versions
from .served import Served as Served
