"""gtvray: from CT scans and tumour contours to a served segmentation model, on Ray.

import gtvray

model = gtvray.load_model("champion")
result = model.predict("scan.nii.gz", out="mask.nii.gz")
"""

import lazy_loader

from gtvray.runtime.environment import prepare_environment

__version__ = "0.1.0"

# Included in every mask, report and message that is output.
NOTICE = "Research use only, not a medical device; a clinician must review every mask."

# Before any module of gtvray imports Ray, MLflow, MONAI or torch, which read the environment when they are imported.
prepare_environment()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
