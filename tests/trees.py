"""The smallest datasets that can prove something, one function a layout."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image as PILImage

AFFINE = np.diag([-0.8, -0.8, 2.5, 1.0])
VOLUME = (np.arange(3 * 5 * 6).reshape(3, 5, 6) - 1000).astype(np.int16)
"""(z, y, x), with values that only CT has."""
ORGANS = np.zeros((3, 5, 6), np.uint8)
ORGANS[1, 1:3, 1:4] = 1
ORGANS[1, 3, 4] = 2


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """`array` is (z, y, x)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array.T, affine).to_filename(path)
    return path


def png(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(array).save(path)
    return path


def tiff(path: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> Path:
    """A stack (z, y, x), and its spacing in that order beside it as nnU-Net keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [PILImage.fromarray(page) for page in array]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    path.with_name(f"{path.stem.removesuffix('_0000')}.json").write_text(json.dumps({"spacing": spacing}))
    return path


def grey(number: int, shape: tuple[int, int] = (5, 6)) -> np.ndarray:
    """A picture that no other number has."""
    return np.random.default_rng(number).integers(0, 255, shape, dtype=np.uint8)


def square(shape: tuple[int, int] = (5, 6)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[1:3, 1:4] = 1
    return labels


def manifest(folder: Path, rows: list[dict[str, str]], name: str = "manifest.csv") -> Path:
    """A manifest with the columns of its rows; the files are not made."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def pictures(folder: Path, subjects: dict[str, int], **columns: str) -> Path:
    """A manifest of so many pictures a subject, with files."""
    rows: list[dict[str, str]] = []
    for subject, count in subjects.items():
        for number in range(count):
            name = f"{subject}_{number}.png"
            png(folder / "i" / name, grey(len(rows)))
            png(folder / "l" / name, square())
            rows.append({"image": f"i/{name}", "label": f"l/{name}", "subject": subject, **columns})
    return manifest(folder, rows)


def nnunet(folder: Path, cases: tuple[str, ...] = ("a", "b"), *, channels: int = 1, **changes: object) -> Path:
    """`Dataset007_Organs` with NIfTI volumes; `changes` are made to its dataset.json, None takes a key away."""
    root = folder / "Dataset007_Organs"
    root.mkdir(parents=True)
    for number, case in enumerate(cases):
        for channel in range(channels):
            nifti(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz", VOLUME + 10 * number + channel)
        nifti(root / "labelsTr" / f"{case}.nii.gz", ORGANS)
    description: dict[str, object] = {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        **changes,
    }
    text = json.dumps({key: value for key, value in description.items() if value is not None})
    (root / "dataset.json").write_text(text)
    return root


def npy_slices(folder: Path, names: tuple[str, ...] = ("CT_abdomen-000", "CT_abdomen-001", "CT_chest-000")) -> Path:
    for kind in ("imgs", "gts"):
        (folder / kind).mkdir(parents=True)
    for number, name in enumerate(names):
        np.save(folder / "imgs" / f"{name}.npy", np.repeat(grey(number)[..., None] / 255, 3, axis=2))
        np.save(folder / "gts" / f"{name}.npy", square())
    return folder


def npz_case(path: Path, **arrays: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"imgs": (VOLUME + 1000).astype(np.uint8), "gts": ORGANS.astype(np.int16), "spacing": [0.5, 0.6, 3.0]}
    np.savez_compressed(path, **{name: np.asarray(array) for name, array in {**content, **arrays}.items()})
    return path


def two_folders(folder: Path, names: tuple[str, ...] = ("a", "b")) -> Path:
    for number, name in enumerate(names):
        png(folder / "images" / f"{name}.png", grey(number))
        png(folder / "labels" / f"{name}.png", square())
    return folder
