"""What is wrong with a dataset: problems, and the report of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from palpate.datasets.case import Case

Severity = Literal["error", "warning"]
"""An error makes a case unusable or a result wrong; a warning may be meant that way."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in whose case, and the way out.

    `kind` groups problems ("missing label", "shape"). `case` is empty where the whole dataset is meant, `split` where
    it is not known.
    """

    severity: Severity
    kind: str
    what: str
    remedy: str
    dataset: str = ""
    case: str = ""
    split: str = ""

    def __str__(self) -> str:
        where = " / ".join(part for part in (self.dataset, self.case) if part)
        return f"{where}: {self.what}; {self.remedy}" if where else f"{self.what}; {self.remedy}"


def problem_of(case: Case, severity: Severity, kind: str, what: str, remedy: str) -> Problem:
    """A problem of one case."""
    return Problem(severity, kind, what, remedy, dataset=case.dataset, case=case.name, split=case.split)


@dataclass(frozen=True)
class Report:
    """What a check found: in which layout, how many cases it looked at, and every problem."""

    layout: str
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> Sequence[Problem]:
        """The problems that make a case unusable or a result wrong."""
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> Sequence[Problem]:
        """The problems that may be meant that way."""
        return [problem for problem in self.problems if problem.severity == "warning"]

    def record(self) -> dict[str, Any]:
        """The report, ready for JSON."""
        return {
            "layout": self.layout,
            "cases": len(self.cases),
            "subjects": len({case.subject for case in self.cases}),
            "datasets": sorted({case.dataset for case in self.cases}),
            "splits": {
                split: sum(case.split == split for case in self.cases)
                for split in sorted({case.split for case in self.cases} - {""})
            },
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "problems": [asdict(problem) for problem in self.problems],
        }
