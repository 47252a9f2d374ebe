"""The HTTP client of a gtvray endpoint; importing it loads neither torch nor ray.

from gtvray.client import predict_remote

result = predict_remote("http://127.0.0.1:8000", token, "scan.nii.gz")
print(result.volume_ml, result.mask.spacing_mm)
"""

from gtvray.serving.client import RemoteResult, predict_remote

__all__ = ["RemoteResult", "predict_remote"]
