"""Writes the blueprint "Learn a concept": Concept Set, Train Extractor and Pure Learning in one node.

    python -m subgraphs.build

Standard library only. The node's sockets and knobs are the sub-graph's inputs; a knob may turn widgets of both stages. The page
finds an inner socket by its place: NODES must name every socket that the nodes have, and then their widgets, in order.
"""

import json
import uuid
from pathlib import Path

from purecc.presets import ON_FACE

NAME = "Learn a concept"
_INPUT, _OUTPUT = -10, -20  # the numbers that the page gives to a sub-graph's own two ends

DATA, CONCEPT, SETTINGS = "PURECC_DATA", "PURECC_CONCEPT", "PURECC_SETTINGS"
SET, EXTRACTOR, PURE = 1, 2, 3

#: number -> type, x, y, width, height, sockets in, sockets out, widgets (name, type, value)
COMMON = (
    ("steps", "INT", 400), ("batch_size", "INT", 2), ("learning_rate", "FLOAT", 1e-4), ("embedding_rate", "FLOAT", 5e-3),
    ("rank", "INT", 4),
)  # fmt: skip
NODES = {
    SET: (
        "PureCCConceptSet", 0, 0, 400, 460,
        [("clip", "CLIP"), ("vae", "VAE"), ("pictures", "IMAGE"), ("masks", "MASK")],
        [("data", DATA), ("summary", "STRING")],
        [("folder", "COMBO", "(pictures from the input)"), ("trigger", "STRING", "ohwx"), ("class_word", "STRING", "dog"),
         ("kind", "COMBO", "instance"), ("captions", "STRING", ""), ("resolution", "INT", 512), ("tokens", "INT", 1),
         ("shape", "COMBO", "buckets"), ("flip", "BOOLEAN", False), ("texts", "COMBO", "captions")],
    ),
    EXTRACTOR: (
        "PureCCTrainExtractor", 460, 0, 400, 460,
        [("model", "MODEL"), ("data", DATA), ("settings", SETTINGS)],
        [("extractor", CONCEPT), ("report", "STRING")],
        [*COMMON, ("embeddings", "COMBO", "replace"), ("seed", "INT", 0)],
    ),
    PURE: (
        "PureCCPureLearning", 920, 0, 420, 620,
        [("model", "MODEL"), ("data", DATA), ("extractor", CONCEPT), ("settings", SETTINGS)],
        [("concept", CONCEPT), ("validation", "IMAGE"), ("report", "STRING")],
        [("method", "COMBO", "PureCC"), ("eta", "FLOAT", ON_FACE["eta"]), ("fixed_lambda", "FLOAT", 0.0),
         ("original", "COMBO", "frozen base"), *COMMON, ("seed", "INT", 0), *((name, "FLOAT", ON_FACE[name]) for name in ("background_anchor", "scene_anchor"))],
    ),
}  # fmt: skip

WIRES = [(SET, "data", EXTRACTOR), (SET, "data", PURE), (EXTRACTOR, "extractor", PURE)]

#: name on the face -> the inputs inside that it feeds
SOCKETS = {
    "model": [(EXTRACTOR, "model"), (PURE, "model")],
    "clip": [(SET, "clip")],
    "vae": [(SET, "vae")],
    "pictures": [(SET, "pictures")],
    "masks": [(SET, "masks")],
    "settings": [(EXTRACTOR, "settings"), (PURE, "settings")],
}
KNOBS = {
    "trigger": [(SET, "trigger")],
    "class_word": [(SET, "class_word")],
    "kind": [(SET, "kind")],
    "captions": [(SET, "captions")],
    "resolution": [(SET, "resolution")],
    "steps": [(EXTRACTOR, "steps"), (PURE, "steps")],
    "learning_rate": [(EXTRACTOR, "learning_rate"), (PURE, "learning_rate")],
    "eta": [(PURE, "eta")],
}
RESULTS = ["concept", "validation", "report"]  # of Pure Learning


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{NAME}/{name}"))


def _node(number: int) -> dict:
    type_, x, y, width, height, sockets, outputs, widgets = NODES[number]
    inputs = [{"name": name, "type": kind, "link": None} for name, kind in sockets]
    # every widget has its socket: the page counts them all in a wire's target_slot
    inputs += [{"name": name, "type": kind, "widget": {"name": name}, "link": None} for name, kind, _ in widgets]
    return {
        "id": number, "type": type_, "pos": [x, y], "size": [width, height], "flags": {}, "order": number - 1, "mode": 0,
        "inputs": inputs, "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
        "properties": {"Node name for S&R": type_}, "widgets_values": [value for _, _, value in widgets],
    }  # fmt: skip


class _Links:
    """The sub-graph's wires, entered at both their ends."""

    def __init__(self, nodes: dict[int, dict]):
        self.nodes, self.all = nodes, []

    def add(self, origin: int, origin_slot: int, target: int, target_slot: int, kind: str) -> int:
        number = len(self.all) + 1
        self.all.append(
            {"id": number, "origin_id": origin, "origin_slot": origin_slot, "target_id": target, "target_slot": target_slot, "type": kind}
        )  # fmt: skip
        if origin in self.nodes:
            self.nodes[origin]["outputs"][origin_slot]["links"].append(number)
        if target in self.nodes:
            self.nodes[target]["inputs"][target_slot]["link"] = number
        return number


def _slot(sockets: list[dict], name: str) -> int:
    return [socket["name"] for socket in sockets].index(name)


def blueprint() -> dict:
    nodes = {number: _node(number) for number in NODES}
    links = _Links(nodes)
    for origin, name, target in WIRES:
        out, into = nodes[origin]["outputs"], nodes[target]["inputs"]
        links.add(origin, _slot(out, name), target, _slot(into, name), out[_slot(out, name)]["type"])

    inputs, face = [], []
    for place, (name, targets) in enumerate({**SOCKETS, **KNOBS}.items()):
        first = nodes[targets[0][0]]["inputs"]
        kind = first[_slot(first, targets[0][1])]["type"]
        ids = [links.add(_INPUT, place, n, _slot(nodes[n]["inputs"], into), kind) for n, into in targets]
        inputs.append({"id": _id(name), "name": name, "type": kind, "linkIds": ids, "pos": [-180, 20 + 20 * place]})
        face.append({"name": name, "type": kind, "link": None} | ({"widget": {"name": name}} if name in KNOBS else {}))
    outputs = []
    for place, name in enumerate(RESULTS):
        kind = nodes[PURE]["outputs"][place]["type"]
        ids = [links.add(PURE, place, _OUTPUT, place, kind)]
        outputs.append(
            {"id": _id(f"out {name}"), "name": name, "type": kind, "linkIds": ids, "pos": [1420, 20 + 20 * place]}
        )

    subgraph = {
        "id": _id("sub-graph"), "version": 1, "revision": 0, "config": {}, "name": NAME,
        "state": {"lastGroupId": 0, "lastNodeId": max(NODES), "lastLinkId": len(links.all), "lastRerouteId": 0},
        "inputNode": {"id": _INPUT, "bounding": [-240, 0, 140, 40 + 20 * len(inputs)]},
        "outputNode": {"id": _OUTPUT, "bounding": [1400, 0, 120, 100]},
        "inputs": inputs, "outputs": outputs, "widgets": [], "nodes": list(nodes.values()), "groups": [], "links": links.all,
        "extra": {},
    }  # fmt: skip
    values = [next(v for w, _, v in NODES[t[0][0]][-1] if w == t[0][1]) for t in KNOBS.values()]
    root = {
        "id": 1, "type": subgraph["id"], "pos": [100, 100], "size": [420, 420], "flags": {}, "order": 0, "mode": 0, "title": NAME,
        "inputs": face, "outputs": [{"name": o["name"], "type": o["type"], "links": []} for o in outputs],
        "properties": {"proxyWidgets": []}, "widgets_values": values,
    }  # fmt: skip
    return {
        "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [root], "links": [], "groups": [],
        "definitions": {"subgraphs": [subgraph]}, "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


if __name__ == "__main__":
    path = Path(__file__).with_name(f"{NAME}.json")
    path.write_text(json.dumps(blueprint(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
