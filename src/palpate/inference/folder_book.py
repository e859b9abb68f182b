"""What is done already of a folder of images, and what made it, so that the same call goes on after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from palpate.errors import OutputError
from palpate.images.formats import replacing
from palpate.inference.folder_images import Entry, dicom_in
from palpate.inference.folder_table import Row

_RUN, _DONE = "run.json", "done.jsonl"


class Book:
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
        self._owners: dict[str, str] = {}  # the image by its masks' name without class and suffix, in small letters
        self._makers: dict[str, str] = {}  # the image by a mask's whole name, in small letters
        self._previews: set[str] = set()
        if before == settings and self._path.is_file():
            try:
                lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError as error:
                raise OutputError(
                    f"cannot read {self._path}: {error.strerror or error}; choose another place"
                ) from error
            for line in lines:
                self._remember(line)

    def begin(self, entries: Sequence[Entry], stems: Sequence[str], masks: Sequence[Sequence[str]]) -> None:
        """Make the folder, and write down what its masks are made with. Nothing has been written before.

        `masks` are the names that each image's masks may get. To overwrite is to forget that these images were done,
        and those whose masks may be replaced.
        """
        make_folder(self._folder)
        if self._overwrite:
            for entry, stem, names in zip(entries, stems, masks, strict=True):
                self._forget(entry.name, stem, names)
            self._write()
        with replacing(self._folder / _RUN, overwrite=True) as temporary:
            text = json.dumps({"version": 1, "settings": self._settings}, indent=2) + "\n"
            temporary.write_text(text, encoding="utf-8")

    def knows(self, entry: Entry) -> bool:
        """Whether an image of that name was done here before, changed since or not."""
        return entry.name in self._done

    def drew(self, preview: Path) -> bool:
        """Whether a preview of this place is ours: an earlier call found it free, or was told to replace it."""
        return _hidden(preview) in self._previews

    def note_previews(self, previews: Sequence[Path]) -> None:
        """Write down, before any is drawn, that these previews are ours; an interruption may come at any moment."""
        new = sorted({_hidden(path) for path in previews} - self._previews)
        if new:
            self._append({"previews": new})
            self._previews.update(new)

    def _remember(self, line: str) -> None:
        try:
            entry = json.loads(line)
            if "previews" in entry:
                self._previews.update(entry["previews"])
                return
            name, _, _ = entry["image"], entry["as_it_was"], [Row(**row) for row in entry["rows"]]
        except (ValueError, KeyError, TypeError):
            return  # the end of a line is missing where the machine went down: that image is done again
        self._keep(name, entry)

    def _keep(self, name: str, known: dict[str, Any]) -> None:
        """An image that is done, in place of what had its name, or its masks' name."""
        self._forget(name, known.get("stem"), _masks(known))
        self._done[name] = known
        if "stem" in known:
            self._owners[known["stem"].casefold()] = name
        self._makers.update({mask.casefold(): name for mask in _masks(known)})

    def _forget(self, name: str, stem: str | None, masks: Sequence[str]) -> None:
        self._done.pop(name, None)
        owner = None if stem is None else self._owner(stem)
        if owner is not None:
            del self._done[owner["image"]]
        for mask in masks:
            if (maker := self._maker(mask)) is not None:
                del self._done[maker["image"]]

    def _owner(self, stem: str) -> dict[str, Any] | None:
        """The image whose masks are called so; it may have got another name for them since."""
        known = self._done.get(self._owners.get(stem.casefold(), ""))
        return known if known is not None and known.get("stem", "").casefold() == stem.casefold() else None

    def _maker(self, mask: str) -> dict[str, Any] | None:
        """The image that has a mask of this name; with a mask a class, `a_b_c` may be of `a` or of `a_b`."""
        known = self._done.get(self._makers.get(mask.casefold(), ""))
        made = known is not None and mask.casefold() in [one.casefold() for one in _masks(known)]
        return known if made else None

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

    def check_owners(self, entries: Sequence[Entry], stems: Sequence[str], masks: Sequence[Sequence[str]]) -> None:
        """Refuse to replace the mask of an image that lies elsewhere; `masks` as in `begin`."""
        for entry, stem, names in zip(entries, stems, masks, strict=True):
            for owner in (self._owner(stem), self._done.get(entry.name), *map(self._maker, names)):
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
        self._append(line)

    def sort(self, names: Sequence[str]) -> None:
        """Put the lines of these images in their order, behind all others, whoever was done first."""
        before = list(self._done)
        for name in names:
            if name in self._done:
                self._done[name] = self._done.pop(name)
        if list(self._done) != before:
            self._write()

    def _write(self) -> None:
        with replacing(self._path, overwrite=True) as temporary:
            ours = [{"previews": sorted(self._previews)}] if self._previews else []
            temporary.write_text("\n".join(map(json.dumps, [*ours, *self._done.values()])), encoding="utf-8")

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                # A line of its own, also behind half of one.
                file.write(("\n" if file.tell() else "") + json.dumps(line))
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}") from error


def made_with(folder: Path) -> dict[str, Any] | None:
    """The settings of the run that a folder's masks are of; None if there is none."""
    return (_read_json(folder / _RUN) or {}).get("settings")


def _masks(known: dict[str, Any]) -> list[str]:
    return [row["output"] for row in known["rows"] if row.get("output")]


def make_folder(folder: Path) -> None:
    """A folder and those above it, unless it is there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {folder}: {error.strerror or error}; choose another place"
        ) from error


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
    return _hidden(entry.path, entry.series or "")


def _hidden(path: Path, series: str = "") -> str:
    return hashlib.sha256(f"{path.resolve()}|{series}".encode()).hexdigest()[:16]


def _as_it_is(entry: Entry, output: Path) -> list[list[Any]]:
    """By what an image is known to be unchanged: names, sizes and times of its files, of a folder the DICOM files.

    A series' folder may hold the output as well, whose DICOM SEGs are no part of the image.
    """
    files = [entry.path] if entry.path.is_file() else dicom_in(entry.path, leave_out=output.resolve())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
