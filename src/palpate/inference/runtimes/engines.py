"""What runs a graph: OpenVINO or ONNX Runtime, on the CPU."""

from __future__ import annotations

import ctypes
import hashlib
import locale
import os
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from palpate.errors import SettingError

EngineName = Literal["openvino", "onnxruntime"]
Precision = Literal["float32", "bfloat16", "float16"]

Feeds = Mapping[str, np.ndarray]
Answer = Callable[[Feeds], dict[str, np.ndarray]]
"""Arrays by the names of a graph's inputs in, those of its outputs out; inputs that it does not know are left out."""


@runtime_checkable
class Engine(Protocol):
    """Something that opens ONNX files."""

    @property
    def title(self) -> str:
        """What it is called, with its version and precision, for people."""
        ...

    @property
    def precision(self) -> Precision:
        """What it computes in."""
        ...

    @property
    def name(self) -> EngineName:
        """What it is called where it is chosen."""
        ...

    def open(self, path: Path) -> Answer:
        """The graph in a file, ready to run. Whatever it raises means that the graph cannot be run."""
        ...


@dataclass(frozen=True)
class OpenVINO:
    """OpenVINO's CPU plugin. With `kept`, a folder, compiled graphs are found there again."""

    precision: Precision = "float32"
    kept: Path | None = None
    threads: int | None = None
    name: EngineName = "openvino"

    @property
    def title(self) -> str:
        """What it is called."""
        return f"OpenVINO {_version('openvino')} on cpu, {self.precision}"

    def open(self, path: Path) -> Answer:
        """The graph in a file, compiled."""
        core = openvino_core()
        hint = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[self.precision]
        # Told nothing, the plugin takes bfloat16 where the processor has it, and masks move.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if self.kept is not None:
            # A folder each: OpenVINO takes a graph that was compiled in float32 for one in float16 (2026.4.1).
            settings["CACHE_DIR"] = str(self.kept / self.precision)
        if threads := self.threads or _threads():
            settings["INFERENCE_NUM_THREADS"] = threads
            # Bound to the first cores, as is usual, they would share these with the threads of other processes that
            # were allowed as few: two workers of one thread were as slow as one.
            settings["ENABLE_CPU_PINNING"] = False
        with locale_kept():
            try:
                # Its own fusion of attention is slower than the plain operations on these graphs.
                compiled = core.compile_model(path, "CPU", {**settings, "SNIPPETS_MODE": "DISABLE"})
            except RuntimeError:  # the setting is not documented: another version may not have it
                compiled = core.compile_model(path, "CPU", settings)
        # A tensor has several names where OpenVINO left out an operation that did nothing.
        known = set[str]().union(*(item.get_names() for item in compiled.inputs))
        request, turn = compiled.create_infer_request(), threading.Lock()

        def run(feeds: Feeds) -> dict[str, np.ndarray]:
            # One at a time, and a copy: the request writes its next answer to the same place.
            with turn:
                found = request.infer({key: value for key, value in feeds.items() if key in known}, share_inputs=True)
                return {name: np.array(found[item]) for item in compiled.outputs for name in item.get_names()}

        return run


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime's CPU provider."""

    precision: Precision = "float32"
    threads: int | None = None
    name: EngineName = "onnxruntime"

    @property
    def title(self) -> str:
        """What it is called."""
        return f"ONNX Runtime {_version('onnxruntime')} on cpu, {self.precision}"

    def open(self, path: Path) -> Answer:
        """The graph in a file."""
        import onnxruntime

        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads or _threads()
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        known, names = {item.name for item in session.get_inputs()}, [item.name for item in session.get_outputs()]

        def run(feeds: Feeds) -> dict[str, np.ndarray]:
            found = session.run(None, {key: value for key, value in feeds.items() if key in known})
            return dict(zip(names, found, strict=True))

        return run


def engine(
    name: EngineName, *, precision: Precision = "float32", kept: Path | None = None, threads: int | None = None
) -> Engine:
    """The engine of that name, with so many threads; without a number it is OMP_NUM_THREADS, or the engine's choice.

    Raises:
        SettingError: its package is not installed, or it does not compute in that precision here.
    """
    if not is_installed(name):
        raise SettingError(
            f"{name} is not installed; install it with: pip install {name}, or leave the runtime to auto"
        )
    if name == "onnxruntime":
        if precision != "float32":
            raise SettingError(f"ONNX Runtime computes in float32 here, not in {precision}; choose openvino or torch")
        return OnnxRuntime(threads=threads)
    if precision != "float32" and precision not in precisions():
        raise SettingError(f"this processor has no {precision}; choose float32")
    return OpenVINO(precision, kept, threads)


def is_installed(name: EngineName) -> bool:
    """Whether the engine's package is there; nothing is imported."""
    from importlib.util import find_spec

    return find_spec(name) is not None


def precisions() -> tuple[Precision, ...]:
    """What OpenVINO can compute in on this processor."""
    able: list[str] = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    names: dict[str, Precision] = {"FP32": "float32", "BF16": "bfloat16", "FP16": "float16"}
    return tuple(precision for name, precision in names.items() if name in able)


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """OpenVINO itself, for as long as the process lasts: once it was let go, the next Ctrl-C ended the process with a
    segmentation fault (2026.4.1)."""
    import openvino

    return openvino.Core()


_compiling = threading.RLock()


@contextmanager
def locale_kept() -> Generator[None]:
    """The process keeps its locale, and one thread compiles at a time.

    OpenVINO takes the locale "C" while it compiles and leaves it so where that fails, or where two threads compile at
    once (2026.4.1); from then on Python would read and write every text as ASCII.
    """
    with _compiling:
        before = locale.setlocale(locale.LC_ALL)
        try:
            yield
        finally:
            locale.setlocale(locale.LC_ALL, before)


def hash_on(runtime: str, precision: Precision, encoder_hash: str) -> str:
    """What an encoder's hash becomes where something else than torch in float32 computes.

    Its embeddings are others, if only in their last digits. A cache must not mix them: training promises the same bits.
    """
    if (runtime, precision) == ("torch", "float32"):
        return encoder_hash
    return hashlib.sha256(f"{encoder_hash} {runtime} {precision}".encode()).hexdigest()


def has_cuda() -> bool:
    """Whether torch, which is not imported, would find a CUDA device: both it and the driver must know of one."""
    from importlib.util import find_spec

    found = find_spec("torch")
    libraries = Path(found.origin).parent / "lib" if found is not None and found.origin else None
    if libraries is None:
        return False
    if any(libraries.glob("*torch_hip*")):  # AMD's, which torch calls CUDA as well
        return Path("/dev/kfd").exists()
    if not any(libraries.glob("*torch_cuda*")):
        return False
    try:
        driver, count = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1"), ctypes.c_int()
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


def in_short(error: Exception) -> str:
    """What went wrong, without the traces that engines print around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200].rstrip(".")


def _threads() -> int:
    """How many threads the user allows; 0 leaves it to the engine."""
    with suppress(ValueError):
        return max(0, int(os.environ.get("OMP_NUM_THREADS", "0")))
    return 0


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


__all__ = [
    "Answer",
    "Engine",
    "EngineName",
    "Feeds",
    "OnnxRuntime",
    "OpenVINO",
    "Precision",
    "engine",
    "has_cuda",
    "hash_on",
    "in_short",
    "is_installed",
    "locale_kept",
    "openvino_core",
    "precisions",
]
