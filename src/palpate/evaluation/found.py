"""What a model finds by itself, for the protocols that ask it to: which classes, on which slices, with what beside it.

A *look* is one question: every class of the card, on some slices, with what a person drew there or without. All classes
of a slice are answered by one run of the predictor, and masks are the product's (`palpate.inference.finding`): empty
where the object logit is below 0, and a pixel that several classes claim belongs to the surest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Shaped

from palpate.datasets.case import Case, Region
from palpate.errors import SettingError
from palpate.inference.finding import ClassAnswer, Finding, by_class, find_slices
from palpate.inference.runtimes import FindingRuntime
from palpate.inference.session import Session
from palpate.models.promptable import LearnedClass
from palpate.prompts.types import Target


@dataclass(frozen=True, eq=False)
class Look:
    """What was found of every class on some slices.

    - `findings` are by class, their slices counted among `slices`.
    - `labels` (slice, row, column) is the label map of the whole image, 0 where nobody looked.
    - `object_logits` has a row a slice of `slices` and a column a class.
    """

    classes: tuple[LearnedClass, ...]
    slices: tuple[int, ...]
    targets: tuple[Target, ...]
    findings: tuple[Finding, ...]
    labels: Shaped[np.ndarray, "slice row column"]
    object_logits: Shaped[np.ndarray, "asked class"]
    milliseconds: float

    def mask(self, number: int) -> Bool[np.ndarray, "slice row column"]:
        """Where that class was found."""
        return self.labels == self.classes[number].value

    def predicted_iou(self, number: int, z: int | None = None) -> float:
        """On one slice, or the mean over those where the class was found; 0 where it was not."""
        finding = self.findings[number]
        if z is None:
            return finding.predicted_iou
        mask = finding.masks.get(self.slices.index(z))
        return 0.0 if mask is None else mask.predicted_iou


def look(session: Session, slices: Sequence[int], targets: Sequence[Target] = (), *, only_drawn: bool = False) -> Look:
    """Ask a session for all of its classes on these slices of its image.

    `targets` lie on them and have the label of a class. With `only_drawn`, a class is nowhere but where it was drawn:
    that is what the other slices and classes mean where somebody drew all there is.

    Raises:
        SettingError: the session has no learned prompts.
        PromptError: a target of no class, or no image is set.
    """
    runtime = finding_runtime(session)
    slices = sorted(set(slices))
    session.encode(slices)
    shape = session.slices.shape[:3]
    inside = [replace(t, prompts=tuple(prompt.inside(shape[1:]) for prompt in t.prompts)) for t in targets]
    drawn = by_class(inside, runtime.classes)
    logits = np.full((len(slices), len(runtime.classes)), np.nan)

    def answers(place: int) -> list[ClassAnswer]:
        # The session has no verb for one slice with the classes' own logits; `find` would go through all of them.
        found = session._class_answers(slices[place], drawn, runtime)  # pyright: ignore[reportPrivateUsage]
        logits[place] = [answer.object_logit for answer in found]
        if only_drawn:
            found = [answer if answer.drawn else replace(answer, object_logit=-np.inf) for answer in found]
        return found

    start = time.perf_counter()
    findings, some = find_slices(answers, runtime.classes, shape=(len(slices), *shape[1:]), drawn={})
    milliseconds = 1000 * (time.perf_counter() - start)
    labels = np.zeros(shape, dtype=some.dtype)
    labels[slices] = some
    return Look(runtime.classes, tuple(slices), tuple(inside), tuple(findings), labels, logits, milliseconds)


def finding_runtime(session: Session) -> FindingRuntime:
    """The runtime of a session that finds by itself.

    Raises:
        SettingError: it does not.
    """
    if not isinstance(session.runtime, FindingRuntime):
        raise SettingError(
            f"{session.runtime.model} has no learned prompts to measure; give what `palpate learn` made (--auto FILE), "
            "or leave out the protocols with `learned`"
        )
    return session.runtime


def classes_of(session: Session) -> tuple[LearnedClass, ...]:
    """What a session finds by itself."""
    return session.runtime.classes if isinstance(session.runtime, FindingRuntime) else ()


def region_of(case: Case, wanted: LearnedClass, classes: Sequence[LearnedClass]) -> Region | None:
    """The object of a case that is this class: the one of its name in any case of letters, or else of its label value.

    None where the case has no such object and says so: then nobody can tell whether the class is there.
    """
    if not case.regions:
        return Region(str(wanted.value), (wanted.value,))
    named = {region.name.casefold(): region for region in case.regions}
    if wanted.name.casefold() in named:
        return named[wanted.name.casefold()]
    taken = {one.name.casefold() for one in classes}
    free = [region for name, region in named.items() if name not in taken]
    return next((region for region in free if region.values == (wanted.value,)), None)
