"""The HTTP client of a gtvray endpoint; importing it loads neither torch nor ray.

from gtvray.client import Client

with Client("http://127.0.0.1:8000", token) as client:
    result = client.segment("scan.nii.gz")
print(result.volume_ml, result.mask.spacing_mm)
"""

from gtvray.serving.client.async_client import AsyncClient
from gtvray.serving.client.client import Client
from gtvray.serving.client.transport import Retry, Timeouts
from gtvray.serving.client.volumes import RemoteResult
from gtvray.serving.jobs.documents import JobDocument, QueueDocument

__all__ = ["AsyncClient", "Client", "JobDocument", "QueueDocument", "RemoteResult", "Retry", "Timeouts"]
