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

from palpate.errors import FormatError, OutputError, SettingError
from palpate.inference.folder_aside import seen, set_aside
from palpate.inference.folder_book import Book, make_folder
from palpate.inference.folder_helpers import Helpers, segmented
from palpate.inference.folder_images import Entry
from palpate.inference.folder_masks import USUAL, Choices, Job
from palpate.inference.folder_names import check_apart, masks_of, names_of, stems_of
from palpate.inference.folder_table import SCORES, Row, write_table
from palpate.inference.runtimes import FindingRuntime
from palpate.inference.session import Session


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
    choices: Choices = USUAL,
    previews: Path | None = None,
    overwrite: bool = False,
    helpers: Helpers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Segment images by a session with learned prompts, and write masks and the table into a folder.

    With `previews`, a picture of each image that is done now goes into that folder. `overwrite` does everything anew.
    `helpers` are processes that do the work instead, on this machine or a cluster; what they write does not depend on
    how many they are. `progress` is told how many images are done, of how many. The table is there after an
    interruption, too. It has the images of earlier calls as well, if they were segmented in the same way and their
    masks are still there.

    Raises:
        FormatError: no images.
        SettingError: a session without learned prompts.
        OutputError: the folder is an image's own, holds something else, what was made in another way or the mask of
            another image of the same name, or cannot be written; previews would lie among images or masks, or replace
            pictures that others made.
        PalpateError: helpers ended, or do not compute as this machine does.
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
    settings = _settings(runtime, choices)
    book = Book(output, settings, overwrite=overwrite)
    if helpers is not None:
        helpers.check()
    if previews is not None:
        if not overwrite:
            _check_pictures(previews, entries, stems, book)
        make_folder(previews)
    if not overwrite:
        book.check_owners(entries, stems, masks)
    book.begin(entries, stems, masks)
    if previews is not None:
        book.note_previews([previews / f"{stem}.png" for stem in stems])
    known = [book.rows_of(entry) for entry in entries]
    missing = [number for number, found in enumerate(known) if found is None]
    jobs = [Job(entries[number], output / stems[number], choices, classes, previews) for number in missing]
    rows = [row for found in known for row in found or ()]
    older = [seen(_own(job, masks[number])) for number, job in zip(missing, jobs, strict=True)]
    moved: dict[int, list[Path]] = {}
    now = 0
    tell = progress or _silently
    try:
        tell(len(entries) - len(jobs), len(entries))
        with segmented(jobs, session, helpers, settings) as answers:
            for done, (number, answer) in enumerate(answers, start=1):
                job = jobs[number]
                if isinstance(answer, str):
                    moved[number], told = _set_aside(older[number])
                    rows.append(Row(job.entry.name, error=answer + told))
                else:
                    book.note(job.entry, job.stem.name, answer)
                    rows += answer
                    now += 1
                tell(len(entries) - len(jobs) + done, len(entries))
        if helpers is not None:
            book.sort([entry.name for entry in entries])
    finally:
        rows += book.rows_of_others({row.image for row in rows})
        rows.sort(key=Row.place)
        write_table(output / SCORES, rows)
    aside = tuple(path for number in sorted(moved) for path in moved[number])
    return Result(tuple(rows), now, len(entries) - len(jobs), aside)


def _silently(done: int, total: int) -> None:
    """No progress is shown."""


def _own(job: Job, masks: Sequence[str]) -> list[Path]:
    """All files that are this image's, its masks and its preview."""
    paths = [job.stem.with_name(name) for name in masks]
    return paths if job.previews is None else [*paths, job.previews / f"{job.stem.name}.png"]


def _set_aside(older: Mapping[Path, tuple[int, int]]) -> tuple[list[Path], str]:
    """What was moved of an image that failed, and what its row says of it."""
    try:
        moved = set_aside(older)
    except OutputError as error:
        return [], f"; {error}"
    if not moved:
        return [], ""
    return moved, f"; older, moved aside: {', '.join(map(str, moved))}"


def _settings(runtime: FindingRuntime, choices: Choices) -> dict[str, Any]:
    """All that decides the masks, but for the images."""
    return {
        "model": runtime.model,
        "weights_hash": runtime.weights_hash,
        "runtime": runtime.describe().partition(";")[0],
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
