"""Structure sets read back: contours filled again on the grid of their images, slice by slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom

from palpate.images import Image
from palpate.images.geometry import LPS_TO_RAS

FLAT_MM = 1e-3
"""What rounding may move a point out of its plane."""


def filled(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie inside a closed outline of points (x, y), by counting borders to their left."""
    inside = np.zeros(shape, dtype=bool)
    start, end = points, np.roll(points, -1, axis=0)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    for row in range(max(int(np.ceil(low.min())), 0), min(int(np.floor(high.max())), shape[0] - 1) + 1):
        crossed = (low <= row) & (row < high)
        part = (row - start[crossed, 1]) / (end[crossed, 1] - start[crossed, 1])
        borders = np.sort(start[crossed, 0] + part * (end[crossed, 0] - start[crossed, 0]))
        inside[row] = np.searchsorted(borders, np.arange(shape[1])) % 2 == 1
    return inside


def structures(path: Path, image: Image, *, off_mm: float = FLAT_MM) -> dict[str, np.ndarray]:
    """Each structure of a set on the image's grid; contours of one slice are combined by exclusive or.

    `off_mm` is how far a contour may lie from the plane of its slice.
    """
    rtss = pydicom.dcmread(path)
    to_voxel = np.linalg.inv(LPS_TO_RAS @ image.affine)
    names = {roi.ROINumber: roi.ROIName for roi in rtss.StructureSetROISequence}
    found: dict[str, np.ndarray] = {}
    for item in rtss.ROIContourSequence:
        volume = np.zeros((1, *image.shape)[-3:], dtype=bool)
        for contour in item.get("ContourSequence", []):
            data = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            assert len(data) == contour.NumberOfContourPoints
            voxels = (np.c_[data, np.ones(len(data))] @ to_voxel.T)[:, :3]
            z = round(float(voxels[:, 2].mean()))
            np.testing.assert_allclose(voxels[:, 2], z, atol=off_mm / image.geometry.spacing[2])
            volume[z] ^= filled(voxels[:, :2], volume.shape[1:])
        found[names[item.ReferencedROINumber]] = volume.reshape(image.shape)
    return found
