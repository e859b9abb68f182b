"""Classes that a model finds by itself: from what it answers on each slice to one label map, and a mask of each class.

Two rules from Sam2Rad (Wahd et al. 2024, arXiv 2409.06821, in the authors' code), here on the pixels of the image:

- a class whose object logit is below 0 is not there, and its mask is empty;
- of the others, a pixel belongs to the class with the highest logit, and to none where no logit is above 0.

What a person drew is there, whatever the object logit says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Float32, Shaped

from palpate.errors import PromptError
from palpate.inference.painting import paint, score
from palpate.inference.propagation import PROPAGATION_MARGIN, DecodeSlice, SliceMask, Track, propagate
from palpate.models.frame import CanvasPrompt, Frame
from palpate.models.promptable import LearnedClass
from palpate.prompts.types import Target

Mode = Literal["autonomous", "semi-autonomous", "manual"]
"""By learned prompts alone; by these and what a person draws; by what a person draws alone."""


@dataclass(frozen=True, eq=False)
class ClassAnswer:
    """What a model says of one class on one slice: logits on the image's pixels, and how sure it is.

    `object_logit` is above 0 where it believes that the class is there; `drawn` says that a person has pointed at it.
    """

    logits: Float32[np.ndarray, "row column"]
    predicted_iou: float
    object_logit: float
    drawn: bool = False

    @property
    def is_there(self) -> bool:
        """Whether the mask counts."""
        return self.drawn or self.object_logit >= 0

    @property
    def probability(self) -> float:
        """Of there being anything, 0 to 1."""
        return float(1 / (1 + np.exp(-np.clip(self.object_logit, -50, 50))))

    def united(self, other: ClassAnswer) -> ClassAnswer:
        """Both as parts of one object: each pixel as the surer of the two has it."""
        return ClassAnswer(
            np.maximum(self.logits, other.logits),
            (self.predicted_iou + other.predicted_iou) / 2,
            max(self.object_logit, other.object_logit),
            drawn=self.drawn or other.drawn,
        )


@dataclass(eq=False)
class Finding:
    """One class in one image: the probability on each slice that it is there, and its masks where it was found.

    Masks are the class's own, before another class takes a pixel from it. `targets` are what a person drew.
    """

    wanted: LearnedClass
    targets: tuple[Target, ...] = ()
    probabilities: dict[int, float] = field(default_factory=dict[int, float])
    masks: dict[int, SliceMask] = field(default_factory=dict[int, SliceMask])

    @property
    def probability(self) -> float:
        """Of it being anywhere: that of the slice with the highest."""
        return max(self.probabilities.values())

    @property
    def slices(self) -> tuple[int, int] | None:
        """The first and last slice where it was found."""
        return (min(self.masks), max(self.masks)) if self.masks else None

    @property
    def most_certain(self) -> int:
        """Where it is carried from: the first slice drawn on, else that of the highest probability x predicted IoU."""
        drawn = [target.z for target in self.targets if target.z is not None and target.z in self.masks]
        if drawn:
            return drawn[0]
        return max(self.masks, key=lambda z: self.probabilities[z] * self.masks[z].predicted_iou)

    def track(self) -> Track:
        """Its masks as those of an object that was followed."""
        first, last = self.slices or (0, 0)
        return Track(CanvasPrompt(), first, first, last, self.masks)

    @property
    def predicted_iou(self) -> float:
        """The mean over the slices it was found on; 0 if it was not found."""
        return score(self.track())


def by_class(targets: Sequence[Target], classes: Sequence[LearnedClass]) -> dict[int, list[Target]]:
    """What was drawn, by the number of the class that it belongs to, under the class's own label and name.

    A target's name decides, in any case of letters where that leaves one class; without a name it is the label, and
    where there is only one class an unnamed target means that.

    Raises:
        PromptError: no class of that name or label.
    """
    known = ", ".join(f"{one.name} (label {one.value})" for one in classes)
    sorted_out: dict[int, list[Target]] = {}
    for target in targets:
        called = target.name.strip()
        if called:
            fitting = [i for i, one in enumerate(classes) if one.name == called]
            fitting = fitting or [i for i, one in enumerate(classes) if one.name.casefold() == called.casefold()]
        else:
            fitting = [i for i, one in enumerate(classes) if target.label == one.value or len(classes) == 1]
        if len(fitting) != 1:
            what = f"the name {target.name!r}" if called else f"label {target.label}"
            raise PromptError(f"{what} is none of what was learned: {known}; say which one the prompt is for")
        if target.z_range is not None:
            raise PromptError(
                "learned prompts look at every slice, so a slice range has no meaning; leave it out, and carry the "
                "object instead (--carry, in Python carry=True)"
            )
        one = classes[fitting[0]]
        sorted_out.setdefault(fitting[0], []).append(replace(target, label=one.value, name=one.name))
    return sorted_out


def find_slices(
    answers: Callable[[int], Sequence[ClassAnswer]],
    classes: Sequence[LearnedClass],
    *,
    shape: tuple[int, int, int],
    drawn: Mapping[int, Sequence[Target]],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Finding], Shaped[np.ndarray, "slice row column"]]:
    """Every class on every slice, and the label map in which each pixel belongs to one of them.

    `answers` gives those of all classes on a slice. `shape` is (slice, row, column).
    """
    findings = [Finding(one, tuple(drawn.get(i, ()))) for i, one in enumerate(classes)]
    labels = np.zeros(shape, dtype=np.uint8 if max(one.value for one in classes) <= 255 else np.uint16)
    for z in range(shape[0]):
        best = np.zeros(shape[1:], dtype=np.float32)  # a logit must be above 0, and above those of other classes
        for finding, answer in zip(findings, answers(z), strict=True):
            finding.probabilities[z] = answer.probability
            if not answer.is_there:
                continue
            mask = SliceMask.of(answer.logits > 0, answer.predicted_iou)
            if not mask.area:
                continue
            finding.masks[z] = mask
            higher = answer.logits > best
            best[higher] = answer.logits[higher]
            labels[z][higher] = finding.wanted.value
        if progress is not None:
            progress(z + 1, shape[0])
    return findings, labels


def follow_class(
    answer: Callable[[int], ClassAnswer],
    wanted: LearnedClass,
    target: Target,
    z_range: tuple[int, int],
    *,
    until_end: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Finding:
    """One class from the slice that a target was drawn on, up and down through a range, both ends included.

    `answer` gives the class's on a slice. With `until_end` each way ends at the first slice where it is not there.
    """
    finding = Finding(wanted, (target,))
    start, (first, last) = target.z or 0, z_range
    done, total = 0, last - first + 1
    for way in ((start,), range(start + 1, last + 1), range(start - 1, first - 1, -1)):
        for at, z in enumerate(way):
            found = answer(z)
            finding.probabilities[z] = found.probability
            mask = SliceMask.of(found.logits > 0, found.predicted_iou)
            done += 1
            if found.is_there and mask.area:
                finding.masks[z] = mask
            elif until_end and z != start:
                done += len(way) - at - 1  # those beyond are settled, too
                break
            if progress is not None:
                progress(done, total)
    if progress is not None:
        progress(total, total)
    return finding


def carry_through(findings: Sequence[Finding], frame: Frame, decode: DecodeSlice) -> None:
    """Replace the masks of each class by those of one object that is followed from its most certain slice.

    From there a box is carried up and down, by the rules for a drawn one (`palpate.inference.propagation`): as far as
    the class had been found by itself, and no further than where the object seems to end (`until_end`). So slices in
    between are filled, and what was found elsewhere is dropped. The slice it starts from, and those a person drew on,
    keep their masks.
    """
    tracks: dict[int, Track] = {}
    for i, finding in enumerate(findings):
        if finding.slices is None:
            continue
        start = finding.most_certain
        box = frame.box_around(finding.masks[start].full(), margin=PROPAGATION_MARGIN)
        if box is not None:
            tracks[i] = Track(CanvasPrompt(box=box), start, *finding.slices)
    for _ in propagate(list(tracks.values()), frame, decode, until_end=True):
        pass
    for i, track in tracks.items():
        finding = findings[i]
        keeping = {track.start, *(target.z for target in finding.targets)}
        kept = {z: mask for z, mask in finding.masks.items() if z in keeping}
        finding.masks = {z: mask for z, mask in track.masks.items() if mask.area} | kept


def painted(findings: Sequence[Finding], shape: tuple[int, int, int]) -> Shaped[np.ndarray, "slice row column"]:
    """One label map of masks without logits: of several classes in a voxel, that of the highest predicted IoU."""
    tracks = [finding.track() for finding in findings]
    return paint(tracks, [finding.wanted.value for finding in findings], shape=shape, overlap="score")[0]


def notes_on(findings: Sequence[Finding], labels: Shaped[np.ndarray, "..."]) -> list[str]:
    """What a careful reader should know."""
    notes: list[str] = []
    for finding in findings:
        name, sure = finding.wanted.name, f"object probability {finding.probability:.2f}"
        if not finding.masks:
            notes.append(
                f"{name} is not there ({sure})" if finding.probability < 0.5 else f"{name} has no pixels ({sure})"
            )
        elif not any((labels[z] == finding.wanted.value).any() for z in finding.masks):
            notes.append(f"{name} was found, but every pixel of it belongs more surely to another class ({sure})")
        elif finding.targets and finding.probability < 0.5:
            notes.append(f"{name} was drawn, though the model doubts that it is there ({sure})")
    return notes
