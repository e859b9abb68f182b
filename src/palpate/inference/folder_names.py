"""What the masks of a folder's images are called, so that no two of them have one name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from palpate.errors import OutputError, SettingError
from palpate.images.formats import mask_suffix_of, suffix_of
from palpate.inference.folder_images import Entry
from palpate.inference.runtimes import FindingRuntime
from palpate.inference.session import Session
from palpate.models.promptable import LearnedClass


def stems_of(entries: Sequence[Entry]) -> list[str]:
    """What masks are called, without a suffix: the image's name without its own, unless two would be the same.

    Raises:
        OutputError: two would be the same all the same.
    """
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


def names_of(classes: Iterable[LearnedClass]) -> dict[int, str]:
    """What each label is called in the names of files: the class's name, and its value where that is not enough.

    File systems may not tell capitals from small letters, so neither does this.

    >>> names_of([LearnedClass("left kidney", 1), LearnedClass("left/kidney", 2), LearnedClass("liver", 3)])
    {1: 'left_kidney_1', 2: 'left_kidney_2', 3: 'liver'}
    """
    plain = {one.value: re.sub(r"[^\w.-]+", "_", one.name).strip("_.") for one in classes}
    often = Counter(name.casefold() for name in plain.values())
    valued = {value: f"{name or 'label'}_{value}" for value, name in plain.items()}
    names = {v: name if name and often[name.casefold()] == 1 else valued[v] for v, name in plain.items()}
    # A class may be called as another one is with its value (`kidney_1`); with the value behind each, no two are alike.
    return names if len({name.casefold() for name in names.values()}) == len(names) else valued


def masks_of(stem: str, classes: Mapping[int, str], volume_suffix: str) -> list[str]:
    """All names that an image's masks may get: before it is read, it may be a picture, a volume or DICOM.

    `classes` says what each label is called, where each has a mask of its own; else it is empty.
    """
    suffixes = {".png", volume_suffix} | ({".nii.gz"} if volume_suffix == ".dcm" else set())
    return [base + suffix for base in _bases(stem, classes) for suffix in sorted(suffixes)]


def check_apart(entries: Sequence[Entry], stems: Sequence[str], classes: Mapping[int, str]) -> None:
    """Refuse two images of which one would replace the other's mask: `a` with the class `b_c`, and `a_b` with `c`.

    Raises:
        OutputError: there are such.
    """
    owners: dict[str, Entry] = {}
    for entry, stem in zip(entries, stems, strict=True):
        for base in _bases(stem, classes):
            other = owners.setdefault(base.casefold(), entry)
            if other is not entry:
                raise OutputError(
                    f"{other.name} and {entry.name} would each have a mask called {base}; rename one of the images, or "
                    "leave --per-class out (in Python: per_class=False)"
                )


def named_masks(output: Path, session: Session) -> dict[int, Path]:
    """For one image: the path of each label's mask beside `output`, `liver.nii.gz` -> `liver_LABEL.nii.gz`.

    Raises:
        SettingError: a session without learned prompts.
    """
    if not isinstance(session.runtime, FindingRuntime):
        raise SettingError(f"{session.runtime.model} has no learned prompts; load a file that `palpate learn` made")
    suffix = mask_suffix_of(output)
    stem = output.name[: len(output.name) - len(suffix)]
    names = names_of(session.runtime.classes)
    return {value: output.with_name(f"{stem}_{name}{suffix}") for value, name in names.items()}


def _bases(stem: str, classes: Mapping[int, str]) -> list[str]:
    return [f"{stem}_{name}" for name in classes.values()] or [stem]
