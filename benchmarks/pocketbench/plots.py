"""Curves of an arm's change against its fidelity, over strength and over training steps, as SVG: right and low is good."""

from pathlib import Path

import numpy as np

from purecc.files import write_atomically

from .arms import ARMS, SHIPPED
from .hypotheses import CANDIDATE, GUIDED, MILDER, SLOWER, Cases
from .summary import of_the_base, strengths, summarise, told
from .tables import mean_over_concepts

PLOTS = {
    "drift": "change of pictures without the concept",
    "background": "change outside the objects of pictures with the concept",
}
#: curves over steps: what is drawn -> its arms, the shortest first
STEPS = {
    "LoRA": ("LoRA, 60 steps", "LoRA", "LoRA, 400 steps"),
    "both anchors": ("LoRA + scenes 0.25, 60 steps", "LoRA + scenes 0.25", "LoRA + scenes 0.25, 400 steps"),
}
CURVES = [
    "LoRA",
    SLOWER,
    "LoRA + DOP",
    "PureCC, paper",
    "PureCC",
    "LoRA + background 3",
    "LoRA + scenes 0.5",
    GUIDED,
    *dict.fromkeys((CANDIDATE, MILDER, SHIPPED)),
]


def curves(cases: Cases, arms: list[str], figure: str, says: str, path: Path) -> None:
    """A figure of `Summary` against fidelity over strength, as SVG: right and low is good."""
    points = {}
    for arm in (arm for arm in arms if arm in cases):
        can_tell = [case for case in cases[arm] if told(summarise(case).fidelity) is not None]
        of = lambda name, s, some=can_tell: mean_over_concepts(some, lambda c: getattr(summarise(c, s), name))  # noqa: E731
        line = [(of("fidelity", s), of(figure, s)) for s in strengths(cases[arm][0])]
        points[arm] = [point for point in line if not np.isnan(point).any()]
    write_atomically(path, lambda temporary: temporary.write_text(_svg(points, says), encoding="utf-8"))


def curves_over_steps(cases: Cases, figure: str, says: str, path: Path) -> bool:
    """The same at strength 1 over training steps, of the concepts that all lengths have; False where there are none."""
    arms = [arm for lengths in STEPS.values() for arm in lengths]
    common = set.intersection(*({case.concept for case in cases.get(arm, [])} for arm in arms))
    if not common:
        return False
    points = {}
    for name, lengths in STEPS.items():
        of = [[case for case in cases[arm] if case.concept in common] for arm in lengths]
        mean = lambda some, field: mean_over_concepts(some, lambda c: getattr(summarise(c), field))  # noqa: E731
        label = f"{name}: {', '.join(_steps_of(arm) for arm in lengths)} steps"
        start = mean_over_concepts(of[0], of_the_base)
        points[label] = [(start, 0.0), *((mean(some, "fidelity"), mean(some, figure)) for some in of)]
    says = f"{says}, {len(common)} drawings"
    write_atomically(path, lambda temporary: temporary.write_text(_svg(points, says), encoding="utf-8"))
    return True


def _steps_of(arm: str) -> str:
    return str(ARMS[arm].train_settings(0).steps)


_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888", "#000000", "#996633", "#bbbbbb")  # fmt: skip


def _svg(points: dict[str, list[tuple[float, float]]], says: str) -> str:
    everything = [p for line in points.values() for p in line]
    left, right = min(0.0, *(x for x, _ in everything)), max(1.0, *(x for x, _ in everything))
    top = 1.1 * max(1.0, *(y for _, y in everything))
    at = lambda x, y: (60 + 480 * (x - left) / (right - left), 340 - 300 * y / top)  # noqa: E731
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 400" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="760" height="400" fill="white"/>')
    for i in range(6):
        x, y = left + (right - left) * i / 5, top * i / 5
        parts.append(f'<text x="{at(x, 0)[0]:.0f}" y="358" text-anchor="middle">{x:.1f}</text>')
        parts.append(f'<text x="52" y="{at(0, y)[1] + 4:.0f}" text-anchor="end">{y:.0f}</text>')
        parts.append(f'<path d="M60 {at(0, y)[1]:.1f}H540" stroke="#ddd"/>')
    parts.append('<text x="300" y="385" text-anchor="middle">fidelity: 0 floor, 1 the concept itself</text>')
    parts.append(f'<text x="60" y="24">{says} (mean of 255)</text>')
    for i, (arm, line) in enumerate(points.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (at(*p) for p in line))
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in (at(*p) for p in line)]
        parts.append(f'<text x="565" y="{52 + 18 * i}" fill="{colour}">{arm}</text>')
    return "\n".join([*parts, "</svg>\n"])
