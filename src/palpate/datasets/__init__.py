"""Cases on disk: images with their reference labels, in the layouts people already have."""

from palpate.datasets.case import Case, LabelledImage, Region

__all__ = ["Case", "LabelledImage", "Region"]
