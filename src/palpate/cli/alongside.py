"""A command of palpate that lasts no longer than who started it: `python -m palpate.cli.alongside learn ...`.

Its standard input is a pipe that the starter holds open and never writes to. When that ends, because the starter wants
the command to stop or was killed itself, it is as if somebody had pressed Ctrl-C. So nothing goes on training, and
holds its folder, after a server that is no more. It gives way to its starter where both want the processor.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from contextlib import suppress

from palpate import cli

_NICENESS = 5


def main() -> None:
    """Run the command that the arguments name."""
    # A shell's background ignores Ctrl-C, and hands that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(os, "nice"):
        with suppress(OSError):
            os.nice(_NICENESS)
    threading.Thread(target=_until_the_end, daemon=True).start()
    cli.main(sys.argv[1:])


def _until_the_end() -> None:
    # Not through sys.stdin: a thread that waits there holds a lock that Python wants when it ends.
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    if hasattr(signal, "pthread_kill"):
        # A real signal: it also wakes the main thread where that waits.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # Windows
        _thread.interrupt_main()


if __name__ == "__main__":
    main()
