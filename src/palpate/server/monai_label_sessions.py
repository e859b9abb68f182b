"""Images that a client sent for a while, without putting them into the folder: MONAI Label's sessions."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time

from palpate.errors import FormatError, InputError, PalpateError
from palpate.images import read
from palpate.images.formats import suffix_of
from palpate.images.image import Image
from palpate.server.leases import Full
from palpate.server.opened import OpenImage
from palpate.server.uploads import IMAGE_SUFFIXES, check_claim, check_end, checked_suffix, least_bytes, unpack

EXPIRY_SECONDS = 3600.0
"""After so long without a question a session ends."""

LONGEST_SECONDS = 24 * 3600.0

SPARED_SECONDS = 300.0
"""After so long without a question a session ends early, if a new one needs its place."""

MOST = 8

MOST_BYTES = 4 * 2**30
"""What the images of all sessions may take together; one image may always be sent."""


class UnknownSession(InputError):
    """There is no such session, or it has ended."""


@dataclass
class Session:
    """An image that was sent, and when somebody last asked for it."""

    id: str
    folder: Path
    file: Path
    name: str
    opened: OpenImage
    created: float
    expiry: float
    used: float


class Sessions:
    """Sessions under names that cannot be guessed; their files lie in `folder`.

    There are at most `most`, whose images take at most `most_bytes` together, and each at most `image_bytes`. For a new
    one that does not fit, those that were not used for a while end, the longest unused first. Images that are sent for
    one answer take of the same room.
    """

    def __init__(
        self,
        folder: Path,
        open_image: Callable[[Image], OpenImage],
        *,
        most: int = MOST,
        most_bytes: int = MOST_BYTES,
        image_bytes: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._folder = folder
        self._open_image = open_image
        self._most = most
        self._most_bytes = most_bytes
        self._image_bytes = image_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._coming: dict[str, int] = {}  # what those take that are being read, as far as it is known

    def check_room(self) -> None:
        """Raise what `create` would, before anything is sent.

        Raises:
            Full: as many sessions as there can be are in use.
        """
        with self._lock:
            self._reap()
            self._in_the_way(0)

    def create(
        self, files: list[tuple[str, Path]], folder: Path, *, uncompress: bool, expiry: float | None = None
    ) -> Session:
        """A session on what lies in a folder of its own: an image, the files of a DICOM series, or a zip archive.

        `files` are the names that the client gave and where the files lie. The folder belongs to the session from
        now on, and is removed if there is to be none.

        Raises:
            FormatError and others: not an image. TooMuch: more than is taken. Full: too many sessions.
        """
        name = secrets.token_urlsafe(18)
        try:
            with self._lock:
                self._reap()
                claimed = sum(least_bytes(path) for _, path in files)
                self._in_the_way(claimed)
                self._coming[name] = claimed
            file, image = open_upload(files, folder, uncompress=uncompress, image_bytes=self._image_bytes)
            now = self._clock()
            session = Session(
                id=name,
                folder=folder,
                file=file,
                name=f"image{file.name.partition('.')[1]}{file.name.partition('.')[2]}" if file.is_file() else "series",
                opened=self._open_image(image),
                created=time(),
                expiry=min(max(expiry or EXPIRY_SECONDS, 1.0), LONGEST_SECONDS),
                used=now,
            )
            with self._lock:
                del self._coming[name]
                # Only now: if what was sent is no image, nobody's session has ended for it.
                for other in self._in_the_way(image.array.nbytes):
                    self._end(other)
                self._sessions[name] = session
        except BaseException:
            with self._lock:
                self._coming.pop(name, None)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return session

    @contextmanager
    def passing(self, file: Path) -> Generator[None]:
        """Count an image that is sent for one answer to those that are held, for as long as that takes.

        Raises:
            Full: those that are in use leave no room for it.
        """
        name, claimed = secrets.token_urlsafe(18), least_bytes(file)
        with self._lock:
            self._reap()
            for other in self._in_the_way(claimed, counted=False):
                self._end(other)
            self._coming[name] = claimed
        try:
            yield
        finally:
            with self._lock:
                del self._coming[name]

    def get(self, name: str, *, used: bool = True) -> Session:
        """The session of that name.

        Raises:
            UnknownSession: there is none any more.
        """
        with self._lock:
            self._reap()
            session = self._sessions.get(name)
            if session is None:
                raise UnknownSession("this session has ended or never was; send the image again")
            if used:
                session.used = self._clock()
            return session

    def remove(self, name: str) -> None:
        """End a session and remove its files.

        Raises:
            UnknownSession: there is none.
        """
        self.get(name)
        with self._lock:
            self._end(name)

    def _in_the_way(self, size: int, *, counted: bool = True) -> list[str]:
        """The sessions that have to end for one more of so many bytes, which is to be a session if it is `counted`.

        Raises:
            Full: those that may end early are not enough.
        """
        now = self._clock()
        count = len(self._sessions) + len(self._coming)
        total = sum(one.opened.image.array.nbytes for one in self._sessions.values()) + sum(self._coming.values())
        found: list[str] = []
        for one in sorted(self._sessions.values(), key=lambda one: one.used):
            fits = (not counted or count < self._most) and total + size <= self._most_bytes
            if fits or now - one.used < SPARED_SECONDS:
                break
            found.append(one.id)
            count -= 1
            total -= one.opened.image.array.nbytes
        if counted and count >= self._most:
            raise Full(f"{self._most} images were sent and are in use; end a session, or try again in some minutes")
        if total and total + size > self._most_bytes:
            raise Full("images that were sent and are in use leave no room; end one, or try again in some minutes")
        return found

    def _reap(self) -> None:
        now = self._clock()
        for name in [name for name, one in self._sessions.items() if now - one.used > one.expiry]:
            self._end(name)

    def _end(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is not None:
            shutil.rmtree(session.folder, ignore_errors=True)


def open_upload(
    files: list[tuple[str, Path]], folder: Path, *, uncompress: bool, image_bytes: int
) -> tuple[Path, Image]:
    """The image in what was sent, and its file, or its folder if it is a DICOM series.

    Raises:
        FormatError and others: not an image, or more than one. TooMuch: it holds more than `image_bytes`.
    """
    if uncompress:
        if len(files) != 1 or not files[0][0].lower().endswith(".zip"):
            raise FormatError("with uncompress=true one .zip archive is taken; pack the files of one image into it")
        inside = folder / "unpacked"
        inside.mkdir(mode=0o700)
        paths = unpack(files[0][1], inside, most=image_bytes)
        files[0][1].unlink()
    else:
        paths = [path for _, path in files]
    if len(paths) == 1 and paths[0].suffix not in ("", ".dcm", ".ima", ".dicom"):
        file = paths[0]
        check_claim(file, checked_suffix(file.name, IMAGE_SUFFIXES), most=image_bytes)
    elif len(paths) == 1:
        file = paths[0]
    else:
        file = paths[0].parent
    try:
        image = read(file)
    except PalpateError as error:
        if file.is_file():
            check_end(file, suffix_of(file))
        # Where it lies here is nobody's business.
        raise type(error)(str(error).replace(str(file), "what was sent").replace(str(folder), "here")) from None
    except MemoryError:
        raise Full("there is not enough memory for this image at the moment; send a smaller one") from None
    if image.array.nbytes > image_bytes:
        raise FormatError(f"the image holds {image.array.nbytes} bytes, more than is taken; crop it")
    return file, image
