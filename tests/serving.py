"""`palpate serve` as a process of its own, as a user starts it."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

TOKEN = "a-token-for-tests"


@dataclass
class Serving:
    """The process, the address it printed, and a client that may ask it."""

    process: "subprocess.Popen[str]"
    address: str
    client: httpx.Client
    said: list[str]

    def kill(self) -> None:
        """As a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.client.close()


@contextmanager
def serving(folder: Path, *more: object) -> Generator[Serving]:
    """A server on a folder, at a free port; it is ended as by Ctrl-C."""
    command = [sys.executable, "-m", "palpate", "serve", folder, "--port", 0, "--no-browser", "--token", TOKEN, *more]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    said: list[str] = []
    address = ""
    reader = threading.Thread()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if match := re.match(r"programs\s+(http://\S+)", line):
                address = match[1]
            if line.startswith("kept in"):
                break
        else:
            raise AssertionError("".join(said))
        # Whatever it says later must not fill the pipe and stop it.
        reader = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)
        reader.start()
        client = httpx.Client(base_url=address, headers={"authorization": f"Bearer {TOKEN}"}, timeout=60)
        _wait(client, said)
        yield Serving(process, address, client, said)
        client.close()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
        if reader.ident is not None:
            reader.join(10)
        if process.stdout is not None:
            process.stdout.close()


def _wait(client: httpx.Client, said: list[str]) -> None:
    for _ in range(200):
        try:
            client.get("/healthz")
        except httpx.TransportError:
            threading.Event().wait(0.1)
        else:
            return
    raise AssertionError("".join(said))
