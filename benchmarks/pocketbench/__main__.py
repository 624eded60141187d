"""PocketBench's one command. What was measured before is taken from the results folder; the rest is run.

python -m benchmarks.pocketbench --quick
python -m benchmarks.pocketbench [--arms NAME ...] [--concepts NAME ...] [--seeds 1] [--workers 2]
python -m benchmarks.pocketbench --report
python -m benchmarks.pocketbench --split test      # the comparison of PROTOCOL.md; closed unless openings.json records an opening
python -m benchmarks.pocketbench --split confirmation                  # that of CONFIRMATION.md, likewise
python -m benchmarks.pocketbench --split "second confirmation"         # that of SECOND_CONFIRMATION.md, likewise
python -m benchmarks.pocketbench --split "third confirmation"          # that of THIRD_CONFIRMATION.md, likewise
python -m benchmarks.pocketbench --sheets          # contact sheets of one drawing, from runs in the work folder (sheets.py)
"""

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from . import report
from .arms import ARMS, AT_COMMON_RATE, HELD_BY, QUICK, STRENGTHS
from .case import Case, Drawing, protocol
from .concepts import QUICK as QUICK_CONCEPTS
from .concepts import SMALL, concept, concepts
from .hypotheses import COMPARISONS, DRAWING
from .opening import TEXTS, Closed, records, require_opening
from .worker import result_path, run_cases

RESULTS = Path(__file__).parent / "results"


def is_current(path: Path, measured_by: str, changes: dict[str, Any] | None = None) -> bool:
    """Whether this case was measured by this protocol, with all the witnesses that there are today, of the arm as it is today."""
    if not path.is_file():
        return False
    case = Case.load(path)
    asked = json.loads(json.dumps(ARMS[case.arm].taught(case.seed, case.kind, **changes or {})))
    told = {
        "background_anchor": 0.0,
        "background_loss": 1.0,
        "scene_anchor": 0.0,
        "scene_concept": 0.0,
        **case.settings,
    }  # a run's file leaves them out at these
    of_this_arm = all(asked[name] == value for name, value in told.items() if name in asked)
    if ARMS[case.arm].hold_surroundings:
        of_this_arm &= HELD_BY[case.kind].items() <= case.settings.items()
    return case.protocol == measured_by and case.complete and of_this_arm


def to_measure(
    args: argparse.Namespace, folder: Path, measured_by: str, changes: dict[str, Any]
) -> Iterator[tuple[str, int, list[str]]]:
    """Concept, training seed and arms that are not measured yet; arms that share an extractor, which is in the work folder, together."""
    for seed in range(args.seeds):
        for name in args.concepts:
            paths = {arm: result_path(folder, name, arm, seed) for arm in args.arms}
            open_ = [arm for arm, path in paths.items() if not is_current(path, measured_by, changes)]
            if comparison := COMPARISONS.get(args.split):
                open_ = [a for a in open_ if seed < comparison.seeds(a, concept(name, args.split).kind)]
            for shared in (True, False):
                if arms := [a for a in open_ if ARMS[a].needs_extractor == shared]:
                    yield name, seed, arms


def missing_of(args: argparse.Namespace, folder: Path, measured_by: str) -> list[str]:
    """Of a comparison, which changes nothing in its arms."""
    return [f"{n}, {a}, seed {s}" for n, s, arms in to_measure(args, folder, measured_by, {}) for a in arms]


def about(split: str, missing: list[str]) -> str:
    """What the report of a comparison says of its opening, and of what is not there."""
    found, text = records(split), TEXTS[split].name
    opened = found[-1] if found else {}
    try:
        state = f"{text} and the code are still what they were then." if require_opening(split) else ""
    except Closed as reason:
        state = f"**Not so any more**: {reason}"
    of = f"Opening {len(found)}, {opened.get('date')}, code {opened.get('revision')}, {text} {opened.get('protocol')}."
    return f"{of} {state}\n\nMissing: {'; '.join(missing) or 'none'}."


def title_of(split: str) -> str:
    """Of a comparison's last opening, and its folder: cases of the first are not the second's."""
    count = len(records(split))
    return split if count < 2 else f"{split}, opening {count}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="three concepts, five arms, one seed, fewer steps and pictures"
    )
    parser.add_argument("--split", default="development", choices=["development", *COMPARISONS])
    parser.add_argument("--arms", nargs="+", default=list(AT_COMMON_RATE), choices=ARMS)
    parser.add_argument("--concepts", nargs="+", default=list(SMALL))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--noises", type=int, default=1, help="pictures for each prompt")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2 * 2))
    parser.add_argument("--work", type=Path, default=Path(".local/pocketbench"), help="runs and pictures")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument(
        "--missing", action="store_true", help="report a comparison though cases are missing, and name them"
    )
    parser.add_argument("--sheets", action="store_true", help="contact sheets, as JPEG")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.sheets:
        from .sheets import write_all

        for path in write_all(args.work, RESULTS / "sheets"):
            print(path)
        return
    title = "quick" if args.quick else args.split
    folder, changes, drawing = RESULTS / title, {}, Drawing(STRENGTHS, args.noises)
    comparison = COMPARISONS.get(args.split)
    if args.quick and comparison:
        parser.error("--quick is of the development split.")
    if comparison:  # nothing of it is left to the command line
        if not args.report:
            try:
                print("opened:", require_opening(args.split))
            except Closed as reason:
                parser.error(str(reason))
        args.arms, drawing = list(comparison.arms), DRAWING
        args.concepts, args.seeds = [c.name for c in concepts(args.split)], max(comparison.arms.values())
        title = title_of(args.split)
        folder = RESULTS / title
    elif args.quick:
        args.arms, args.concepts, args.seeds = list(QUICK), list(QUICK_CONCEPTS), 1
        changes, drawing = {"steps": 120}, Drawing((0.6, 1.0))
    measured_by = protocol(drawing)
    if comparison and args.report and not args.missing:
        if missing := missing_of(args, folder, measured_by):
            parser.error(
                f"{len(missing)} cases are not there yet; {TEXTS[args.split].name} has no look at the figures before all are."
            )
    if not args.report:
        with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
            jobs = [
                pool.submit(run_cases, args.work, folder, drawing, *job, changes, args.split)
                for job in to_measure(args, folder, measured_by, changes)
            ]
            failed = [name for job in as_completed(jobs) for name in job.result()]
        if failed:
            parser.exit(
                1,
                f"These failed; their errors stand above. The same command tries them again:\n{chr(10).join(failed)}\n",
            )
    head = about(args.split, missing_of(args, folder, measured_by)) if comparison else ""
    print(report.write(folder, RESULTS / f"{title}.md", measured_by, head))


if __name__ == "__main__":
    main()
