from pathlib import Path

import pytest


@pytest.fixture
def ct_slice() -> Path:
    """A real CT slice, 128 x 128, that pydicom installs; the spinal canal lies in the box 48 42 71 61."""
    from pydicom.data import get_testdata_file

    found = get_testdata_file("CT_small.dcm")
    assert isinstance(found, str)
    return Path(found)


@pytest.fixture
def ct_volume(tmp_path: Path) -> Path:
    """A CT phantom in HU: water in air, and in it a bright ball (label volume beside it) that spans slices 3 to 11.

    Oblique and anisotropic, so that a mask that loses its geometry shows.
    """
    import nibabel
    import numpy as np

    z, y, x = np.indices((15, 72, 96))
    body = ((x - 48) / 44) ** 2 + ((y - 36) / 33) ** 2 < 1
    ball = ((x - 40) / 16) ** 2 + ((y - 34) / 14) ** 2 + ((z - 7) / 4.5) ** 2 < 1
    volume = np.where(ball, 150, np.where(body, -20, -1000)).astype(np.int16)
    turn = np.deg2rad(15)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-0.8, -0.8, 3.0])
    affine[:3, 3] = (30, 40, -100)
    nibabel.Nifti1Image(volume.T, affine).to_filename(tmp_path / "ct.nii.gz")
    nibabel.Nifti1Image(ball.T.astype(np.uint8), affine).to_filename(tmp_path / "ball.nii.gz")
    return tmp_path / "ct.nii.gz"
