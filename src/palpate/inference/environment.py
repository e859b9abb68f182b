"""What computes: versions, and a digest of palpate's own code. Records of runs hold it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("palpate", "torch", "transformers", "peft", "lightning-fabric", "numpy", "scipy")


@lru_cache(maxsize=1)
def environment() -> Mapping[str, str]:
    """Versions of what computes, and a digest of palpate's own code, which may be edited where it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    found["code"] = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    return found
