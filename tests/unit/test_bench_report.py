"""PocketBench's report: curves, the paper's tables, the family of comparisons, and the lock of what is compared. No training."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pocketbench import __main__ as command
from benchmarks.pocketbench import opening, plots, report, tables, worker
from benchmarks.pocketbench.arms import ARMS
from benchmarks.pocketbench.case import WITNESSES, Case, Drawing
from benchmarks.pocketbench.concepts import SMALL, concepts
from benchmarks.pocketbench.hypotheses import CANDIDATE, COMPARISONS, MARGIN, family
from benchmarks.pocketbench.sheets import SHEETS
from benchmarks.pocketbench.summary import at_fidelity, summarise

HYPOTHESES = COMPARISONS["test"].hypotheses


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


def test_a_curve_is_read_where_it_reaches_the_fidelity() -> None:
    case = case_with({0.5: 0.4, 1.0: 0.8}, {0.5: 10.0, 1.0: 30.0})
    assert at_fidelity(case, 0.6, "drift") == pytest.approx(20)
    assert at_fidelity(case, 0.2, "drift") == pytest.approx(5)  # from the base model on
    assert at_fidelity(case, 0.2, "seg_cons") == pytest.approx(0.5)  # the base agrees with itself
    assert at_fidelity(case, 0.9, "drift") is None
    below = case_with({0.5: -0.4, 1.0: 0.2}, {0.5: 10.0, 1.0: 30.0})
    assert at_fidelity(below, -0.2, "drift") is None  # it falls below the base first: what the base has is no goal
    learnt = replace(case_with({0.5: -0.4, 1.0: 0.2}, {0.5: 10.0, 1.0: 30.0}), ends={"pocket DINO": [-1.0, 0.0, 1.0]})
    assert at_fidelity(learnt, -0.2, "drift") is None and at_fidelity(
        learnt, 0.1, "drift"
    )  # nor is nothing of the concept


def test_fidelity_is_between_the_higher_floor_and_the_ceiling() -> None:
    case = case_with({1.0: 0.7}, {1.0: 1.0})
    case.ends = {"pocket DINO": [0.1, 0.4, 0.9], "colours": [0.5, 0.5, 0.51]}  # the second tells nothing
    assert summarise(case).fidelity == pytest.approx(0.6)


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


def test_the_tables_of_the_paper_have_their_columns_and_dashes() -> None:
    cases = {"LoRA": many_cases("LoRA", 0.8, 20), "PureCC, paper": many_cases("PureCC, paper", 0.7, 10, kid=None)}
    text = tables.paper_table(cases, "Shaped as the paper's table 1: methods", "instance")
    header, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines()]
    at = {row[1]: dict(zip(header, row, strict=True)) for row in rows}
    assert at["LoRA"]["pocket DINO"] == "0.825" and at["LoRA"]["pocket KID"] == "2.0"
    assert at["PureCC, paper"]["pocket KID"] == "-" and at["PureCC, paper"]["pocket DINO"] == "0.725"  # an older case
    assert at["LoRA"]["dHPS: none"] == "-" and at["PureCC"]["concepts"] == "0"
    titles = [p for p in tables.paper_tables(cases, "style") if p.startswith("###")]
    assert [t for t in titles for n in (1, 2, 3, 6) if f"table {n}:" in t] == titles and len(titles) == 4


def test_tables_name_arms_that_exist() -> None:
    named = {arm for _, arms in tables.TABLES.values() for arm in arms.values()} - {""}
    for comparison in COMPARISONS.values():
        assert {arm for h in comparison.hypotheses for arm in (h.arm, h.other)} <= set(comparison.arms)
        named |= set(comparison.arms)
    named |= set(plots.CURVES) | {arm for arms in plots.STEPS.values() for arm in arms}
    named |= {arm for arms in SHEETS.values() for arm in arms}
    assert named <= set(ARMS)


def test_the_family_tells_what_holds() -> None:
    gate, lora = many_cases(CANDIDATE, 0.79, 0), many_cases("LoRA", 0.8, 20)
    cases = {"LoRA": lora, CANDIDATE: gate, "PureCC, paper": many_cases("PureCC, paper", 0.7, 22)}
    verdicts = {o.hypothesis.key: (o, holds) for o, holds in family(cases)}
    assert verdicts["H1"][1] and verdicts["H2"][1]  # a hundredth below; no drift
    assert verdicts["H6"][1] is False and verdicts["H6"][0].gain.mean == pytest.approx(-2)
    assert verdicts["H5"][1] is None and verdicts["H5"][0].concepts == 0  # that arm was not run
    for figure in ("H1", "H2"):
        assert f"| {figure}: " in tables.family_table(cases)
    worse = {**cases, CANDIDATE: many_cases(CANDIDATE, 0.74, 0)}
    assert {o.hypothesis.key: holds for o, holds in family(worse)}["H1"] is False  # 0.06 is beyond the margin
    halved = {**cases, CANDIDATE: many_cases(CANDIDATE, 0.8, 10)}  # less than LoRA's, more than a fifth
    assert {o.hypothesis.key: holds for o, holds in family(halved)}["H2"] is False
    few = {arm: [c for c in of_arm if c.concept < "c4"] for arm, of_arm in cases.items()}
    assert all(holds is None for _, holds in family(few))


def test_holm_is_over_the_whole_family() -> None:
    """A p-value of 0.02 holds alone, and not as one of ten."""
    rng = np.random.default_rng(4)
    lora, paper = many_cases("LoRA", 0.8, 20, 8), many_cases("PureCC, paper", 0.8, 20, 8)
    for case in paper:
        shift = rng.normal(-0.8, 1.0)
        case.rows["pixels"] = [v + shift for v in case.rows["pixels"]]
    cases = {"LoRA": lora, "PureCC, paper": paper}
    only = tuple(h for h in HYPOTHESES if h.key == "H6")
    (alone, holds_alone), *_ = family(cases, only)
    among = {o.hypothesis.key: holds for o, holds in family(cases)}
    assert 0.05 / 10 < alone.p < 0.05 and holds_alone and among["H6"] is False


def test_older_cases_are_judged_by_the_witnesses_that_all_have(tmp_path: Path) -> None:
    old, new = case_with({1.0: 0.5}, {1.0: 1.0}), case_with({1.0: 0.5}, {1.0: 1.0})
    new.seed, new.ends["template"] = 1, [0.0, 0.0, 1.0]
    new.rows["template"] = [1.0] * len(new.rows["role"])
    for case in (old, new):
        case.save(tmp_path / f"{case.seed}.json")
    loaded = report.load(tmp_path, "protocol")["LoRA"]
    assert [summarise(case).fidelity for case in loaded] == [0.5, 0.5]
    assert not old.complete and not Case.load(tmp_path / "0.json").kid


def test_a_case_of_another_form_of_its_arm_is_measured_again(tmp_path: Path) -> None:
    case = case_with({1.0: 0.5}, {1.0: 1.0})
    case.kid, case.ends = {"1": 0.0}, dict.fromkeys(WITNESSES[case.kind], [0.0, 0.0, 1.0])
    case.settings = json.loads(json.dumps(ARMS[case.arm].taught(case.seed, case.kind)))
    case.save(tmp_path / "case.json")
    assert command.is_current(tmp_path / "case.json", "protocol")
    assert not command.is_current(tmp_path / "case.json", "another protocol")
    assert not command.is_current(tmp_path / "case.json", "protocol", {"steps": 120})
    for changed in ({"learning_rate": 0.1}, {"background_anchor": 3.0}, {"method": "PureCC"}):
        replace(case, settings=case.settings | changed).save(tmp_path / "case.json")
        assert not command.is_current(tmp_path / "case.json", "protocol")


@pytest.mark.parametrize(
    ("split", "count"), [("test", "ten"), ("confirmation", "six"), ("second confirmation", "five")]
)
def test_the_text_says_what_the_code_tests(split: str, count: str) -> None:
    text, comparison = opening.TEXTS[split].read_text(encoding="utf-8"), COMPARISONS[split]
    for hypothesis in comparison.hypotheses:
        assert f"| {hypothesis.key} | {hypothesis.says}" in text
    assert all(f"*{arm}*" in text for arm in comparison.arms)
    assert f"-{MARGIN:g} for {comparison.hypotheses[0].key}" in text and f"one family of {count}" in text
    assert f"at {100 * comparison.level:g} %" in text
    assert len(comparison.hypotheses) == {"ten": 10, "six": 6, "five": 5}[count]


def planned(split: str = "test") -> list[tuple[str, str, int]]:
    """Concept, arm and seed of every case of a comparison."""
    args = Namespace(
        split=split, concepts=[c.name for c in concepts(split)], arms=list(COMPARISONS[split].arms), seeds=3
    )
    jobs = command.to_measure(args, Path("nothing is here"), "protocol", {})
    return [(name, arm, seed) for name, seed, arms in jobs for arm in arms]


def test_a_comparison_is_what_its_text_says() -> None:
    on_drawings = {
        "test": {"LoRA": 3, "LoRA + DOP": 3, "LoRA, rate 3e-4": 3, CANDIDATE: 3},
        "confirmation": {"LoRA": 2, "eta 0 + scenes 0.25, gated": 2},
        "second confirmation": {},
    }
    for split, seeds in on_drawings.items():
        expected = {
            (concept.name, arm, seed)
            for concept in concepts(split)
            for arm in COMPARISONS[split].arms
            for seed in range(seeds.get(arm, 1) if concept.kind == "instance" else 1)
        }
        assert len(planned(split)) == len(set(planned(split))) and set(planned(split)) == expected
        assert f"In all {len(expected)} cases" in opening.TEXTS[split].read_text(encoding="utf-8")


def whole_test(folder: Path, out: Path, left_out: int) -> str:
    """The report of stand-in cases of the test comparison, but for some concepts; the candidate is better, and one cannot be told."""
    kinds = {c.name: c.kind for c in concepts("test")}
    for name, arm, seed in planned():
        better = arm == CANDIDATE
        drift = 0.0 if better else 10.0
        fidelity = 0.8 if arm == "LoRA" else 0.85
        case = case_with({0.6: fidelity / 2, 1.0: fidelity}, {0.6: drift, 1.0: drift})
        case.concept, case.kind, case.arm, case.seed, case.kid = name, kinds[name], arm, seed, {"1": 0.0}
        for figure in ("background_pixels", "layout"):
            case.rows[figure] = [(0.5 if better else 1.0) * s for s in case.rows["strength"]]
        number = list(kinds).index(name)
        if number == 19:
            case.ends = {"pocket DINO": [0.0, 0.0, 0.01]}
        if number >= left_out:
            case.save(folder / f"{name} - {arm} - {seed}.json")
    return report.write(folder, out, "protocol")


def test_the_report_of_a_whole_test_and_of_one_with_gaps(tmp_path: Path) -> None:
    def verdicts(text: str) -> dict[str, str]:
        drawings = text.split("## Style concepts")[0]
        rows = [line.strip("| ").split(" | ") for line in drawings.splitlines() if line.startswith("| H")]
        return {row[0].split(":")[0]: row[-1] for row in rows}

    text = whole_test(tmp_path / "whole", tmp_path / "test.md", 0)
    assert "as PROTOCOL.md has it" in text and len(verdicts(text)) == len(HYPOTHESES)
    assert {key for key, verdict in verdicts(text).items() if verdict == "holds"} == {
        "H1",
        "H2",
        "H3",
        "H4",
        "H5",
        "H9",
        "H10",
    }
    curves = (tmp_path / "test instance, background.svg").read_text(encoding="utf-8")
    assert "nan" not in curves and CANDIDATE in curves
    gaps = whole_test(tmp_path / "gaps", tmp_path / "test.md", 5)  # 15 of 20 are fewer than four fifths
    assert set(verdicts(gaps).values()) == {"not shown"}
    assert "| 42 of 60 |" in gaps and "| 45 of 60 |" in gaps  # the one that cannot be told has drift all the same


def test_an_arm_that_fails_leaves_the_others_their_turn(tmp_path: Path, monkeypatch) -> None:
    class Measuring:
        def measure(self, concept, name, arm, seed, **changes) -> Case:
            if name == "LoRA":
                raise FloatingPointError("The loss is not finite.")
            return case_with({1.0: 0.5}, {1.0: 1.0})

    monkeypatch.setattr(worker, "bench", lambda work, drawing: Measuring())
    failed = worker.run_cases(tmp_path, tmp_path, Drawing(), "poodle", 0, ["LoRA", "LoRA + DOP"], {})
    assert failed == ["poodle, LoRA, seed 0"]
    assert [path.name for path in tmp_path.glob("*.json")] == ["poodle - LoRA + DOP - 0.json"]


@pytest.mark.parametrize("split", COMPARISONS)
def test_a_look_before_all_is_there_is_refused(split: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["pocketbench", "--split", split, "--report"])
    monkeypatch.setattr(command, "RESULTS", Path("nothing is here"))
    with pytest.raises(SystemExit):
        command.main()
    assert f"{len(planned(split))} cases are not there yet" in capsys.readouterr().err


def test_curves_over_steps_are_of_the_drawings_that_all_lengths_have(tmp_path: Path) -> None:
    lengths = [arm for arms in plots.STEPS.values() for arm in arms]
    cases = {arm: many_cases(arm, 0.1 * (i + 1), 10 * i) for i, arm in enumerate(lengths)}
    cases["LoRA"] = [case for case in cases["LoRA"] if case.concept in ("c0", "c1")]
    out = tmp_path / "steps.svg"
    assert plots.curves_over_steps(cases, "drift", "change", out)
    text = out.read_text(encoding="utf-8")
    assert "change, 2 drawings" in text and text.count("<circle") == 8 and "LoRA: 60, 200, 400 steps" in text
    assert not plots.curves_over_steps({arm: cases[arm] for arm in lengths[1:]}, "drift", "change", tmp_path / "no.svg")
    assert not (tmp_path / "no.svg").exists()


def test_arms_are_compared_on_the_same_concepts(tmp_path: Path) -> None:
    """Those that were run on all of them, and all of them on the few that most have."""
    for arm, names in {"LoRA": [*SMALL[:2], "cat"], "LoRA + DOP": SMALL[:2], "PureCC": [*SMALL[:2], "cat"]}.items():
        for name in names:
            case = case_with({1.0: 0.2 if name == "cat" else 0.8}, {1.0: 10.0})
            case.concept, case.arm = name, arm
            case.save(tmp_path / f"{name} - {arm}.json")
    few, every = (
        report.load(tmp_path, "protocol"),
        report.of_all_concepts(report.load(tmp_path, "protocol"), "instance"),
    )
    assert "all 3" in every[0] and "| LoRA | 3 / 3 | 0.60 |" in every[2] and "DOP" not in every[2]
    told = report.overview(report.on_few_concepts(few))
    assert "| LoRA | 2 / 2 | 0.80 |" in told and "| LoRA + DOP | 2 / 2 | 0.80 |" in told


def test_arms_at_other_rates_are_compared_among_themselves() -> None:
    every = {"LoRA": [1], "PureCC": [2], "LoRA, rate 1e-3": [3], "PureCC, rate 3e-4": [4]}
    assert report.by_rate(every) == {"": {"LoRA": [1], "PureCC": [2]}, ", rate 1e-3": {"LoRA": [3]}}


@pytest.mark.parametrize("split", COMPARISONS)
def test_a_split_is_closed_without_a_record_of_this_text(split: str, tmp_path: Path, monkeypatch) -> None:
    text, openings = tmp_path / "PROTOCOL.md", tmp_path / "openings.json"
    text.write_text("what will be compared", encoding="utf-8")
    monkeypatch.setattr(opening, "revision", lambda: "0123456789" * 4)
    monkeypatch.setattr(opening, "unchanged_since", lambda commit: commit == "0123456789" * 4)
    check = lambda: opening.require_opening(split, text, openings)  # noqa: E731
    other = next(name for name in COMPARISONS if name != split)
    opening.record(other, "not of this split", text, openings)
    with pytest.raises(opening.Closed, match="no opening"):
        check()
    written = opening.record(split, "the comparison", text, openings)
    assert check() == written and written["why"] == "the comparison"
    for name, value, why in (
        ("date", "soon", "date"),
        ("revision", "a" * 40, "the code"),
        ("protocol", "0", "another text"),
    ):
        openings.write_text(json.dumps([{**written, name: value}]), encoding="utf-8")
        with pytest.raises(opening.Closed, match=why):
            check()
    openings.write_text(json.dumps([written]), encoding="utf-8")
    text.write_text("something else", encoding="utf-8")
    with pytest.raises(opening.Closed, match="another text"):
        check()
    for _ in range(opening.MOST[split] - 1):
        opening.record(split, "a fault", text, openings)
    with pytest.raises(opening.Closed, match=f"allows: {opening.MOST[split]}"):
        opening.record(split, "once more", text, openings)


@pytest.mark.parametrize("split", COMPARISONS)
def test_the_command_refuses_a_split_that_is_not_open(split: str, monkeypatch, capsys, tmp_path: Path) -> None:
    """Before anything of it is read: no opening is recorded in the repository's own file, or in an empty one."""
    monkeypatch.setattr(opening, "records", lambda split, openings=None: [])
    monkeypatch.setattr("sys.argv", ["pocketbench", "--split", split, "--work", str(tmp_path)])
    with pytest.raises(SystemExit):
        command.main()
    assert "closed" in capsys.readouterr().err
    with pytest.raises(opening.Closed):
        worker.run_cases(tmp_path, tmp_path, Drawing(), "x", 0, ["LoRA"], {}, split)
    assert not list(tmp_path.iterdir())


def test_what_is_nearer_is_above_zero() -> None:
    plain = case_with({0.5: 0.4, 1.0: 0.8}, {0.5: 10.0, 1.0: 30.0})
    background = {0.5: 5.0, 1.0: 15.0}
    rows = plain.rows | {"background_pixels": [background[s] for s in plain.rows["strength"]]}
    twice = plain.rows | {"background_pixels": [2 * background[s] for s in plain.rows["strength"]]}
    cases = {"LoRA": [replace(plain, rows=twice)], "half": [replace(plain, rows=rows)]}
    row = report.nearer(cases, "LoRA").splitlines()[-1].split("|")
    assert row[1].strip() == "half" and row[4].strip() == "+13.000"  # 26 - 13 where fidelity is 0.72
