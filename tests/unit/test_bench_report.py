"""PocketBench's report: curves, the paper's tables, which cases are compared. No training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bench_cases import case_with, many_cases

from benchmarks.pocketbench import __main__ as command
from benchmarks.pocketbench import plots, report, tables, worker
from benchmarks.pocketbench.arms import ARMS, HELD_BY, SHIPPED
from benchmarks.pocketbench.case import WITNESSES, Case, Drawing
from benchmarks.pocketbench.concepts import SMALL
from benchmarks.pocketbench.hypotheses import COMPARISONS
from benchmarks.pocketbench.sheets import SHEETS
from benchmarks.pocketbench.summary import at_fidelity, summarise


def test_a_curve_is_read_where_it_reaches_the_fidelity() -> None:
    case = case_with({0.5: 0.4, 1.0: 0.8}, {0.5: 10.0, 1.0: 30.0})
    assert at_fidelity(case, 0.6, "drift") == pytest.approx(20)
    assert at_fidelity(case, 0.2, "drift") == pytest.approx(5)  # from the base model on
    assert at_fidelity(case, 0.2, "seg_cons") == pytest.approx(0.5)  # the base agrees with itself
    assert at_fidelity(case, 0.9, "drift") is None
    assert at_fidelity(case, 0.6, "beside") is None  # no picture of it has a second thing
    below = case_with({0.5: -0.4, 1.0: 0.2}, {0.5: 10.0, 1.0: 30.0})
    assert at_fidelity(below, -0.2, "drift") is None  # it falls below the base first: what the base has is no goal
    learnt = replace(case_with({0.5: -0.4, 1.0: 0.2}, {0.5: 10.0, 1.0: 30.0}), ends={"pocket DINO": [-1.0, 0.0, 1.0]})
    assert at_fidelity(learnt, -0.2, "drift") is None and at_fidelity(
        learnt, 0.1, "drift"
    )  # nor is nothing of the concept


def test_a_run_reaches_a_fidelity_also_where_drift_is_measured_at_full_strength_alone() -> None:
    cases = {"LoRA": many_cases("LoRA", 0.8, 10.0)}
    for case in cases["LoRA"]:
        drawn = zip(case.rows["pixels"], case.rows["strength"], strict=True)
        case.rows["pixels"] = [value if strength == 1 else None for value, strength in drawn]
    assert "| LoRA | 12 of 12 |  | 0.00 |" in report.matched(cases)


def test_fidelity_is_between_the_higher_floor_and_the_ceiling() -> None:
    case = case_with({1.0: 0.7}, {1.0: 1.0})
    case.ends = {"pocket DINO": [0.1, 0.4, 0.9], "colours": [0.5, 0.5, 0.51]}  # the second tells nothing
    assert summarise(case).fidelity == pytest.approx(0.6)


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
    arm = ARMS[SHIPPED]
    for kind, of_kind in (("instance", {"negative_share": 0.5}), ("style", {"look_share": 1.0})):
        settings = json.loads(json.dumps(arm.taught(case.seed, kind)))
        ends = dict.fromkeys(WITNESSES[kind], [0.0, 0.0, 1.0])
        held = replace(case, arm=SHIPPED, kind=kind, ends=ends, settings=settings | HELD_BY[kind])
        for changed, current in (({}, True), (of_kind, False), ({"layout": 1.0}, False)):
            replace(held, settings=held.settings | changed).save(tmp_path / "case.json")
            assert command.is_current(tmp_path / "case.json", "protocol") == current
        replace(held, settings=settings).save(tmp_path / "case.json")
        assert not command.is_current(tmp_path / "case.json", "protocol"), (
            "drawn otherwise, before there was such a thing"
        )


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


def test_what_is_nearer_is_above_zero() -> None:
    plain = case_with({0.5: 0.4, 1.0: 0.8}, {0.5: 10.0, 1.0: 30.0})
    background = {0.5: 5.0, 1.0: 15.0}
    rows = plain.rows | {"background_pixels": [background[s] for s in plain.rows["strength"]]}
    twice = plain.rows | {"background_pixels": [2 * background[s] for s in plain.rows["strength"]]}
    cases = {"LoRA": [replace(plain, rows=twice)], "half": [replace(plain, rows=rows)]}
    row = report.nearer(cases, "LoRA").splitlines()[-1].split("|")
    assert row[1].strip() == "half" and row[4].strip() == "+13.000"  # 26 - 13 where fidelity is 0.72
