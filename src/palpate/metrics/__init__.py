"""How good is a mask."""

from palpate.metrics.leak import is_tiny, is_tiny_error, leak_ratio, must_be_redone
from palpate.metrics.overlap import dice, iou
from palpate.metrics.surface import NsdMode, Surface, SurfaceDistances, assd, hausdorff95, nsd, surface_distances

__all__ = [
    "NsdMode",
    "Surface",
    "SurfaceDistances",
    "assd",
    "dice",
    "hausdorff95",
    "iou",
    "is_tiny",
    "is_tiny_error",
    "leak_ratio",
    "must_be_redone",
    "nsd",
    "surface_distances",
]
