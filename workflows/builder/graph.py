"""A workflow in the page's own format: nodes, wires and groups, written as JSON."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from .sockets import SOCKETS

SCALE = 0.62  # of the graph when it opens: below 0.58 the page leaves out all texts
PAGE_EDGE = (90, 110)  # pixels of the page's own bars, left and above


@dataclass(frozen=True)
class Wire:
    """An output of a node."""

    node: "Node"
    slot: int


@dataclass(frozen=True)
class Node:
    number: int
    type: str

    def __getitem__(self, output: str) -> Wire:
        return Wire(self, [name for name, _ in SOCKETS[self.type][1]].index(output))


@dataclass
class Graph:
    """`pos` of a node is its body's upper left corner; its title stands above."""

    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)

    def add(
        self, type: str, x: int, y: int, width: int, height: int, *widgets, title: str = "", properties: dict | None = None,
        **wires: Wire,
    ) -> Node:  # fmt: skip
        """A node with its widget values in order and its inputs wired."""
        inputs, outputs = SOCKETS[type]
        unknown = set(wires) - {name for name, _ in inputs}
        if unknown:
            raise ValueError(f"{type} has no inputs {', '.join(sorted(unknown))}.")
        number = len(self.nodes) + 1
        plain = {
            "id": number, "type": type, "pos": [x, y], "size": [width, height], "flags": {}, "order": number - 1, "mode": 0,
            "inputs": [{"name": name, "type": kind, "link": None} for name, kind in inputs],
            "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
            "properties": {"Node name for S&R": type, **(properties or {})}, "widgets_values": list(widgets),
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

    def note(self, x: int, y: int, width: int, height: int, *paragraphs: str) -> None:
        """A Markdown note."""
        self.add("MarkdownNote", x, y, width, height, "\n\n".join(paragraphs), title="Note")

    def group(self, title: str, x: int, y: int, width: int, height: int, colour: str = "#3f5159") -> None:
        number = len(self.groups) + 1
        self.groups.append(
            {"id": number, "title": title, "bounding": [x, y, width, height], "color": colour, "font_size": 24, "flags": {}}
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Writes the file with a view of the graph's beginning, large enough to be read.

        Without a stored view the page fits one by itself, and frontend 1.32.9 with "Nodes 2.0" then tears the nodes apart.
        """
        view = {"scale": SCALE, "offset": [round(edge / SCALE) for edge in PAGE_EDGE]}
        plain = {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links,
            "groups": self.groups, "config": {}, "extra": {"ds": view}, "version": 0.4,
        }  # fmt: skip
        path.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
