"""What a run will take, in words, before it starts."""

import pytest
import torch

from palpate.training import estimate
from palpate.training.task import Plan

PLAN = Plan(
    epochs=2,
    steps_an_epoch=10,
    batch=4,
    accumulate=1,
    patience=None,
    seed=0,
    validate_every=1,
    validated=("standard",),
    asked=12,
    data_sha256="0",
    data="two scenes",
    size="2 scenes",
    unit="objects",
    makes="adapter",
    warning="; and a warning",
)


def told(precision: str = "32-true") -> str:
    event = estimate.estimated(PLAN, items=4, seconds=3.0, device=torch.device("cpu"), precision=precision)
    return event.text


def test_steps_and_validations_are_counted() -> None:
    # 20 steps of 3 s; three times 12 masks of a quarter of a second
    assert told().startswith("2 scenes, 20 steps of 4 objects: about 69 seconds on cpu")
    assert told().endswith("; and a warning")


@pytest.mark.parametrize(
    ("precision", "native", "warned"),
    [("bf16-mixed", False, True), ("bf16-mixed", True, False), ("32-true", False, False)],
)
def test_half_precision_that_costs_time_is_said(
    monkeypatch: pytest.MonkeyPatch, precision: str, native: bool, warned: bool
) -> None:
    monkeypatch.setattr(estimate, "has_bfloat16", lambda: native)
    assert ("choose precision 32-true" in told(precision)) == warned


def test_a_processor_says_whether_it_has_bfloat16() -> None:
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
        assert estimate.has_bfloat16()
    elif capabilities["architecture"] == "x86_64" and not capabilities.get("avx512_f"):
        assert not estimate.has_bfloat16()
