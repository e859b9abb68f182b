"""DICOM SEG: a label map beside the images it was drawn on.

One BINARY segment a label, on the grid of the source files, in their study and frame of reference. Segment numbers
must run 1, 2, 3, ... in a SEG, labels need not: segments follow the labels in rising order, and each segment's
description says `label value N`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from palpate.errors import OutputError
from palpate.images.formats import Mask
from palpate.images.formats.dicom import DAMAGE, forgiving
from palpate.images.formats.dicom_geometry import Plane
from palpate.images.formats.dicom_sources import drawn_labels, palpate_version, short, sources_of

WHOLE_GRID_BYTES = 2**28
"""Up to this size every segment stores all slices, its empty ones included.

Readers that take the stored frames for the whole volume (highdicom's `get_volume` is one) then get the grid of the
image. Above it (a hundred organs on a thorax) empty frames are left out, and readers must place frames by position.
"""

SERIES_NUMBER = 900

_MOST_SEGMENTS = 65535
_KIND = "a DICOM SEG"

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
    labels = drawn_labels(mask, _KIND, most=_MOST_SEGMENTS)
    with forgiving():
        sources = sources_of(mask, _KIND)
        _complete(sources.datasets, sources.planes)
    order = sources.order
    frames = np.zeros((len(order), *mask.labels.shape[-2:]), dtype=np.uint8 if len(labels) < 256 else np.uint16)
    for frame, slice_ in zip(order, mask.labels.reshape(frames.shape), strict=True):
        # Segment numbers are places in the sorted list of labels, counted from 1; background stays 0.
        frames[frame] = np.searchsorted([0, *labels], slice_)
    description = short(mask.description)
    # highdicom and pydicom warn about source values that break a rule and are only passed on (a name without a ^).
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"(pydicom|highdicom)\.")
        try:
            seg = Segmentation(
                source_images=sources.datasets,
                pixel_array=frames,
                segmentation_type="BINARY",
                segment_descriptions=_descriptions(labels, mask),
                series_instance_uid=generate_uid(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer="palpate",
                manufacturer_model_name="palpate",
                software_versions=palpate_version(),
                device_serial_number="0",  # required, and software has none
                transfer_syntax_uid=ExplicitVRLittleEndian,
                content_label="PALPATE",
                content_description=description,
                series_description=short(f"Segmentation by {mask.description}"),
                omit_empty_frames=frames.size * len(labels) // 8 > WHOLE_GRID_BYTES,
                # Names of segments and of patients may be in any script.
                specific_character_set="ISO_IR 192",
            )
            if "FrameOfReferenceUID" not in seg:
                # Without a place in the patient, the standard wants to hear at least how the patient was turned.
                seg.PatientOrientation = sources.datasets[0].get("PatientOrientation") or ""
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


def _descriptions(labels: Sequence[int], mask: Mask) -> list[SegmentDescription]:
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=short("palpate" if mask.description == "palpate" else f"palpate, {mask.description}"),
        family=_ARTIFICIAL_INTELLIGENCE,
        version=palpate_version(),
        source="palpate",
        parameters={"model": mask.description},
    )
    described: list[SegmentDescription] = []
    for number, label in enumerate(labels, start=1):
        category, kind, side = segment_code(mask.name(label))
        segment = SegmentDescription(
            segment_number=number,
            segment_label=short(mask.name(label)),
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type="SEMIAUTOMATIC",
            algorithm_identification=algorithm,
        )
        segment.SegmentDescription = f"label value {label}"
        if label in mask.colours:
            lab = highdicom.color.CIELabColor.from_rgb(*mask.colours[label])
            segment.RecommendedDisplayCIELabValue = list(lab.value)
        if side is not None:
            modifier = highdicom.sr.CodedConcept.from_code(side)
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        described.append(segment)
    return described


def _complete(datasets: Sequence[Dataset], planes: Sequence[Plane]) -> None:
    """Fill in, in memory only, what highdicom requires of its sources beside what every object needs."""
    first = datasets[0]
    for one in datasets:
        if "Modality" not in one:
            one.Modality = "OT"
    if not planes[0].placed:
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
