"""What was looked at after a comparison's verdicts were known. It decides nothing, and stands beside them.

    python -m benchmarks.pocketbench.afterwards SPLIT

Other figures of the same pairs of arms, with the same bootstrap; the fidelity of the first hypothesis by other thresholds for a
witness that can tell, by kind of prompt, and over concepts alone.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from purecc.files import write_atomically

from .__main__ import RESULTS, title_of
from .case import Case, protocol
from .concepts import Split, concept, prompts
from .hypotheses import COMPARISONS, DRAWING, Cases, Hypothesis, differences, gains
from .report import load
from .statistics import Differences, interval, p_above
from .summary import by_picture, drifts, only, spanning
from .tables import table

# between floor and ceiling; a comparison has the first, or its first hypothesis' `span`
_THRESHOLDS = (0.03, 0.05, 0.1)


def _row(says: str, pairs: Differences, *more: str) -> list[str]:
    runs = sum(map(len, pairs.values()))
    return [says, f"{len(pairs)} / {runs}", str(interval(pairs)) if pairs else "-", *more]


def other_figures(cases: Cases, first: Hypothesis, arms: list[str]) -> str:
    """Surroundings, second thing and layout at equal fidelity, the first hypothesis' arm against each, and each against LoRA; fidelity, drift by two witnesses."""
    arms, rows = [arm for arm in arms if arm in cases], []
    others = [arm for arm in arms if arm not in ("LoRA", first.arm)]
    for arm, other in [(first.arm, a) for a in arms if a != first.arm] + [(a, "LoRA") for a in others]:
        for figure in ("background", "beside", "layout"):
            for share in (0.9, 0.8):
                pairs = gains(cases, Hypothesis("", arm, other, f"matched {figure}", at=share))
                says = f"{figure} nearer to the base's with {arm} than with {other}, at {share:g} of LoRA's fidelity"
                rows.append(_row(says, pairs))
    for arm in others:
        rows.append(_row(f"fidelity of {arm} less LoRA's", gains(cases, replace(first, arm=arm, other="LoRA"))))
        for column, scale in (("pixels", 1), ("feature", 100)):
            pairs = differences(cases, "LoRA", arm, lambda c, k=column, s=scale: s * drifts(c, 1.0, k))
            rows.append(_row(f"drift by {column}{' x 100' * (scale > 1)}, less with {arm} than with LoRA", pairs))
    return table(["looked at afterwards", "concepts / runs", "better by"], rows)


def by_threshold(cases: Cases, first: Hypothesis) -> Iterator[list[str]]:
    """The first hypothesis where witnesses whose floor and ceiling are near one another are left out."""
    for threshold in _THRESHOLDS:
        wide = {arm: [spanning(case, threshold) for case in cases[arm]] for arm in (first.arm, first.other)}
        pairs, told = gains(wide, replace(first, span=0.0)), sum(len(case.ends) for case in wide[first.arm])
        p = p_above(pairs, -first.margin)
        yield _row(
            f"witnesses that span more than {threshold:g} ({told} in {len(cases[first.arm])} runs)", pairs, f"{p:.4f}"
        )


def by_witness(cases: Cases, first: Hypothesis) -> Iterator[list[str]]:
    """The first hypothesis by each witness alone, and by all but it."""
    every = sorted({name for case in cases[first.arm] for name in case.ends})
    for says, chosen in [
        (f"{says}{name}", which) for name in every for says, which in (("", {name}), ("all but ", set(every) - {name}))
    ]:
        kept = {arm: [only(case, chosen) for case in cases[arm]] for arm in (first.arm, first.other)}
        pairs = gains(kept, first)
        yield _row(says, pairs, f"{p_above(pairs, -first.margin):.4f}")


def by_prompt(cases: Cases, first: Hypothesis, split: Split) -> Iterator[list[str]]:
    """The first hypothesis where the concept is asked for alone, and where a second thing is asked for beside it."""
    for says, beside in (("asked for alone", False), ("beside a second thing", True)):

        def scores(case: Case, beside: bool = beside) -> np.ndarray | None:
            asked = [prompt for prompt in prompts(concept(case.concept, split)) if prompt.role == "concept"]
            found = by_picture(spanning(case, first.span))
            return None if found is None else found[[bool(prompt.beside) is beside for prompt in asked]]

        pairs = differences(cases, first.arm, first.other, scores)
        yield _row(says, pairs, f"{p_above(pairs, -first.margin):.4f}")


def over_concepts(pairs: Differences) -> Differences:
    """Each concept by its mean alone."""
    return {c: {0: np.array([np.mean([np.mean(v) for v in seeds.values()])])} for c, seeds in pairs.items()}


def text(split: str) -> str:
    comparison = COMPARISONS[split]
    cases, first = load(RESULTS / title_of(split), protocol(DRAWING), "instance"), comparison.hypotheses[0]
    alone = over_concepts(gains(cases, first))
    rows = [
        *by_threshold(cases, first),
        *by_witness(cases, first),
        *by_prompt(cases, first, split),
        _row("over concepts alone", alone, f"{p_above(alone, -first.margin):.4f}"),
    ]
    parts = [
        f"# PocketBench: {split}, looked at afterwards",
        f"The verdicts stand in [{split}.md](<{title_of(split)}.md>). This decides nothing; 95 % intervals, each for itself.",
        f"## {first.key}, otherwise",
        table([f"{first.says}", "concepts / runs", "better by", "p"], rows),
        "## Other figures",
        other_figures(cases, first, list(comparison.arms)),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", choices=COMPARISONS)
    split = parser.parse_args().split
    found = text(split)
    out = RESULTS / f"{title_of(split)}, afterwards.md"
    write_atomically(out, lambda temporary: temporary.write_text(found, encoding="utf-8"))
    print(found)
