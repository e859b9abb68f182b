"""How good is a mask."""

from palpate.metrics.overlap import dice, iou

__all__ = ["dice", "iou"]
