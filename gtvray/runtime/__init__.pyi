from .cluster import Cluster as Cluster
from .cluster import connect as connect
from .ports import port_is_free as port_is_free
from .ports import require_port as require_port
from .progress import Show as Show
from .resources import ResourcePlan as ResourcePlan
from .resources import plan_trials as plan_trials
