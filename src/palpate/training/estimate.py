"""What a run will take, told before it starts."""

from __future__ import annotations

import sys

import torch

from palpate.training.task import Event, Plan

EMULATED = "; this processor has no bfloat16 and emulates it, which is slow: choose precision 32-true"
"""What is said where half precision costs time instead of saving it."""


def estimated(plan: Plan, *, items: int, seconds: float, device: torch.device, precision: str) -> Event:
    """The time of a plan and its memory, from a first batch: of so many items, it took so many seconds."""
    validations = 1 + plan.epochs // plan.validate_every
    a_mask = seconds / max(1, items) / 3  # decoding is a third of decoding and going back
    in_all = seconds * plan.accumulate * plan.total + validations * plan.asked * a_mask
    memory = _peak_memory(device)
    return Event(
        "estimate",
        f"{plan.size}, {plan.total} steps of {plan.per_step} {plan.unit}: about {_in_words(in_all)} on {device}"
        + (f" and {memory / 1e9:.1f} GB of memory" if memory else "")
        + (EMULATED if _is_emulated(precision, device) else "")
        + plan.warning,
        values={"seconds": in_all, "bytes": memory},
    )


def _is_emulated(precision: str, device: torch.device) -> bool:
    return precision == "bf16-mixed" and device.type == "cpu" and not has_bfloat16()


def has_bfloat16() -> bool:
    """Whether the processor's convolutions and matrix products can be in bfloat16; if nobody knows, yes.

    oneDNN, which computes them, has an answer of its own: on x86 it wants AVX512, which many laptops lack.
    """
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a PyTorch without oneDNN
        return True


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
