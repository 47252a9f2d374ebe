from .app import build_app as build_app
from .arguments import AppArguments as AppArguments
from .client import RemoteResult as RemoteResult
from .client import predict_remote as predict_remote
from .scheduler import PatchScheduler as PatchScheduler
from .server import Server as Server
from .server import start_server as start_server
