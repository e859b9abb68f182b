"""Cases in one file each, written by the tests themselves."""

from pathlib import Path

import numpy as np

from palpate.datasets import Case, LabelledImage
from palpate.images import Image
from palpate.images.geometry import affine_from_spacing


def load_arrays(case: Case) -> LabelledImage:
    with np.load(case.image) as arrays:
        affine = affine_from_spacing(tuple(arrays["spacing"].tolist()))
        return LabelledImage(Image(arrays["image"], affine, modality="photo"), arrays["labels"])


def write_case(
    folder: Path, name: str, image: np.ndarray, labels: np.ndarray, *, subject: str = "", spacing: tuple = (1, 1, 1)
) -> Case:
    path = folder / f"{name}.npz"
    np.savez(path, image=image, labels=labels, spacing=np.array(spacing, dtype=float))
    return Case("squares", subject or name, name, path, path, load_arrays)
