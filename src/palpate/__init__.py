"""Promptable segmentation of medical images: a box, a click or a scribble gives a mask on the image's own grid.

    import palpate

    session = palpate.load("lite-medsam")
    session.set_image(palpate.images.read("abdomen.nii.gz"))
    segmentation = session.predict(palpate.Box(92, 110, 301, 330, z=41))
    segmentation.save("liver.nii.gz")

Everything public is in `__all__`, and in the rooms beside it: `palpate.images`, `palpate.metrics`,
`palpate.prompts`, `palpate.datasets`, `palpate.evaluation`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palpate import datasets, errors, evaluation, images, metrics, prompts
    from palpate.errors import PalpateError
    from palpate.images.image import Image
    from palpate.inference.loading import load
    from palpate.inference.segmentation import Segmentation
    from palpate.inference.session import Session
    from palpate.prompts.types import Box, MaskPrompt, Points, Scribble, Target

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
    "datasets",
    "errors",
    "evaluation",
    "images",
    "load",
    "metrics",
    "prompts",
]

# Names are looked up when first used: `import palpate` costs nothing, and `palpate --help` need not wait for NumPy.
_HOME = {
    "Box": "prompts.types",
    "Image": "images.image",
    "MaskPrompt": "prompts.types",
    "PalpateError": "errors",
    "Points": "prompts.types",
    "Scribble": "prompts.types",
    "Segmentation": "inference.segmentation",
    "Session": "inference.session",
    "Target": "prompts.types",
    "load": "inference.loading",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"palpate.{_HOME[name]}"), name)
    elif name in __all__:
        value = import_module(f"palpate.{name}")
    else:
        raise AttributeError(f"module 'palpate' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
