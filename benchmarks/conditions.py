"""What a table was measured with: said above each of them, in the same words."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def conditions(*packages: str, model: str = "", weights: str = "", threads: int | None = None) -> str:
    """One line: the model and its weights, the processor, its cores, threads where they were set, and versions."""
    told = [f"{model} (weights {weights[:12]})" if weights else model] if model else []
    told.append(f"{processor()}, {os.cpu_count()} cores" + (f", {threads} threads" if threads else ""))
    told.append(f"Python {platform.python_version()}")
    told += [f"{name} {_version(name)}" for name in ("palpate", *packages)]
    return "; ".join((*told[: -1 - len(packages)], ", ".join(told[-1 - len(packages) :])))


def processor() -> str:
    """What the processor calls itself, or else of which kind it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0]} ({platform.machine()})" if named and named[0] else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


__all__ = ["conditions", "processor"]
