from .routes import JobRoutes as JobRoutes
from .service import Jobs as Jobs
