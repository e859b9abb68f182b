"""How good is a model on these images, and what happens when the prompt is not perfect?

    from palpate import datasets, evaluation

    cases = datasets.open_dataset("data", split="test")
    plan = evaluation.Plan((evaluation.protocol("standard"), evaluation.protocol("shrink", [0.05, 0.1])))
    run = evaluation.evaluate(cases, plan, "run", model=evaluation.ModelChoice("lite-medsam"), workers=4)

    evaluation.write_results(run, cases, plan, evaluation.ModelChoice("lite-medsam").load)

`run.rows` is the tidy table; `write_results` adds the summary and the report that the command line writes.
"""

from palpate.evaluation.measure import Plan, measure_case, replay
from palpate.evaluation.presence import PresenceLine, auroc, presence_summary
from palpate.evaluation.protocols import Protocol, all_protocols, protocol
from palpate.evaluation.results import some_cases, write_results
from palpate.evaluation.run import ModelChoice, evaluate
from palpate.evaluation.summary import summarise
from palpate.evaluation.table import Presence, Row, Run, read_run

__all__ = [
    "ModelChoice",
    "Plan",
    "Presence",
    "PresenceLine",
    "Protocol",
    "Row",
    "Run",
    "all_protocols",
    "auroc",
    "evaluate",
    "measure_case",
    "presence_summary",
    "protocol",
    "read_run",
    "replay",
    "some_cases",
    "summarise",
    "write_results",
]
