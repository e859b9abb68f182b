"""DICOM series small enough to reason about, written with pydicom alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)

STUDY, FRAME_OF_REFERENCE, SERIES = "1.2.3.1", "1.2.3.2", "1.2.3.3"


def voxels(slices: int = 5, rows: int = 6, columns: int = 8) -> np.ndarray:
    """Values that say where they are: 100 z + 10 y + x."""
    z, y, x = np.mgrid[:slices, :rows, :columns]
    return (100 * z + 10 * y + x).astype(np.int16)


def normal_of(orientation: Sequence[float]) -> np.ndarray:
    return np.cross(orientation[:3], orientation[3:])


def image(pixels: np.ndarray, **attributes: Any) -> Dataset:
    """A minimal image: grey (y, x) or RGB (y, x, 3); further attributes by keyword, None leaves one out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    colour = pixels.shape[-1] == 3 and pixels.dtype == np.uint8
    bits = 8 * pixels.dtype.itemsize
    defaults = {
        "SOPClassUID": SecondaryCaptureImageStorage,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "SeriesNumber": 7,
        "SeriesDescription": "phantom",
        "InstanceNumber": 1,
        "Modality": "OT",
        "PatientID": "P1",
        "PatientName": "Phantom^One",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyID": "1",
        "StudyDate": "20200101",
        "StudyTime": "120000",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Rows": pixels.shape[-3] if colour else pixels.shape[-2],
        "Columns": pixels.shape[-2] if colour else pixels.shape[-1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "PlanarConfiguration": 0 if colour else None,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    for keyword, value in (defaults | attributes).items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", SecondaryCaptureImageStorage)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def ct_slice(pixels: np.ndarray, position: Sequence[float], **attributes: Any) -> Dataset:
    ct: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "FrameOfReferenceUID": FRAME_OF_REFERENCE,
        "ImageOrientationPatient": list(AXIAL),
        "ImagePositionPatient": [ds(value) for value in position],
        "PixelSpacing": [0.5, 0.5],
        "SliceThickness": 2.5,
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
    }
    return image(pixels, **(ct | attributes))


def ds(value: float) -> str:
    """A decimal string as headers have it: 16 characters at most."""
    return f"{value:.10f}"[:16]


def series(
    *,
    pixels: np.ndarray | None = None,
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    step: Sequence[float] | None = None,
    distance: float = 2.5,
    **attributes: Any,
) -> list[Dataset]:
    """The slices of a volume, in order; `step` is the vector between them (else `distance` along the normal)."""
    pixels = voxels() if pixels is None else pixels
    step = normal_of(orientation) * distance if step is None else np.asarray(step)
    return [
        ct_slice(
            pixels[k],
            np.asarray(origin) + k * step,
            ImageOrientationPatient=[ds(value) for value in orientation],
            InstanceNumber=k + 1,
            **attributes,
        )
        for k in range(len(pixels))
    ]


def write(slices: Sequence[Dataset], folder: Path) -> Path:
    """Slices as 00.dcm, 01.dcm, ..."""
    for k, dataset in enumerate(slices):
        save(dataset, folder / f"{k:02}.dcm")
    return folder


def enhanced_ct(pixels: np.ndarray, positions: Sequence[Sequence[float]], **attributes: Any) -> Dataset:
    """One multi-frame instance whose frames say where they lie."""
    dataset = image(
        pixels,
        SOPClassUID=EnhancedCTImageStorage,
        Modality="CT",
        FrameOfReferenceUID=FRAME_OF_REFERENCE,
        NumberOfFrames=len(pixels),
        **attributes,
    )
    shared = Dataset()
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.75, 0.5]
    shared.PixelMeasuresSequence[0].SliceThickness = 2
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames: list[Dataset] = []
    for position in positions:
        frame = Dataset()
        frame.PlanePositionSequence = [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = list(position)
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return dataset


def film(pixels: np.ndarray, **attributes: Any) -> Dataset:
    """A multi-frame ultrasound that knows nothing of the patient's axes."""
    return image(
        pixels,
        SOPClassUID=UltrasoundMultiFrameImageStorage,
        Modality="US",
        NumberOfFrames=len(pixels),
        **attributes,
    )
