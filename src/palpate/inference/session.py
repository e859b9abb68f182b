"""A session: set an image once, prompt it as often as you like."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from typing import cast, get_args

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image as Picture

from palpate.errors import PromptError, SettingError, UnsupportedPrompt
from palpate.images.image import Image
from palpate.images.intensity import Intensity, intensity_for, parse_intensity, to_uint8
from palpate.images.modality import with_modality
from palpate.images.slices import slice_back, slice_first, slicing_axis
from palpate.inference.batching import alike, batch_of
from palpate.inference.box_search import Answer, best_box
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.inference.embeddings import EmbeddingStore, embedding_key
from palpate.inference.finding import (
    ClassAnswer,
    Finding,
    Mode,
    by_class,
    carry_through,
    find_slices,
    follow_class,
    notes_on,
    painted,
)
from palpate.inference.painting import Overlap, paint, score
from palpate.inference.propagation import SliceMask, Track, doubtful_slices, propagate
from palpate.inference.runtimes import FindingRuntime, Runtime
from palpate.inference.segmentation import IntensityOrigin, Provenance, Segmentation, SegmentedObject
from palpate.models.frame import CanvasPrompt
from palpate.models.promptable import ImageEmbedding, PromptKind
from palpate.prompts.types import Box, MaskPrompt, Points, Prompt, Scribble, Target

Progress = Callable[[int, int], None]
"""Called with slices done and slices in all (each object's slices count on their own)."""

_KINDS: dict[type[Prompt], PromptKind] = {Box: "box", Points: "points", Scribble: "scribble", MaskPrompt: "mask"}


@dataclass(frozen=True, eq=False)
class _Scene:
    """The image a session works on, ready to be encoded slice by slice."""

    image: Image
    intensity: Intensity
    intensity_origin: IntensityOrigin
    axis: int | None
    slices: UInt8[np.ndarray, "..."]  # (slice, row, column) or (slice, row, column, 3)
    keys: dict[int, str] = field(default_factory=dict[int, str])  # embedding keys of the slices seen so far

    @property
    def shape(self) -> tuple[int, int]:
        return self.slices.shape[1], self.slices.shape[2]

    @property
    def depth(self) -> int:
        return self.slices.shape[0]

    def volume_ml(self, voxels: int) -> float | None:
        """Of so many voxels, where the image says how large they are."""
        if self.axis is None or not self.image.knows_place:
            return None
        # Not the product of the spacings: a tilted gantry shears the voxels, which makes them no larger.
        return voxels * float(abs(np.linalg.det(self.image.affine[:3, :3]))) / 1000


class Session:
    """One model, one image at a time, many prompts; its memory is the image's embeddings.

    `memory_bytes` bounds the embeddings held in main memory; more go to a temporary file. With a `cache`, embeddings
    are looked up on disk before they are computed, and kept there for the next session. `intensity` and `modality` are
    what the card of the runtime's adapter or learned prompts says. The one is the rule that images are shown by unless
    `set_image` is told another; without it, each image's own. The other is what images are whose files do not say, but
    for colours and pictures of 8 bits, whose values are made for the eye.

    >>> import palpate
    >>> session = palpate.load("lite-medsam")                                    # doctest: +SKIP
    >>> session.set_image(palpate.images.read("abdomen.nii.gz"))                 # doctest: +SKIP
    >>> session.predict(palpate.Box(92, 110, 301, 330, z=41)).save("liver.nii.gz")   # doctest: +SKIP
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        memory_bytes: int = 2**30,
        cache: EmbeddingCache | None = None,
        intensity: Intensity | None = None,
        modality: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.runtime = runtime
        self.notes = tuple(notes)
        """What every result says as well: why it is not the runtime that was to be expected, say."""
        self._cache = cache
        self._intensity = intensity
        self._intensity_origin: IntensityOrigin = "card"
        self._modality = modality
        self._embeddings = EmbeddingStore(memory_bytes=memory_bytes)
        self._scene: _Scene | None = None
        self.encoding_seconds = 0.0
        """How long embeddings took so far, encoded or read from the cache."""

    def set_image(
        self,
        image: Image,
        *,
        modality: str | None = None,
        intensity: Intensity | str | None = None,
        axis: str | None = None,
    ) -> None:
        """Choose the image to segment. A picture is encoded now, a volume slice by slice when prompted.

        - `modality` overrides what the file says: CT, MR, US, PET, XR, photo.
        - `intensity` overrides how values become 0..255: a rule of `palpate.images.intensity` or its name.
        - `axis` is the axis to cut a volume along (z, y, x, axial, coronal, sagittal); without it, the axis of
          acquisition. Prompts are in pixels of such a slice.

        Raises:
            ImageError: nothing to see in it.
            SettingError: a modality, rule or axis that does not exist.
        """
        previous, self._scene = self._scene, None  # if this image is refused, the last one must not answer for it
        if previous is None or previous.image.array is not image.array:
            self._embeddings.drop_spilled()  # a long row of volumes must not fill the disk
        if modality is None and image.modality == "unknown" and not _holds_display_values(image):
            image = with_modality(image, self._modality, origin="card")
        else:
            image = with_modality(image, modality)
        if isinstance(intensity, str):
            intensity = parse_intensity(intensity)
        origin: IntensityOrigin = "given" if intensity else self._intensity_origin if self._intensity else "image"
        intensity = intensity or self._intensity or intensity_for(image)
        if not image.is_volume and axis is not None:
            raise SettingError(f"a picture has one slice, so there is no axis {axis!r} to cut it along; leave it out")
        slice_axis = slicing_axis(image, axis) if image.is_volume else None
        seen = to_uint8(image, intensity)
        slices = seen[None] if slice_axis is None else slice_first(seen, slice_axis)
        self._scene = _Scene(image, intensity, origin, slice_axis, slices)
        if len(slices) == 1:
            self._embedding(0)

    @property
    def intensity(self) -> Intensity | None:
        """The rule that images are shown by unless `set_image` is told another; None: each image's own."""
        return self._intensity

    def sibling(self, *, memory_bytes: int = 2**30, intensity: Intensity | None = None) -> Session:
        """Another session on the same runtime, with an image and a memory of its own, and perhaps another rule."""
        sibling = Session(
            self.runtime,
            memory_bytes=memory_bytes,
            cache=self._cache,
            intensity=intensity or self._intensity,
            modality=self._modality,
            notes=self.notes,
        )
        sibling._intensity_origin = "given" if intensity else self._intensity_origin
        return sibling

    @property
    def slices(self) -> UInt8[np.ndarray, "..."]:
        """The image as the model gets to see it, 0..255: (slice, row, column), colour last; a picture has one slice.

        Raises:
            PromptError: no image is set.
        """
        return self._ready().slices

    @property
    def axis(self) -> int | None:
        """The array axis that the volume is cut along; None for a picture.

        Raises:
            PromptError: no image is set.
        """
        return self._ready().axis

    def encode(self, slices: Iterable[int]) -> None:
        """Encode these slices now, so that prompts on them are answered at once.

        Raises:
            PromptError: no image is set, or a slice does not exist.
        """
        depth = self._ready().depth
        for z in slices:
            if not 0 <= z < depth:
                raise PromptError(f"slice {z} does not exist; this image has slices 0..{depth - 1}")
            self._embedding(z)

    def predict(
        self,
        *prompts: Prompt,
        z_range: tuple[int, int] | None = None,
        until_end: bool = False,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment one object from all the prompts given for it.

        In a volume the prompts name their slice (`z`), and `z_range` says how far to carry the mask, both ends
        included; see `predict_all` for `until_end`.

        Raises:
            PromptError: a prompt that makes no sense on this image.
            UnsupportedPrompt: the model does not take a prompt of this kind.
        """
        return self.predict_all([Target(prompts, z_range=z_range)], until_end=until_end, progress=progress)

    def predict_all(
        self,
        targets: Sequence[Target],
        *,
        overlap: Overlap | str = "last",
        until_end: bool = False,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment several objects, decoding all prompts of a slice as one batch.

        With `until_end`, an object stops where it seems to end (see `palpate.inference.propagation`), and targets
        without a slice range go through the whole volume.

        Raises:
            PromptError: a prompt that makes no sense on this image, or more labels than a 16-bit map holds.
            UnsupportedPrompt: the model does not take a prompt of this kind.
            SettingError: an overlap policy that does not exist.
        """
        scene = self._ready()
        if overlap not in get_args(Overlap):
            raise SettingError(f"there is no overlap policy {overlap!r}; choose {', '.join(get_args(Overlap))}")
        if not targets:
            raise PromptError("nothing to segment: give at least one box, point, scribble or mask")
        if max(target.label for target in targets) > np.iinfo(np.uint16).max:
            raise PromptError("labels above 65535 do not fit a 16-bit label map; number the objects from 1")
        notes: dict[str, None] = {}  # ordered, each once
        targets = [self._placed(target, scene, notes) for target in targets]
        tracks = [self._track(target, scene, until_end=until_end) for target in targets]
        total, done = sum(map(len, tracks)), 0
        for settled in propagate(tracks, self.runtime.frame, self._decode, until_end=until_end):
            done += settled
            if progress is not None:
                progress(done, total)
        for target, track in zip(targets, tracks, strict=True):
            if doubtful := doubtful_slices(track):
                name = target.name or f"label {target.label}"
                notes[
                    f"{name} is small or uncertain on {len(doubtful)} of {len(track)} slices ({_listed(doubtful)}); "
                    "look at them, or shorten the range"
                ] = None
        labels, voxels = paint(
            tracks,
            [target.label for target in targets],
            shape=(scene.depth, *scene.shape),
            overlap=cast(Overlap, overlap),
        )
        return Segmentation(
            labels=labels[0] if scene.axis is None else np.ascontiguousarray(slice_back(labels, scene.axis)),
            objects=_objects(targets, tracks, voxels, scene),
            geometry=scene.image.geometry,
            provenance=self._provenance(scene, overlap, until_end=until_end),
            notes=(*self.notes, *notes),
        )

    def masks(self, targets: Sequence[Target], *, mode: Mode | str = "manual") -> list[Bool[np.ndarray, "row column"]]:
        """The mask of each target on its own slice, whatever the others claim: in the manual mode as `predict` gives
        it, in the semi-autonomous one as `find_one`.

        Slice ranges only say which slice that is; nothing is carried. Prompts of a slice are decoded as one batch, so
        many variants of one prompt cost little more than one of them.

        Raises:
            PromptError: a prompt that makes no sense on this image, or no target.
            UnsupportedPrompt: the model does not take a prompt of this kind.
            SettingError: another mode, or a session without learned prompts.
        """
        scene = self._ready()
        if not targets:
            raise PromptError("nothing to segment: give at least one box, point, scribble or mask")
        if mode == "semi-autonomous":
            return self._masks_beside(targets)
        if mode != "manual":
            raise SettingError(f"masks of targets are made in the manual or the semi-autonomous mode, not in {mode!r}")
        tracks = [self._track(self._placed(target, scene, {}), scene, until_end=False) for target in targets]
        found: dict[int, Bool[np.ndarray, "row column"]] = {}
        for z in sorted({track.start for track in tracks}):
            members = [i for i, track in enumerate(tracks) if track.start == z]
            answers = self._answers(z, [tracks[i].prompt for i in members])
            for i, answer in zip(members, answers, strict=True):
                found[i] = self.runtime.frame.image(answer.logits, scene.shape) > 0
        return [found[i] for i in range(len(tracks))]

    def find(
        self,
        targets: Sequence[Target] = (),
        *,
        mode: Mode | str = "autonomous",
        carry: bool = False,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment every class that was learned (`palpate.load(auto=...)`), on every slice.

        - `autonomous`: nothing is drawn.
        - `semi-autonomous`: what is drawn goes in beside what was learned (of a localiser: a box takes the place of the
          guessed one), on its slice and for its class, which its name says or else its label; other classes and slices
          are autonomous.
        - `manual`: learned prompts are left out. The same as `predict_all(targets)`.

        There is one object a class, with its label and name. A class whose object logit is below 0 is not there: its
        object has no pixels, and a note says so. A pixel that several classes claim belongs to that of the highest
        logit (see `palpate.inference.finding`). With `carry`, each class of a volume is followed from its most certain
        slice, as a drawn box would be.

        Raises:
            PromptError: a prompt that makes no sense on this image, in this mode, or for any class that was learned.
            SettingError: a mode that does not exist, a session without learned prompts, or `carry` in the manual mode.
        """
        if mode == "manual":
            _check_not_carried(carry)
            return self.predict_all(targets, progress=progress)
        findings, labels, notes = self._find(targets, mode=mode, carry=carry, progress=progress)
        return self._together(findings, labels, notes, mode=mode, carry=carry)

    def find_each(
        self,
        targets: Sequence[Target] = (),
        *,
        mode: Mode | str = "autonomous",
        carry: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Segmentation, ...]:
        """The same as `find`, as a map of its own for each class (`manual`: each label), which may overlap.

        Raises:
            PromptError, SettingError: as `find` does.
        """
        if mode == "manual":
            _check_not_carried(carry)
            each = {target.label: [other for other in targets if other.label == target.label] for target in targets}
            return tuple(self.predict_all(some, progress=progress) for some in each.values())
        findings, _, _ = self._find(targets, mode=mode, carry=carry, progress=progress)
        return self._apart(findings, mode=mode, carry=carry)

    def find_one(self, target: Target, *, until_end: bool = False, progress: Progress | None = None) -> Segmentation:
        """Segment the one learned class that a target was drawn for, on its slice alone unless a range says further.

        It is the semi-autonomous mode of `find`, without the other classes: prompts go in beside what was learned, and
        on the other slices of `z_range` it is what was learned alone. With `until_end` (without a range: through the
        whole volume) it stops, up and down, at the first slice where the class is not there.

        Raises:
            PromptError: a prompt that makes no sense on this image, or for any class that was learned.
            SettingError: a session without learned prompts.
        """
        scene, runtime = self._ready(), self._finding_runtime()
        notes: dict[str, None] = {}
        placed = self._placed(target, scene, notes, as_it_is=True)
        start = placed.z or 0
        first, last = placed.z_range or ((0, scene.depth - 1) if until_end else (start, start))
        number, drawn = self._class_of(placed, runtime)
        finding = follow_class(
            lambda z: self._answers_beside(z, [(number, drawn if z == start else None)], runtime)[0],
            runtime.classes[number],
            drawn,
            (first, last),
            until_end=until_end,
            progress=progress,
        )
        labels = painted([finding], (scene.depth, *scene.shape))
        told = [*notes, *notes_on([finding], labels)]
        return self._segmentation([finding], labels, told, mode="semi-autonomous", overlap="none", carry=until_end)

    def find_both(
        self,
        targets: Sequence[Target] = (),
        *,
        mode: Mode | str = "autonomous",
        carry: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Segmentation, tuple[Segmentation, ...]]:
        """What `find` and `find_each` give, from one look at the image.

        Raises:
            PromptError, SettingError: as `find` does.
        """
        if mode == "manual":
            together = self.find(targets, mode=mode, carry=carry, progress=progress)
            return together, self.find_each(targets, mode=mode, carry=carry)
        findings, labels, notes = self._find(targets, mode=mode, carry=carry, progress=progress)
        together = self._together(findings, labels, notes, mode=mode, carry=carry)
        return together, self._apart(findings, mode=mode, carry=carry)

    def _together(
        self, findings: Sequence[Finding], labels: np.ndarray, notes: Sequence[str], *, mode: str, carry: bool
    ) -> Segmentation:
        overlap = "score" if carry and self._ready().axis is not None else "logits"
        return self._segmentation(findings, labels, notes, mode=mode, overlap=overlap, carry=carry)

    def _apart(self, findings: Sequence[Finding], *, mode: str, carry: bool) -> tuple[Segmentation, ...]:
        scene = self._ready()
        maps: list[Segmentation] = []
        for finding in findings:
            labels = painted([finding], (scene.depth, *scene.shape))
            notes = notes_on([finding], labels)
            maps.append(self._segmentation([finding], labels, notes, mode=mode, overlap="none", carry=carry))
        return tuple(maps)

    def _find(
        self, targets: Sequence[Target], *, mode: str, carry: bool, progress: Progress | None
    ) -> tuple[list[Finding], np.ndarray, list[str]]:
        """What is found of each class, the label map (slice, row, column), and notes."""
        scene, runtime = self._ready(), self._finding_runtime()
        if mode not in get_args(Mode):
            raise SettingError(f"there is no mode {mode!r}; choose {', '.join(get_args(Mode))}")
        if mode == "autonomous" and targets:
            raise PromptError("nothing can be drawn in the autonomous mode; choose semi-autonomous, or leave it out")
        if mode == "semi-autonomous" and not targets:
            raise PromptError("in the semi-autonomous mode something is drawn; choose autonomous, or draw a prompt")
        notes: dict[str, None] = {}
        # Learned prompts were trained beside boxes, points and masks, so every kind goes to the network as it is.
        placed = [self._placed(target, scene, notes, as_it_is=True) for target in targets]
        drawn = by_class(placed, runtime.classes)
        findings, labels = find_slices(
            lambda z: self._class_answers(z, drawn, runtime),
            runtime.classes,
            shape=(scene.depth, *scene.shape),
            drawn=drawn,
            progress=progress,
        )
        if carry and scene.axis is not None:
            carry_through(findings, self.runtime.frame, self._decode)
            labels = painted(findings, labels.shape)
        return findings, labels, [*notes, *notes_on(findings, labels)]

    def _finding_runtime(self) -> FindingRuntime:
        if not isinstance(self.runtime, FindingRuntime):
            raise SettingError(
                f"{self.runtime.model} has no learned prompts, so it finds nothing by itself; load a file that "
                "`palpate learn` made (--auto FILE, in Python palpate.load(auto=FILE)), or draw a prompt"
            )
        return self.runtime

    def _class_answers(
        self, z: int, drawn: Mapping[int, Sequence[Target]], runtime: FindingRuntime
    ) -> list[ClassAnswer]:
        """What is found of each class on a slice. Of a class that was drawn in several parts, it is all of them."""
        here = {i: [target for target in targets if (target.z or 0) == z] for i, targets in drawn.items()}
        items = [(i, target) for i in range(len(runtime.classes)) for target in here.get(i) or [None]]
        answers: dict[int, ClassAnswer] = {}
        for (i, _), answer in zip(items, self._answers_beside(z, items, runtime), strict=True):
            answers[i] = answer if i not in answers else answers[i].united(answer)
        return [answers[i] for i in range(len(runtime.classes))]

    def _class_of(self, target: Target, runtime: FindingRuntime) -> tuple[int, Target]:
        """The number of the class that a target was drawn for, and the target under its label and name."""
        ((number, (drawn,)),) = by_class([replace(target, z_range=None)], runtime.classes).items()
        return number, drawn

    def _masks_beside(self, targets: Sequence[Target]) -> list[Bool[np.ndarray, "row column"]]:
        scene, runtime = self._ready(), self._finding_runtime()
        items = [self._class_of(self._placed(target, scene, {}, as_it_is=True), runtime) for target in targets]
        found: dict[int, Bool[np.ndarray, "row column"]] = {}
        for z in sorted({target.z or 0 for _, target in items}):
            members = [i for i, (_, target) in enumerate(items) if (target.z or 0) == z]
            answers = self._answers_beside(z, [items[i] for i in members], runtime)
            for i, answer in zip(members, answers, strict=True):
                found[i] = answer.logits > 0
        return [found[i] for i in range(len(items))]

    def _answers_beside(
        self, z: int, asked: Sequence[tuple[int, Target | None]], runtime: FindingRuntime
    ) -> list[ClassAnswer]:
        """What is found of a class on a slice, for each that is asked for: by its number, and with what was drawn."""
        scene, embedding = self._ready(), self._embedding(z)
        items = [
            (i, None if target is None else runtime.frame.prompts(target.prompts, scene.shape)) for i, target in asked
        ]
        groups = [[n for n, (_, prompt) in enumerate(items) if prompt is None]]
        with_prompt = {n: prompt for n, (_, prompt) in enumerate(items) if prompt is not None}
        groups += [[list(with_prompt)[k] for k in members] for members in alike(list(with_prompt.values()))]
        answers: dict[int, ClassAnswer] = {}
        for members in filter(None, groups):
            prompts = [with_prompt[n] for n in members if n in with_prompt]
            numbers = np.array([items[n][0] for n in members], dtype=np.int64)
            found = runtime.find(embedding, numbers, batch_of(prompts) if prompts else None)
            assert found.object_logits is not None
            for k, n in enumerate(members):
                answers[n] = ClassAnswer(
                    runtime.frame.image(found.logits[k, 0], scene.shape),
                    float(found.predicted_iou[k, 0]),
                    float(found.object_logits[k]),
                    drawn=n in with_prompt,
                )
        return [answers[n] for n in range(len(items))]

    def _segmentation(
        self,
        findings: Sequence[Finding],
        labels: np.ndarray,
        notes: Sequence[str],
        *,
        mode: str,
        overlap: str,
        carry: bool,
    ) -> Segmentation:
        """A result of what was found; `labels` are (slice, row, column)."""
        scene = self._ready()
        followed = carry and scene.axis is not None
        objects: list[SegmentedObject] = []
        for finding in findings:
            # Other classes may have taken all of its own mask on a slice, and it is nowhere else.
            counts = {z: int((labels[z] == finding.wanted.value).sum()) for z in sorted(finding.masks)}
            voxels, touched = sum(counts.values()), [z for z, count in counts.items() if count]
            objects.append(
                SegmentedObject(
                    label=finding.wanted.value,
                    name=finding.wanted.name,
                    predicted_iou=finding.predicted_iou,
                    voxels=voxels,
                    volume_ml=scene.volume_ml(voxels),
                    slices=(touched[0], touched[-1]) if touched and scene.axis is not None else None,
                    targets=finding.targets,
                    object_probability=finding.probability,
                )
            )
        made = self._provenance(scene, overlap, until_end=followed)
        return Segmentation(
            labels=labels[0] if scene.axis is None else np.ascontiguousarray(slice_back(labels, scene.axis)),
            objects=tuple(objects),
            geometry=scene.image.geometry,
            provenance=replace(made, mode=mode),
            notes=(*self.notes, *notes),
        )

    def preview(self, segmentation: Segmentation) -> Picture.Image:
        """A picture of the image, the prompts and the outlines: the prompted slice, or six slices of a range.

        The segmentation must come from the image that is set now.

        Raises:
            PromptError: it does not, or no image is set.
        """
        from palpate.inference.preview_tiles import preview_of  # slow to import: it needs SciPy

        scene = self._ready()
        if segmentation.geometry.shape != scene.image.shape or segmentation.provenance.axis != scene.axis:
            raise PromptError(
                "this segmentation is of another image, or cut along another axis; set that image again to draw it"
            )
        return preview_of(segmentation, scene.image, scene.slices)

    def _ready(self) -> _Scene:
        if self._scene is None:
            raise PromptError("no image is set; call set_image(image) before predict(...)")
        return self._scene

    def _placed(self, target: Target, scene: _Scene, notes: dict[str, None], *, as_it_is: bool = False) -> Target:
        """The target with every prompt on an existing slice and inside it.

        Unless all prompts go to the network as they are, those that it does not take are refused or told.
        """
        z, z_range = target.z, target.z_range
        if scene.axis is None:
            if z not in (None, 0) or z_range not in (None, (0, 0)):
                raise PromptError("this image is a picture, not a volume; leave the slice and the slice range out")
            z, z_range = None, None
        else:
            if z is None and scene.depth == 1:
                z = 0
            if z is None:
                raise PromptError(
                    f"this is a volume of {scene.depth} slices; say which slice the prompt was drawn on "
                    "(--slice K, in Python z=K) or give a slice range (--z FIRST LAST)"
                )
            for number in (z, *(z_range or ())):
                if number >= scene.depth:
                    raise PromptError(f"slice {number} does not exist; this volume has slices 0..{scene.depth - 1}")
            if z_range is not None and not z_range[0] <= z <= z_range[1]:
                raise PromptError(f"the prompted slice {z} lies outside the slice range {z_range[0]}..{z_range[1]}")
        placed: list[Prompt] = []
        boxed = _has_box(target)
        for prompt in target.prompts:
            if not as_it_is:
                self._check_supported(prompt, notes, beside_box=boxed)
            inside = prompt.inside(scene.shape)
            if isinstance(prompt, Box) and inside != prompt:
                notes[f"the box {prompt} reached over the border and was cut to {inside}"] = None
            placed.append(replace(inside, z=z) if not isinstance(inside, Points) else _on_slice(inside, z))
        return replace(target, prompts=tuple(placed), z_range=z_range)

    def _check_supported(self, prompt: Prompt, notes: dict[str, None], *, beside_box: bool) -> None:
        kind, support = _KINDS[type(prompt)], self.runtime.prompts
        way = support.way(kind, beside_box=beside_box)
        if way == "trained":
            return
        trained = ", ".join(support.trained)
        if way == "through-boxes":
            notes[
                f"{self.runtime.model} was trained with {trained} prompts only; the {kind} prompt was answered by the "
                "box that fits it best, so look at the mask, or draw a box"
            ] = None
        elif way == "accepted":
            notes[
                f"{self.runtime.model} was trained with {trained} prompts only; a {kind} prompt works less well, so "
                "look at the mask, or add a box"
            ] = None
        else:
            raise UnsupportedPrompt(f"{self.runtime.model} does not take a {kind} prompt; it takes {trained}")

    def _track(self, target: Target, scene: _Scene, *, until_end: bool) -> Track:
        start = target.z or 0
        whole = (0, scene.depth - 1) if until_end else (start, start)
        first, last = target.z_range or whole
        prompt = self.runtime.frame.prompts(target.prompts, scene.shape)
        ways = {self.runtime.prompts.way(_KINDS[type(mark)], beside_box=_has_box(target)) for mark in target.prompts}
        if "through-boxes" in ways:
            # The search reads points and logits, whatever the network takes for a scribble.
            prompt = replace(self.runtime.frame, mask_prompt="logits").prompts(target.prompts, scene.shape)
            content = self.runtime.frame.content_shape(scene.shape)
            box = best_box(prompt, lambda prompts: self._answers(start, prompts), content=content)
            prompt = CanvasPrompt(box=box)
        return Track(prompt, start, first, last)

    def _embedding(self, z: int) -> ImageEmbedding:
        start = time.perf_counter()
        embedding = self._embedded(z)
        self.encoding_seconds += time.perf_counter() - start
        return embedding

    def _embedded(self, z: int) -> ImageEmbedding:
        scene = self._ready()
        key = scene.keys.get(z)
        embedding = None if key is None else self._embeddings.get(key)
        if embedding is None:
            canvas = self.runtime.frame.canvas(scene.slices[z])
            key = embedding_key(canvas, encoder_hash=self.runtime.encoder_hash)
            scene.keys[z] = key
            embedding = self._embeddings.get(key)
            if embedding is None:
                embedding = None if self._cache is None else self._cache.get(key)
                if embedding is None:
                    embedding = self.runtime.encode(canvas[None])
                    if self._cache is not None:
                        self._cache.put(key, embedding)
                self._embeddings.put(key, embedding)
        return embedding

    def _decode(self, z: int, prompts: Sequence[CanvasPrompt]) -> list[SliceMask]:
        shape = self._ready().shape
        return [
            SliceMask.of(self.runtime.frame.image(logits, shape) > 0, predicted_iou)
            for logits, predicted_iou in self._answers(z, prompts)
        ]

    def _answers(self, z: int, prompts: Sequence[CanvasPrompt]) -> list[Answer]:
        """Logits on the canvas and predicted IoU of each prompt; prompts of the same parts decode as one batch.

        Of several candidates (`PromptSupport.best_of_three`) it is the one with the highest predicted IoU.
        """
        embedding = self._embedding(z)
        answers: dict[int, Answer] = {}
        for members in alike(prompts):
            several = self.runtime.prompts.best_of_three and _is_a_lone_point(prompts[members[0]])
            batch = batch_of([prompts[i] for i in members])
            prediction = self.runtime.decode(embedding, batch, multimask_output=several)
            for i, logits, ious in zip(members, prediction.logits, prediction.predicted_iou, strict=True):
                best = int(np.argmax(ious))
                answers[i] = Answer(logits[best], float(ious[best]))
        return [answers[i] for i in range(len(prompts))]

    def _provenance(self, scene: _Scene, overlap: str, *, until_end: bool) -> Provenance:
        return Provenance(
            model=self.runtime.model,
            weights_hash=self.runtime.weights_hash,
            runtime=self.runtime.describe(),
            modality=scene.image.modality,
            modality_origin=scene.image.modality_origin,
            intensity=str(scene.intensity),
            intensity_origin=scene.intensity_origin,
            axis=scene.axis,
            overlap=overlap,
            until_end=until_end,
            palpate_version=_own_version(),
        )


@cache
def _own_version() -> str:
    # Looked up in the installation's files: some milliseconds, which a person waits for at every prompt.
    return version("palpate")


def _has_box(target: Target) -> bool:
    return any(isinstance(prompt, Box) for prompt in target.prompts)


def _holds_display_values(image: Image) -> bool:
    """Whether somebody has chosen the values for the eye: no scanner's rule applies to them, whatever the scanner.

    Datasets go by the same when their cases say a modality, so images look as they did in training.
    """
    return image.colour or (image.array.dtype == np.uint8 and not image.is_volume)


def _check_not_carried(carry: bool) -> None:
    if carry:
        raise SettingError(
            "carry=True follows what was learned, which the manual mode leaves out; leave it out, and give the targets "
            "a z_range, or call predict_all(targets, until_end=True)"
        )


def _is_a_lone_point(prompt: CanvasPrompt) -> bool:
    return prompt.box is None and prompt.mask is None and prompt.points is not None and len(prompt.points) == 1


def _listed(numbers: Sequence[int]) -> str:
    """Sorted whole numbers, runs written as `3..7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def _on_slice(points: Points, z: int | None) -> Points:
    return Points(points.coordinates, points.labels, z=z)


def _objects(
    targets: Sequence[Target], tracks: Sequence[Track], voxels: np.ndarray, scene: _Scene
) -> tuple[SegmentedObject, ...]:
    results: list[SegmentedObject] = []
    for target, track, count in zip(targets, tracks, voxels.tolist(), strict=True):
        found = [number for number, mask in track.masks.items() if mask.area]
        results.append(
            SegmentedObject(
                label=target.label,
                name=target.name,
                predicted_iou=score(track),
                voxels=count,
                volume_ml=scene.volume_ml(count),
                slices=(min(found), max(found)) if found and scene.axis is not None else None,
                targets=(target,),
            )
        )
    return tuple(results)
