"""gtvray: from CT scans and tumour contours to a served segmentation model, on Ray."""

__version__ = "0.1.0"
