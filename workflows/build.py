"""Writes the shared workflows, so that their layout is kept in one readable place: the package `builder` beside this file.

    python -m workflows.build

The page shows a file's name as its title, and nothing else of it: so the names are sentences. Standard library only.
"""

from pathlib import Path

from .builder.ready_concept import load_and_sample, seeds_and_strengths
from .builder.two_concepts import two_concepts
from .builder.whole_job import pocket_whole_job, sd35_whole_job

FOLDER = Path(__file__).parent
WORKFLOWS = {
    "01_Five pictures to a concept, on the bundled Pocket Model": pocket_whole_job,
    "02_Load a concept and sample beside the original": load_and_sample,
    "03_Five pictures to a concept, with SD3.5 Medium": sd35_whole_job,
    "04_One concept at several strengths in a grid": seeds_and_strengths,
    "05_Two concepts in one prompt": two_concepts,
}

if __name__ == "__main__":
    for name, make in WORKFLOWS.items():
        make().save(FOLDER / f"{name}.json")
