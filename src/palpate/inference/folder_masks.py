"""The masks of one image of a folder, its preview, and its rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from palpate.errors import FormatError, InputError, OutputError, SettingError
from palpate.images import read
from palpate.images.formats import replacing
from palpate.images.image import Image
from palpate.images.intensity import parse_intensity
from palpate.images.modality import parse_modality
from palpate.images.slices import check_axis
from palpate.inference.folder_images import Entry
from palpate.inference.folder_table import Row
from palpate.inference.segmentation import Segmentation, SegmentedObject
from palpate.inference.session import Session

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha", ".npz", ".dcm")
"""What volumes and DICOM images may be written as. Pictures become PNG."""


@dataclass(frozen=True)
class Choices:
    """How images are looked at and masks are written; see `Session.set_image` and `Session.find`.

    `intensity` is the name of a rule. `axis` is for volumes alone.

    Raises:
        SettingError: a modality, a rule, an axis or a kind of file that does not exist.
    """

    modality: str | None = None
    intensity: str | None = None
    axis: str | None = None
    carry: bool = False
    per_class: bool = False
    volume_suffix: str = ".nii.gz"

    def __post_init__(self) -> None:
        # Told once and before anything is written, not as the failure of every image.
        if self.modality is not None:
            parse_modality(self.modality)
        if self.intensity is not None:
            parse_intensity(self.intensity)
        if self.axis is not None:
            check_axis(self.axis)
        if self.volume_suffix not in VOLUME_SUFFIXES:
            known = ", ".join(suffix.removeprefix(".") for suffix in VOLUME_SUFFIXES)
            raise SettingError(f"masks cannot be written as {self.volume_suffix.removeprefix('.')!r}; choose {known}")


USUAL = Choices()
"""For whoever chooses nothing."""


@dataclass(frozen=True)
class Job:
    """One image, and where its masks go: `stem` is their path without class and suffix. It can be pickled.

    `classes` says what each label is called, where each has a mask of its own.
    """

    entry: Entry
    stem: Path
    choices: Choices
    classes: Mapping[int, str]
    previews: Path | None = None


def rows_or_reason(session: Session, job: Job, *, check: Callable[[], None] | None = None) -> list[Row] | str:
    """Masks of one image, written, and its rows; or why it could not be done, as one line.

    What is in the folder under the masks' names is ours, and replaced. `check` is called when a file is about to take
    its place, and may raise.
    """
    try:
        return _segment(session, job, check)
    except (InputError, OutputError) as error:
        return " ".join(str(error).split())


def _segment(session: Session, job: Job, check: Callable[[], None] | None) -> list[Row]:
    entry, stem, choices = job.entry, job.stem, job.choices
    if entry.damage:
        raise FormatError(entry.damage)
    image = read(entry.path, series=entry.series)
    axis = choices.axis if image.is_volume else None
    session.set_image(image, modality=choices.modality, intensity=choices.intensity, axis=axis)
    if choices.per_class:
        together, each = session.find_both(carry=choices.carry)
    else:
        together = session.find(carry=choices.carry)
        each = (together,)
    suffix = _suffix(image, choices.volume_suffix)
    rows: list[Row] = []
    for found in each:
        path = stem.with_name(f"{stem.name}_{job.classes[found.objects[0].label]}" if choices.per_class else stem.name)
        path = path.with_name(path.name + suffix)
        writable = suffix != ".dcm" or bool(found.mask.any())
        if writable:
            _save(found, path, check)
        else:
            _remove(path)  # what was found before the image changed
        rows += [_row(entry, item, path.name if writable else "") for item in found.objects]
    if job.previews is not None:
        write_preview(session, together, job.previews / f"{stem.name}.png")
    return rows


def _save(found: Segmentation, path: Path, check: Callable[[], None] | None) -> None:
    if check is None:
        found.save(path, overwrite=True)
        return
    with replacing(path, overwrite=True) as temporary:  # writing may take long; asked when it is done
        found.save(temporary, overwrite=True)
        check()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove the older mask {path}: {error.strerror or error}; remove it") from error


def write_preview(session: Session, found: Segmentation, path: Path) -> None:
    """A picture of what was found, in place of an older one.

    Raises:
        OutputError: it cannot be written.
    """
    picture = session.preview(found)
    with replacing(path, overwrite=True) as temporary:
        picture.save(temporary, format="PNG" if path.suffix.lower() == ".png" else "JPEG")


def _row(entry: Entry, item: SegmentedObject, output: str) -> Row:
    return Row(
        image=entry.name,
        class_name=item.name,
        label=item.label,
        present=item.voxels > 0,
        object_probability=item.object_probability,
        predicted_iou=item.predicted_iou,
        score=item.score,
        pixels=item.voxels,
        ml=item.volume_ml,
        output=output,
    )


def _suffix(image: Image, volume_suffix: str) -> str:
    if not image.is_volume and not image.knows_place:
        return ".png"
    is_dicom = image.source is not None and image.source.format == "dicom"
    return ".nii.gz" if volume_suffix == ".dcm" and not is_dicom else volume_suffix
