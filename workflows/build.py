"""Writes the shared workflows, so that their layout is kept in one readable place.

    python workflows/build.py

Standard library only. A node's sockets are named here as the node's schema names them; the browser tests load every file.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent
MODEL, CLIP, VAE, IMAGE, LATENT, CONDITIONING, STRING = (
    "MODEL",
    "CLIP",
    "VAE",
    "IMAGE",
    "LATENT",
    "CONDITIONING",
    "STRING",
)
DATA, CONCEPT = "PURECC_DATA", "PURECC_CONCEPT"

#: node type -> (socket inputs, outputs), each (name, type)
SOCKETS = {
    "PureCCPocketModel": ([], [("MODEL", MODEL), ("CLIP", CLIP), ("VAE", VAE)]),
    "PureCCConceptSet": (
        [("clip", CLIP), ("vae", VAE), ("pictures", IMAGE), ("masks", "MASK")], [("data", DATA), ("summary", STRING)],
    ),
    "PureCCTrainExtractor": ([("model", MODEL), ("data", DATA)], [("extractor", CONCEPT), ("report", STRING)]),
    "PureCCPureLearning": (
        [("model", MODEL), ("data", DATA), ("extractor", CONCEPT)],
        [("concept", CONCEPT), ("validation", IMAGE), ("report", STRING)],
    ),
    "PureCCSaveConcept": ([("concept", CONCEPT)], [("path", STRING)]),
    "PureCCApplyConcept": (
        [("model", MODEL), ("clip", CLIP), ("concept", CONCEPT)],
        [("MODEL", MODEL), ("CLIP", CLIP), ("trigger", STRING)],
    ),
    "PureCCCompare": (
        [("original", IMAGE), ("customised", IMAGE), ("data", DATA)], [("sheet", IMAGE), ("figures", STRING)],
    ),
    "CLIPTextEncode": ([("clip", CLIP)], [("CONDITIONING", CONDITIONING)]),
    "EmptySD3LatentImage": ([], [("LATENT", LATENT)]),
    "KSampler": (
        [("model", MODEL), ("positive", CONDITIONING), ("negative", CONDITIONING), ("latent_image", LATENT)],
        [("LATENT", LATENT)],
    ),
    "VAEDecode": ([("samples", LATENT), ("vae", VAE)], [("IMAGE", IMAGE)]),
    "SaveImage": ([("images", IMAGE)], []),
    "MarkdownNote": ([], []),
}  # fmt: skip


@dataclass(frozen=True)
class Wire:
    """An output of a node."""

    node: "Node"
    slot: int


@dataclass
class Node:
    number: int
    type: str

    def __getitem__(self, output: str) -> Wire:
        return Wire(self, [name for name, _ in SOCKETS[self.type][1]].index(output))


@dataclass
class Graph:
    """A workflow in the page's own format."""

    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)

    def add(self, type: str, x: int, y: int, width: int, height: int, *widgets, title: str = "", **wires: Wire) -> Node:
        """A node with its widget values in order and its inputs wired."""
        inputs, outputs = SOCKETS[type]
        unknown = set(wires) - {name for name, _ in inputs}
        assert not unknown, f"{type} has no inputs {unknown}"
        number = len(self.nodes) + 1
        plain = {
            "id": number, "type": type, "pos": [x, y], "size": [width, height], "flags": {}, "order": number - 1, "mode": 0,
            "inputs": [{"name": name, "type": kind, "link": None} for name, kind in inputs],
            "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
            "properties": {"Node name for S&R": type}, "widgets_values": list(widgets),
        }  # fmt: skip
        if title:
            plain["title"] = title
        self.nodes.append(plain)
        for slot, (name, kind) in enumerate(inputs):
            if name in wires:
                wire, link = wires[name], len(self.links) + 1
                plain["inputs"][slot]["link"] = link
                self.nodes[wire.node.number - 1]["outputs"][wire.slot]["links"].append(link)
                self.links.append([link, wire.node.number, wire.slot, number, slot, kind])
        return Node(number, type)

    def group(self, title: str, x: int, y: int, width: int, height: int, colour: str = "#3f5159") -> None:
        number = len(self.groups) + 1
        box = [x, y, width, height]
        self.groups.append(
            {"id": number, "title": title, "bounding": box, "color": colour, "font_size": 24, "flags": {}}
        )

    def save(self, path: Path) -> None:
        plain = {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links,
            "groups": self.groups, "config": {}, "extra": {}, "version": 0.4,
        }  # fmt: skip
        path.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


STEPS, BATCH, RATE, EMBEDDING_RATE, RANK = 240, 4, 1e-3, 5e-3, 4  # of training on the pocket
SEED, COUNT = 7, 4  # of sampling
WITH = "a big [V] dog in the middle in the snow"
WITH_BASE = "a big dog in the middle in the snow"
WITHOUT = "a big dog on the left in the city"


def pocket_whole_job() -> Graph:
    """01: five pictures -> extractor -> pure learning -> pictures, beside the base model and a plain LoRA."""
    g = Graph()
    g.group("1  Model and pictures", 0, 0, 420, 1020)
    pocket = g.add("PureCCPocketModel", 20, 60, 380, 70)
    data = g.add(
        "PureCCConceptSet", 20, 190, 380, 420, "example: pink poodle", "[V]", "dog", "instance", "", 128, 1,
        clip=pocket["CLIP"], vae=pocket["VAE"],
    )  # fmt: skip
    g.add(
        "MarkdownNote", 20, 660, 380, 330,
        "**Teach the model one dog from five pictures, and leave all else as it was.**\n\nPress *Run*. Stage 1 learns what the "
        "concept looks like; stage 2 teaches it to the model while holding everything else in place. The second Pure Learning "
        "node trains without that care (the loss L_CC alone), on the same data, to compare with.\n\nYour own pictures: put 3 to 5 into a folder inside "
        "ComfyUI's *input* folder and choose it in **Concept Set**.",
    )  # fmt: skip

    g.group("2  Training", 440, 0, 860, 1020)
    common = (STEPS, BATCH, RATE, EMBEDDING_RATE, RANK)
    extractor = g.add(
        "PureCCTrainExtractor", 460, 60, 400, 330, *common, "replace", 0, model=pocket["MODEL"], data=data["data"]
    )
    wires = {"model": pocket["MODEL"], "data": data["data"], "extractor": extractor["extractor"]}
    pure = g.add(
        "PureCCPureLearning",
        880,
        60,
        400,
        420,
        "PureCC",
        1.0,
        0.0,
        "frozen base",
        *common,
        0,
        title="Pure Learning",
        **wires,
    )
    lora = g.add(
        "PureCCPureLearning", 880, 560, 400, 420, "LoRA", 1.0, 0.0, "frozen base", *common, 0,
        title="The same without pure learning: plain LoRA", **wires,
    )  # fmt: skip
    g.add("PureCCSaveConcept", 460, 560, 400, 90, "pink poodle", concept=pure["concept"])
    g.add(
        "SaveImage", 460, 700, 400, 280, "purecc/validation", title="Base without [V], customised with [V]",
        images=pure["validation"],
    )  # fmt: skip

    g.group("3  The concept on MODEL and CLIP", 1320, 0, 360, 1020)
    apply_pure = g.add(
        "PureCCApplyConcept", 1340, 60, 320, 220, 1.0, 1.0, "off", title="Apply: PureCC",
        model=pocket["MODEL"], clip=pocket["CLIP"], concept=pure["concept"],
    )  # fmt: skip
    apply_lora = g.add(
        "PureCCApplyConcept", 1340, 560, 320, 220, 1.0, 1.0, "off", title="Apply: plain LoRA",
        model=pocket["MODEL"], clip=pocket["CLIP"], concept=lora["concept"],
    )  # fmt: skip
    g.add(
        "MarkdownNote", 1340, 320, 320, 190,
        "The gate is *off* here so that the two can be compared. Set it to **conditioning** and prompts without [V] give the "
        "base model's picture exactly.",
    )  # fmt: skip
    latent = g.add("EmptySD3LatentImage", 1340, 840, 320, 120, 128, 128, COUNT)

    arms = (("original", pocket, 60), ("PureCC", apply_pure, 420), ("plain LoRA", apply_lora, 780))
    decoded: dict[tuple[str, str], Node] = {}
    for part, (text, plain_text, top, title) in enumerate(
        (
            (WITH, WITH_BASE, 0, "4  With the concept"),
            (WITHOUT, WITHOUT, 1180, "5  Prompts without it: how far do they move?"),
        )
    ):
        g.group(title, 1700, top, 2060, 1140)
        for arm, source, y in arms:
            y += top
            prompt = plain_text if arm == "original" else text
            positive = g.add("CLIPTextEncode", 1720, y, 320, 110, prompt, title=f"Prompt: {arm}", clip=source["CLIP"])
            negative = g.add("CLIPTextEncode", 1720, y + 170, 320, 90, "", title="Negative prompt", clip=source["CLIP"])
            sampled = g.add(
                "KSampler", 2060, y, 300, 270, SEED, "fixed", 28, 4.0, "euler", "normal", 1.0, title=f"Sample: {arm}",
                model=source["MODEL"], positive=positive["CONDITIONING"], negative=negative["CONDITIONING"],
                latent_image=latent["LATENT"],
            )  # fmt: skip
            picture = g.add("VAEDecode", 2380, y, 200, 60, samples=sampled["LATENT"], vae=pocket["VAE"])
            name = f"purecc/{('with', 'without')[part]}_{arm.replace(' ', '_')}"
            g.add("SaveImage", 2600, y, 320, 290, name, title=f"Pictures: {arm}", images=picture["IMAGE"])
            decoded[title, arm] = picture
        where, file = (("with [V]", "with"), ("without [V]", "without"))[part]
        for arm, _, y in arms[1:]:
            compared = g.add(
                "PureCCCompare", 2940, top + y, 300, 170, f"{arm}, {where}", title=f"Compare: {arm}, {where}",
                original=decoded[title, "original"]["IMAGE"], customised=decoded[title, arm]["IMAGE"],
                **({"data": data["data"]} if part == 0 else {}),
            )  # fmt: skip
            name = f"purecc/sheet_{file}_{arm.replace(' ', '_')}"
            g.add("SaveImage", 3260, top + y, 480, 290, name, title=f"Sheet: {arm}", images=compared["sheet"])
    return g


if __name__ == "__main__":
    pocket_whole_job().save(FOLDER / "01_pocket_five_pictures_to_a_concept.json")
