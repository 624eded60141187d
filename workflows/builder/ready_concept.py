"""02 and 04: a concept that is there already, beside the base model, and at several strengths."""

from purecc.launch.pictures import BUNDLED_CONCEPTS

from .branch import HEIGHT, KEPT, Sampling, keep, sample
from .graph import Graph, Node

CONCEPT = BUNDLED_CONCEPTS["01"]
SEED, STEPS, CFG, COUNT, SIZE = 7, 28, 4.0, 4, 128
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
PROMPT = "a big [V] dog in the middle in the snow"
OTHER_PROMPT = "a big dog on the left in the city"


def load_and_sample() -> Graph:
    """02: load a concept, sample beside the original, with the trigger in the prompt and without."""
    g = Graph()
    tall = 2 * KEPT + 60
    g.group("1  Model and concept", 0, 0, 420, tall)
    pocket, concept, latent = _sources(g)
    g.note(
        20, 580, 380, 230,
        "**Use a concept.** *Load Concept* lists what *Save Concept* wrote, and this example. *Apply Concept* puts it on MODEL "
        "and CLIP; everything after it is stock.",
        "Write the trigger (here **[V]**) into the prompt, and encode with the CLIP that comes out of *Apply Concept*.",
        "A concept belongs to the model that it was trained on: this one to the Pocket Model.",
    )  # fmt: skip
    g.group("2  Apply", 440, 0, 360, tall)
    applied = _apply(g, 460, 60, pocket, concept, 1.0, "Apply Concept")
    g.note(
        460, 530, 320, 230,
        "**strength**: of the LoRA. **embedding_strength**: of the concept's own embeddings at the trigger's place. 1 is as trained.",
        "**gate** *as trained*: the concept acts only in pictures whose prompt holds the trigger. All others are the base "
        "model's, exactly: see group 4.",
        "**hold_surroundings**: around the concept the base model draws on, in 1.9 times the time.",
    )  # fmt: skip
    how = Sampling(latent["LATENT"], pocket["VAE"], SEED, STEPS, CFG)
    parts = (
        ("3  With the trigger", "with", PROMPT),
        ("4  Without it: the same picture, bit for bit", "without", OTHER_PROMPT),
    )
    for number, (title, part, prompt) in enumerate(parts):
        top = number * (tall + 40)
        g.group(title, 820, top, 2000, tall)
        decoded = []
        for row, (arm, source) in enumerate((("original", pocket), ("customised", applied))):
            text = prompt if source is applied else prompt.replace("[V] ", "")
            picture = sample(g, 840, top + 60 + row * KEPT, arm, source, text, how)
            keep(g, 1720, top + 60 + row * KEPT, arm, f"02_{part}_{arm}", picture)
            decoded.append(picture["IMAGE"])
        compared = g.add("PureCCCompare", 2060, top + 60, 300, 170, part, original=decoded[0], customised=decoded[1])
        g.add(
            "SaveImage", 2060, top + 420, 740, 330, f"purecc/02_sheet_{part}", title="Sheet", images=compared["sheet"]
        )
    return g


def seeds_and_strengths() -> Graph:
    """04: one concept, a row for each strength, a column for each start noise."""
    g = Graph()
    tall = len(STRENGTHS) * HEIGHT + 60
    g.group("1  Model and concept", 0, 0, 420, tall)
    pocket, concept, latent = _sources(g)
    g.note(
        20, 580, 380, 330,
        "**One concept at several strengths.** Each row has the same start noises (one seed, a batch of four), so only the "
        "strength differs from row to row.",
        "0 is the base model; the trigger then reads as its class word. Between 0.5 and 1 the concept comes in; above 1 the drawing breaks up. "
        "Choose the lowest that shows your concept.",
        "Another concept: choose it in *Load Concept*. Other noises: change the seeds, all four alike.",
    )  # fmt: skip
    g.group("2  Strengths", 440, 0, 360, tall)
    g.group("3  Pictures", 820, 0, 900, tall)
    how = Sampling(latent["LATENT"], pocket["VAE"], SEED, STEPS, CFG)
    rows = {}
    for number, strength in enumerate(STRENGTHS):
        y = 60 + number * HEIGHT
        applied = _apply(g, 460, y, pocket, concept, strength, f"Apply: strength {strength:g}")
        picture = sample(g, 840, y, f"strength {strength:g}", applied, PROMPT, how)
        rows[f"row_{number + 1}"] = picture["IMAGE"]
    g.group("4  Grid", 1740, 0, 800, tall)
    labels = "\n".join(f"strength {s:g}" for s in STRENGTHS)
    noises = "\n".join(f"noise {i + 1}" for i in range(COUNT))
    grid = g.add("PureCCGrid", 1760, 60, 400, 420, labels, noises, **rows)
    g.add("SaveImage", 1760, 560, 760, 800, "purecc/04_grid", title="Grid", images=grid["grid"])
    return g


def _sources(g: Graph) -> tuple[Node, Node, Node]:
    """Model, concept and start latent, in the first group."""
    pocket = g.add("PureCCPocketModel", 20, 60, 380, 70)
    concept = g.add("PureCCLoadConcept", 20, 190, 380, 120, CONCEPT)
    latent = g.add("EmptySD3LatentImage", 20, 400, 380, 130, SIZE, SIZE, COUNT)
    return pocket, concept, latent


def _apply(g: Graph, x: int, y: int, model: Node, concept: Node, strength: float, title: str) -> Node:
    return g.add(
        "PureCCApplyConcept", x, y, 320, 315, strength, strength, "as trained", 0.0, 1.0, True, title=title,
        model=model["MODEL"], clip=model["CLIP"], concept=concept["concept"],
    )  # fmt: skip
