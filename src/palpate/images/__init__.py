"""Pixels that know where they are in the patient, and the files they live in."""

from palpate.images.formats import read, write_mask
from palpate.images.geometry import Geometry
from palpate.images.image import Image, Source

__all__ = ["Geometry", "Image", "Source", "read", "write_mask"]
