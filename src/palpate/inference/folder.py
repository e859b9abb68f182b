"""A folder of images, segmented by learned prompts: a mask an image, and a table that says where to look first.

    OUT/p1.png, OUT/ct.nii.gz      masks, named after their images; p1_liver.png, ... with one mask a class
    OUT/scores.csv                 a row for each class of each image, lowest score first; images that failed above them
    OUT/run.json                   what the masks are made with
    OUT/done.jsonl                 a line for each image that is done

An image that cannot be read does not stop the others. After an interruption the same call goes on with what is
missing: an image is done if its line is there, its masks are, and it has not changed since.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from palpate.errors import FormatError, InputError, OutputError, SettingError
from palpate.images import read
from palpate.images.formats import replacing, suffix_of
from palpate.images.image import Image
from palpate.images.intensity import parse_intensity
from palpate.inference.runtimes import FindingRuntime
from palpate.inference.segmentation import Segmentation, SegmentedObject
from palpate.inference.session import Session

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha", ".npz", ".dcm")
"""What volumes and DICOM images may be written as. Pictures become PNG."""

SCORES, _RUN, _DONE = "scores.csv", "run.json", "done.jsonl"

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Entry:
    """An image of a folder: a file, or one series of a folder of DICOM files. `name` is what the table calls it."""

    path: Path
    name: str
    series: str | None = None


@dataclass(frozen=True)
class Skipped:
    """What lies in the folder and is no image, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One class in one image, or an image that failed and why.

    `present` says whether the mask has any pixel of the class; `pixels` counts them, voxels of a volume. `score` is
    object probability x predicted IoU, 0 where it is not present. `output` is the mask's name in the output folder; it
    is empty where a DICOM SEG would be, which cannot hold an empty mask.
    """

    image: str
    class_name: str = ""
    label: int | None = None
    present: bool = False
    object_probability: float | None = None
    predicted_iou: float | None = None
    score: float | None = None
    pixels: int | None = None
    ml: float | None = None
    output: str = ""
    error: str = ""

    def place(self) -> tuple[bool, float, float, str, int]:
        """Where it stands in the table: what failed, then by score; of what is absent, the least surely so first."""
        return not self.error, self.score or 0.0, -(self.object_probability or 0.0), self.image, self.label or 0

    def cells(self) -> dict[str, str]:
        """It as a line of the table."""
        numbers = {"object_probability": 4, "predicted_iou": 4, "score": 4, "ml": 3}
        cells = {
            name: "" if value is None else f"{value:.{numbers[name]}f}" if name in numbers else str(value)
            for name, value in asdict(self).items()
        }
        cells["class"] = cells.pop("class_name")
        cells["present"] = "" if self.error else "yes" if self.present else "no"
        return {name: cells[name] for name in COLUMNS}


COLUMNS = tuple("class" if one.name == "class_name" else one.name for one in fields(Row))
"""Of scores.csv."""


@dataclass(frozen=True)
class Choices:
    """How images are looked at and masks are written; see `Session.set_image` and `Session.find`.

    `intensity` is the name of a rule. `axis` is for volumes alone.

    Raises:
        SettingError: a rule or a kind of file that does not exist.
    """

    modality: str | None = None
    intensity: str | None = None
    axis: str | None = None
    carry: bool = False
    per_class: bool = False
    volume_suffix: str = ".nii.gz"

    def __post_init__(self) -> None:
        if self.intensity is not None:
            parse_intensity(self.intensity)
        if self.volume_suffix not in VOLUME_SUFFIXES:
            known = ", ".join(suffix.removeprefix(".") for suffix in VOLUME_SUFFIXES)
            raise SettingError(f"masks cannot be written as {self.volume_suffix.removeprefix('.')!r}; choose {known}")


@dataclass(frozen=True)
class Result:
    """What came of a folder: all rows in the order of the table, how many images were done now, and how many before."""

    rows: tuple[Row, ...]
    now: int
    before: int

    @property
    def failed(self) -> tuple[Row, ...]:
        """Images that could not be segmented."""
        return tuple(row for row in self.rows if row.error)


def images_in(folder: Path, *, leave_out: Iterable[Path] = ()) -> tuple[list[Entry], list[Skipped]]:
    """The images in a folder, by name, and what else lies there; hidden files and the paths to leave out are no matter.

    Its sub-folders are not searched, but for DICOM: each series in one is an image. So is each series of DICOM files
    in the folder itself, which may thus be a single image.

    Raises:
        FormatError: no such folder.
    """
    if not folder.is_dir():
        raise FormatError(f"there is no folder {folder}")
    ours = {path.resolve() for path in leave_out}
    found: list[Entry] = []
    skipped: list[Skipped] = []
    loose: list[Path] = []
    try:
        lying_there = sorted(folder.iterdir())
    except OSError as error:
        raise FormatError(f"cannot look into {folder}: {error.strerror or error}") from error
    for path in lying_there:
        if path.name.startswith(".") or path.resolve() in ours:
            continue
        if path.is_dir():
            inside = [item for item in sorted(path.rglob("*")) if not item.name.startswith(".") and _is_dicom(item)]
            images, others = _by_series(path, inside, loose=False)
            found += images
            # Reports and the like beside the images of a series are no news.
            skipped += [] if images else others or [Skipped(path.name, "a folder without DICOM images")]
        elif _is_dicom(path):
            loose.append(path)
        elif suffix_of(path):
            found.append(Entry(path, path.name))
        else:
            skipped.append(Skipped(path.name, "of no kind that palpate reads"))
    images, others = _by_series(folder, loose, loose=True)
    return sorted(found + images, key=lambda entry: entry.name), sorted(skipped + others, key=lambda one: one.name)


def _is_dicom(path: Path) -> bool:
    """Whether it is a file that is DICOM by its name, or, where its name says nothing, by its start."""
    if not path.is_file():
        return False
    suffix = suffix_of(path)
    if suffix:
        return suffix in _DICOM_SUFFIXES
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # it may not be opened, so it will be told as a file of no kind
        return False


def _by_series(folder: Path, files: Sequence[Path], *, loose: bool) -> tuple[list[Entry], list[Skipped]]:
    """DICOM files of a folder as images: a file that is alone in its series, or all files of a series.

    Files that are `loose` lie beside others, and one of them is called by its own name rather than its folder's.
    """
    if not files:
        return [], []
    from palpate.images.formats.dicom import series_of  # it takes longer to import than most folders to list

    groups: dict[str, list[Path]] = {}
    skipped: list[Skipped] = []
    images: list[Entry] = []
    for path in files:
        try:
            series = series_of(path)
        except InputError:  # reading it will say what is wrong
            images.append(Entry(path, path.name if loose else f"{folder.name}_{path.name}"))
            continue
        if series is None:
            skipped.append(Skipped(path.name, "DICOM, but not an image"))
        else:
            groups.setdefault(series, []).append(path)
    name = folder.resolve().name
    for series, members in groups.items():
        one = members[0]
        if len(members) == 1 and loose:
            images.append(Entry(one, one.name))
        elif len(groups) == 1:
            images.append(Entry(one if len(members) == 1 else folder, name, series if len(members) > 1 else None))
        elif len(members) == 1:
            images.append(Entry(one, f"{name}_{one.name}"))
        else:
            images.append(Entry(folder, f"{name}_{series.rpartition('.')[2]}", series))
    return images, skipped


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
    stems = _stems(entries)
    classes = _names_in_files(runtime) if choices.per_class else {}
    if len({f"{stem}_{name}".casefold() for stem in stems for name in classes.values()}) < len(stems) * len(classes):
        raise OutputError("the masks of two images and classes would have the same name; rename one of the images")
    book = _Book(output, _settings(runtime, choices), overwrite=overwrite)
    if previews is not None:
        if not overwrite:
            _check_pictures(previews, entries, stems, book)
        _make(previews)
    if not overwrite:
        book.check_owners(entries, stems)
    book.begin(entries, stems)
    rows: list[Row] = []
    now = before = 0
    try:
        for number, (entry, stem) in enumerate(zip(entries, stems, strict=True)):
            known = book.rows_of(entry)
            if known is not None:
                before += 1
                rows += known
            else:
                try:
                    made = _segment(session, entry, output / stem, choices, classes, previews)
                except (InputError, OutputError) as error:
                    made = [Row(entry.name, error=" ".join(str(error).split()))]
                else:
                    book.note(entry, stem, made)
                    now += 1
                rows += made
            if progress is not None:
                progress(number + 1, len(entries))
    finally:
        rows += book.rows_of_others({row.image for row in rows})
        rows.sort(key=Row.place)
        _write_table(output / SCORES, rows)
    return Result(tuple(rows), now, before)


def _segment(
    session: Session,
    entry: Entry,
    stem: Path,
    choices: Choices,
    classes: dict[int, str],
    previews: Path | None,
) -> list[Row]:
    """Masks of one image, written; what is in the folder under their names is ours, and replaced."""
    image = read(entry.path, series=entry.series)
    axis = choices.axis if image.is_volume else None
    session.set_image(image, modality=choices.modality, intensity=choices.intensity, axis=axis)
    each = session.find_each(carry=choices.carry) if choices.per_class else (session.find(carry=choices.carry),)
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
        shown = each[0] if len(each) == 1 else session.find(carry=choices.carry)
        write_preview(session, shown, previews / f"{stem.name}.png")
    return rows


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


def _stems(entries: Sequence[Entry]) -> list[str]:
    """What masks are called, without a suffix: the image's name without its own, unless two would be the same."""
    short = [
        entry.name[: len(entry.name) - len(suffix_of(Path(entry.name)))] if entry.path.is_file() else entry.name
        for entry in entries
    ]
    often = Counter(stem.casefold() for stem in short)
    stems = [stem if often[stem.casefold()] == 1 else entry.name for stem, entry in zip(short, entries, strict=True)]
    for stem, count in Counter(stem.casefold() for stem in stems).items():
        if count > 1:
            raise OutputError(f"the masks of {count} images would be called {stem}; rename one of the images")
    return stems


def _names_in_files(runtime: FindingRuntime) -> dict[int, str]:
    """What each label is called in the names of files."""
    plain = {one.value: re.sub(r"[^\w.-]+", "_", one.name).strip("_.") for one in runtime.classes}
    often = Counter(name.casefold() for name in plain.values())
    return {
        value: name if name and often[name.casefold()] == 1 else f"{name or 'label'}_{value}"
        for value, name in plain.items()
    }


def named_masks(output: Path, session: Session) -> dict[int, Path]:
    """For one image: the path of each label's mask beside `output`, `liver.nii.gz` -> `liver_LABEL.nii.gz`.

    Raises:
        SettingError: a session without learned prompts.
    """
    if not isinstance(session.runtime, FindingRuntime):
        raise SettingError(f"{session.runtime.model} has no learned prompts; load a file that `palpate learn` made")
    suffix = suffix_of(output)
    stem = output.name[: len(output.name) - len(suffix)]
    names = _names_in_files(session.runtime)
    return {value: output.with_name(f"{stem}_{name}{suffix}") for value, name in names.items()}


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


def _check_pictures(previews: Path, entries: Sequence[Entry], stems: Sequence[str], book: _Book) -> None:
    """Refuse to replace a picture that no earlier run of this output has made."""
    for entry, stem in zip(entries, stems, strict=True):
        path = previews / f"{stem}.png"
        if path.exists() and not book.knows(entry):
            raise OutputError(
                f"{path} exists, and no preview of this image was made before; give another folder for previews, "
                "or --overwrite to replace it"
            )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {folder}: {error.strerror or error}; choose another place"
        ) from error


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    with replacing(path, overwrite=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(row.cells() for row in rows)


class _Book:
    """What is done already, and what made it.

    Raises:
        OutputError: the folder holds something else, or what was made in another way; or it cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
        self._folder, self._path, self._settings, self._overwrite = folder, folder / _DONE, settings, overwrite
        there = _read_json(folder / _RUN)
        if not overwrite and there is None and _holds_anything(folder):
            raise OutputError(
                f"{folder} holds other files; give a new folder, or --overwrite to replace those named like a mask"
            )
        before = None if there is None else there.get("settings")
        if not overwrite and there is not None and before != settings:
            differing = [name for name, value in settings.items() if (before or {}).get(name) != value]
            raise OutputError(
                f"the masks in {folder} were made in another way ({', '.join(differing) or 'by another palpate'}); "
                "give another folder, or make them anew with --overwrite"
            )
        self._done: dict[str, dict[str, Any]] = {}
        self._owners: dict[str, str] = {}  # the image by its masks' name, in small letters
        if before == settings and self._path.is_file():
            try:
                lines = self._path.read_text(encoding="utf-8").splitlines()
            except OSError as error:
                raise OutputError(
                    f"cannot read {self._path}: {error.strerror or error}; choose another place"
                ) from error
            for line in lines:
                self._remember(line)

    def begin(self, entries: Sequence[Entry], stems: Sequence[str]) -> None:
        """Make the folder, and write down what its masks are made with. Nothing has been written before.

        To overwrite is to forget that these images were done.
        """
        _make(self._folder)
        if self._overwrite:
            for entry, stem in zip(entries, stems, strict=True):
                self._forget(entry.name, stem)
            with replacing(self._path, overwrite=True) as temporary:
                temporary.write_text("\n".join(map(json.dumps, self._done.values())), encoding="utf-8")
        with replacing(self._folder / _RUN, overwrite=True) as temporary:
            text = json.dumps({"version": 1, "settings": self._settings}, indent=2) + "\n"
            temporary.write_text(text, encoding="utf-8")

    def knows(self, entry: Entry) -> bool:
        """Whether an image of that name was done here before, changed since or not."""
        return entry.name in self._done

    def _remember(self, line: str) -> None:
        try:
            entry = json.loads(line)
            name, _, _ = entry["image"], entry["as_it_was"], [Row(**row) for row in entry["rows"]]
        except (ValueError, KeyError, TypeError):
            return  # the end of a line is missing where the machine went down: that image is done again
        self._keep(name, entry)

    def _keep(self, name: str, known: dict[str, Any]) -> None:
        """An image that is done, in place of what had its name, or its masks' name."""
        self._forget(name, known.get("stem"))
        self._done[name] = known
        if "stem" in known:
            self._owners[known["stem"].casefold()] = name

    def _forget(self, name: str, stem: str | None) -> None:
        self._done.pop(name, None)
        owner = None if stem is None else self._owner(stem)
        if owner is not None:
            del self._done[owner["image"]]

    def _owner(self, stem: str) -> dict[str, Any] | None:
        """The image whose masks are called so; it may have got another name for them since."""
        known = self._done.get(self._owners.get(stem.casefold(), ""))
        return known if known is not None and known.get("stem", "").casefold() == stem.casefold() else None

    def rows_of(self, entry: Entry) -> list[Row] | None:
        """The rows of an image that is done, or None."""
        known = self._done.get(entry.name)
        if known is None or known.get("place") not in (None, _place(entry)):
            return None
        if known["as_it_was"] != _as_it_is(entry, self._folder):
            return None
        return self._rows_there(known)

    def rows_of_others(self, names: Collection[str]) -> list[Row]:
        """The rows of all images that are done, but those of these names."""
        others = [self._rows_there(known) for name, known in self._done.items() if name not in names]
        return [row for rows in others for row in rows or ()]

    def _rows_there(self, known: dict[str, Any]) -> list[Row] | None:
        """The rows of an image, or None where one of its masks is gone."""
        rows = [Row(**row) for row in known["rows"]]
        there = all((self._folder / row.output).is_file() for row in rows if row.output)
        return rows if there else None

    def check_owners(self, entries: Sequence[Entry], stems: Sequence[str]) -> None:
        """Refuse to replace the mask of an image that lies elsewhere."""
        for entry, stem in zip(entries, stems, strict=True):
            for owner in (self._owner(stem), self._done.get(entry.name)):
                elsewhere = owner is not None and owner.get("place") not in (None, _place(entry))
                if owner is not None and elsewhere and self._rows_there(owner):
                    raise OutputError(
                        f"{self._folder} has the mask of another image called {owner['image']}, which that of "
                        f"{entry.path} would replace; give another folder, or --overwrite (also if it is the same "
                        "image, moved)"
                    )

    def note(self, entry: Entry, stem: str, rows: Sequence[Row]) -> None:
        """Write down that an image is done."""
        line = {
            "image": entry.name,
            "place": _place(entry),
            "stem": stem,
            "as_it_was": _as_it_is(entry, self._folder),
            "rows": [asdict(row) for row in rows],
        }
        self._keep(entry.name, line)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                # A line of its own, also behind half of one.
                file.write(("\n" if file.tell() else "") + json.dumps(line))
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}") from error


def _holds_anything(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    except OSError as error:
        raise OutputError(f"cannot look into {folder}: {error.strerror or error}; choose another place") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _place(entry: Entry) -> str:
    """Where an image lies, in a form that tells nobody the names of folders."""
    return hashlib.sha256(f"{entry.path.resolve()}|{entry.series or ''}".encode()).hexdigest()[:16]


def _dicom_in(folder: Path, leave_out: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not path.name.startswith(".") and leave_out not in path.resolve().parents and _is_dicom(path)
    ]


def _as_it_is(entry: Entry, output: Path) -> list[list[Any]]:
    """By what an image is known to be unchanged: names, sizes and times of its files, of a folder the DICOM files.

    A series' folder may hold the output as well, whose DICOM SEGs are no part of the image.
    """
    files = [entry.path] if entry.path.is_file() else _dicom_in(entry.path, output.resolve())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
