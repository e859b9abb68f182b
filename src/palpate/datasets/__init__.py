"""Cases on disk: images with their reference labels, in the layouts people already have."""

from palpate.datasets.case import Case, LabelledImage, Region, ScribbleConvention
from palpate.datasets.checking import check
from palpate.datasets.layouts.manifest import write as write_manifest
from palpate.datasets.opening import open_dataset
from palpate.datasets.report import Problem, Report
from palpate.datasets.splitting import split

__all__ = [
    "Case",
    "LabelledImage",
    "Problem",
    "Region",
    "Report",
    "ScribbleConvention",
    "check",
    "open_dataset",
    "split",
    "write_manifest",
]
