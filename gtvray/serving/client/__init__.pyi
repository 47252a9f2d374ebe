from .async_client import AsyncClient as AsyncClient
from .client import Client as Client
from .transport import Retry as Retry
from .transport import Timeouts as Timeouts
from .volumes import RemoteResult as RemoteResult
from .volumes import Scan as Scan
