"""Tables and curves of all the cases that there are, as Markdown and SVG."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from purecc.files import write_atomically

from .arms import ARMS, AT_COMMON_RATE, COMMON, OTHER_RATES, SHIPPED, at_rate
from .case import Case
from .concepts import SMALL, Split
from .hypotheses import COMPARISONS, FEWEST, MATCHED, REACHED, Cases, Hypothesis, differences, gains, goals
from .opening import TEXTS
from .plots import CURVES, PLOTS, curves, curves_over_steps
from .statistics import Differences, interval, mean_of
from .summary import Summary, at_fidelity, by_picture, drifts, summarise, told
from .tables import family_table, mean_over_concepts, paper_tables, table

_COLUMNS: dict[str, Callable[[Summary], float | None]] = {
    "fidelity": lambda s: told(s.fidelity),
    "learned": lambda s: told(s.learned),
    "learning-free": lambda s: told(s.learning_free),
    "drift, same class": lambda s: s.same_class,
    "drift, other": lambda s: s.other,
    "drift, null": lambda s: s.null,
    "drift, feature x 100": lambda s: 100 * s.feature,
    "background": lambda s: s.background,
    "second thing": lambda s: s.beside,
    "Seg-Cons": lambda s: s.seg_cons,
    "SSIM": lambda s: s.background_ssim,
    "layout": lambda s: s.layout,
    "dCLIP-T": lambda s: s.clip_t,
}
#: figures of `Summary` that are read off the curves
_MATCHED = {
    "drift": "drift",
    "background": "background",
    "beside": "second thing",
    "background_ssim": "background SSIM",
    "seg_cons": "Seg-Cons",
    "layout": "layout",
}


def load(folder: Path, protocol: str, kind: str | None = None) -> Cases:
    """All cases measured by one protocol, by arm in the order of `ARMS`, judged by the witnesses that all of their kind have."""
    every = [Case.load(path) for path in sorted(folder.glob("*.json"))]
    every = [case for case in every if case.protocol == protocol and kind in (None, case.kind)]
    common: dict[str, set[str]] = {}
    for case in every:
        common[case.kind] = common.get(case.kind, set(case.ends)) & set(case.ends)
    found: Cases = defaultdict(list)
    for case in every:
        ends = {name: values for name, values in case.ends.items() if name in common[case.kind]}
        found[case.arm].append(replace(case, ends=ends))
    return {arm: found[arm] for arm in ARMS if arm in found}


def overview(cases: Cases, strength: float = 1.0) -> str:
    """Arms by figures, the mean over concepts of means over seeds."""
    rows = []
    for arm, of_arm in cases.items():
        figures = [mean_over_concepts(of_arm, lambda c, f=f: f(summarise(c, strength))) for f in _COLUMNS.values()]
        concepts = {c.concept for c in of_arm}
        rows.append([arm, f"{len(concepts)} / {len(of_arm)}", *("" if np.isnan(v) else f"{v:.2f}" for v in figures)])
    return table(["arm", "concepts / runs", *_COLUMNS], rows)


def _difference(pairs: Differences) -> str:
    return f"{mean_of(pairs):+.3f}" if len(pairs) < FEWEST else str(interval(pairs))


def against(cases: Cases, other: str = "LoRA", strength: float = 1.0) -> str:
    """Each arm minus a baseline, paired, with the 95 % interval of the hierarchical bootstrap."""
    rows = []
    for arm in cases:
        if arm == other:
            continue
        pairs = [
            differences(cases, arm, other, f)
            for f in (
                lambda c: by_picture(c, strength),
                lambda c: drifts(c, strength),
                lambda c: 100 * drifts(c, strength, "feature"),
            )
        ]
        if pairs[0]:
            rows.append([arm, str(len(pairs[0])), *map(_difference, pairs)])
    header = ["concepts", "fidelity", "drift without the concept", "the same, feature x 100"]
    return table([f"arm minus {other}", *header], rows)


def nearer(cases: Cases, other: str) -> str:
    """By how much each arm is nearer to the base's pictures than another, paired, where each has `MATCHED` of plain LoRA's fidelity."""
    rows = []
    for arm in (arm for arm in cases if arm != other):
        pairs = [
            gains(cases, Hypothesis("", arm, other, f"matched {figure}"))
            for figure in ("background", "beside", "layout")
        ]
        if pairs[0]:
            fidelity = differences(cases, arm, other, by_picture)
            rows.append([arm, str(len(pairs[0])), _difference(fidelity), *map(_difference, pairs)])
    return table([f"arm against {other}", "concepts", "fidelity", "background", "second thing", "layout"], rows)


def matched(cases: Cases, share: float = MATCHED, other: str = "LoRA") -> str:
    """At `share` of the baseline's fidelity (concept by concept), read off each arm's curve over strength."""
    wanted = goals(cases, other, share)
    rows = []
    for arm, of_arm in cases.items():
        of_arm = [c for c in of_arm if not np.isnan(wanted.get(c.concept, np.nan))]
        reach = [at_fidelity(c, wanted[c.concept], "background") for c in of_arm]  # measured at every strength
        cells = []
        # a mean over those alone that do reach it would compare other concepts
        if sum(r is not None for r in reach) < (REACHED if len(reach) > 2 * FEWEST else 1) * len(reach):
            rows.append([arm, f"{sum(r is not None for r in reach)} of {len(reach)}", *("" for _ in _MATCHED)])
            continue
        for figure in _MATCHED:
            value = mean_over_concepts(of_arm, lambda c, f=figure: at_fidelity(c, wanted[c.concept], f))
            cells.append("" if np.isnan(value) else f"{value:.2f}")
        rows.append([arm, f"{sum(r is not None for r in reach)} of {len(reach)}", *cells])
    return table(["arm", "runs that reach it", *_MATCHED.values()], rows)


def training(cases: Cases) -> str:
    """What the runs themselves say at their end, for PureCC's arms: lambda*, cos^2, |R_complete|, velocity drift."""
    names = {"end_scale": "lambda*", "end_squared_cosine": "cos2", "end_representation": "size of R_complete"}
    names |= {"drift_base": "velocity drift, base texts", "drift_null": "null text"}
    rows = []
    for arm, of_arm in cases.items():
        values = [mean_over_concepts(of_arm, lambda c, n=n: c.summary.get(n)) for n in names]
        rows.append([arm, *("" if np.isnan(v) else f"{v:.3f}" for v in values)])
    return table(["arm", *names.values()], rows)


def by_rate(cases: Cases) -> dict[str, Cases]:
    """ ", rate 1e-3" and the like, "" for the common rate -> its cases, by the name that their arm has at the common rate."""
    found: dict[str, Cases] = {"": {arm: of_arm for arm, of_arm in cases.items() if arm in AT_COMMON_RATE}}
    for rate in OTHER_RATES:
        found[at_rate("", rate)] = {a: cases[at_rate(a, rate)] for a in AT_COMMON_RATE if at_rate(a, rate) in cases}
    return {rate: of_rate for rate, of_rate in found.items() if "LoRA" in of_rate}


def compared(out: Path) -> Split | None:
    """The split whose comparison a report tells; None: it is no comparison's."""
    return next((split for split in COMPARISONS if out.stem.startswith(split)), None)


def section(every: Cases, cases: Cases, kind: str, rate: str, out: Path) -> list[str]:
    """All that is told of concepts of one kind at one learning rate, as Markdown paragraphs; `every`: at all rates."""
    decides = compared(out) if kind == "instance" else None
    parts = [
        f"## {kind.capitalize()} concepts{rate}",
        "### Strength 1",
        overview(cases),
        *(part for s in (0.6, 1.4) for part in (f"### Strength {s:g}", overview(cases, s)) if decides),
        "### Against plain LoRA, paired",
        against(cases),
        "### At nine tenths of plain LoRA's fidelity",
        matched(cases),
        "### The runs themselves",
        "At their end, over fixed noise and times; lambda*, cos2 and R_complete with v_original from the frozen base, whatever an arm trained with.",
        training(cases),
        *paper_tables(cases, kind),
    ]
    if not rate:
        verdict = f"as {TEXTS[decides].name} has it" if decides else "shown only, it decides nothing"
        parts += [f"### The family of comparisons ({verdict})", family_table(every, decides)]
    for figure, says in PLOTS.items():
        if figure == "drift" and all(len(case.kid) == 1 for of_arm in cases.values() for case in of_arm):
            continue  # read at one strength only
        picture = out.with_name(f"{out.stem} {kind}{rate}, {figure}.svg")
        curves(cases, CURVES, figure, says, picture)
        parts.append(f"![{says}](<{picture.name}>)")
        picture = out.with_name(f"{out.stem} {kind}{rate}, {figure} over steps.svg")
        if curves_over_steps(cases, figure, says, picture):
            parts.append(f"![{says}, over steps](<{picture.name}>)")
    return parts


def on_few_concepts(cases: Cases) -> Cases:
    """Those of `SMALL`; all where there are none of them."""
    found = {arm: [case for case in of_arm if case.concept in SMALL] for arm, of_arm in cases.items()}
    return {arm: of_arm for arm, of_arm in found.items() if of_arm} or cases


def of_all_concepts(cases: Cases, kind: str) -> list[str]:
    """What is told of the arms that were run on every concept; nothing where `SMALL` has all of them."""
    names = {case.concept for of_arm in cases.values() for case in of_arm}
    if not names & set(SMALL) or names <= set(SMALL):
        return []
    whole = {arm: of_arm for arm, of_arm in cases.items() if {case.concept for case in of_arm} == names}
    if "LoRA" not in whole:
        return []
    tables = {"Strength 1": overview(whole), "Against plain LoRA, paired": against(whole)}
    tables |= {"At nine tenths of plain LoRA's fidelity": matched(whole)}
    if SHIPPED in whole:
        title = (
            "What ships: fidelity at strength 1 less its own, then nearer than it by, at nine tenths of plain LoRA's"
        )
        tables[title] = nearer(whole, SHIPPED)
    title = f"## {kind.capitalize()} concepts, all {len(names)}: the arms that were run on every one"
    return [title, *(part for head, text in tables.items() for part in (f"### {head}", text))]


def write(folder: Path, out: Path, protocol: str, about: str = "") -> str:
    """The whole report of one results folder, with `about` at its head; returns its text."""
    parts = []
    for kind in ("instance", "style"):
        every = load(folder, protocol, kind)
        if (
            compared(out) is None
        ):  # most arms were run on a few concepts alone, and means over others would be no comparison
            parts += of_all_concepts(every, kind)
            every = on_few_concepts(every)
        # a comparison has its slower baseline among all others
        for rate, cases in ({"": every} if compared(out) and every else by_rate(every)).items():
            parts += section(every, cases, kind, rate, out)
    intro = (
        f"Protocol {protocol}. Learning rate {COMMON['learning_rate']:g}, unless a heading says otherwise. What the columns mean: [PocketBench](../README.md). An empty cell: no witness of that kind can tell "
        f"the concept from its floor. Differences have a 95 % interval over concepts, seeds and pictures from {FEWEST} concepts on.\n\n"
        "Tables shaped as the paper's: dCLIP-T and Seg-Cons x 100 and against the base's picture, CLIP-I, DINO and CSD cosines, KID x 1000 "
        "on prompts without the concept (not in the paper; in place of dHPS and dPick, for which the pocket has nothing). A dash: not run, "
        "or no such figure; a row of fewer concepts is of those alone. *patches*: 1 less the distance to the nearest patch of the references. The lambda and eta arms have v_original from the frozen base. All witnesses are the pocket's own."
    )
    text = f"# PocketBench: {out.stem}\n\n{about}{chr(10) * 2 if about else ''}{intro}\n\n" + "\n\n".join(parts) + "\n"
    write_atomically(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return text
