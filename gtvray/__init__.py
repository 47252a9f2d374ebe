"""gtvray: from CT scans and tumour contours to a served segmentation model, on Ray."""

from gtvray.runtime.environment import prepare_environment

__version__ = "0.1.0"

# Stands wherever a mask or a figure leaves the system.
NOTICE = "Research use only, not a medical device; a clinician must review every mask."

# Before any module of gtvray imports Ray, MLflow, MONAI or torch, which read the environment when they are imported.
prepare_environment()
