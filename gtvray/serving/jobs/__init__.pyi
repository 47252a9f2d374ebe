from .documents import ReplicasDocument as ReplicasDocument
from .routes import JobRoutes as JobRoutes
from .service import Jobs as Jobs
