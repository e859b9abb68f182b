"""Finished cases as files for others: one archive, whichever the kind.

`nifti`, `dicom-seg`, `rtstruct` and `seg-nrrd` hold a mask file for each case; `coco` and `nnunet` are datasets. The
record of each case (`CASE.prompts.json`) goes along in every one.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from palpate.errors import InputError, OutputError, SettingError
from palpate.images.formats import check_writable, replacing, write_mask
from palpate.server.coco import coco_files
from palpate.server.finished import Finished
from palpate.server.nnunet_raw import nnunet_files, records_folder

__all__ = ["KINDS", "Finished", "export"]

_MASKS = {"nifti": ".nii.gz", "dicom-seg": ".dcm", "rtstruct": ".rtstruct.dcm", "seg-nrrd": ".seg.nrrd"}

_OF_DICOM = {"dicom-seg": "a DICOM SEG", "rtstruct": "an RTSTRUCT"}

KINDS = (*_MASKS, "coco", "nnunet")
"""What can be exported."""

_PACKED = (".gz", ".png", ".nrrd")  # packing these again takes time and gains nothing


def export(
    kind: str,
    finished: Sequence[Finished],
    destination: Path,
    *,
    overwrite: bool = False,
    number: int = 500,
    name: str = "Palpate",
) -> None:
    """Write the cases as one .zip of a kind; it appears complete or not at all.

    `number` and `name` are those of nnU-Net's dataset (numbers up to 10 are taken by the Decathlon). Of cases that are
    made when they are asked for, one at a time is in memory.

    Raises:
        SettingError: no such kind, or a number or a name that nnU-Net does not take.
        InputError: no cases, or two of one name.
        OutputError: `destination` is no .zip, exists, or cannot be written; a case cannot be written as this kind (a
            DICOM kind, and its image is not DICOM); or the cases make no one dataset.
    """
    if kind not in KINDS:
        raise SettingError(f"there is no export {kind!r}; choose {', '.join(KINDS)}")
    cases = Counter(one.case for one in finished)
    if not cases:
        raise InputError("there is no case to export; finish one first")
    if twice := [case for case, count in cases.items() if count > 1]:
        raise InputError(f"two cases are called {', '.join(twice)}; each needs a name of its own in an export")
    check_writable(destination, overwrite=overwrite, kinds={".zip": "archive"})
    with (
        replacing(destination, overwrite=overwrite) as temporary,
        tempfile.TemporaryDirectory(prefix=".export-", dir=destination.parent) as folder,
        ZipFile(temporary, "w") as archive,
    ):
        for path, member in _files(kind, finished, Path(folder), number=number, name=name):
            archive.write(path, member, compress_type=ZIP_STORED if path.suffix in _PACKED else ZIP_DEFLATED)
            path.unlink()


def _files(
    kind: str, finished: Sequence[Finished], folder: Path, *, number: int, name: str
) -> Generator[tuple[Path, str]]:
    """The files of an export, each with its name in the archive; each may be removed when the next is asked for."""
    records = ""
    if kind == "coco":
        yield from coco_files(finished, folder)
        records = "prompts/"
    elif kind == "nnunet":
        yield from nnunet_files(finished, folder, number=number, name=name)
        records = records_folder(number=number, name=name)
    else:
        yield from _mask_files(kind, finished, folder)
    for one in finished:
        path = folder / f"{one.case}.prompts.json"
        one.write_record(path)
        yield path, records + path.name


def _mask_files(kind: str, finished: Sequence[Finished], folder: Path) -> Generator[tuple[Path, str]]:
    for one in finished:
        source = one.image.source
        if kind in _OF_DICOM and (source is None or source.format != "dicom"):
            raise OutputError(
                f"{_OF_DICOM[kind]} refers to the DICOM images it was drawn on, and {one.case} is not DICOM; "
                "export it as nifti or seg-nrrd instead"
            )
        path = folder / f"{one.case}{_MASKS[kind]}"
        try:
            write_mask(path, one.mask)
        except OutputError as error:
            raise OutputError(f"{one.case}: {error}") from error
        yield path, path.name
