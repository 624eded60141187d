"""05: two concepts in one prompt, as Apply Concept comes and as two plain LoRAs."""

from purecc.launch.pictures import BUNDLED_CONCEPTS

from .branch import HEIGHT, Sampling, sample
from .graph import Graph, Node
from .ready_concept import CFG, COUNT, SEED, SIZE, STEPS
from .ready_concept import CONCEPT as DOG

FLOWER = BUNDLED_CONCEPTS["05"]
PROMPT = "a [W] flower on the left and a [V] dog on the right on the beach"


def two_concepts() -> Graph:
    g = Graph()
    tall = 3 * HEIGHT + 60
    g.group("1  Model and concepts", 0, 0, 420, tall)
    pocket = g.add("PureCCPocketModel", 20, 60, 380, 70)
    dog = g.add("PureCCLoadConcept", 20, 190, 380, 120, DOG, title="Load Concept: [V] dog")
    flower = g.add("PureCCLoadConcept", 20, 400, 380, 120, FLOWER, title="Load Concept: [W] flower")
    latent = g.add("EmptySD3LatentImage", 20, 610, 380, 130, SIZE, SIZE, COUNT)
    g.note(
        20, 790, 380, 300,
        "**Two concepts in one prompt.** They were taught apart, each with a trigger of its own. Chain one *Apply Concept* for each, and write both "
        "triggers into the prompt. Two things do best where the prompt says where each of them is.",
        "**Your own:** give the second concept another trigger when you teach it; *Load Concept* shows which one a concept has.",
        "A style may stand beside a thing: *a [V] dog in [W] style*.",
    )  # fmt: skip
    g.group("2  Chain them", 440, 0, 720, tall)
    held = _chained(g, 460, pocket, (dog, flower), "as trained", True, "")
    loras = _chained(g, 820, pocket, (dog, flower), "off", False, ", as a plain LoRA")
    g.note(
        460, 800, 680, 240,
        "**Left, as the node comes:** with *hold_surroundings* each concept is asked alone and acts in a place of its own; elsewhere the base model draws. It "
        "takes a further pass for each concept.",
        "**Right, as two plain LoRAs** (gate *off*, not held): both act in the same weights, and each takes on the other's looks.",
        "A concept that the prompt does not name does nothing on the left: take [W] out of the prompt, and a common flower stands there.",
    )  # fmt: skip
    g.group("3  Pictures", 1180, 0, 900, tall)
    how = Sampling(latent["LATENT"], pocket["VAE"], SEED, STEPS, CFG)
    rows = {}
    arms = (("base model", pocket), ("as it comes", held), ("two plain LoRAs", loras))
    for number, (name, source) in enumerate(arms):
        text = PROMPT.replace("[V] ", "").replace("[W] ", "") if source is pocket else PROMPT
        rows[f"row_{number + 1}"] = sample(g, 1200, 60 + number * HEIGHT, name, source, text, how)["IMAGE"]
    g.group("4  Grid", 2100, 0, 800, tall)
    labels = "\n".join(name for name, _ in arms)
    grid = g.add("PureCCGrid", 2120, 60, 400, 420, labels, "", **rows)
    g.add("SaveImage", 2120, 560, 760, 550, "purecc/05_grid", title="Grid", images=grid["grid"])
    return g


def _chained(g: Graph, x: int, model: Node, concepts: tuple[Node, ...], gate: str, holds: bool, what: str) -> Node:
    """One Apply Concept after the other; the last."""
    for number, concept in enumerate(concepts):
        model = g.add(
            "PureCCApplyConcept", x, 60 + number * HEIGHT, 320, 315, 1.0, 1.0, gate, 0.0, 1.0, holds,
            title=f"Apply {('[V]', '[W]')[number]}{what}", model=model["MODEL"], clip=model["CLIP"], concept=concept["concept"],
        )  # fmt: skip
    return model
