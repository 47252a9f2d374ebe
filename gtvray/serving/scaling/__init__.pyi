from .load import Load as Load
from .policy import PatchSecondsPolicy as PatchSecondsPolicy
from .policy import scaling_options as scaling_options
from .replicas import ReplicaCounts as ReplicaCounts
from .replicas import count_replicas as count_replicas
