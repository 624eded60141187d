"""The comparisons that are written down before they are run, and their test: paired, by concept, with Holm's step-down.

Four there are: the test (PROTOCOL.md) and three confirmations (CONFIRMATION.md, SECOND_CONFIRMATION.md, THIRD_CONFIRMATION.md). On the development
set the first is a rehearsal.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import numpy as np

from .arms import STRENGTHS, at_rate
from .case import Case, Drawing
from .concepts import Split, concepts
from .statistics import Differences, Interval, holm, interval, p_above
from .summary import at_fidelity, by_picture, drifts, spanning, summarise

Cases = dict[str, list[Case]]  # arm -> cases
FEWEST = 5  # concepts for an interval
MARGIN = 0.05  # of fidelity: the reasons stand in PROTOCOL.md
MATCHED = 0.9  # of plain LoRA's fidelity, concept by concept: where curves are compared
REACHED = 0.8  # of the concepts and seeds must be there, and reach it in both arms, or nothing is decided
CANDIDATE = "eta 0 + scenes 0.5, gated"  # the test's: what shipped when it was opened
MILDER = "eta 0 + scenes 0.25, gated"  # the confirmation's, likewise
KEEPING = "eta 0 + scenes 0.5, concept 0.25, gated"  # the second confirmation's
HELD = "eta 0 + scenes 0.5, concept 0.25, background loss 0.1, held"  # the third's
GUIDED = "PureCC, eta 0.1 + scenes 0.5, gated"  # the candidate with an extractor, to begin from and to guide
SLOWER = at_rate("LoRA", "3e-4")  # the baseline where it harms less
DRAWING = Drawing(STRENGTHS, drift_at=(1.0,))  # how pictures are drawn in all of them


@dataclass(frozen=True)
class Hypothesis:
    """`arm` is better than `other` in one figure; with a margin, not worse by more than that."""

    key: str
    arm: str
    other: str
    figure: str  # "fidelity" or "drift" at strength 1; "matched ..." a field of `Summary` at matched fidelity
    share: float = 1.0  # of the other's figure, that the arm is to stay under
    margin: float = 0.0
    at: float = MATCHED  # share of plain LoRA's fidelity where a "matched ..." figure is read
    span: float = 0.0  # of "fidelity": witnesses count whose floor and ceiling are further apart

    @property
    def says(self) -> str:
        if self.margin:
            by = f" by witnesses that span more than {self.span:g}" if self.span else ""
            return f"{self.figure}{by} of *{self.arm}* is at most {self.margin:g} under that of *{self.other}*"
        part = f"{self.share:g} of " if self.share != 1 else ""
        where = f", at {self.at:g} of LoRA's fidelity" if self.at != MATCHED else ""
        return f"{self.figure} of *{self.arm}* is lower than {part}that of *{self.other}*{where}"


@dataclass(frozen=True)
class Comparison:
    """What is compared on the concepts of one split; drawings decide."""

    hypotheses: tuple[Hypothesis, ...]
    arms: dict[str, int]  # arm -> training seeds on each drawing
    seeds_of_looks: int = 1  # they decide nothing
    level: float = 0.05  # of the family

    def seeds(self, arm: str, kind: str) -> int:
        """How many training seeds an arm has on a drawing (kind "instance") or a look ("style")."""
        return self.seeds_of_looks if kind == "style" else self.arms[arm]

    def planned(self, hypothesis: Hypothesis, split: Split) -> int:
        """How many drawings and seeds both arms of a hypothesis have."""
        drawings = sum(concept.kind == "instance" for concept in concepts(split))
        return drawings * min(self.arms[hypothesis.arm], self.arms[hypothesis.other])


COMPARISONS: dict[Split, Comparison] = {
    "test": Comparison(
        (
            Hypothesis("H1", CANDIDATE, "LoRA", "fidelity", margin=MARGIN),
            Hypothesis("H2", CANDIDATE, "LoRA", "drift", share=0.2),
            Hypothesis("H3", CANDIDATE, "LoRA", "matched background"),
            Hypothesis("H4", CANDIDATE, "LoRA", "matched layout"),
            Hypothesis("H5", CANDIDATE, "LoRA + DOP", "matched background"),
            Hypothesis("H6", "PureCC, paper", "LoRA", "drift"),
            Hypothesis("H7", "PureCC", "PureCC, paper", "drift"),
            Hypothesis("H8", GUIDED, CANDIDATE, "matched background"),
            Hypothesis("H9", CANDIDATE, SLOWER, "matched background"),
            Hypothesis("H10", CANDIDATE, SLOWER, "matched layout"),
        ),
        # three seeds where the candidate is decided, one where the recipes are told apart
        {"LoRA": 3, "LoRA + DOP": 3, SLOWER: 3, CANDIDATE: 3, "PureCC, paper": 1, "PureCC": 1, GUIDED: 1},
    ),
    "confirmation": Comparison(
        (
            Hypothesis("C1", MILDER, "LoRA", "fidelity", margin=MARGIN),
            Hypothesis("C2", MILDER, "LoRA", "matched background"),
            Hypothesis("C3", MILDER, "LoRA", "matched layout"),
            Hypothesis("C4", MILDER, SLOWER, "matched background"),
            Hypothesis("C5", MILDER, SLOWER, "matched layout"),
            Hypothesis("C6", MILDER, "LoRA + DOP", "matched background", at=0.8),
        ),
        {"LoRA": 2, MILDER: 2, SLOWER: 1, "LoRA + DOP": 1},
        level=0.025,
    ),
    "second confirmation": Comparison(
        (
            Hypothesis("S1", KEEPING, "LoRA", "fidelity", margin=MARGIN),
            Hypothesis("S2", KEEPING, "LoRA", "matched background"),
            Hypothesis("S3", KEEPING, "LoRA", "matched beside"),
            Hypothesis("S4", KEEPING, "LoRA", "matched layout"),
            Hypothesis("S5", KEEPING, "LoRA + DOP", "matched background", at=0.8),
        ),
        {"LoRA": 1, KEEPING: 1, "LoRA + DOP": 1},
        level=0.0125,
    ),
    "third confirmation": Comparison(
        (
            Hypothesis("T1", HELD, "LoRA", "fidelity", margin=MARGIN, span=0.1),
            Hypothesis("T2", HELD, "LoRA", "matched background"),
            Hypothesis("T3", HELD, "LoRA", "matched beside"),
            Hypothesis("T4", HELD, "LoRA", "matched layout"),
            Hypothesis("T5", HELD, "LoRA + DOP", "matched background", at=0.8),
            Hypothesis("T6", HELD, "LoRA + DOP", "matched beside", at=0.8),
            Hypothesis("T7", HELD, "LoRA + DOP", "matched layout", at=0.8),
        ),
        {"LoRA": 2, HELD: 2, "LoRA + DOP": 1, "LoRA, held": 1},
        level=0.00625,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What the cases say of one hypothesis; `gain` is above 0 where the arm is better."""

    hypothesis: Hypothesis
    concepts: int
    gain: float | Interval | None  # None: no concept that both arms have
    p: float | None  # one-sided; None with fewer than FEWEST concepts
    there: int = 0  # concepts and seeds that it is of
    planned: int = 0  # of as many


def differences(cases: Cases, arm: str, other: str, values, share: float = 1.0) -> Differences:
    """arm - share * other for each value of `values(case)`, over the concepts and seeds that both have; None is left out."""
    right = {(c.concept, c.seed): c for c in cases.get(other, [])}
    found: Differences = {}
    for case in cases.get(arm, []):
        match = right.get((case.concept, case.seed))
        pair = [values(case), values(match)] if match is not None else [None]
        if not any(v is None for v in pair):
            found.setdefault(case.concept, {})[case.seed] = pair[0] - share * pair[1]
    return found


def goals(cases: Cases, other: str = "LoRA", share: float = MATCHED) -> dict[str, float]:
    """Concept -> `share` of the baseline's fidelity at strength 1, the mean over its seeds."""
    found = defaultdict(list)
    for case in cases.get(other, []):
        found[case.concept].append(summarise(case).fidelity)
    return {concept: share * float(np.mean(values)) for concept, values in found.items()}


def gains(cases: Cases, hypothesis: Hypothesis) -> Differences:
    """By how much the arm is better, paired: by picture at strength 1, by run at matched fidelity."""
    figure, wanted = hypothesis.figure, goals(cases, share=hypothesis.at)

    def values(case: Case) -> np.ndarray | None:
        if figure == "fidelity":
            return by_picture(spanning(case, hypothesis.span))
        if figure == "drift":
            return drifts(case, 1.0)
        if case.concept not in wanted:
            return None
        value = at_fidelity(case, wanted[case.concept], figure.removeprefix("matched "))
        return None if value is None else np.array([value])

    sign = 1 if figure == "fidelity" else -1
    found = differences(cases, hypothesis.arm, hypothesis.other, values, hypothesis.share)
    return {c: {s: sign * values for s, values in seeds.items()} for c, seeds in found.items()}


def judge(cases: Cases, hypothesis: Hypothesis, draws: int = 4000, planned: int | None = None) -> Outcome:
    """`planned`: how many concepts and seeds there ought to be; None: those that both arms have."""
    pairs = gains(cases, hypothesis)
    if planned is None:
        both = [{(c.concept, c.seed) for c in cases.get(arm, [])} for arm in (hypothesis.arm, hypothesis.other)]
        planned = len(both[0] & both[1])
    there = sum(len(seeds) for seeds in pairs.values())
    outcome = partial(Outcome, hypothesis, len(pairs), there=there, planned=planned)
    if not pairs:
        return outcome(gain=None, p=None)
    if len(pairs) < FEWEST:
        means = [np.mean([np.mean(v) for v in seeds.values()]) for seeds in pairs.values()]
        return outcome(gain=float(np.mean(means)), p=None)
    p = p_above(pairs, -hypothesis.margin, draws=draws) if there >= REACHED * planned else 1.0
    return outcome(gain=interval(pairs, draws=draws), p=p)


def family(
    cases: Cases, hypotheses: tuple[Hypothesis, ...] = COMPARISONS["test"].hypotheses
) -> list[tuple[Outcome, bool | None]]:
    """Every hypothesis with whether it holds at a family-wise level of 5 % (Holm's step-down); None: cannot be told yet.

    One that has no p-value counts as 1: the family is what was written down, not what was run.
    """
    return _verdicts([judge(cases, h) for h in hypotheses])


def decided(cases: Cases, split: Split) -> list[tuple[Outcome, bool | None]]:
    """The same of a whole comparison: what is missing of it counts as not reached."""
    comparison = COMPARISONS[split]
    outcomes = [judge(cases, h, planned=comparison.planned(h, split)) for h in comparison.hypotheses]
    return _verdicts(outcomes, comparison.level)


def _verdicts(outcomes: list[Outcome], level: float = 0.05) -> list[tuple[Outcome, bool | None]]:
    holds = holm({o.hypothesis.key: 1.0 if o.p is None else o.p for o in outcomes}, level)
    return [(o, None if o.p is None else holds[o.hypothesis.key]) for o in outcomes]
