"""A folder of images, segmented by learned prompts: a mask an image, and a table that says where to look first.

    OUT/p1.png, OUT/ct.nii.gz      masks, named after their images; p1_liver.png, ... with one mask a class
    OUT/scores.csv                 a row for each class of each image, lowest score first; images that failed above them
    OUT/run.json                   what the masks are made with
    OUT/done.jsonl                 a line for each image that is done, and one that says which previews are ours
    OUT/earlier/                   older masks of images that failed since

An image that cannot be read does not stop the others; its mask and preview of an earlier call are moved aside, for they
are of what the image was then, and maybe made in another way. After an interruption the same call goes on with what is
missing: an image is done if its line is there, its masks are, and it has not changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palpate.errors import FormatError, InputError, OutputError, SettingError
from palpate.images import read
from palpate.images.formats import replacing
from palpate.images.image import Image
from palpate.images.intensity import parse_intensity
from palpate.images.modality import parse_modality
from palpate.images.slices import check_axis
from palpate.inference.folder_aside import seen, set_aside
from palpate.inference.folder_book import Book, make_folder
from palpate.inference.folder_images import Entry
from palpate.inference.folder_names import check_apart, masks_of, names_of, stems_of
from palpate.inference.folder_table import SCORES, Row, write_table
from palpate.inference.runtimes import FindingRuntime
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


@dataclass(frozen=True)
class Result:
    """What came of a folder: all rows in the order of the table, how many images were done now, and how many before.

    `moved` are the older masks and previews of images that failed, where they are now.
    """

    rows: tuple[Row, ...]
    now: int
    before: int
    moved: tuple[Path, ...] = ()

    @property
    def failed(self) -> tuple[Row, ...]:
        """Images that could not be segmented."""
        return tuple(row for row in self.rows if row.error)


def find_in(
    session: Session,
    entries: Sequence[Entry],
    output: Path,
    *,
    choices: Choices = Choices(),
    previews: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Segment images by a session with learned prompts, and write masks and the table into a folder.

    With `previews`, a picture of each image that is done now goes into that folder. `overwrite` does everything anew.
    `progress` is told how many images are done, of how many. The table is there after an interruption, too. It has the
    images of earlier calls as well, if they were segmented in the same way and their masks are still there.

    Raises:
        FormatError: no images.
        SettingError: a session without learned prompts.
        OutputError: the folder is an image's own, holds something else, what was made in another way or the mask of
            another image of the same name, or cannot be written; previews would lie among images or masks, or replace
            pictures that others made.
    """
    if not entries:
        raise FormatError("there are no images to segment; see docs/reference/formats.md for what palpate reads")
    runtime = session.runtime
    if not isinstance(runtime, FindingRuntime):
        raise SettingError(f"{runtime.model} has no learned prompts; load a file that `palpate learn` made")
    _check_folder(output, entries)
    if previews is not None:
        _check_previews(previews, output, entries)
    stems = stems_of(entries)
    classes = names_of(runtime.classes) if choices.per_class else {}
    check_apart(entries, stems, classes)
    masks = [masks_of(stem, classes, choices.volume_suffix) for stem in stems]
    book = Book(output, _settings(runtime, choices), overwrite=overwrite)
    if previews is not None:
        if not overwrite:
            _check_pictures(previews, entries, stems, book)
        make_folder(previews)
    if not overwrite:
        book.check_owners(entries, stems, masks)
    book.begin(entries, stems, masks)
    if previews is not None:
        book.note_previews([previews / f"{stem}.png" for stem in stems])
    rows: list[Row] = []
    moved: list[Path] = []
    now = before = 0
    try:
        for number, (entry, stem) in enumerate(zip(entries, stems, strict=True)):
            known = book.rows_of(entry)
            if known is not None:
                before += 1
                rows += known
            else:
                own = [output / name for name in masks[number]]
                older = seen([*own, previews / f"{stem}.png"] if previews is not None else own)
                try:
                    made = _segment(session, entry, output / stem, choices, classes, previews)
                except (InputError, OutputError) as error:
                    aside, told = _set_aside(older)
                    made = [Row(entry.name, error=" ".join(str(error).split()) + told)]
                    moved += aside
                else:
                    book.note(entry, stem, made)
                    now += 1
                rows += made
            if progress is not None:
                progress(number + 1, len(entries))
    finally:
        rows += book.rows_of_others({row.image for row in rows})
        rows.sort(key=Row.place)
        write_table(output / SCORES, rows)
    return Result(tuple(rows), now, before, tuple(moved))


def _segment(
    session: Session,
    entry: Entry,
    stem: Path,
    choices: Choices,
    classes: Mapping[int, str],
    previews: Path | None,
) -> list[Row]:
    """Masks of one image, written; what is in the folder under their names is ours, and replaced."""
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
        path = stem.with_name(f"{stem.name}_{classes[found.objects[0].label]}" if choices.per_class else stem.name)
        path = path.with_name(path.name + suffix)
        writable = suffix != ".dcm" or bool(found.mask.any())
        if writable:
            found.save(path, overwrite=True)
        else:
            _remove(path)  # what was found before the image changed
        rows += [_row(entry, item, path.name if writable else "") for item in found.objects]
    if previews is not None:
        write_preview(session, together, previews / f"{stem.name}.png")
    return rows


def _set_aside(older: Mapping[Path, tuple[int, int]]) -> tuple[list[Path], str]:
    """What was moved of an image that failed, and what its row says of it."""
    try:
        moved = set_aside(older)
    except OutputError as error:
        return [], f"; {error}"
    if not moved:
        return [], ""
    return moved, f"; older, moved aside: {', '.join(map(str, moved))}"


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


def _settings(runtime: FindingRuntime, choices: Choices) -> dict[str, Any]:
    """All that decides the masks, but for the images."""
    return {
        "model": runtime.model,
        "weights_hash": runtime.weights_hash,
        "classes": [[one.name, one.value] for one in runtime.classes],
        **asdict(choices),
    }


def _check_folder(output: Path, entries: Sequence[Entry]) -> None:
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; give a folder for the masks")
    for entry in entries:
        own = entry.path if entry.path.is_dir() else entry.path.parent
        if output.resolve() == own.resolve():
            raise OutputError(
                f"{output} holds the images themselves, which masks must not replace; give another folder"
            )


def _check_previews(previews: Path, output: Path, entries: Sequence[Entry]) -> None:
    """Masks and images may be PNG as well, under the same names."""
    theirs = previews.resolve()
    if theirs == output.resolve():
        raise OutputError(f"the masks go into {output}, which previews must not replace; give them another folder")
    if any(theirs == (entry.path if entry.path.is_dir() else entry.path.parent).resolve() for entry in entries):
        raise OutputError(
            f"{previews} holds the images themselves, which previews must not replace; give them another folder"
        )


def _check_pictures(previews: Path, entries: Sequence[Entry], stems: Sequence[str], book: Book) -> None:
    """Refuse to replace a picture that no earlier run of this output has made."""
    for entry, stem in zip(entries, stems, strict=True):
        path = previews / f"{stem}.png"
        if path.exists() and not book.knows(entry) and not book.drew(path):
            raise OutputError(
                f"{path} exists, and no preview of this image was made before; give another folder for previews, "
                "or --overwrite to replace it"
            )
