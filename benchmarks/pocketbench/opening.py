"""The test split's lock: it opens for the comparison that PROTOCOL.md has written down, at most twice, and each time is recorded.

    python -m benchmarks.pocketbench.opening "why it is opened"    # records it, from a clean checkout; commit the file

A record in `openings.json` holds the day (UTC), the SHA-256 of PROTOCOL.md, the code's revision, and the reason.
"""

import argparse
import hashlib
import json
import re
import subprocess
from datetime import date, datetime, timezone
from pathlib import Path

HERE = Path(__file__).parent
PROTOCOL, OPENINGS = HERE / "PROTOCOL.md", HERE / "openings.json"
MOST = 2
#: what a run depends on: these may not change between the record and the run
CODE = (
    ":(glob)benchmarks/pocketbench/*.py", "benchmarks/pocketbench/judges", ":(glob)purecc/*.py",
    ":(glob)purecc/pocket/*.py", "purecc/pocket/weights", "purecc/pocket/art", "benchmarks/pocketbench/PROTOCOL.md",
)  # fmt: skip


class Closed(Exception):
    """The test split may not be opened; the text says why."""


def _git(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *words], cwd=HERE.parents[1], capture_output=True, text=True)


def revision() -> str:
    """The commit that is checked out, 40 hexadecimal digits, with a + where the code differs from it; "" without git."""
    found = _git("rev-parse", "HEAD")
    return "" if found.returncode else found.stdout.strip() + ("" if unchanged_since("HEAD") else "+")


def unchanged_since(commit: str) -> bool:
    """Whether the code that runs is that commit's."""
    return _git("diff", "--quiet", commit, "--", *CODE).returncode == 0


def protocol_hash(protocol: Path = PROTOCOL) -> str:
    """SHA-256 of the text, whatever its line ends."""
    return hashlib.sha256(protocol.read_text(encoding="utf-8").encode()).hexdigest()


def records(openings: Path = OPENINGS) -> list[dict[str, str]]:
    return json.loads(openings.read_text(encoding="utf-8")) if openings.is_file() else []


def require_opening(protocol: Path = PROTOCOL, openings: Path = OPENINGS) -> dict[str, str]:
    """The record that opens the test split now. Raises Closed without one for this text, day and code."""
    found = records(openings)
    if len(found) > MOST:
        raise Closed(f"{openings.name} holds {len(found)} openings; the protocol allows {MOST}.")
    if not found:
        raise Closed(
            f"The test split is closed: {openings.name} holds no opening. PROTOCOL.md says who opens it, and when."
        )
    last = found[-1]
    if last.get("protocol") != protocol_hash(protocol):
        raise Closed(f"The test split is closed: the last opening is of another text than {protocol.name} has now.")
    try:
        date.fromisoformat(last.get("date", ""))
    except ValueError:
        raise Closed("The test split is closed: its last opening has no date.") from None
    commit = last.get("revision", "")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise Closed("The test split is closed: its last opening has no revision of the code.")
    if not unchanged_since(commit):
        raise Closed(
            f"The test split is closed: the code is no longer what it was at {commit[:12]}, when it was opened."
        )
    return last


def record(why: str, protocol: Path = PROTOCOL, openings: Path = OPENINGS) -> dict[str, str]:
    """Adds an opening; raises Closed where there were too many, or where the code is not a commit's."""
    found, commit = records(openings), revision()
    if len(found) >= MOST:
        raise Closed(f"The test split was opened {len(found)} times; the protocol allows {MOST}.")
    if len(commit) != 40:
        raise Closed("Commit the code first: an opening names the revision that runs.")
    today = datetime.now(timezone.utc).date().isoformat()
    found.append({"date": today, "protocol": protocol_hash(protocol), "revision": commit, "why": why})
    openings.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found[-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("why")
    print(record(parser.parse_args().why))
