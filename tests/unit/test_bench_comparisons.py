"""The comparisons that are written down before they are run: the family, the texts, and the lock. No training."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from bench_cases import case_with, many_cases

from benchmarks.pocketbench import __main__ as command
from benchmarks.pocketbench import opening, report, tables, worker
from benchmarks.pocketbench.afterwards import by_threshold
from benchmarks.pocketbench.case import Drawing
from benchmarks.pocketbench.concepts import concepts
from benchmarks.pocketbench.hypotheses import CANDIDATE, COMPARISONS, HELD, MARGIN, Hypothesis, family, gains
from purecc.place import NEGATIVE_SHARE

HYPOTHESES = COMPARISONS["test"].hypotheses


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


@pytest.mark.parametrize(
    ("split", "count"),
    [("test", "ten"), ("confirmation", "six"), ("second confirmation", "five"), ("third confirmation", "seven")],
)
def test_the_text_says_what_the_code_tests(split: str, count: str) -> None:
    text, comparison = opening.TEXTS[split].read_text(encoding="utf-8"), COMPARISONS[split]
    for hypothesis in comparison.hypotheses:
        assert f"| {hypothesis.key} | {hypothesis.says}" in text
    assert all(f"*{arm}*" in text for arm in comparison.arms)
    assert f"-{MARGIN:g} for {comparison.hypotheses[0].key}" in text and f"one family of {count}" in text
    assert f"at {100 * comparison.level:g} %" in text
    assert split != "third confirmation" or f"share of the negative, {NEGATIVE_SHARE}, was" in text
    assert len(comparison.hypotheses) == {"ten": 10, "six": 6, "five": 5, "seven": 7}[count]


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
        "third confirmation": {"LoRA": 2, HELD: 2},
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


@pytest.mark.parametrize("split", COMPARISONS)
def test_a_look_before_all_is_there_is_refused(split: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["pocketbench", "--split", split, "--report"])
    monkeypatch.setattr(command, "RESULTS", Path("nothing is here"))
    with pytest.raises(SystemExit):
        command.main()
    assert f"{len(planned(split))} cases are not there yet" in capsys.readouterr().err


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


def test_a_witness_that_spans_too_little_counts_where_a_hypothesis_lets_it() -> None:
    """One of two witnesses spans 0.08 and says that the arm is worse: by the older threshold it counts, by 0.1 it does not."""
    cases = {"LoRA": many_cases("LoRA", 0.8, 6, 3), "other": many_cases("other", 0.8, 6, 3)}
    for arm, score in (("LoRA", 0.08), ("other", 0.0)):
        for case in cases[arm]:
            case.ends["colours"] = [0.0, 0.0, 0.08]
            case.rows["colours"] = [score] * len(case.rows["strength"])
    mean = lambda pairs: np.mean([np.mean([v.mean() for v in seeds.values()]) for seeds in pairs.values()])  # noqa: E731
    narrow, wide = (
        mean(gains(cases, Hypothesis("", "other", "LoRA", "fidelity", 1.0, MARGIN, span=s))) for s in (0, 0.1)
    )
    assert narrow < -0.2 and abs(wide) < 0.1
    rows = list(by_threshold(cases, Hypothesis("", "other", "LoRA", "fidelity", margin=MARGIN, span=0.1)))
    assert rows[0][2] == rows[1][2] != rows[2][2], "each row has its own threshold"
