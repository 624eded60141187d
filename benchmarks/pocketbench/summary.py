"""From a case's rows to the figures that people compare: fidelity, preservation with the concept, drift without it."""

from dataclasses import dataclass, replace

import numpy as np

from .case import Case

LEARNED = ("pocket CLIP-I", "pocket DINO", "pocket CSD")
_FLAT = 0.03  # a witness whose floor and ceiling are nearer than this tells nothing


@dataclass(frozen=True)
class Summary:
    """Means over the pictures of one case at one strength. Fidelity: 0 the floor, 1 the ceiling."""

    fidelity: float  # mean of all witnesses
    learned: float
    learning_free: float
    background: (
        float  # of pictures with the concept: mean absolute difference to the base's outside the objects, 0..255
    )
    background_ssim: float
    seg_cons: float
    layout: float  # pixels
    beside: float  # the same on the second thing that the prompt asks for, 0..255; NaN: not measured
    clip_t: float  # with the concept minus without, both against the base text
    same_class: float  # of prompts without the concept: mean absolute difference to the base's pictures, 0..255
    other: float
    null: float
    feature: float  # of all of them: 1 - cosine of the drawing judge's embeddings

    @property
    def drift(self) -> float:
        """Mean over the three kinds of prompts without the concept, 0..255."""
        return (self.same_class + self.other + self.null) / 3


def _by_prompt(case: Case, pictures: np.ndarray) -> np.ndarray:
    """Figures of pictures, prompt by prompt as they were drawn, [prompts, noises]."""
    noises = len(set(case.rows["noise"])) // len(set(case.rows["prompt"]))
    return pictures.reshape(-1, noises)


def select(case: Case, column: str, strength: float, *roles: str) -> np.ndarray:
    """One column's figures of the pictures of some roles; those that have none are left out."""
    rows = zip(case.rows[column], case.rows["role"], case.rows["strength"], strict=True)
    return np.array([value for value, role, s in rows if role in roles and s == strength and value is not None])


def witnesses(case: Case) -> dict[str, tuple[float, float]]:
    """Witness -> (floor, ceiling), those only that can tell."""
    return telling(case.ends)


def telling(ends: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    """Of `Case.ends`, (floor, ceiling) of those witnesses that can tell. The floor is the higher of the base and another instance."""
    found = {name: (max(base, other), ceiling) for name, (base, other, ceiling) in ends.items()}
    return {name: (low, high) for name, (low, high) in found.items() if high - low > _FLAT}


def fidelities(case: Case, strength: float) -> dict[str, np.ndarray]:
    """Witness -> fidelity of each picture with the concept."""
    return {
        name: (select(case, name, strength, "concept") - low) / (high - low)
        for name, (low, high) in witnesses(case).items()
    }


def only(case: Case, kept: set[str]) -> Case:
    """With these witnesses alone."""
    return replace(case, ends={name: ends for name, ends in case.ends.items() if name in kept})


def spanning(case: Case, least: float) -> Case:
    """With those witnesses alone whose floor and ceiling are further apart than `least`."""
    return only(case, {name for name, (low, high) in witnesses(case).items() if high - low > least})


def by_picture(case: Case, strength: float = 1.0) -> np.ndarray | None:
    """Fidelity of each picture with the concept, [prompts, noises], the mean over its witnesses; None where none can tell it."""
    scores = list(fidelities(case, strength).values())
    return _by_prompt(case, np.mean(scores, axis=0)) if scores else None


def drifts(case: Case, strength: float, column: str = "pixels") -> np.ndarray:
    """A change of each picture without the concept, [prompts, noises]: each kind of prompt counts a third, of "pixels" the mean is `Summary.drift`."""
    parts = [select(case, column, strength, role) for role in ("same class", "other", "null")]
    count = sum(map(len, parts))
    return _by_prompt(case, np.concatenate([part * count / (3 * len(part)) for part in parts]))


def summarise(case: Case, strength: float = 1.0) -> Summary:
    scores = {name: float(values.mean()) for name, values in fidelities(case, strength).items()}
    mean = lambda values: float(np.mean(values)) if len(values) else float("nan")  # noqa: E731
    concept = lambda column: mean(select(case, column, strength, "concept"))  # noqa: E731
    return Summary(
        fidelity=mean(list(scores.values())),
        learned=mean([v for n, v in scores.items() if n in LEARNED]),
        learning_free=mean([v for n, v in scores.items() if n not in LEARNED]),
        background=concept("background_pixels"),
        background_ssim=concept("background_ssim"),
        seg_cons=concept("seg_cons"),
        layout=concept("layout"),
        beside=concept("beside") if "beside" in case.rows else float("nan"),
        clip_t=concept("clip_t") - concept("clip_t_base"),
        same_class=mean(select(case, "pixels", strength, "same class")),
        other=mean(select(case, "pixels", strength, "other")),
        null=mean(select(case, "pixels", strength, "null")),
        feature=mean(select(case, "feature", strength, "same class", "other", "null")),
    )


def strengths(case: Case) -> list[float]:
    return sorted(set(case.rows["strength"]))


def of_the_base(case: Case) -> float:
    """The fidelity that the base model's own pictures have: where every curve over strength or steps begins."""
    return float(np.mean([(case.ends[name][0] - low) / (high - low) for name, (low, high) in witnesses(case).items()]))


def at_fidelity(case: Case, wanted: float, figure: str) -> float | None:
    """A figure of `Summary` where the case's curve over strength first reaches a fidelity above 0.

    None where it never does, where the base has it, and where the figure was not measured.

    Strength 0 is the base model: fidelity is what the base has, and nothing has changed.
    """
    start = {"background_ssim": 1.0, "seg_cons": 1.0}.get(figure, 0.0)
    points = [(of_the_base(case), start)]
    if wanted <= max(points[0][0], 0):
        return None
    for strength in strengths(case):
        one = summarise(case, strength)
        points.append((one.fidelity, getattr(one, figure)))
    for (f0, v0), (f1, v1) in zip(points, points[1:], strict=False):
        if f0 < wanted <= f1:
            value = v0 + (v1 - v0) * (wanted - f0) / (f1 - f0)
            return None if np.isnan(value) else value
    return None


def told(fidelity: float) -> float | None:
    """None, which is left out of means, for a concept that no witness can tell."""
    return None if np.isnan(fidelity) else fidelity
