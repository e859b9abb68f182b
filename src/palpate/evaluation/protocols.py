"""Protocols: what a simulated user does with each object, and how far that is from ideal.

A protocol is either a prompt strategy of `palpate.prompts.strategies` (drawn on a picture, or on a volume's middle
slice and carried through, or on every slice), a mistake that only volumes know, people's own scribbles, a user who
corrects by clicks, or learned prompts, alone or beside a strategy's. What is drawn is drawn from the reference mask, so
it says how a model answers such prompts, not how people draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

from palpate.errors import SettingError
from palpate.prompts import volumes
from palpate.prompts.strategies import STRATEGIES, Strategy, strategy
from palpate.prompts.types import Prompt, Target

VolumePrompts = Literal["middle", "every-slice", "one-slice"]
"""Where a volume is prompted: on the object's middle slice and carried to its ends, on each of its slices, or on the
middle slice, which then is all that counts."""

Kind = Literal[
    "strategy", "volume", "clicks", "box, then clicks", "scribbles", "learned", "strategy beside what was learned"
]

LEARNED_KINDS: tuple[Kind, ...] = ("learned", "strategy beside what was learned")
"""Those that a model without learned prompts cannot answer."""


@dataclass(frozen=True)
class Protocol:
    """What is asked of the model for every object.

    `severities` are those that are run; a protocol without severity has the single value 0. Protocols that are not
    `random` are run once, whatever the number of seeds: a repetition would be the same row again.
    """

    name: str
    says: str
    kind: Kind
    random: bool
    source: str
    severities: tuple[float, ...] = (0.0,)
    uses_severity: bool = False


_MISTAKES = (
    Protocol(
        "missing-slices",
        "Tight boxes on the object's slices, but a share of them has none: carried over from the nearest that has",
        kind="volume",
        random=True,
        source="palpate",
        severities=(0.25, 0.5, 0.75),
        uses_severity=True,
    ),
    Protocol(
        "wrong-slice",
        "The middle slice's tight box, put on a slice that is off by a share of the object's slices",
        kind="volume",
        random=True,
        source="palpate",
        severities=(0.1, 0.25),
        uses_severity=True,
    ),
    Protocol(
        "range-long",
        "The middle slice's tight box, carried too far at both ends by a share of the object's slices",
        kind="volume",
        random=False,
        source="palpate",
        severities=(0.1, 0.25),
        uses_severity=True,
    ),
    Protocol(
        "range-short",
        "The middle slice's tight box, carried not far enough at both ends by a share of the object's slices",
        kind="volume",
        random=False,
        source="palpate",
        severities=(0.1, 0.25),
        uses_severity=True,
    ),
)

_OTHERS = (
    Protocol(
        "clicks",
        "A click in the middle of the object, then one in the middle of the largest mistake, again and again",
        kind="clicks",
        random=False,
        source="number of clicks (NoC) of interactive segmentation",
    ),
    Protocol(
        "box+clicks",
        "A tight box, then a click in the middle of the largest mistake, again and again",
        kind="box, then clicks",
        random=False,
        source="number of clicks (NoC) of interactive segmentation",
    ),
    Protocol(
        "scribble-human",
        "What people drew on the image; the seed numbers the people",
        kind="scribbles",
        random=False,
        source="the dataset",
    ),
)

_BESIDE = {
    "box+learned": "standard",
    "points+learned": "points-3",
    "expansion+learned": "expansion",
    "shrink+learned": "shrink",
    "jitter+learned": "jitter",
}
"""What a person draws in the semi-autonomous protocols, by its strategy."""

_LEARNED = Protocol(
    "learned",
    "Nothing is drawn: the model finds its classes by learned prompts (--auto)",
    kind="learned",
    random=False,
    source="Wahd et al. 2024, arXiv 2409.06821",
)


def all_protocols() -> tuple[Protocol, ...]:
    """All there are, with the severities they are run at unless told otherwise."""
    beside = (_beside(name, strategy(drawn)) for name, drawn in _BESIDE.items())
    return (*(_of_strategy(item) for item in STRATEGIES), *_MISTAKES, *_OTHERS, _LEARNED, *beside)


def protocol(name: str, severities: Sequence[float | int] = ()) -> Protocol:
    """The protocol of that name, at these severities if it knows severities.

    Raises:
        SettingError: no such protocol, or a severity that is no fraction.
    """
    found = next((item for item in all_protocols() if item.name == name), None)
    if found is None:
        near = get_close_matches(name, [item.name for item in all_protocols()], n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise SettingError(f"there is no protocol {name!r}; {meant}`palpate evaluate --list` shows them all")
    if not found.uses_severity or not severities:
        return found
    least = -1 if min(found.severities) < 0 else 0
    for severity in severities:
        if not least <= severity <= 1:
            raise SettingError(
                f"severity {severity:g} does not fit {name}; give fractions from {least} to 1, such as 0.1 for 10 %"
            )
    # Rounded as in the table, and each once: 0.1 and 0.10 are one condition.
    chosen = tuple(dict.fromkeys(round(float(severity), 6) for severity in severities))
    return replace(found, severities=chosen)


def _of_strategy(item: Strategy) -> Protocol:
    return Protocol(
        item.name,
        item.says,
        kind="strategy",
        random=item.random,
        source=item.source,
        severities=item.default_severities if item.uses_severity else (0.0,),
        uses_severity=item.uses_severity,
    )


def _beside(name: str, item: Strategy) -> Protocol:
    says = f"{item.says}; beside learned prompts (--auto)"
    kind = "strategy beside what was learned"
    return replace(_of_strategy(item), name=name, says=says, kind=kind, source=_LEARNED.source)


def drawn_by(asked: Protocol) -> str:
    """The strategy of a protocol that draws; a protocol beside learned prompts draws what its strategy does alone."""
    return _BESIDE.get(asked.name, asked.name)


def dice_for(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on these names alone, not on what was drawn before or elsewhere.

    So any row can be made again by itself, models are compared on the same draws, and severities of one protocol
    share theirs (a curve over severity is then not blurred by new dice at every point).
    """
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32).tolist())


def targets_for(
    asked: Protocol,
    mask: Bool[np.ndarray, "slice row column"],
    pixels: UInt8[np.ndarray, "slice row column *colour"],
    *,
    severity: float,
    rng: np.random.Generator,
    is_volume: bool,
    where: VolumePrompts,
) -> list[Target]:
    """What this protocol asks for one object: targets for a session; none if it does not apply to this image.

    Raises:
        PromptError: the mask is empty.
    """
    if asked.kind == "volume":
        applies = is_volume and where != "one-slice"
        return _mistaken(asked, mask, pixels, severity=severity, rng=rng) if applies else []
    draw = _drawn_by(strategy(drawn_by(asked)), pixels, severity=severity, rng=rng)
    if not is_volume:
        return [Target(tuple(without_slice(prompt) for prompt in draw(mask[0], 0)))]
    if where == "every-slice":
        return volumes.on_every_slice(mask, draw)
    (target,) = volumes.from_middle(mask, draw)
    return [target if where == "middle" else replace(target, z_range=None)]


def without_slice(prompt: Prompt) -> Prompt:
    """The prompt on a picture, which has no slices."""
    return replace(prompt, z=None)


def _drawn_by(
    chosen: Strategy, pixels: np.ndarray, *, severity: float, rng: np.random.Generator
) -> Callable[[np.ndarray, int], tuple[Prompt, ...]]:
    return lambda mask, z: chosen.draw(mask, severity=severity, rng=rng, z=z, pixels=pixels[z])


def _mistaken(
    asked: Protocol, mask: np.ndarray, pixels: np.ndarray, *, severity: float, rng: np.random.Generator
) -> list[Target]:
    draw = _drawn_by(strategy("standard"), pixels, severity=0.0, rng=rng)
    match asked.name:
        case "missing-slices":
            return volumes.key_slices_missing(mask, draw, fraction=severity, rng=rng)
        case "wrong-slice":
            return volumes.on_wrong_slice(mask, draw, fraction=severity, rng=rng)
        case "range-long":
            return volumes.z_range_changed(volumes.from_middle(mask, draw), fraction=severity, depth=len(mask))
        case "range-short":
            return volumes.z_range_changed(volumes.from_middle(mask, draw), fraction=-severity, depth=len(mask))
        case other:
            raise AssertionError(f"{other} is no mistake in volumes")
