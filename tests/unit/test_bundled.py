"""What the pack ships as made by its own model was made by the model that it ships."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from purecc.concept import load_concept
from purecc.fingerprint import transformer_fingerprint
from purecc.launch.layout import PROJECT
from purecc.launch.pictures import BUNDLED_CONCEPTS, weights_digest
from purecc.pocket.model import load_pocket

WORKFLOWS = PROJECT / "workflows"
REMEDY = "Run `python run.py pictures` to make the concept and all pictures anew, and look at them."
NOT_RUN_HERE = "03_"  # its thumbnail is a drawing of the graph: the model is too large
DRAWN = [p for p in sorted(WORKFLOWS.rglob("*.jpg")) if not p.name.startswith(NOT_RUN_HERE)]


@pytest.mark.parametrize(("file", "trigger"), list(zip(BUNDLED_CONCEPTS.values(), ("[V]", "[W]"), strict=True)))
def test_a_bundled_concept_belongs_to_the_bundled_weights(file: str, trigger: str) -> None:
    concept = load_concept(WORKFLOWS / "concepts" / file)
    weights = transformer_fingerprint(load_pocket().transformer)
    assert concept.role == "concept" and concept.trigger == trigger
    assert concept.base == weights, (
        f"{file} was trained on other weights ({concept.base}) than those in purecc/pocket/weights ({weights}). "
        + REMEDY
    )


@pytest.mark.parametrize("path", DRAWN, ids=[p.stem for p in DRAWN])
def test_a_picture_was_drawn_by_the_bundled_weights(path: Path) -> None:
    comment, weights = Image.open(path).info.get("comment", b"").decode(), f"weights {weights_digest(PROJECT)}"
    assert comment == weights, (
        f'{path.name} was drawn by other weights ("{comment}") than those in purecc/pocket/weights ("{weights}"). '
        + REMEDY
    )


def test_every_workflow_has_a_thumbnail_of_modest_size() -> None:
    for workflow in WORKFLOWS.glob("*.json"):
        assert workflow.with_suffix(".jpg").is_file(), f"{workflow.stem} has no thumbnail. {REMEDY}"
        assert workflow.with_suffix(".jpg").stat().st_size < 150_000
