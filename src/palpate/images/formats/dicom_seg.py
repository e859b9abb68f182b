"""DICOM SEG: a label map beside the images it was drawn on.

One BINARY segment a label, on the grid of the source files, in their study and frame of reference. Segment numbers
must run 1, 2, 3, ... in a SEG, labels need not: segments follow the labels in rising order, and each segment's
description says `label value N`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import highdicom
import numpy as np
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from palpate.errors import FormatError, GeometryError, OutputError
from palpate.images.formats import Mask
from palpate.images.formats.dicom import DAMAGE, damage_named, dataset_of, forgiving, planes_of
from palpate.images.formats.dicom_geometry import Plane, plane_affine, stack
from palpate.images.geometry import Affine

WHOLE_GRID_BYTES = 2**28
"""Up to this size every segment stores all slices, its empty ones included.

Readers that take the stored frames for the whole volume (highdicom's `get_volume` is one) then get the grid of the
image. Above it (a hundred organs on a thorax) empty frames are left out, and readers must place frames by position.
"""

GRID_TOLERANCE_MM = 1e-2
"""How far a mask's corner may lie from the source images' before it counts as another grid."""

SERIES_NUMBER = 900

_MAX_SEGMENTS = 65535
_LONG_STRING = 64  # characters in DICOM's LO

# CID 7150 in the wording of 3D Slicer and dcmqi, whose colours and menus know it by this code.
_ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
_ALTERED = Code("49755003", "SCT", "Morphologically Altered Structure")
_TISSUE = Code("85756007", "SCT", "Tissue")
_LEFT = Code("7771000", "SCT", "Left")
_RIGHT = Code("24028007", "SCT", "Right")
_ARTIFICIAL_INTELLIGENCE = Code("123109", "DCM", "Artificial Intelligence")

_FINDINGS = {
    "tumor": Code("108369006", "SCT", "Neoplasm"),
    "neoplasm": Code("108369006", "SCT", "Neoplasm"),
    "gtv": Code("108369006", "SCT", "Neoplasm"),
    "lesion": Code("52988006", "SCT", "Lesion"),
    "mass": Code("4147007", "SCT", "Mass"),
    "nodule": Code("27925004", "SCT", "Nodule"),
    "cyst": Code("367643001", "SCT", "Cyst"),
    "edema": Code("79654002", "SCT", "Edema"),
    "hemorrhage": Code("50960005", "SCT", "Hemorrhage"),
}
_ORGANS = {
    "adrenal gland": Code("23451007", "SCT", "Adrenal gland"),
    "aorta": Code("15825003", "SCT", "Aorta"),
    "artery": Code("51114001", "SCT", "Artery"),
    "bladder": Code("89837001", "SCT", "Bladder"),
    "bone": Code("272673000", "SCT", "Bone"),
    "brain": Code("12738006", "SCT", "Brain"),
    "breast": Code("76752008", "SCT", "Breast"),
    "colon": Code("71854001", "SCT", "Colon"),
    "duodenum": Code("38848004", "SCT", "Duodenum"),
    "esophagus": Code("32849002", "SCT", "Esophagus"),
    "eye": Code("81745001", "SCT", "Eye"),
    "femur": Code("71341001", "SCT", "Femur"),
    "gallbladder": Code("28231008", "SCT", "Gallbladder"),
    "heart": Code("80891009", "SCT", "Heart"),
    "hippocampus": Code("5366008", "SCT", "Hippocampus"),
    "inferior vena cava": Code("64131007", "SCT", "Inferior vena cava"),
    "kidney": Code("64033007", "SCT", "Kidney"),
    "left ventricle": Code("87878005", "SCT", "Left ventricle"),
    "liver": Code("10200004", "SCT", "Liver"),
    "lung": Code("39607008", "SCT", "Lung"),
    "lymph node": Code("59441001", "SCT", "Lymph Node"),
    "mandible": Code("91609006", "SCT", "Mandible"),
    "ovary": Code("15497006", "SCT", "Ovary"),
    "pancreas": Code("15776009", "SCT", "Pancreas"),
    "portal vein": Code("32764006", "SCT", "Portal vein"),
    "prostate": Code("41216001", "SCT", "Prostate"),
    "rib": Code("113197003", "SCT", "Rib"),
    "skeletal muscle": Code("127954009", "SCT", "Skeletal muscle"),
    "skin": Code("39937001", "SCT", "Skin"),
    "skull": Code("89546000", "SCT", "Skull"),
    "small intestine": Code("30315005", "SCT", "Small intestine"),
    "spinal cord": Code("2748008", "SCT", "Spinal cord"),
    "spleen": Code("78961009", "SCT", "Spleen"),
    "sternum": Code("56873002", "SCT", "Sternum"),
    "stomach": Code("69695003", "SCT", "Stomach"),
    "trachea": Code("44567001", "SCT", "Trachea"),
    "uterus": Code("35039007", "SCT", "Uterus"),
    "vein": Code("29092000", "SCT", "Vein"),
    "vertebra": Code("51282000", "SCT", "Vertebra"),
}
_SPELLINGS = {
    "tumour": "tumor",
    "tumours": "tumor",
    "tumors": "tumor",
    "lesions": "lesion",
    "nodules": "nodule",
    "oedema": "edema",
    "haemorrhage": "hemorrhage",
    "oesophagus": "esophagus",
    "kidneys": "kidney",
    "lungs": "lung",
    "vertebrae": "vertebra",
    "l": "left",
    "r": "right",
}


def write_mask(path: Path, mask: Mask) -> None:
    """Write a label map as DICOM SEG.

    What the source images lack is filled in so that the file is valid: patient and study attributes stay empty; a
    missing StudyInstanceUID or FrameOfReferenceUID is derived from the series, so that all its masks share it.

    Raises:
        OutputError: the mask was not drawn on DICOM images, these are gone or changed, they lie on another grid, or
            there is nothing to write.
    """
    labels = _labels(mask)
    with forgiving():
        sources, order = _sources(mask)
    frames = np.zeros((len(order), *mask.labels.shape[-2:]), dtype=np.uint8 if len(labels) < 256 else np.uint16)
    for frame, slice_ in zip(order, mask.labels.reshape(frames.shape), strict=True):
        # Segment numbers are places in the sorted list of labels, counted from 1; background stays 0.
        frames[frame] = np.searchsorted([0, *labels], slice_)
    description = _short(mask.description)
    # highdicom and pydicom warn about source values that break a rule and are only passed on (a name without a ^).
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"(pydicom|highdicom)\.")
        try:
            seg = Segmentation(
                source_images=sources,
                pixel_array=frames,
                segmentation_type="BINARY",
                segment_descriptions=_descriptions(labels, mask),
                series_instance_uid=generate_uid(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer="palpate",
                manufacturer_model_name="palpate",
                software_versions=_version(),
                device_serial_number="0",  # required, and software has none
                transfer_syntax_uid=ExplicitVRLittleEndian,
                content_label="PALPATE",
                content_description=description,
                series_description=_short(f"Segmentation by {mask.description}"),
                omit_empty_frames=frames.size * len(labels) // 8 > WHOLE_GRID_BYTES,
                # Names of segments and of patients may be in any script.
                specific_character_set="ISO_IR 192",
            )
            if "FrameOfReferenceUID" not in seg:
                # Without a place in the patient, the standard wants to hear at least how the patient was turned.
                seg.PatientOrientation = sources[0].get("PatientOrientation") or ""
            seg.save_as(path)
        except DAMAGE as error:
            # highdicom checks its sources while it writes and raises plain built-in exceptions.
            raise OutputError(
                f"{mask.geometry.source.path if mask.geometry.source else 'the source'} cannot carry a DICOM SEG "
                f"({str(error).strip() or type(error).__name__}); write the mask as .nii.gz instead"
            ) from error


def segment_code(name: str) -> tuple[Code, Code, Code | None]:
    """Category, type and side that stand for a segment's name; `Anatomical Structure`, `Tissue` if none is known.

    >>> [code.meaning for code in segment_code("kidney_left") if code]
    ['Anatomical Structure', 'Kidney', 'Left']
    >>> [code.meaning for code in segment_code("liver tumour") if code]
    ['Morphologically Altered Structure', 'Neoplasm']
    """
    # `tumor2` is a tumor; `l4` is a vertebra and no left side.
    words = [re.sub(r"(?<=[a-z]{3})\d+$", "", word) for word in re.findall(r"[a-z0-9]+", name.lower())]
    words = [_SPELLINGS.get(word, word) for word in words]
    text = f" {' '.join(words)} "
    side = _LEFT if "left" in words else _RIGHT if "right" in words else None
    # A finding first: a liver tumour is a tumour. Long names first: a gallbladder is no bladder.
    for category, table in ((_ALTERED, _FINDINGS), (_ANATOMY, _ORGANS)):
        for key in sorted(table, key=len, reverse=True):
            if f" {key} " in text:
                return category, table[key], None if key.startswith("left ") else side
    return _ANATOMY, _TISSUE, side


def _labels(mask: Mask) -> list[int]:
    """The labels that become segments, in rising order: those named and those drawn."""
    if mask.labels.dtype.kind not in "bui" or (mask.labels.size and int(mask.labels.min()) < 0):
        raise OutputError("a label map holds whole numbers from 0 on; round the mask, and give labels positive values")
    # Slice by slice: sorting a whole thorax at once takes many times its memory.
    drawn = {int(label) for slice_ in np.atleast_2d(mask.labels) for label in np.unique(slice_)}
    labels = sorted((drawn | set(mask.names)) - {0})
    if not labels:
        raise OutputError(
            "the mask is empty, and a DICOM SEG needs at least one segment; name the label, or write .nii.gz"
        )
    if len(labels) > _MAX_SEGMENTS:
        raise OutputError(f"{len(labels)} labels do not fit a DICOM SEG ({_MAX_SEGMENTS} at most); write .nii.gz")
    return labels


def _descriptions(labels: Sequence[int], mask: Mask) -> list[SegmentDescription]:
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_short("palpate" if mask.description == "palpate" else f"palpate, {mask.description}"),
        family=_ARTIFICIAL_INTELLIGENCE,
        version=_version(),
        source="palpate",
        parameters={"model": mask.description},
    )
    described: list[SegmentDescription] = []
    for number, label in enumerate(labels, start=1):
        category, kind, side = segment_code(mask.name(label))
        segment = SegmentDescription(
            segment_number=number,
            segment_label=_short(mask.name(label)),
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type="SEMIAUTOMATIC",
            algorithm_identification=algorithm,
        )
        segment.SegmentDescription = f"label value {label}"
        if side is not None:
            modifier = highdicom.sr.CodedConcept.from_code(side)
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        described.append(segment)
    return described


def _short(text: str) -> str:
    """Text that fits DICOM's LO: one line, no backslash (it separates values), 64 characters."""
    return re.sub(r"[\x00-\x1f\\]+", " ", text).strip()[:_LONG_STRING] or "palpate"


def _version() -> str:
    try:
        return version("palpate")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


def _sources(mask: Mask) -> tuple[list[Dataset], list[int]]:
    """The source data sets (without pixels) as highdicom needs them, and the frame that each slice of the mask is."""
    source = mask.geometry.source
    if source is None or source.format != "dicom" or not source.files:
        raise OutputError(
            "a DICOM SEG refers to the DICOM images it was drawn on, and this mask was not drawn on DICOM; "
            "write it as .nii.gz or .nrrd"
        )
    try:
        datasets = [dataset_of(file, pixels=False) for file in source.files]
        planes: list[Plane] = []
        for dataset, file in zip(datasets, source.files, strict=True):
            with damage_named(file):
                planes += planes_of(dataset, file)
        order, affine = ([0], plane_affine(planes[0])) if len(planes) == 1 else stack(planes, what=str(source.path))
    except (FormatError, GeometryError) as error:
        raise OutputError(
            f"the images that the mask was drawn on have changed or cannot carry a SEG: {error}"
        ) from error
    if len(planes) < sum(int(one.get("NumberOfFrames") or 1) for one in datasets):
        raise OutputError(
            f"the frames of {source.path} have no ImagePositionPatient, so a DICOM SEG cannot say where it lies; "
            "write the mask as .nii.gz instead"
        )
    expected = (planes[0].rows, planes[0].columns)
    if mask.labels.shape != (expected if len(planes) == 1 else (len(planes), *expected)):
        raise OutputError(
            f"the mask has the shape {mask.labels.shape}, its source images {len(planes)} x {expected}; "
            "bring it back to the grid of the images, or write .nii.gz"
        )
    _check_grid(mask, affine)
    _complete(datasets, planes)
    return [*datasets], order


def _check_grid(mask: Mask, affine: Affine) -> None:
    extent = (1, *mask.labels.shape)[-3:]
    far = np.array([extent[2] - 1, extent[1] - 1, extent[0] - 1, 1])
    for corner in (np.array([0, 0, 0, 1]), far):
        if np.linalg.norm((affine - mask.geometry.affine) @ corner) > GRID_TOLERANCE_MM:
            raise OutputError(
                "the mask lies elsewhere than its source images (was it resampled, flipped or cropped?); "
                "bring it back to the grid of the images, or write .nii.gz"
            )


def _complete(datasets: Sequence[Dataset], planes: Sequence[Plane]) -> None:
    """Fill in, in memory only, what highdicom requires of its sources and research files lack."""
    first = datasets[0]
    for keyword in ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID"):
        if any(not one.get(keyword) for one in datasets):
            raise OutputError(
                f"the source images have no {keyword}, so a DICOM SEG cannot refer to them; write .nii.gz instead"
            )
    placed = planes[0].placed
    for one in datasets:
        for keyword in (
            "PatientID",
            "PatientName",
            "PatientBirthDate",
            "PatientSex",
            "AccessionNumber",
            "StudyID",
            "StudyDate",
            "StudyTime",
        ):
            if keyword not in one:
                setattr(one, keyword, "")
        for keyword, needed in (("StudyInstanceUID", True), ("FrameOfReferenceUID", placed)):
            # One series has one of each; where files disagree (careless anonymisation), the first speaks for all.
            derived = generate_uid(entropy_srcs=[str(first.SeriesInstanceUID), keyword])
            if needed or first.get(keyword):
                setattr(one, keyword, first.get(keyword) or derived)
        if "Modality" not in one:
            one.Modality = "OT"
    if not placed:
        return
    spacing, orientation = planes[0].spacing, planes[0].orientation
    assert orientation is not None  # the plane is placed
    if "SharedFunctionalGroupsSequence" in first or "PerFrameFunctionalGroupsSequence" in first:
        # What is the same in all frames may be stored with each of them; highdicom looks in the shared part only.
        shared = (first.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        shared.PlaneOrientationSequence = highdicom.PlaneOrientationSequence("PATIENT", orientation.tolist())
        shared.PixelMeasuresSequence = highdicom.PixelMeasuresSequence(spacing, planes[0].thickness)
        first.SharedFunctionalGroupsSequence = [shared]
        return
    for one in datasets:
        # The gate has found them equal; printing noise in the last digit would be refused.
        one.ImageOrientationPatient = first.ImageOrientationPatient
        one.PixelSpacing = list(spacing)
        one.SliceThickness = planes[0].thickness
