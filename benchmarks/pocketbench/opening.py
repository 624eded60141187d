"""The lock of test and confirmation: each opens for the comparison that its text has written down, and each time is recorded.

    python -m benchmarks.pocketbench.opening SPLIT "why it is opened"    # records it, from a clean checkout; commit the file

A record in `openings.json` holds the split, the day (UTC), the SHA-256 of the text, the code's revision, and the reason.
"""

import argparse
import hashlib
import json
import re
import subprocess
from datetime import date, datetime, timezone
from pathlib import Path

HERE = Path(__file__).parent
OPENINGS = HERE / "openings.json"
TEXTS = {
    "test": HERE / "PROTOCOL.md",
    "confirmation": HERE / "CONFIRMATION.md",
    "second confirmation": HERE / "SECOND_CONFIRMATION.md",
    "third confirmation": HERE / "THIRD_CONFIRMATION.md",
}
MOST = {"test": 2, "confirmation": 1, "second confirmation": 1, "third confirmation": 1}
#: what a run depends on: these may not change between the record and the run
CODE = (
    ":(glob)benchmarks/pocketbench/*.py", "benchmarks/pocketbench/judges", ":(glob)purecc/*.py",
    ":(glob)purecc/pocket/*.py", "purecc/pocket/weights", "purecc/pocket/art", *(f"benchmarks/pocketbench/{text.name}" for text in TEXTS.values()),
)  # fmt: skip


class Closed(Exception):
    """This split may not be opened; the text says why."""


def _git(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *words], cwd=HERE.parents[1], capture_output=True, text=True)


def revision() -> str:
    """The commit that is checked out, 40 hexadecimal digits, with a + where the code differs from it; "" without git."""
    found = _git("rev-parse", "HEAD")
    return "" if found.returncode else found.stdout.strip() + ("" if unchanged_since("HEAD") else "+")


def unchanged_since(commit: str) -> bool:
    """Whether the code that runs is that commit's."""
    return _git("diff", "--quiet", commit, "--", *CODE).returncode == 0


def protocol_hash(text: Path) -> str:
    """SHA-256 of the text, whatever its line ends."""
    return hashlib.sha256(text.read_text(encoding="utf-8").encode()).hexdigest()


def records(split: str, openings: Path = OPENINGS) -> list[dict[str, str]]:
    """The openings of one split, the first first."""
    every = json.loads(openings.read_text(encoding="utf-8")) if openings.is_file() else []
    return [record for record in every if record["split"] == split]


def require_opening(split: str, text: Path | None = None, openings: Path = OPENINGS) -> dict[str, str]:
    """The record that opens a split now. Raises Closed without one for this text, day and code."""
    text, found = text or TEXTS[split], records(split, openings)
    closed = f"The {split} split is closed:"
    if len(found) > MOST[split]:
        raise Closed(
            f"{openings.name} holds {len(found)} openings of the {split} split; {text.name} allows {MOST[split]}."
        )
    if not found:
        raise Closed(f"{closed} {openings.name} holds no opening of it. {text.name} says who opens it, and when.")
    last = found[-1]
    if last.get("protocol") != protocol_hash(text):
        raise Closed(f"{closed} the last opening is of another text than {text.name} has now.")
    try:
        date.fromisoformat(last.get("date", ""))
    except ValueError:
        raise Closed(f"{closed} its last opening has no date.") from None
    commit = last.get("revision", "")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise Closed(f"{closed} its last opening has no revision of the code.")
    if not unchanged_since(commit):
        raise Closed(f"{closed} the code is no longer what it was at {commit[:12]}, when it was opened.")
    return last


def record(split: str, why: str, text: Path | None = None, openings: Path = OPENINGS) -> dict[str, str]:
    """Adds an opening; raises Closed where there were too many, or where the code is not a commit's."""
    count, commit = len(records(split, openings)), revision()
    if count >= MOST[split]:
        raise Closed(f"The {split} split was opened as often as its text allows: {count}.")
    if len(commit) != 40:
        raise Closed("Commit the code first: an opening names the revision that runs.")
    today = datetime.now(timezone.utc).date().isoformat()
    added = {
        "split": split,
        "date": today,
        "protocol": protocol_hash(text or TEXTS[split]),
        "revision": commit,
        "why": why,
    }
    every = json.loads(openings.read_text(encoding="utf-8")) if openings.is_file() else []
    openings.write_text(json.dumps([*every, added], indent=2) + "\n", encoding="utf-8")
    return added


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", choices=TEXTS)
    parser.add_argument("why")
    args = parser.parse_args()
    print(record(args.split, args.why))
