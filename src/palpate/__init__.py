"""Promptable segmentation of medical images: a box, a click or a scribble gives a mask on the image's own grid.

    import palpate

    session = palpate.load("lite-medsam")
    session.set_image(palpate.images.read("abdomen.nii.gz"))
    segmentation = session.predict(palpate.Box(92, 110, 301, 330, z=41))
    segmentation.save("liver.nii.gz")

Everything public is in `__all__`, and in the rooms beside it: `palpate.images`, `palpate.metrics`, `palpate.prompts`.
"""

from palpate import errors, images, metrics, prompts
from palpate.errors import PalpateError
from palpate.images import Image
from palpate.inference.segmentation import Segmentation
from palpate.inference.session import Session, load
from palpate.prompts import Box, MaskPrompt, Points, Scribble, Target

__all__ = [
    "Box",
    "Image",
    "MaskPrompt",
    "PalpateError",
    "Points",
    "Scribble",
    "Segmentation",
    "Session",
    "Target",
    "errors",
    "images",
    "load",
    "metrics",
    "prompts",
]
