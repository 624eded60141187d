"""Tables shaped as the paper's 1, 2, 3 and 6, and the family of comparisons, as Markdown.

The paper's columns and what stands for them here (all the pocket's own witnesses, not the originals):

    dCLIP-T    pocket CLIP-T with the concept less the base model's, both against the base text, x 100; 0 is best
    dHPS, dPick  nothing: the pocket has no model of what people prefer
    Seg-Cons   overlap (IoU) of the scene judge's object masks with the base picture's, x 100
    CLIP-I, DINO, CSD  cosine with the references in the scene, drawing and style judges
    patches    not in the paper: a look's learning-free witness (`patch_likeness`), beside CSD, which misses some looks
    KID        not in the paper: distance of pictures *without* the concept to the base's, x 1000; 0 is best
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from .arms import SHIPPED
from .case import Case
from .concepts import Split
from .hypotheses import COMPARISONS, Cases, decided, family
from .summary import select, summarise

DASH = "-"
Figure = Callable[[Case], float | None]


def _witness(name: str) -> Figure:
    return lambda case: float(select(case, name, 1.0, "concept").mean()) if name in case.rows else None


#: column of the paper -> its stand-in
FIGURES: dict[str, tuple[str, Figure]] = {
    "dCLIP-T": ("pocket dCLIP-T", lambda c: 100 * summarise(c).clip_t),
    "dHPS": ("dHPS: none", lambda c: None),
    "dPick": ("dPick: none", lambda c: None),
    "Seg-Cons": ("pocket Seg-Cons", lambda c: 100 * summarise(c).seg_cons),
    "CLIP-I": ("pocket CLIP-I", _witness("pocket CLIP-I")),
    "DINO": ("pocket DINO", _witness("pocket DINO")),
    "CSD": ("pocket CSD", _witness("pocket CSD")),
    "patches": ("patches", _witness("patches")),
    "KID": ("pocket KID", lambda c: 1000 * c.kid["1"] if "1" in c.kid else None),
}
_DIGITS = {"CLIP-I": 3, "DINO": 3, "CSD": 3, "patches": 3}
_WHOLE = {
    "instance": ("dCLIP-T", "dHPS", "dPick", "Seg-Cons", "CLIP-I", "DINO", "KID"),
    "style": ("dCLIP-T", "dHPS", "dPick", "CSD", "patches", "KID"),
}
_SHORT = {"instance": ("dCLIP-T", "CLIP-I", "KID"), "style": ("dCLIP-T", "CSD", "patches", "KID")}

#: title -> columns by kind, and rows: what the paper has -> the arm that stands for it ("" for none)
TABLES: dict[str, tuple[dict[str, tuple[str, ...]], dict[str, str]]] = {
    "Shaped as the paper's table 1: methods": (
        _WHOLE,
        {
            "DreamBooth": "LoRA + prior preservation",
            "DreamBooth + EWC": "",
            "Mix-of-Show, CIFC (LoRA based)": "LoRA",
            "not in the paper: DOP": "LoRA + DOP",
            "PureCC": "PureCC, paper",
            "this pack: frozen base": "PureCC",
            "this pack, as shipped": SHIPPED,
        },
    ),
    "Shaped as the paper's table 2: what each part does": (
        _WHOLE,
        {
            "L_CC only": "PureCC, eta 0",
            "merged stage": "merged stage",
            "PureCC": "PureCC, paper",
            "this pack: frozen base": "PureCC",
        },
    ),
    "Shaped as the paper's table 3: adaptive or fixed lambda": (
        _SHORT,
        {
            "not in the paper: lambda 0": "PureCC, lambda 0",
            "lambda 1": "PureCC, lambda 1",
            "lambda 3": "PureCC, lambda 3",
            "lambda 5": "PureCC, lambda 5",
            "adaptive": "PureCC",
        },
    ),
    "Shaped as the paper's table 6: eta": (
        _SHORT,
        {
            "not in the paper: eta 0": "PureCC, eta 0",
            "eta 0.5": "PureCC, eta 0.5",
            "eta 1": "PureCC",
            "eta 1.5": "PureCC, eta 1.5",
            "eta 2": "PureCC, eta 2",
            "not in the paper: eta 3": "PureCC, eta 3",
        },
    ),
}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [" | ".join(header), " | ".join(["---"] + ["--:"] * (len(header) - 1)), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def mean_over_concepts(cases: list[Case], figure: Figure) -> float:
    """The mean over concepts of the means over seeds; a case whose figure is None is left out; NaN where none is left."""
    by_concept = defaultdict(list)
    for case in cases:
        value = figure(case)
        if value is not None:
            by_concept[case.concept].append(value)
    return float(np.mean([np.mean(v) for v in by_concept.values()])) if by_concept else float("nan")


def number(value: float, digits: int = 2) -> str:
    return DASH if np.isnan(value) else f"{value:.{digits}f}"


def paper_table(cases: Cases, title: str, kind: str) -> str:
    """One of TABLES for concepts of one kind; a dash where an arm was not run or a case is older than the figure."""
    columns, arms = TABLES[title]
    rows = []
    for row, arm in arms.items():
        of_arm = cases.get(arm, [])
        cells = [
            number(mean_over_concepts(of_arm, FIGURES[column][1]), _DIGITS.get(column, 1)) for column in columns[kind]
        ]
        rows.append([row, arm or "none", str(len({c.concept for c in of_arm})), *cells])
    return table(["the paper's row", "arm", "concepts", *(FIGURES[c][0] for c in columns[kind])], rows)


def paper_tables(cases: Cases, kind: str) -> list[str]:
    """All of them as Markdown paragraphs: a heading, then a table, ..."""
    return [part for title in TABLES for part in (f"### {title}", paper_table(cases, title, kind))]


def family_table(cases: Cases, split: Split | None = None) -> str:
    """The family of a comparison: by how much the arm is better, p (one-sided bootstrap), Holm's verdict. None: the test's, without verdicts."""
    header = ["hypothesis", "concepts", "concepts and seeds", "better by"]
    header += [] if split is None else ["p", f"Holm, {100 * COMPARISONS[split].level:g} %"]
    rows = []
    for outcome, holds in family(cases) if split is None else decided(cases, split):
        gain = outcome.gain if outcome.gain is not None else DASH
        row = [
            f"{outcome.hypothesis.key}: {outcome.hypothesis.says}",
            str(outcome.concepts),
            f"{outcome.there} of {outcome.planned}",
            f"{gain:+.3f}" if isinstance(gain, float) else str(gain),
            DASH if outcome.p is None else f"{outcome.p:.4f}",
            DASH if holds is None else "holds" if holds else "not shown",
        ]
        rows.append(row[: len(header)])
    return table(header, rows)
