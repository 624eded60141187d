"""Does the base model find the concept in its references? For each development drawing, none of which it knows.

    python -m benchmarks.found_masks

Held: how much of the drawing is on the found mask and its rim, so that the background anchor leaves it alone; taken: how much
of the picture that is. Means over the five references, and the least single one.
"""

from dataclasses import replace
from pathlib import Path

from purecc.found_masks import with_found_masks

from .pocketbench.bench import Bench
from .pocketbench.concepts import concepts


def main() -> None:
    bench = Bench(Path(".local/pocketbench"))
    print("| drawing | held, mean | least | taken |\n|---|--:|--:|--:|")
    for concept in concepts("development"):
        if concept.kind == "style":
            continue
        given = bench.concept_set(concept, 1)
        every = list(range(len(given.examples)))
        found = with_found_masks(bench.network(), replace(given, masks=()), bench.scaling)
        free, thing = found.outside_weights(every) == 0, given.loss_weights(every, 0.0)
        held = (thing * free).sum((1, 2, 3)) / thing.sum((1, 2, 3))
        print(f"| {concept.name} | {held.mean():.1%} | {held.min():.1%} | {found.concept_share:.0%} |", flush=True)


if __name__ == "__main__":
    main()
