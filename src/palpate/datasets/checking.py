"""Is a dataset what it says it is? Everything that nnU-Net's own verification looks at, and what it does not.

One case is opened at a time, so that memory is bounded by the largest, and one damaged file never hides the others.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from palpate.datasets.case import Case, Region
from palpate.datasets.layouts import Listing
from palpate.datasets.opening import chosen_from, list_dataset
from palpate.datasets.pair import misfits, whole_numbers
from palpate.datasets.report import Problem, Report, problem_of
from palpate.errors import DatasetError, FormatError, GeometryError, ImageError, InputError
from palpate.images.image import Image

Progress = Callable[[int, int], None]
"""Called with the number of cases done and the number of all."""

_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (FormatError, "unreadable"),
    (GeometryError, "geometry"),
    (ImageError, "values"),
    (DatasetError, "values"),
)

_NUMBERED = re.compile(r"(.*\d.*?)(?:slice|frame|[-_ ](?:z|t)?)[-_ ]?\d+")
"""A name that ends in a number behind another one, as slices of a patient do: `patient012_slice034`."""


@dataclass(frozen=True)
class _Look:
    """What was seen of one case."""

    case: Case
    problems: tuple[Problem, ...]
    values: frozenset[int] = frozenset()
    digest: str = ""


def check(
    path: str | Path,
    *,
    labels: str | Path | None = None,
    dataset: Sequence[str] | None = None,
    split: str | None = None,
    channel: int = 0,
    subject_pattern: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Everything that is wrong with a dataset; the arguments are those of `open_dataset`.

    Subjects that cross splits are looked for in the whole dataset, whatever `split` asks for.

    Raises:
        DatasetError: no known layout, or a manifest or dataset.json that cannot be read at all.
        SettingError: `subject_pattern` is no regular expression.
    """
    layout, whole = list_dataset(path, labels=labels, channel=channel, subject_pattern=subject_pattern)
    listing = chosen_from(whole, dataset, split)
    problems = [*listing.incomplete, *listing.problems, *_splits(whole.cases, listing.cases)]
    if not listing.subjects_stated and subject_pattern is None:
        problems += _hints(listing.cases)
    looks: list[_Look] = []
    for number, case in enumerate(listing.cases):
        if progress is not None:
            progress(number, len(listing.cases))
        looks.append(_look(case, listing, verify_digits=layout == "nnU-Net raw"))
        problems += looks[-1].problems
    if progress is not None:
        progress(len(listing.cases), len(listing.cases))
    problems += [*_copies(looks), *_never_seen(looks)]
    order = {"error": 0, "warning": 1}
    return Report(layout, listing.cases, tuple(sorted(problems, key=lambda problem: order[problem.severity])))


def _look(case: Case, listing: Listing, *, verify_digits: bool) -> _Look:
    """Open one case and say what is wrong with it."""
    problems: list[Problem] = []
    image = _opened(case, listing.load.image, case.image, problems, "image")
    reference = _opened(case, listing.load.labels, case.label, problems, "label")
    digest = ""
    if image is not None:
        problems += _image_problems(case, image, listing)
        constant = image.array.min() == image.array.max()
        digest = "" if constant else _digest(image.array)
    if image is None or reference is None:
        return _Look(case, tuple(problems), digest=digest)
    problems += [problem_of(case, "error", *found) for found in misfits(image, reference)]
    if verify_digits:
        problems += _rounded(case, image, reference)
    for path in case.scribbles:
        drawn = _opened(case, listing.load.labels, path, problems, "scribbles")
        if drawn is not None and drawn.shape != image.shape:
            what = f"the scribbles {path} have shape {drawn.shape} and the image {image.shape}"
            problems.append(problem_of(case, "error", "scribbles", what, "pair the right files"))
    try:
        values = _values(whole_numbers(reference, case.label))
    except DatasetError as error:
        problems.append(_raised(case, error, "label"))
        return _Look(case, tuple(problems), digest=digest)
    if digest and digest == _digest(reference.array):
        problems.append(problem_of(case, "error", "label", "image and label are the same", "pair the right files"))
    problems += _value_problems(case, values)
    return _Look(case, tuple(problems), values, digest)


def _opened(case: Case, read: Callable[[Path], Image], path: Path, problems: list[Problem], what: str) -> Image | None:
    try:
        return read(path)
    except (InputError, OSError, MemoryError) as error:
        problems.append(_raised(case, error, what))
        return None


def _raised(case: Case, error: Exception, file: str) -> Problem:
    """An error of reading as a problem; its message ends with the way out."""
    what, _, remedy = str(error).rpartition("; ")
    kind = next((kind for raised, kind in _KINDS if isinstance(error, raised)), "unreadable")
    if file == "label" and isinstance(error, ImageError):
        remedy = "write whole numbers into the label, 0 for background"
    return problem_of(case, "error", f"{kind} ({file})", what or str(error), remedy or "repair or replace the file")


def _image_problems(case: Case, image: Image, listing: Listing) -> Iterator[Problem]:
    if image.array.min() == image.array.max():
        what = f"all pixels of {case.image} have the value {float(image.array.flat[0]):g}"
        yield problem_of(
            case, "error", "constant image", what, "there is nothing to see; export it again or leave it out"
        )
    channels = 3 if image.colour else 1
    for path in listing.further.get(case.image, ()):
        raised: list[Problem] = []
        other = _opened(case, listing.load.image, path, raised, "channel")
        yield from raised
        if other is not None:
            channels += 3 if other.colour else 1
            for kind, what, remedy in misfits(image, other):
                named = what.replace("the labels", path.name).replace("image and labels", f"image and {path.name}")
                yield problem_of(case, "error", f"{kind} (channel)", named, remedy.replace("the labels", path.name))
    wanted = listing.channels.get(case.dataset)
    # A picture may hold all channels in its one file; missing files of other kinds were seen when they were listed.
    picture = image.colour or (image.source is not None and image.source.format == "raster")
    if wanted is not None and picture and not listing.further.get(case.image) and channels != wanted:
        what = f"{case.image} has {channels} channels and dataset.json lists {wanted}"
        yield problem_of(case, "error", "channels", what, "correct channel_names, or the pictures")


def _rounded(case: Case, image: Image, reference: Image) -> Iterator[Problem]:
    """Spacings that are equal for us and not for nnU-Net, which compares to five digits."""
    ours, theirs = image.geometry.spacing, reference.geometry.spacing
    if np.allclose(theirs, ours) or any(kind in ("spacing", "shape") for kind, _, _ in misfits(image, reference)):
        return
    what = f"the spacing of image and label differs in its last digits ({ours} and {theirs} mm)"
    yield problem_of(case, "warning", "spacing", what, "nnU-Net refuses that; copy the image's header to the label")


def _value_problems(case: Case, values: frozenset[int]) -> Iterator[Problem]:
    negative = sorted(value for value in values if value < 0)
    declared = {0, case.ignore, *(value for region in case.regions for value in region.values)}
    unexpected = sorted(values - declared) if case.regions else negative
    if unexpected:
        listed = ", ".join(map(str, unexpected[:10])) + (" ..." if len(unexpected) > 10 else "")
        known = f"declared are {', '.join(str(value) for value in sorted(declared - {None}, key=str))}"
        what = f"the label holds {listed}; {known}" if case.regions else f"the label holds {listed}"
        remedy = "correct the label, or declare the value" if case.regions else "labels start at 0, the background"
        yield problem_of(case, "error", "unexpected values", what, remedy)
    if not any(value > 0 and value != case.ignore for value in values):
        yield problem_of(case, "warning", "empty label", "no voxel is labelled", "leave it out if that is not meant")


def _splits(whole: Iterable[Case], chosen: Iterable[Case]) -> Iterator[Problem]:
    """Subjects in several splits, and cases without one beside cases that have one."""
    places: dict[str, dict[str, Case]] = defaultdict(dict)
    for case in whole:
        if case.split:
            places[case.subject].setdefault(case.split, case)
    asked = {case.subject for case in chosen}
    for subject, splits in places.items():
        if len(splits) > 1 and subject in asked:
            where = " and ".join(f"{split} ({case.dataset} / {case.name})" for split, case in sorted(splits.items()))
            yield Problem(
                "error",
                "subject crosses splits",
                f"{subject} is in {where}",
                "put all of a subject into one split; `palpate data split` does",
            )
    without = [case for case in chosen if not case.split]
    if without and places:
        what = f"{len(without)} cases have no split and others do, the first is {without[0].name}"
        yield Problem("warning", "no split", what, "give all a split, or none; `palpate data split --keep` adds them")


def _hints(cases: Iterable[Case]) -> Iterator[Problem]:
    """Names that look like several images of a subject, where the layout does not say whose they are."""
    prefixes: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        own = case.subject in (case.name, f"{case.dataset}/{case.name}")
        if own and (match := _NUMBERED.fullmatch(case.name)):
            prefixes[case.dataset][match[1].rstrip("-_ ")].append(case.name)
    for dataset, groups in prefixes.items():
        several = {prefix: names for prefix, names in groups.items() if len(names) > 1}
        if len(several) > 1:
            names = next(iter(several.values()))
            yield Problem(
                "warning",
                "subject",
                f"{', '.join(names[:3])} count as different subjects, and their names look like one",
                "say whose they are, with --subject-pattern or a column `subject`",
                dataset=dataset,
            )


def _copies(looks: Iterable[_Look]) -> Iterator[Problem]:
    """Images whose pixels are the same."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for look in looks:
        if look.digest:
            groups[look.digest].append(look.case)
    for cases in groups.values():
        if len(cases) == 1:
            continue
        first, others = cases[0], cases[1:]
        listed = ", ".join(f"{case.dataset} / {case.name}" for case in others[:4]) + (" ..." if len(others) > 4 else "")
        what = f"the same pixels as in {listed}"
        splits = {case.split for case in cases} - {""}
        subjects = {case.subject for case in cases}
        if len(splits) > 1:
            what += f", in the splits {', '.join(sorted(splits))}"
            yield problem_of(first, "error", "leak", what, "keep it in one split: a test on seen images tests nothing")
        elif len(subjects) > 1:
            yield problem_of(first, "warning", "copy", what, "one image belongs to one subject; drop or rename one")
        else:
            yield problem_of(first, "warning", "copy", what, "it counts twice; drop one unless both labels are wanted")


def _never_seen(looks: Sequence[_Look]) -> Iterator[Problem]:
    """Declared labels that no case holds."""
    seen: dict[str, set[int]] = defaultdict(set)
    declared: dict[str, dict[Region, None]] = defaultdict(dict)
    for look in looks:
        seen[look.case.dataset] |= look.values
        declared[look.case.dataset] |= dict.fromkeys(look.case.regions)
    for dataset, regions in declared.items():
        absent = [region.name for region in regions if not seen[dataset] & set(region.values)]
        if absent:
            what = f"no label holds {', '.join(absent)}"
            yield Problem("warning", "unused label", what, "drop it where it is declared if it does not exist", dataset)


def _values(labels: Integer[np.ndarray, "..."]) -> frozenset[int]:
    if labels.dtype.kind == "u" and labels.itemsize <= 2:
        # Much faster than sorting a volume.
        present = np.zeros(2 ** (8 * labels.itemsize), bool)
        present[labels.ravel()] = True
        return frozenset(np.flatnonzero(present).tolist())
    return frozenset(np.unique(labels).tolist())


def _digest(array: np.ndarray) -> str:
    """The same for the same values in the same shape, whatever file and type they come from."""
    made = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    for part in array:
        made.update(part.astype(np.float64).tobytes())
    return made.hexdigest()
