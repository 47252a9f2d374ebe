"""Transfer of encrypted scans and masks between gateways and replicas: upload spool, stream and messages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
