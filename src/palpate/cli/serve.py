"""`palpate serve FOLDER`: annotate in the browser, or from programs that speak MONAI Label or nnInteractive."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from palpate.cli.terminal import note, reporting_errors, say
from palpate.errors import InputError, OutputError, SettingError
from palpate.models import DEFAULT

PORT = 8000
"""MONAI Label's own, so that its clients find us where they look."""

OPEN_FILES = 2**15
"""A series is sent as thousands of files, and those that are large lie on the disk until all are there."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def serve(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The images: files, and DICOM series in folders.")],
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help=f"Where to listen (default: {PORT}, or a free one).")
    ] = None,
    host: Annotated[str, typer.Option(help="Which address to listen on; others than this machine need a token.")] = (
        "127.0.0.1"
    ),
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="One more name or address under which others reach this server; give it once for each.",
        ),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    model: Annotated[
        str | None, typer.Option(help=f"A name from `palpate models`, or an adapter file (default: {DEFAULT}).")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="What `palpate finetune` made.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file to use instead of the known one.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    runtime: Annotated[str, typer.Option(help="auto, openvino, onnxruntime or torch.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    window: Annotated[
        str | None,
        typer.Option(
            help="How the model sees images: a CT window's name, LEVEL/WIDTH, LOW..HIGH, percentiles, min-max or as-is."
        ),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where annotations are kept (default: FOLDER/.palpate).")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(help="What a client must say to be let in, 8 signs at least (default: drawn anew at each start)."),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let every program of this machine in; only on 127.0.0.1.")
    ] = False,
    max_open: Annotated[int, typer.Option(min=1, max=256, help="How many cases may be open at once.")] = 16,
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also keep embeddings on disk, in this folder.")
    ] = None,
) -> None:
    """Annotate the images of a folder: boxes, clicks and scribbles in the browser, nothing ever lost.

    Here:             palpate serve scans/

    From 3D Slicer:   palpate serve scans/ --no-browser    (MONAI Label or nnInteractive, at the printed address)

    Stop with Ctrl-C; the same command goes on where you were.
    """
    with reporting_errors(kept=lambda: "everything that was done is kept; the same command goes on"):
        if no_token and host not in ("127.0.0.1", "localhost", "::1"):
            raise SettingError(
                "--no-token lets everybody in who reaches this machine; leave --host out, or the token in"
            )
        if no_token and allow_host:
            raise SettingError("--no-token is for this machine alone; leave --allow-host out, or the token in")
        if no_token and token is not None:
            raise SettingError("--token and --no-token exclude each other; give one of them")
        if token is not None and len(token) < 8:
            raise SettingError("a token of fewer than 8 characters is soon guessed; give a longer one, or leave it out")
        if token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
            raise SettingError("a token is a part of an address; use letters, digits and . _ ~ -, or leave it out")
        more_names = host_names(allow_host or ())
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}; give the folder that the images are in")
        from palpate.images.intensity import parse_intensity

        rule = None if window is None else parse_intensity(window)
        listening, alone = _listen(host, port), None
        try:
            import uvicorn

            from palpate.inference.embedding_cache import EmbeddingCache
            from palpate.inference.loading import load
            from palpate.inference.session import Session
            from palpate.server.app import LOOPBACK, PAGE, make_app
            from palpate.server.desk import Desk
            from palpate.server.jobs import Jobs
            from palpate.server.opened import SESSION_BYTES
            from palpate.server.teaching import Teaching

            kept = None if cache is None else EmbeddingCache(cache)
            session = load(
                model,
                adapter=adapter,
                weights=weights,
                device=device,
                runtime=runtime,
                precision=precision,
                cache=kept,
                tell=note,
            ).sibling(intensity=rule)
            for words in session.notes:
                note(words)

            def learned(sha256: str) -> Session:
                return teaching.session(sha256)

            desk = Desk(
                folder,
                lambda: session.sibling(memory_bytes=SESSION_BYTES),
                learned=learned,
                state=state,
                max_open=max_open,
            )
            alone = only_one(desk.state)
            jobs = Jobs()
            teaching = Teaching(
                desk,
                desk.state / "learned",
                jobs,
                model=model,
                weights=weights,
                device=device,
                runtime=runtime,
                precision=precision,
                cache=cache,
                options=() if window is None else ("--window", window),
            )
            secret = None if no_token else token or secrets.token_urlsafe(24)
            own = f"[{host}]" if ":" in host else host
            names = [*LOOPBACK, own, *more_names, *([socket.gethostname()] if host not in LOOPBACK else [])]
            loaded = {"model": model, "adapter": None if adapter is None else str(adapter), "precision": precision}
            loaded["window"] = window
            app = make_app(desk, jobs, teaching, session, token=secret, hosts=names, loaded=loaded)
            number = listening.getsockname()[1]
            shown = "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else own
            page = f"http://{shown}:{number}/" + (f"?token={secret}" if secret else "")
            if not (PAGE / "vendor" / "niivue.js").is_file():
                note(
                    "the browser page is not complete: NiiVue is packed when palpate is built, and npm was not there; "
                    "install Node.js and npm, then palpate once more; programs can be served as it is"
                )
            found = desk.cases()
            say(
                [
                    ("images", f"{len(found)} in {folder}"),
                    ("model", f"{session.runtime.model} on {session.runtime.describe()}"),
                    ("page", page),
                    ("programs", f"http://{shown}:{number}" + (f"  token {secret}" if secret else "")),
                    ("3D Slicer", f"http://{shown}:{number}" + (f"/key/{secret}" if secret else "")),
                    ("kept in", str(desk.state)),
                ]
            )
            if not no_browser:
                threading.Timer(1.0, webbrowser.open, [page]).start()
            _open_more_files()
            config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            listening.close()
            if alone is not None:
                os.close(alone)


def host_names(names: Sequence[str]) -> list[str]:
    """Names and addresses of a server as browsers write them into `Host`.

    Raises:
        SettingError: what is no name of one machine, or has a port or a path with it.
    """
    return [_host_name(name) for name in names]


def _host_name(given: str) -> str:
    name = given.lower()
    try:
        address = ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        labels = name.split(".")
        # Browsers take whatever ends in a number for an address.
        if len(name) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal():
            return name
    else:
        if not (address.is_unspecified or address.is_multicast or "%" in name):  # no browser knows of interfaces
            return f"[{address}]" if address.version == 6 else str(address)
    raise SettingError(
        f"--allow-host {given[:80]!r} is no name or address of a server; give it alone, without http://, port, path "
        "or *, as in --allow-host annotate.example.org or --allow-host 192.168.1.20"
    )


def only_one(state: Path) -> int | None:
    """A lock on the folder of the journal, for as long as it is open; it ends with the process, however that ends.

    Two servers would each keep a map of their own of a case, and the journal would be a mixture.

    Raises:
        OutputError: another server has it.
    """
    if sys.platform == "win32":  # folders cannot be locked there, so it is a file in it
        path, how = state / "lock", os.O_RDWR | os.O_CREAT
    else:
        path, how = state, os.O_RDONLY
    try:
        held = os.open(path, how)
    except OSError:  # the journal will say what is wrong
        return None
    try:
        if _locked(held):
            return held
    except OSError:  # a network share without locks
        os.close(held)
        return None
    os.close(held)
    raise OutputError(
        f"another `palpate serve` keeps its annotations in {state}; use its page, stop it first, or keep yours "
        "elsewhere with --state FOLDER"
    )


def _locked(held: int) -> bool:
    """Lock what is open; False if somebody else has."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(held, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
    else:
        import fcntl

        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _open_more_files() -> None:
    """Let this process have as many files open as the system allows, up to `OPEN_FILES`."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            with suppress(OSError, ValueError):  # macOS allows fewer than it says
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket at the port that was asked for; where none was, at the usual one or any that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in (PORT, 0) if port is None else (port,):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, number))
        except OSError as error:
            listening.close()
            if port is not None or number == 0:
                raise SettingError(
                    f"cannot listen on {host}:{number} ({error.strerror or error}); choose another --port"
                ) from None
        else:
            return listening
    raise AssertionError("one of the two ports answers or raises")
