"""What strangers send: names that become no paths, files that are bounded before anything is made of them.

A name from outside is only ever compared, or checked sign by sign; what was sent lies under a number in a folder that
nobody else may read. What a file claims to hold is looked up in its header, before any reader allocates it.
"""

from __future__ import annotations

import gzip
import math
import re
import stat
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from palpate.errors import FormatError, InputError
from palpate.images.formats import suffix_of
from palpate.images.formats.payload import DEFLATE_LIMIT

_ID = re.compile(r"[A-Za-z0-9._-]{1,120}")

# 3D Slicer calls volumes what a series is called: `4: CT abdomen (1.0)`.
_HARMLESS = re.compile(r"[ :,;()+=#&'@!\[\]]")

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Images that come as one file. Headers that name another file for their voxels are not among them."""

LABEL_SUFFIXES = (".nii", ".nii.gz", ".seg.nrrd", ".nrrd", ".mha", ".png")

_CHUNK = 2**20

_SMALL = 2**26
"""Below this, it does not matter how much smaller the file is than what it unpacks to."""

_RATIO = 100
"""Images of patients hold noise, which packs by less than ten; only what was made to grow packs by a hundred."""

MOST_FILES = 20_000
"""Of an archive, or of a form: a series of the longest kind has some thousand slices."""

_TAIL = 2**20
"""Bytes that may follow the voxels of a volume, before its header is a lie."""

_ITEMSIZE = 8
"""Bytes of a voxel whose type is not looked up; none has more."""


@runtime_checkable
class Readable(Protocol):
    """Bytes that come piece by piece."""

    def read(self, size: int = -1, /) -> bytes:
        """The next so many, fewer at the end, none after it."""
        ...


class TooMuch(InputError):
    """More than this server takes."""


def checked_id(name: str) -> str:
    """A name from outside as one of letters, digits, dots, dashes and underscores.

    Spaces and a few other signs that volumes have in their names become underscores.

    Raises:
        InputError: separators of paths, `..`, control characters, or anything else that is in no name of ours.
    """
    plain = _HARMLESS.sub("_", name)
    if not _ID.fullmatch(plain) or set(plain) == {"."} or ".." in plain:
        raise InputError(
            f"{name[:60]!r} cannot be the name of an image here; use 1 to 120 letters, digits, dots, dashes and "
            "underscores"
        )
    return plain


def checked_suffix(filename: str | None, allowed: tuple[str, ...]) -> str:
    """The suffix of an uploaded file, all of its name that is ever used.

    Raises:
        FormatError: none of those that are allowed.
    """
    name = (filename or "").lower()
    suffix = max((one for one in allowed if name.endswith(one)), key=len, default="")
    if not suffix:
        raise FormatError(f"a file named {name[-40:]!r} is not taken here; send one that ends in {', '.join(allowed)}")
    return suffix


def receive(source: Readable, path: Path, *, most: int) -> None:
    """Write what is sent to a new file, readable by nobody else.

    Raises:
        TooMuch: more than `most` bytes; nothing is left then.
    """
    total = 0
    try:
        with path.open("xb") as file:
            path.chmod(0o600)
            while piece := source.read(_CHUNK):
                total += len(piece)
                if total > most:
                    raise TooMuch(f"more than {most / 2**20:g} MiB came; send a smaller file")
                file.write(piece)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def unpack(archive: Path, folder: Path, *, most: int) -> list[Path]:
    """The files of a zip archive, under numbers and their suffixes in a folder that is there and empty.

    Raises:
        FormatError: no zip archive, damaged, encrypted, or a member that is no plain file under a plain path.
        TooMuch: more members or bytes than are taken, or a member that grows as only bombs do.
    """
    written: list[Path] = []
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
            if len(members) > MOST_FILES:
                raise TooMuch(f"an archive of {len(members)} files came; {MOST_FILES} are the most")
            for member in members:
                _check_member(member)
            if sum(member.file_size for member in members) > most:
                raise TooMuch(f"the archive unpacks to more than {most / 2**20:g} MiB; send a smaller one")
            left = most
            for member in members:
                if member.is_dir():
                    continue
                suffix = "".join(Path(member.filename.lower()).suffixes[-2:])
                suffix = suffix if suffix in (*IMAGE_SUFFIXES, ".dcm") else Path(member.filename.lower()).suffix
                suffix = suffix if suffix in (*IMAGE_SUFFIXES, ".dcm", ".ima", ".dicom") else ""
                path = folder / f"{len(written):05d}{suffix}"
                with packed.open(member) as stream:
                    receive(stream, path, most=left)
                left -= path.stat().st_size
                written.append(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise FormatError(f"this is no zip archive that can be unpacked ({error}); pack it again") from error
    if not written:
        raise FormatError("the archive holds no file; pack the image into it")
    return written


def check_claim(path: Path, suffix: str, *, most: int) -> None:
    """Refuse an image by what its header claims to hold: more than `most` bytes, or far more than the file's size.

    Pictures are left to their reader, which has limits of its own. A header that says nothing sensible is, too.

    Raises:
        TooMuch: it claims too much.
    """
    claimed = claimed_voxels(path, suffix)
    if claimed is None:
        return
    voxels, itemsize = claimed
    size = path.stat().st_size
    if voxels * itemsize > most:
        raise TooMuch(f"the image claims {voxels} voxels, more than the {most / 2**20:g} MiB that are taken; crop it")
    if voxels * itemsize > max(_SMALL, size * _RATIO):
        raise TooMuch(
            f"the image claims {voxels * itemsize} bytes in a file of {size}, as only made-up files do; save it "
            "without compression"
        )


def check_end(path: Path, suffix: str) -> None:
    """Refuse a gzipped NIfTI that unpacks to more than its header claims; nothing of it is kept.

    Its reader stops there as well, and calls that damage.

    Raises:
        TooMuch: it does.
    """
    claimed = claimed_voxels(path, suffix) if suffix == ".nii.gz" else None
    if claimed is None:
        return
    left = claimed[0] * claimed[1] + _TAIL
    try:
        with gzip.open(path) as stream:
            while left >= 0 and (piece := stream.read(_CHUNK)):
                left -= len(piece)
    except (OSError, EOFError, zlib.error):  # its reader has said what is wrong
        return
    if left < 0:
        raise TooMuch("the file unpacks to more than its header claims, as only made-up files do; export it again")


def least_bytes(path: Path) -> int:
    """The least that a file's image will take in memory, by its header; 0 where that says nothing, or no sense."""
    suffix = suffix_of(path)
    try:
        claimed = claimed_voxels(path, suffix)
        size = path.stat().st_size
    except OSError:  # its reader will say what is wrong
        return 0
    if claimed is None:
        return 0
    least = claimed[0] * (claimed[1] if suffix in (".nii", ".nii.gz") else 1)
    return least if least <= size * DEFLATE_LIMIT else 0


def claimed_voxels(path: Path, suffix: str) -> tuple[int, int] | None:
    """How many voxels the header of a volume's file claims, and the bytes of each; None where it does not say."""
    with path.open("rb") as file:
        if suffix in (".nii", ".nii.gz"):
            return _nifti_claim(file)
        if suffix.endswith("nrrd"):
            return _text_claim(file, rb"^sizes:\s*([\d \t]+)")
        if suffix == ".mha":
            return _text_claim(file, rb"^\s*DimSize\s*=\s*([\d \t]+)")
    return None


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.orig_filename
    parts = name.split("/")
    kind = stat.S_IFMT(member.external_attr >> 16)
    unsafe = (
        name.startswith("/")
        or ".." in parts
        or "\\" in name
        or ":" in parts[0]
        or any(ord(character) < 32 for character in name)
        or kind not in (0, stat.S_IFREG, stat.S_IFDIR)
    )
    if unsafe:
        raise FormatError(f"the archive holds {name[:60]!r}, which is no plain file under a plain path; pack it again")
    if member.flag_bits & 1:
        raise FormatError("the archive is encrypted; pack it without a password")
    if member.file_size > max(_SMALL, member.compress_size * _RATIO):
        raise TooMuch(f"{name[:60]!r} unpacks to {member.file_size} bytes from {member.compress_size}; that is refused")


def _nifti_claim(file: BinaryIO) -> tuple[int, int] | None:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    try:
        head = (gzip.GzipFile(fileobj=file) if packed else file).read(540)
    except (OSError, EOFError, zlib.error):  # its reader will say what is wrong
        return None
    for order in ("little", "big"):
        size = int.from_bytes(head[:4], order)
        if size == 348 and len(head) >= 348:
            dims = [int.from_bytes(head[40 + 2 * n : 42 + 2 * n], order, signed=True) for n in range(8)]
            bits = int.from_bytes(head[72:74], order, signed=True)
        elif size == 540 and len(head) >= 540:
            dims = [int.from_bytes(head[16 + 8 * n : 24 + 8 * n], order, signed=True) for n in range(8)]
            bits = int.from_bytes(head[14:16], order, signed=True)
        else:
            continue
        axes = dims[1 : 1 + min(max(dims[0], 0), 7)]
        return math.prod(max(extent, 1) for extent in axes), max(bits // 8, 1)
    return None


def _text_claim(file: BinaryIO, naming: bytes) -> tuple[int, int] | None:
    found = re.search(naming, file.read(2**16), re.MULTILINE | re.IGNORECASE)
    if found is None:
        return None
    return math.prod(int(extent[:20]) for extent in found[1].split()), _ITEMSIZE
