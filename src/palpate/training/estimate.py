"""What a run will take, told before it starts."""

from __future__ import annotations

import sys

import torch

from palpate.training.task import Event, Plan


def estimated(plan: Plan, *, items: int, seconds: float, device: torch.device) -> Event:
    """The time of a plan and its memory, from a first batch: of so many items, it took so many seconds."""
    validations = 1 + plan.epochs // plan.validate_every
    a_mask = seconds / max(1, items) / 3  # decoding is a third of decoding and going back
    in_all = seconds * plan.accumulate * plan.total + validations * plan.asked * a_mask
    memory = _peak_memory(device)
    return Event(
        "estimate",
        f"{plan.size}, {plan.total} steps of {plan.per_step} {plan.unit}: about {_in_words(in_all)} on {device}"
        + (f" and {memory / 1e9:.1f} GB of memory" if memory else "")
        + plan.warning,
        values={"seconds": in_all, "bytes": memory},
    )


def _peak_memory(device: torch.device) -> int:
    """In bytes; 0 where it cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
