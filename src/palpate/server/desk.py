"""The desk that a person works at: the cases of a folder, who has which open, labels, and what is known of each.

All routers speak to this; it knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np

from palpate.errors import InputError, OutputError, PalpateError
from palpate.images import read
from palpate.images.formats import suffix_of
from palpate.images.image import Image
from palpate.inference.folder_images import Entry, images_in
from palpate.inference.session import Session
from palpate.server.annotation import DRAFT, Annotation, Policy, Rules
from palpate.server.journal import Journal
from palpate.server.leases import Full, Leases
from palpate.server.opened import OpenImage
from palpate.server.record import image_hash
from palpate.server.uploads import least_bytes

STATE = ".palpate"
"""The folder beside the images in which the annotations are."""

MAX_OPEN = 16
"""Cases that may be open at once."""

IMAGE_BYTES = 4 * 2**30
"""What images may take together; one image may always be opened, whatever it takes."""

Status = Literal["untouched", "started", "guessed", "done", "damaged"]

_ID = re.compile(r"[A-Za-z0-9._-]{1,120}")

_HASHED = re.compile(r"-[0-9a-f]{8}$")
"""How ids end that are not a file's own name; a file that is called so gets another hash, so that no two are alike."""

_COLOURS = (
    "#f2b134", "#4fb0e8", "#7bd389", "#e86a92", "#b89cf0", "#f28f5b", "#58d6c9", "#d9d04f",
    "#ef6f6c", "#8fb8ff", "#a3c65c", "#d68fd6", "#c9a27a", "#6fd0f2", "#f0c5a0", "#9adfb4",
)  # fmt: skip


class UnknownCase(InputError):
    """There is no such case in the folder."""


class InUse(InputError):
    """Something is still needed, so it cannot go."""


@dataclass(frozen=True)
class Label:
    """A label: its value in label maps (1 to 254), name, colour (#rrggbb), and whether nobody may change its voxels."""

    value: int
    name: str
    colour: str
    locked: bool = False

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour as three numbers of 0 to 255."""
        return int(self.colour[1:3], 16), int(self.colour[3:5], 16), int(self.colour[5:7], 16)


@dataclass(frozen=True)
class CaseStatus:
    """What the list of cases says of one.

    `agreement` is the lowest of the objects that were accepted, or a guess's as long as none was; None where none was
    measured.
    """

    id: str
    name: str
    kind: Literal["volume", "picture"]
    status: Status
    labels: tuple[int, ...] = ()
    agreement: float | None = None
    note: str = ""


class Desk:
    """The cases of a folder.

    `make_session` gives a new session on the model, and `learned` one on what was learned, by the SHA-256 of its file;
    `state` is where the journal is (default: a hidden folder beside the images). At most `max_open` cases are open at
    once, and beside the first only as many as take `image_bytes`.

    Raises:
        FormatError: no such folder. OutputError: the state cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        make_session: Callable[[], Session],
        *,
        learned: Callable[[str], Session] | None = None,
        state: Path | None = None,
        max_open: int = MAX_OPEN,
        image_bytes: int = IMAGE_BYTES,
        leases: Leases | None = None,
    ) -> None:
        self.folder = folder
        self.state = state or folder / STATE
        self.leases = leases or Leases(most=max_open)
        self._make_session, self._learned = make_session, learned
        self._image_bytes = image_bytes
        self._lock = threading.RLock()
        self._opening: dict[str, threading.Lock] = {}
        self._open: OrderedDict[str, OpenImage] = OrderedDict()
        self._coming: dict[str, int] = {}  # what those take that are being read, as far as it is known
        self._annotations: dict[str, Annotation] = {}
        # What was let go of and somebody still works with, a job say: all who ask get the very same, as two maps of one
        # case would not know of each other.
        self._used: weakref.WeakValueDictionary[str, OpenImage] = weakref.WeakValueDictionary()
        self._worked_on: weakref.WeakValueDictionary[str, Annotation] = weakref.WeakValueDictionary()
        self._damage: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        self.rescan()
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot keep annotations in {self.state} ({error.strerror or error}); say where with --state FOLDER"
            ) from error
        self.journal = Journal(self.state / "journal.sqlite")
        if not self.journal.labels():
            self.journal.set_label(1, "object", _COLOURS[0], locked=False)

    def close(self) -> None:
        """Let go of everything; what was done is kept."""
        self.journal.close()

    # Cases.

    def rescan(self) -> None:
        """Look again which images the folder holds."""
        entries, _ = images_in(self.folder, leave_out=[self.state])
        found = {_id_of(entry, self.folder): entry for entry in entries}
        with self._lock:
            self._entries = found

    def cases(self, order: str = "name") -> list[CaseStatus]:
        """All cases by name, or (`agreement`) the least certain first: those that nothing is known of come last."""
        known = self.journal.cases()
        listed = [self._status(case, entry, known.get(case)) for case, entry in self._entries.items()]
        if order == "agreement":
            listed.sort(key=lambda one: (one.agreement is None, one.agreement or 0.0))
        return listed

    def status(self, case: str) -> CaseStatus:
        """What is known of a case.

        Raises:
            UnknownCase: there is none of that name.
        """
        return self._status(case, self.entry(case), self.journal.cases(case).get(case))

    def set_done(self, case: str, done: bool) -> None:
        """Note that a case is finished, or is not."""
        self.entry(case)
        self.journal.set_case(case, done=done)

    def finished(self) -> list[str]:
        """The cases that are done."""
        return [one.id for one in self.cases() if one.status == "done"]

    def entry(self, case: str) -> Entry:
        """Where a case comes from.

        Raises:
            UnknownCase: there is none of that name.
        """
        entry = self._entries.get(case) if _ID.fullmatch(case) else None
        if entry is None:
            raise UnknownCase(f"there is no case {case[:120]!r} in this folder; the list of cases says which there are")
        return entry

    def image(self, case: str) -> Image:
        """The image of a case."""
        return self.opened(case).image

    def opened(self, case: str) -> OpenImage:
        """A case's image, read unless it is in memory.

        Raises:
            UnknownCase: no such case. FormatError and others: the image cannot be read. Full: there is no room for it
            beside those that are open.
        """
        entry = self.entry(case)
        with self._lock:
            turn = self._opening.setdefault(case, threading.Lock())
        with turn:  # two who open one case read it once
            with self._lock:
                there = self._open.get(case) or self._used.get(case)
                if there is not None:
                    if case not in self._open:
                        self._make_room(case, there.image.array.nbytes)
                        del self._coming[case]
                    self._open[case] = there
                    self._open.move_to_end(case)
                    return there
            if entry.damage:
                raise InputError(entry.damage)
            try:
                self._make_room(case, least_bytes(entry.path))
                image = self._read(case, entry)
                self._make_room(case, image.array.nbytes)
                opened = OpenImage(image, self._make_session, learned=self._learned)
                with self._lock:
                    self._open[case] = self._used[case] = opened
            finally:
                with self._lock:
                    self._coming.pop(case, None)
            return opened

    def _read(self, case: str, entry: Entry) -> Image:
        try:
            image = read(entry.path, series=entry.series)
        except PalpateError as error:
            self._damage[case] = str(error)
            raise
        except MemoryError:
            raise Full(f"there is not enough memory to open {case} at the moment; close another case") from None
        self._damage.pop(case, None)
        return image

    def annotation(self, case: str) -> Annotation:
        """The work on a case."""
        opened = self.opened(case)
        with self._lock:
            annotation = self._annotations.get(case) or self._worked_on.get(case)
            if annotation is not None and annotation.opened is opened:
                self._annotations[case] = annotation
        if annotation is None or annotation.opened is not opened:
            digest = image_hash(opened.image)
            begun_on = self.journal.image_of(case)
            if begun_on not in (None, digest):
                raise InputError(
                    f"{case} was annotated on another image of this name (its values or its place have changed); put "
                    "the old one back, or give this one another name"
                )
            annotation = Annotation(case, opened, self.journal)
            with self._lock:
                # Whoever came first has made the one that all use.
                there = self._annotations.get(case) or self._worked_on.get(case)
                if there is not None and there.opened is opened:
                    return there
                self._annotations[case] = self._worked_on[case] = annotation
            self.journal.set_case(case, image=digest)
        return annotation

    def session_for(self, image: Image) -> OpenImage:
        """An image that is in no folder, an upload say, to be prompted."""
        return OpenImage(image, self._make_session)

    def labels_of(self, case: str) -> np.ndarray:
        """The label map of a case in array order, uint8."""
        annotation = self.annotation(case)
        with annotation.lock:
            return annotation.labels.copy()

    def put_labels(
        self,
        case: str,
        labels: np.ndarray,
        names: Mapping[int, str],
        how: Literal["guess", "import"],
        *,
        score: float | None = None,
    ) -> None:
        """Put a label map that was made elsewhere in place of a case's; it can be undone.

        `labels` are on the image's grid in array order, `how` says where they come from, `score` how certain they are,
        and `names` are those of its values. Names that the folder has already get its value; others become new labels.

        Raises:
            InputError: another shape than the image's, a locked label that would change, or too many labels.
        """
        ours = self._values_for(names)
        values = np.zeros(256, dtype=np.uint8)
        for value in np.unique(labels).tolist():
            if value:
                values[value] = ours.get(value, value if 1 <= value < DRAFT else 0)
        mapped = values[labels]
        annotation = self.annotation(case)
        with annotation.lock:
            there = annotation.labels
            for label in self.labels():
                changed = mapped.shape == there.shape and ((mapped == label.value) != (there == label.value)).any()
                if label.locked and changed:
                    raise InputError(f"label {label.value} ({label.name}) is locked; unlock it to replace it")
            body: dict[str, object] = {"names": {str(value): names[value] for value in names}}
            if score is not None:
                body["agreement"] = score
            annotation.put(mapped, kind=how, body=body)

    # Labels.

    def labels(self) -> list[Label]:
        """All labels of the folder, by value."""
        return [Label(value, name, colour, locked) for value, name, colour, locked in self.journal.labels()]

    def label(self, value: int) -> Label:
        """A label by its value.

        Raises:
            InputError: there is none.
        """
        return _found(self.labels(), value)

    def add_label(self, name: str, colour: str | None = None) -> Label:
        """A new label with the next free value.

        Raises:
            InputError: no name, one that is taken, a colour that is none, or all values are taken.
        """
        with self._lock:
            labels = self.labels()
            value = next((v for v in range(1, DRAFT) if v not in {label.value for label in labels}), None)
            if value is None:
                raise InputError(f"all {DRAFT - 1} labels are taken; delete one that is not used")
            label = Label(value, name, colour or _COLOURS[(value - 1) % len(_COLOURS)])
            return self._keep(label, labels)

    def change_label(
        self, value: int, *, name: str | None = None, colour: str | None = None, locked: bool | None = None
    ) -> Label:
        """Another name or colour, locked or not.

        Raises:
            InputError: no such label, or as `add_label`.
        """
        with self._lock:
            labels = self.labels()
            label = _found(labels, value)
            changed = replace(
                label,
                name=label.name if name is None else name,
                colour=label.colour if colour is None else colour,
                locked=label.locked if locked is None else locked,
            )
            return self._keep(changed, [one for one in labels if one.value != value])

    def drop_label(self, value: int) -> None:
        """Forget a label that no case uses.

        Raises:
            InputError: no such label. InUse: some case has voxels of it, now or in what could be undone.
        """
        with self._lock:
            label = _found(self.labels(), value)
            # Also those whose images are elsewhere at the moment: they may come back.
            for case in sorted({*self._entries, *self.journal.cases()}):
                if value in self.journal.used_labels(case):
                    raise InUse(f"{label.name} is used in {case}; a label can only be deleted while no case uses it")
            self.journal.drop_label(value)

    @property
    def policy(self) -> Policy:
        """Whether new objects take voxels of other labels."""
        return cast(Policy, self.journal.setting("policy", "keep"))

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self.journal.set_setting("policy", policy)

    def rules(self) -> Rules:
        """What may be overwritten now."""
        return Rules(self.policy, frozenset(label.value for label in self.labels() if label.locked))

    def _keep(self, label: Label, others: list[Label]) -> Label:
        name = label.name.strip()
        if not name or len(name) > 64 or not name.isprintable():
            raise InputError(
                f"the name {label.name[:70]!r} is not 1 to 64 characters that can be printed; give another"
            )
        if any(other.name == name for other in others):
            raise InputError(f"there is a label {name} already; choose another name")
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", label.colour):
            raise InputError(f"{label.colour[:20]!r} is no colour; write it as #rrggbb")
        self.journal.set_label(label.value, name, label.colour.lower(), locked=label.locked)
        return replace(label, name=name, colour=label.colour.lower())

    def _values_for(self, names: Mapping[int, str]) -> dict[int, int]:
        """The folder's value of each of somebody else's labels; those it has not are made."""
        ours: dict[int, int] = {}
        with self._lock:
            for value, name in names.items():
                known = {label.name: label.value for label in self.labels()}
                ours[value] = known[name] if name in known else self.add_label(name).value
        return ours

    def _status(self, case: str, entry: Entry, known: tuple[bool, float | None, int, str] | None) -> CaseStatus:
        done, agreement, actions, kind = known or (False, None, 0, "")
        damage = entry.damage or self._damage.get(case, "")
        status: Status = "untouched"
        if damage:
            status = "damaged"
        elif done:
            status = "done"
        elif actions:
            status = "guessed" if kind == "guess" and actions == 1 else "started"
        opened = self._open.get(case)
        if opened is not None:
            is_volume = opened.image.is_volume
        else:
            is_volume = entry.series is not None or suffix_of(entry.path) in (
                ".nii",
                ".nii.gz",
                ".nrrd",
                ".mha",
                ".mhd",
            )
        labels = tuple(sorted(self.journal.used_labels(case))) if actions else ()
        return CaseStatus(case, entry.name, "volume" if is_volume else "picture", status, labels, agreement, damage)

    def _make_room(self, case: str, size: int) -> None:
        """Count so many bytes for a case that is being read, and forget images that nobody has open to make room.

        The longest unused go first.

        Raises:
            Full: what others have open leaves too little. Whoever is alone is never refused.
        """
        with self._lock:
            self._coming.pop(case, None)
            held = self.leases.held() | self._coming.keys()
            sizes = {one: opened.image.array.nbytes for one, opened in self._open.items()}
            kept = sum(sizes[one] for one in sizes if one in held) + sum(self._coming.values())
            if kept and kept + size > self._image_bytes:
                raise Full(
                    f"the images that are open leave no room for {case}; close one of them, or try again in a minute"
                )
            self._coming[case] = size
            total = sum(sizes.values()) + sum(self._coming.values())
            for one in [one for one in self._open if one not in held]:
                if total <= self._image_bytes and len(self._open) + len(self._coming) <= self.leases.most:
                    return
                del self._open[one]
                self._annotations.pop(one, None)
                total -= sizes[one]


def _found(labels: list[Label], value: int) -> Label:
    for label in labels:
        if label.value == value:
            return label
    raise InputError(f"there is no label {value}; there are {', '.join(str(label.value) for label in labels)}")


def _id_of(entry: Entry, folder: Path) -> str:
    """A name for addresses, which stays whatever else comes into the folder: annotations are found by it again.

    A file is called as it is where the characters allow, a DICOM series by the file or sub-folder that holds it, as its
    own name depends on its neighbours. Where that may not be enough, a few digits of a hash follow.
    """
    if entry.uid is None:
        shown, key = entry.name, entry.path.relative_to(folder).as_posix()
    else:
        suffix = suffix_of(Path(entry.lies_in))
        shown, key = entry.lies_in[: len(entry.lies_in) - len(suffix)], f"{entry.lies_in}\0{entry.uid}"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", shown).strip(".")[:100]
    if plain == key and not _HASHED.search(plain):
        return plain
    return f"{plain or 'image'}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
