"""Paired comparison of two arms: the unit is the concept; a hierarchical bootstrap draws concepts, then seeds, prompts, noises."""

from dataclasses import dataclass

import numpy as np

#: difference arm - other: concept -> training seed -> a value for each prompt, or for each prompt a row of its noises
Differences = dict[str, dict[int, np.ndarray]]


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float  # of the 95 % interval
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def mean_of(differences: Differences) -> float:
    """The mean over concepts of the means over seeds of the means over pictures."""
    return float(np.mean([np.mean([np.mean(v) for v in seeds.values()]) for seeds in differences.values()]))


def bootstrap(differences: Differences, draws: int = 4000, seed: int = 0) -> np.ndarray:
    """Means of resampled differences, [draws]: concepts with replacement, in each its seeds, in each its prompts, in each its noises."""
    rng = np.random.default_rng(seed)
    units = [[np.asarray(values, dtype=float) for values in seeds.values()] for seeds in differences.values()]
    chosen = rng.integers(len(units), size=(draws, len(units)))
    of_concepts = np.empty(chosen.shape)
    for c, seeds in enumerate(units):  # all the times that a concept was chosen, at once
        times = chosen == c
        picked = rng.integers(len(seeds), size=(int(times.sum()), len(seeds)))
        of_seeds = np.empty(picked.shape)
        for s, values in enumerate(seeds):
            count = int((picked == s).sum())
            of_seeds[picked == s] = _redrawn(values, count, rng)
        of_concepts[times] = of_seeds.mean(1)
    return of_concepts.mean(1)


def _redrawn(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `count` resamples of values [prompts] or [prompts, noises]: prompts, and in each its noises."""
    prompts = rng.integers(len(values), size=(count, len(values)))
    if values.ndim == 1 or values.shape[1] == 1:
        return values.reshape(len(values))[prompts].mean(1)
    noises = rng.integers(values.shape[1], size=(*prompts.shape, values.shape[1]))
    return values[prompts[..., None], noises].mean((1, 2))


def interval(differences: Differences, **options: int) -> Interval:
    low, high = np.percentile(bootstrap(differences, **options), [2.5, 97.5])
    return Interval(mean_of(differences), float(low), float(high))


def p_above(differences: Differences, margin: float = 0.0, **options: int) -> float:
    """One-sided bootstrap p-value of "the mean difference is at most `margin`"; never 0."""
    means = bootstrap(differences, **options)
    return float((np.sum(means <= margin) + 1) / (len(means) + 1))


def holm(p_values: dict[str, float], level: float = 0.05) -> dict[str, bool]:
    """Which hypotheses are rejected with family-wise error at most `level` (Holm 1979)."""
    rejected, open_ = {}, True
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        open_ = open_ and p <= level / (len(p_values) - rank)
        rejected[name] = open_
    return rejected
