"""DICOM: a file, or a folder with the files of one series.

- A file with one frame is a picture (y, x) that knows its place in the patient. A file with many frames is a volume
  (z, y, x): sorted by position where its frames say where they lie, in the order of time where they do not.
- A folder is searched with all its sub-folders, as exports make them. Its images must belong to one series, or
  `series` picks one. Slices are sorted by position, never by name or number.
- Skipped in a folder: files that are not DICOM, and DICOM that is not an image (SEG, RTSTRUCT, reports,
  presentation states, DICOMDIR). A file that should be an image and is damaged is an error, not a missing slice.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from palpate.errors import FormatError, SeriesError
from palpate.images.formats import Mask, check_size
from palpate.images.formats.dicom_geometry import Plane, frames_affine, plane_affine, plane_of, stack
from palpate.images.formats.dicom_pixels import joined, pixel_values
from palpate.images.image import Image, Modality, ModalityOrigin, Source

MAX_INFLATED_BYTES = 2**30
"""The most that a deflated file may unpack to. Deflate reaches 1000:1, and a whole data set is unpacked at once."""

DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
    EOFError,
    StopIteration,
    struct.error,
    zlib.error,
    BytesLengthException,
    InvalidDicomError,
)
"""What pydicom raises on damaged content. It parses an element only when it is asked for, so any of these can come
from any line that looks into a data set; it has no exception of its own that would cover them."""

_MODALITIES: dict[str, Modality] = {
    "CT": "CT",
    "MR": "MR",
    "US": "US",
    "IVUS": "US",
    "PT": "PET",
    **dict.fromkeys(("CR", "DX", "MG", "XA", "RF", "IO", "PX", "RTIMAGE"), "XR"),
}
_CAMERAS = ("XC", "ES", "SM", "OP", "GM", "DMS")
_DETAILS = 80  # characters of a decoder's message that go into ours
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def read(path: Path, *, series: str | None = None) -> Image:
    """Read a DICOM file, or one series of a folder.

    `series` is a SeriesInstanceUID, a number or a description (in any case).

    Raises:
        FormatError: not DICOM, not an image, damaged, or compressed in a way that cannot be decoded.
        SeriesError: several series and none chosen, or files that do not make one complete series.
        GeometryError: spacing or directions that place the voxels nowhere.
    """
    path = Path(path)
    with forgiving():
        if not path.is_dir():
            instance = _instance(path)
            if instance is None:
                raise FormatError(f"{path} is DICOM but not an image ({_kind(path)}); give the images it belongs to")
            _chosen([instance], series, path)
            return _read_instance(path, source=path)
        chosen = _chosen(_instances(path), series, path)
        if len(chosen) == 1:
            return _read_instance(chosen[0].path, source=path)
        return _read_series(chosen, source=path)


def series_of(path: Path) -> str | None:
    """The SeriesInstanceUID of a DICOM file, empty if it has none; None for DICOM that is not an image.

    Raises:
        FormatError: not DICOM, or damaged.
    """
    with forgiving():
        instance = _instance(path)
        if instance is None and _says_nothing(path):
            raise FormatError(f"{path} begins like DICOM and does not say what it is; it is damaged, copy it again")
    return None if instance is None else instance.series


def write_mask(path: Path, mask: Mask) -> None:
    """Write a DICOM SEG beside the images the mask was drawn on (see `dicom_seg`)."""
    # highdicom takes longer to import than a series to read, and reading does not need it.
    from palpate.images.formats import dicom_seg

    dicom_seg.write_mask(path, mask)


@dataclass(frozen=True, eq=False)
class Instance:
    """What the gate needs to know about a file, without its pixels."""

    path: Path
    series: str
    number: str
    description: str
    modality: str
    frames: int
    plane: Plane


def dataset_of(path: Path, *, pixels: bool) -> FileDataset:
    """The data set of a DICOM file.

    Raises:
        FormatError: the file cannot be opened, is not DICOM, or is damaged.
    """
    with damage_named(path):
        _check_inflated_size(path)
        return pydicom.dcmread(path, stop_before_pixels=not pixels)


@contextmanager
def damage_named(path: Path) -> Generator[None]:
    """Turn what pydicom raises on damaged content into a FormatError that names the file."""
    try:
        yield
    except InvalidDicomError as error:
        raise FormatError(
            f"{path} is not a DICOM file (no DICM mark after the preamble); if it is older than that mark, "
            "let a DICOM tool rewrite it"
        ) from error
    except OSError as error:
        raise FormatError(f"{path} could not be read: {error.strerror or error}") from error
    except DAMAGE as error:
        # pydicom may quote the bytes it could not read, and these may hold the patient's name: only the start is kept.
        details = str(error).strip().partition("\n")[0][:_DETAILS] or "no details"
        raise FormatError(f"{path} is damaged ({type(error).__name__}: {details}); copy or export it again") from error


def planes_of(dataset: Dataset, path: Path) -> list[Plane]:
    """The planes of an instance, one a frame, in the order of the file."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame is not None and len(per_frame) != frames:
        raise FormatError(f"{path} claims {frames} frames and describes {len(per_frame)}; it is damaged")
    if frames == 1:
        return [plane_of(dataset, name=path.name)]
    if per_frame is None:
        # No frame differs from another, so one is enough to know the spacing; a million need not be built.
        return [plane_of(dataset, name=path.name)]
    return [plane_of(dataset, name=f"frame {k + 1} of {path.name}", frame=k) for k in range(frames)]


@contextmanager
def forgiving() -> Generator[None]:
    """Hush pydicom about rules that a file breaks without harm to its pixels or its geometry.

    Values of the wrong form (a UID with a leading zero, a name that is too long), a missing group length, padding
    behind the pixels: real archives are full of them, and nobody who opens an image can do anything about it. What
    matters is checked here by name.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")
        yield


def _instances(folder: Path) -> list[Instance]:
    found: list[Instance] = []
    skipped = 0
    for path in sorted(folder.rglob("*")):
        # Hidden files are the leavings of file managers (.DS_Store, ._IM0001.dcm), not slices.
        if path.name.startswith(".") or not path.is_file():
            continue
        instance = _instance(path) if _is_dicom(path) else None
        if instance is None:
            skipped += 1
        else:
            found.append(instance)
    if not found:
        raise FormatError(f"{folder} holds no DICOM images ({skipped} other files); give the folder of a series")
    return found


def _is_dicom(path: Path) -> bool:
    with damage_named(path), path.open("rb") as file:
        marked = file.read(132)[128:] == b"DICM"
    if not marked and path.suffix.lower() in _DICOM_SUFFIXES:
        # Skipping it could leave a hole at the end of a series, where no gap shows.
        raise FormatError(f"{path} is named like DICOM and is not; copy it again, or remove it")
    return marked


def _instance(path: Path) -> Instance | None:
    """What a DICOM file is; None if it is no image."""
    dataset = dataset_of(path, pixels=False)
    with damage_named(path):
        if not _is_image(dataset):
            return None
        if not dataset.get("Rows") or not dataset.get("Columns"):
            raise FormatError(
                f"{path} should be an image and says no size; it is damaged or was stripped of its pixels"
            )
        frames = int(dataset.get("NumberOfFrames") or 1)
        return Instance(
            path=path,
            series=str(dataset.get("SeriesInstanceUID") or ""),
            number=_text(dataset, "SeriesNumber"),
            description=_text(dataset, "SeriesDescription"),
            modality=_text(dataset, "Modality"),
            frames=frames,
            # Frames are looked at when the file is read; a folder may hold many multi-frame files nobody asked for.
            plane=plane_of(dataset, name=path.name),
        )


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def _sop_class(dataset: Dataset) -> UID:
    meta = getattr(dataset, "file_meta", None)
    return UID(dataset.get("SOPClassUID") or (meta.get("MediaStorageSOPClassUID") if meta is not None else None) or "")


def _is_image(dataset: Dataset) -> bool:
    uid = _sop_class(dataset)
    if uid.type == "SOP Class":  # one of the standard's
        return "Image Storage" in uid.name or uid.name == "Enhanced US Volume Storage"
    # A private class, or none at all: research files come without.
    return "Rows" in dataset and dataset.get("Modality") not in ("SEG", "RTDOSE", "RTSTRUCT", "PR", "SR", "KO")


def _kind(path: Path) -> str:
    with damage_named(path):
        uid = _sop_class(dataset_of(path, pixels=False))
        return uid.name or "of no stated kind"


def _says_nothing(path: Path) -> bool:
    """Whether what a file is has been lost: even DICOM without a class says which device it comes from."""
    with damage_named(path):
        dataset = dataset_of(path, pixels=False)
        return not _sop_class(dataset) and not dataset.get("Modality")


def _check_inflated_size(path: Path) -> None:
    """Refuse a deflated file that unpacks to more than it may, before pydicom unpacks it in one go."""
    with path.open("rb") as file:
        read_preamble(file, force=False)
        meta = read_dataset(file, False, True, stop_when=_behind_file_meta)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while chunk := inflate.unconsumed_tail or file.read(2**16):
            total += len(inflate.decompress(chunk, 2**22))
            if total > MAX_INFLATED_BYTES:
                raise FormatError(
                    f"{path} unpacks to more than {MAX_INFLATED_BYTES / 2**30:g} GiB from {path.stat().st_size} bytes; "
                    "if that is not an attack, let a DICOM tool rewrite it uncompressed"
                )


def _behind_file_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    # File meta information is group 2: always explicit, little endian, and never deflated.
    return tag.group != 2


def _chosen(instances: Sequence[Instance], wanted: str | None, path: Path) -> list[Instance]:
    """The instances of one series.

    Raises:
        SeriesError: several series and no choice, or a choice that fits none or several of them.
    """
    groups: dict[str, list[Instance]] = {}
    for instance in instances:
        groups.setdefault(instance.series, []).append(instance)
    if wanted is None:
        fitting = groups
    else:
        key = wanted.strip()
        # An exact UID first, for a description may well be a number that another series has.
        fitting = {uid: group for uid, group in groups.items() if uid == key} or {
            uid: group
            for uid, group in groups.items()
            if any(one.number == key or one.description.casefold() == key.casefold() for one in group)
        }
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    listing = "\n".join(
        f"  {group[0].number or '-':>5}  {group[0].description or '(no description)'}  "
        f"{group[0].modality or '?'}  {len(group)} file{'s' if len(group) > 1 else ''}  {uid or '(no UID)'}"
        for uid, group in sorted((fitting or groups).items(), key=lambda item: _numerically(item[1][0].number))
    )
    if wanted is None:
        start = f"{path} holds {len(groups)} series"
    elif fitting:
        start = f"{len(fitting)} series in {path} fit {wanted!r}"
    else:
        start = f"no series in {path} fits {wanted!r}; it holds"
    raise SeriesError(
        f"{start}:\n{listing}\nchoose one by its number, description or UID with --series (in Python: series=...)"
    )


def _numerically(number: str) -> tuple[int, str]:
    return (int(number), "") if number.isdecimal() else (10**9, number)


def _read_instance(path: Path, *, source: Path) -> Image:
    """One file: a picture, or a volume if it has many frames."""
    dataset = dataset_of(path, pixels=True)
    with damage_named(path):
        if "PixelData" not in dataset and "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
            raise FormatError(f"{path} holds no pixels; it is truncated, or was stripped of them")
        frames = int(dataset.get("NumberOfFrames") or 1)
        if frames > 1 and "TotalPixelMatrixColumns" in dataset:
            raise FormatError(
                f"{path} is a whole slide in {frames} tiles, which are not put together here; export the region you "
                "need as PNG or TIFF"
            )
        planes = planes_of(dataset, path)
        if frames == 1:
            order, affine = [0], plane_affine(planes[0])
        elif any(plane.placed for plane in planes):
            order, affine = stack(planes, what=str(path))
        else:
            order, affine = list(range(frames)), frames_affine(planes[0])
        values, colour = pixel_values(dataset, path=path)
        modality, origin = _modality(_text(dataset, "Modality"), colour=colour)
        series = str(dataset.get("SeriesInstanceUID") or "") or None
    if frames == 1:
        values = values[0]
    elif order != list(range(frames)):
        values = values[order]
    return Image(values, affine, modality, origin, colour, Source(source, "dicom", (path,), series))


def _read_series(instances: Sequence[Instance], *, source: Path) -> Image:
    """Many files, one slice each."""
    films = [one.path.name for one in instances if one.frames > 1]
    if films:
        raise SeriesError(
            f"this series of {source} holds {len(instances)} files, some with many frames ({', '.join(films[:3])}); "
            "each of these is a volume of its own: give one file instead of the folder"
        )
    order, affine = stack([one.plane for one in instances], what=str(source))
    instances = [instances[index] for index in order]
    first = instances[0].plane
    check_size((len(instances), first.rows, first.columns, first.samples), 4, path=source)
    slices = [_read_instance(one.path, source=source) for one in instances]
    if len({one.colour for one in slices}) > 1:
        raise SeriesError(f"this series of {source} mixes grey and colour images; give one of its files")
    return Image(
        joined([one.array for one in slices]),
        affine,
        slices[0].modality,
        slices[0].modality_origin,
        slices[0].colour,
        Source(source, "dicom", tuple(one.path for one in instances), instances[0].series or None),
    )


def _modality(code: str, *, colour: bool) -> tuple[Modality, ModalityOrigin]:
    known = _MODALITIES.get(code)
    if colour and (code in _CAMERAS or known not in (None, "US")):
        # A CT in colour is a rendering or a screenshot: its values are for the eye, there is nothing to window.
        return "photo", "header"
    return (known, "header") if known else ("unknown", "unknown")
