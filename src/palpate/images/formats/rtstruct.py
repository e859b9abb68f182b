"""DICOM RTSTRUCT: a label map as contours, for planning systems and viewers of radiotherapy.

- One ROI a label, in the study and frame of reference of the images; on each slice of theirs, one CLOSED_PLANAR
  contour for each piece of the label.
- Contours run along the borders of the pixels (see `outlines`), in the plane of their own image: what fills them at
  the centres of pixels gets the mask back exactly.
- A hole is part of its piece's contour by the keyhole technique (PS3.3 C.8.8.6.3): a channel of no width leads to it
  and back. The other way, CLOSEDPLANAR_XOR, is younger than many readers. Filled by union, by XOR or by winding
  number, a keyhole gives the same.
- Written with implicit VR: a contour of some 1300 points does not fit the 64 KiB that explicit VR leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from jaxtyping import Float
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from palpate.errors import OutputError
from palpate.images.formats import Mask
from palpate.images.formats.dicom import DAMAGE, forgiving
from palpate.images.formats.dicom_geometry import Plane
from palpate.images.formats.dicom_sources import Sources, drawn_labels, palpate_version, short, sources_of
from palpate.images.formats.outlines import outlines

SERIES_NUMBER = 901

_KIND = "an RTSTRUCT"
_MOST_ROIS = 65535
_STUDY_CLASS = UID("1.2.840.10008.3.1.2.3.1")  # Detached Study Management: retired, and what planning systems expect
_CONTOUR_DATA = Tag("ContourData")
_SHORT_STRING = 16  # characters in DICOM's SH
_DECIMALS = 4  # of a coordinate in mm; with them, and a kilometre before the point, it fits the 16 characters of DS

_FROM_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_FROM_STUDY = ("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName")


def write_mask(path: Path, mask: Mask) -> None:
    """Write a label map as a structure set.

    A label that is named and not drawn is an ROI without contours. What the source images lack is filled in, as in a
    DICOM SEG.

    Raises:
        OutputError: the mask was not drawn on DICOM images, these are gone or changed, they do not say where in the
            patient they lie, they lie on another grid, or there is nothing to write.
    """
    labels = drawn_labels(mask, _KIND, most=_MOST_ROIS)
    # pydicom warns about source values that break a rule and are only passed on.
    with forgiving():
        sources = sources_of(mask, _KIND)
        if not sources.planes[0].placed:
            raise OutputError(
                "contours are points in the patient, and these images do not say where in the patient they lie; "
                "write a DICOM SEG (.dcm) or .nii.gz instead"
            )
        try:
            _structure_set(mask, labels, sources).save_as(path, enforce_file_format=True)
        except DAMAGE as error:
            raise OutputError(
                f"{mask.geometry.source.path if mask.geometry.source else 'the source'} cannot carry an RTSTRUCT "
                f"({str(error).strip() or type(error).__name__}); write the mask as .nii.gz instead"
            ) from error


def _structure_set(mask: Mask, labels: Sequence[int], sources: Sources) -> Dataset:
    first = sources.datasets[0]
    now = datetime.now()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    rtss = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    rtss.SpecificCharacterSet = "ISO_IR 192"  # names of structures and of patients may be in any script
    rtss.SOPClassUID = meta.MediaStorageSOPClassUID
    rtss.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    for keyword in (*_FROM_PATIENT, *_FROM_STUDY):
        setattr(rtss, keyword, first.get(keyword) or "")
    rtss.Modality = "RTSTRUCT"
    rtss.SeriesInstanceUID = generate_uid()
    rtss.SeriesNumber = SERIES_NUMBER
    rtss.SeriesDescription = short(f"Contours by {mask.description}")
    rtss.OperatorsName = ""
    rtss.Manufacturer = "palpate"
    rtss.ManufacturerModelName = "palpate"
    rtss.SoftwareVersions = palpate_version()
    rtss.InstanceNumber = 1
    rtss.FrameOfReferenceUID = first.FrameOfReferenceUID
    rtss.PositionReferenceIndicator = first.get("PositionReferenceIndicator") or ""
    rtss.StructureSetLabel = "PALPATE"
    rtss.StructureSetName = short(mask.description)
    rtss.StructureSetDate = now.strftime("%Y%m%d")
    rtss.StructureSetTime = now.strftime("%H%M%S")
    rtss.ReferencedFrameOfReferenceSequence = [_frame_of_reference(sources)]
    rtss.StructureSetROISequence = [_roi(mask, label, sources) for label in labels]
    rtss.ROIContourSequence = [_roi_contour(mask, label, sources) for label in labels]
    rtss.RTROIObservationsSequence = [_observation(mask, label) for label in labels]
    rtss.ApprovalStatus = "UNAPPROVED"
    return rtss


def _frame_of_reference(sources: Sources) -> Dataset:
    first = sources.datasets[0]
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [_reference(one) for one in sources.datasets]
    study = Dataset()
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(image: Dataset, frame: int | None = None) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    if frame is not None:
        reference.ReferencedFrameNumber = frame
    return reference


def _roi(mask: Mask, label: int, sources: Sources) -> Dataset:
    roi = Dataset()
    roi.ROINumber = label
    roi.ReferencedFrameOfReferenceUID = sources.datasets[0].FrameOfReferenceUID
    roi.ROIName = short(mask.name(label))
    roi.ROIDescription = f"label value {label}"
    roi.ROIGenerationAlgorithm = "SEMIAUTOMATIC"
    roi.ROIGenerationDescription = short(mask.description)
    return roi


def _roi_contour(mask: Mask, label: int, sources: Sources) -> Dataset:
    contours: list[Dataset] = []
    slices = mask.labels.reshape(len(sources.order), *mask.labels.shape[-2:])
    for number, slice_ in zip(sources.order, slices, strict=True):
        for outline in outlines(slice_ == label):
            points = _in_patient(outline, sources.planes[number])
            contour = Dataset()
            contour.ContourImageSequence = [_reference(*sources.frame(number))]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourNumber = len(contours) + 1
            contour[_CONTOUR_DATA] = _coordinates(points)
            contours.append(contour)
    item = Dataset()
    item.ROIDisplayColor = list(mask.colour(label))
    item.ReferencedROINumber = label
    if contours:
        item.ContourSequence = contours
    return item


def _coordinates(points: Float[np.ndarray, "points 3"]) -> RawDataElement:
    # As it will stand in the file: pydicom would make an object of each number, which takes longer than all the rest.
    text = "\\".join(f"{value:.{_DECIMALS}f}" for value in points.ravel().tolist()).encode()
    text += b" " * (len(text) % 2)
    return RawDataElement(_CONTOUR_DATA, "DS", len(text), text, 0, is_implicit_VR=True, is_little_endian=True)


def _observation(mask: Mask, label: int) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = label
    observation.ReferencedROINumber = label
    observation.ROIObservationLabel = short(mask.name(label), _SHORT_STRING)
    observation.RTROIInterpretedType = ""
    observation.ROIInterpreter = ""
    return observation


def _in_patient(outline: Float[np.ndarray, "points 2"], plane: Plane) -> Float[np.ndarray, "points 3"]:
    """Points (x, y) of a plane as (x, y, z) in mm, LPS+ (PS3.3 C.7.6.2.1.1)."""
    assert plane.position is not None  # the caller has checked that planes are placed
    assert plane.orientation is not None
    between_rows, between_columns = plane.spacing
    along_row = outline[:, :1] * between_columns * plane.orientation[:3]
    along_column = outline[:, 1:] * between_rows * plane.orientation[3:]
    # Adding zero makes 0.0 of -0.0.
    return np.round(plane.position + along_row + along_column, _DECIMALS) + 0.0
