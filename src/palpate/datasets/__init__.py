"""Cases on disk: images with their reference labels, in the layouts people already have."""

from palpate.datasets.case import Case, LabelledImage, Region
from palpate.datasets.opening import open_dataset

__all__ = ["Case", "LabelledImage", "Region", "open_dataset"]
