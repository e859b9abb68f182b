import gc
import os
import signal
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

# pytest loads this file before jaxtyping's hook is set, so nothing here may import palpate when it is loaded.
if TYPE_CHECKING:
    from command_line import Run
    from palpate.inference.session import Session

# The networks of the tests are so small that threads would mostly wait for each other, for seconds on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Each tiny model would be made ready for OpenVINO, which takes seconds; tests of other runtimes name them.
os.environ.setdefault("PALPATE_RUNTIME", "torch")

# pytest-xdist tells its workers that their terminal has 80 columns. There is none, and what is printed then is as wide
# as in a log file.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# The insides of this jaxtyping are known; with another one the same is checked, and takes longer.
if version("jaxtyping") == "0.3.11":
    import quick_checks

    quick_checks.install()

# A shell that starts the tests in the background makes them deaf to Ctrl-C, and with them every command they start;
# some tests are about Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("palpate", deadline=None, max_examples=30, derandomize="CI" in os.environ)
settings.load_profile("palpate")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def fake_session() -> "Session":
    """A session on a fake model; `fake_session.runtime` counts what it was asked."""
    from fake_runtime import FakeRuntime
    from palpate.inference.session import Session

    return Session(FakeRuntime())


@pytest.fixture
def palpate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Run":
    """The real command line, in this process: `palpate("predict", image, "--box", 1, 2, 3, 4)`, in an empty folder."""
    from command_line import Answer
    from palpate.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Answer(int(stop.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def weights() -> None:
    """Skips where the real weights are not."""
    from palpate.models.catalogue import stored

    if not stored("lite-medsam").is_file():
        pytest.skip("the LiteMedSAM weights are not here; `palpate models get lite-medsam` fetches them")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of labelled images."""
    named = os.environ.get("PALPATE_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not (folder / "manifest.csv").is_file():
        where = "what PALPATE_DATA names" if named else "PALPATE_DATA is not set, and the usual folder"
        pytest.skip(f"no labelled images: {where} has no manifest.csv")
    return folder


@pytest.fixture
def sockets_let_go() -> Iterator[None]:
    """For clients of others that leave sockets open: these are collected here, not as a fault of some later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
