"""gtvray: from CT scans and tumour contours to a served segmentation model, on Ray."""

__version__ = "0.1.0"

# Stands wherever a mask or a figure leaves the system.
NOTICE = "Research use only, not a medical device; a clinician must review every mask."
