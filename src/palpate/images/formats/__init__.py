"""Files in and out. One module a format; a new format is a file and one line in the table below.

Every module offers `read(path) -> Image` and, where masks can be written, `write_mask(path, mask)`. The safety
that all formats share lives here: outputs are written beside their destination and renamed when complete,
and nothing is overwritten unasked.
"""

from __future__ import annotations

import colorsys
import math
import os
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np

from palpate.errors import FormatError, OutputError
from palpate.images.geometry import Geometry
from palpate.images.image import Image

MAX_BYTES = 16 * 2**30
"""The most that one image may take in memory. A header that claims more is refused before anything is allocated."""

# suffix -> module; the longest suffix that fits wins. A folder, a file without suffix and .dcm go to DICOM.
_READERS: dict[str, str] = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "itk",
    ".mhd": "itk",
    ".png": "raster",
    ".jpg": "raster",
    ".jpeg": "raster",
    ".tif": "raster",
    ".tiff": "raster",
    ".bmp": "raster",
    ".npz": "npz",
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".ima": "dicom",
}
_WRITERS: dict[str, str] = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".seg.nrrd": "nrrd",
    ".nrrd": "nrrd",
    ".mha": "itk",
    ".png": "raster",
    ".npz": "npz",
    ".dcm": "dicom",
    ".rtstruct.dcm": "rtstruct",
}


@dataclass(frozen=True, eq=False)
class Mask:
    """A label map on its way to a file.

    `labels` has the geometry's shape; 0 is background. `names` gives segments their names; a label without one is
    called `label N`. `description` says who made it (model and weights), and `colours` gives labels theirs (red, green,
    blue, each 0 to 255), for formats that can carry them.
    """

    labels: np.ndarray
    geometry: Geometry
    names: Mapping[int, str] = field(default_factory=dict[int, str])
    description: str = "palpate"
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict[int, tuple[int, int, int]])

    def name(self, label: int) -> str:
        """The segment's name."""
        return self.names.get(label, f"label {label}")

    def colour(self, label: int) -> tuple[int, int, int]:
        """The segment's colour as (red, green, blue); for one without, a colour that each label always gets."""
        if label in self.colours:
            return self.colours[label]
        # Steps of the golden ratio around the hue circle never come back to a colour used before.
        hue = (0.02 + (label - 1) * (math.sqrt(5) - 1) / 2) % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.5, 1.0)[label % 3 - 1], (0.95, 0.9, 0.7)[label % 3 - 1])
        return round(255 * red), round(255 * green), round(255 * blue)


def suffix_of(path: Path, known: Mapping[str, str] = _READERS) -> str:
    """The longest known suffix of a path, in lower case; an empty string if none fits."""
    name = path.name.lower()
    return max((s for s in known if name.endswith(s)), key=len, default="")


def mask_suffix_of(path: Path) -> str:
    """The longest suffix of a path that says how a mask is written: `.seg.nrrd` where an image would be an `.nrrd`."""
    return suffix_of(path, _WRITERS)


def read(path: str | Path, *, series: str | None = None) -> Image:
    """Read an image or a volume of any known format.

    `series` picks one series of a DICOM folder that holds several: its UID, number or description.

    Raises:
        FormatError: no such file, a kind that is not read, damaged or unsafe content.
        SeriesError: DICOM files that do not make one complete series.
        GeometryError, ImageError: what was read places voxels nowhere or holds no finite pixels.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(f"there is no file or folder {path}")
    suffix = suffix_of(path)
    if path.is_dir() or not suffix:
        if path.is_file() and not _looks_like_dicom(path):
            raise FormatError(f"{path} is of no kind that palpate reads; known: {', '.join(_READERS)} and DICOM")
        module = "dicom"
    else:
        module = _READERS[suffix]
    if module == "dicom":
        return _module("dicom").read(path, series=series)
    if series is not None:
        raise FormatError(f"{path} is not DICOM, so there is no series {series!r} to pick; leave `series` out")
    return _module(module).read(path)


def write_mask(path: str | Path, mask: Mask, *, overwrite: bool = False) -> None:
    """Write a label map; the suffix of the path decides the format.

    The file appears complete or not at all.

    Raises:
        OutputError: unknown suffix, file exists, folder missing or not writable, or a format that cannot hold
            this mask (a volume in a PNG, a DICOM SEG or an RTSTRUCT without a DICOM source).
    """
    path = Path(path)
    check_writable(path, overwrite=overwrite)
    write: Callable[[Path, Mask], None] = _module(_WRITERS[mask_suffix_of(path)]).write_mask
    with replacing(path, overwrite=overwrite) as temporary:
        write(temporary, mask)


def check_writable(path: str | Path, *, overwrite: bool, kinds: Mapping[str, str] = _WRITERS) -> None:
    """Raise what `write_mask` would raise about the path alone, before an hour of work rather than after it."""
    path = Path(path)
    if not suffix_of(path, kinds):
        raise OutputError(f"cannot tell what to write from the name {path.name!r}; end it in {', '.join(kinds)}")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file name in it")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; pass --overwrite (in Python: overwrite=True) to replace it")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"the folder {path.parent} is not writable; choose another place")


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Generator[Path, None, None]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes when not.

    It keeps the suffix, because many writers choose the format by it.
    """
    suffix = mask_suffix_of(path) or path.suffix
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name.split('.')[0]}-", suffix=suffix, dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write in {path.parent}: {error.strerror or error}; choose another place") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner may read; a result gets the permissions any new file gets.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            # A hard link refuses to replace a file that came into being meanwhile; a rename would not.
            _publish(temporary, path)
    except OSError as error:
        raise OutputError(f"could not write {path}: {error.strerror or error}; nothing was left behind") from error
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise OutputError(f"{path} came into being meanwhile; pass --overwrite to replace it") from None
    except OSError:  # a file system without hard links (exFAT, some network shares)
        if path.exists():
            raise OutputError(f"{path} came into being meanwhile; pass --overwrite to replace it") from None
        temporary.replace(path)


def check_size(shape: tuple[int, ...], itemsize: int, *, path: Path) -> None:
    """Refuse what a header claims if it cannot be true or cannot be held.

    Raises:
        FormatError: a non-positive extent, or more than `MAX_BYTES`.
    """
    if not shape or any(extent <= 0 for extent in shape):
        raise FormatError(f"{path} claims a shape of {shape}; its header is damaged")
    # Python integers do not overflow, unlike the products that readers form from a hostile header.
    total = itemsize
    for extent in shape:
        total *= int(extent)
    if total > MAX_BYTES:
        raise FormatError(
            f"the header of {path} claims {' x '.join(map(str, shape))} voxels ({total // 2**30} GiB); the limit "
            f"is {MAX_BYTES // 2**30} GiB, so it is damaged or must be cropped first"
        )


def _looks_like_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _module(name: str):  # one of the modules beside this file
    # Imported when needed: nibabel, highdicom and the others take longer to import than most files to read.
    return import_module(f"palpate.images.formats.{name}")
