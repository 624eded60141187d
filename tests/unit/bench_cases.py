"""Stand-in cases of PocketBench: figures as they are set, without training."""

from benchmarks.pocketbench.case import Case


def case_with(fidelity: dict[float, float], drift: dict[float, float]) -> Case:
    """A case of one witness, whose floor is 0 and ceiling 1, and of one picture of each role."""
    rows = {
        "role": [],
        "prompt": [],
        "noise": [],
        "strength": [],
        "pocket DINO": [],
        "pixels": [],
        "feature": [],
        "clip_t": [],
        "clip_t_base": [],
    }
    rows |= {name: [] for name in ("background_pixels", "background_ssim", "seg_cons", "layout")}
    for strength in fidelity:
        for role in ("concept", "same class", "other", "null"):
            values = {
                "role": role,
                "strength": strength,
                "pocket DINO": fidelity[strength],
                "pixels": drift[strength],
            }
            for name, column in rows.items():
                column.append(values.get(name, 0.0))
    return Case("x", "instance", "LoRA", 0, {}, "base", "protocol", {}, {"pocket DINO": [0.0, 0.0, 1.0]}, rows)


def many_cases(arm: str, fidelity: float, drift: float, concepts: int = 6, kid: float | None = 0.002) -> list[Case]:
    """Cases of one arm, concepts spread by a little."""
    found = []
    for i in range(concepts):
        for seed in range(2):
            case = case_with(
                {0.6: fidelity / 2, 1.0: fidelity + 0.01 * i}, {0.6: drift / 2, 1.0: drift + i * (drift > 0)}
            )
            case.concept, case.arm, case.seed = f"c{i}", arm, seed
            case.kid = {} if kid is None else {"1": kid}
            found.append(case)
    return found
