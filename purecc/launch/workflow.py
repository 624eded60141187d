"""A workflow file as the page saves it (UI format) -> the prompt that the server takes (API format).

Does what the page's own graphToPrompt does, from the server's /object_info. Widget values are stored by position, in the
order of the inputs that are widgets; some widgets bring a second one with them (the seed's "control after generate").
Values are sent as written: the page's random choice in {a|b} texts and its change of seeds between runs do not happen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MUTED, BYPASSED = 2, 4  # node modes
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
VIRTUAL = (REROUTE, PRIMITIVE, "Note", "MarkdownNote")  # exist in the page only

WIDGET_TYPES = {
    "INT",
    "FLOAT",
    "STRING",
    "BOOLEAN",
    "COMBO",
    "MARKDOWN",
    "TEXTAREA",
    "COLOR",
    "CHART",
    "GALLERIA",
    "IMAGECOMPARE",
}
GROWING = "COMFY_DYNAMICCOMBO_V3"  # a list whose choices bring further widgets
SEED_NAMES = ("seed", "noise_seed")  # get a control widget unless the node says otherwise
UPLOADS = ("image_upload", "animated_image_upload", "video_upload")
_SUBGRAPH_TYPE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class WorkflowError(Exception):
    """A workflow that cannot become a prompt; the text names the node and what to do."""


@dataclass(frozen=True)
class Link:
    origin: str  # node id
    slot: int  # output of the origin
    type: str


def to_prompt(workflow: dict, object_info: dict[str, dict]) -> dict[str, dict]:
    """The API-format prompt of a UI-format workflow. WorkflowError where a node type is missing or a value is."""
    if not isinstance(workflow.get("nodes"), list):
        raise WorkflowError(
            "This is no workflow in the page's format: it has no list of nodes. Save it with Workflow > Save, not Export (API)."
        )
    nodes = {str(n["id"]): n for n in workflow["nodes"]}
    active = [n for n in nodes.values() if n.get("mode", 0) not in (MUTED, BYPASSED) and n["type"] not in VIRTUAL]
    _refuse_unknown(active, workflow, object_info)
    graph = _Graph(nodes, _links(workflow))
    prompt = {str(n["id"]): _api_node(n, object_info[n["type"]], graph) for n in active}
    for node in prompt.values():  # what came from a muted node is not connected
        inputs = node["inputs"]
        for name in [k for k, v in inputs.items() if isinstance(v, list) and v[0] not in prompt]:
            del inputs[name]
    return prompt


def _refuse_unknown(active: list[dict], workflow: dict, object_info: dict[str, dict]) -> None:
    subgraphs = {s["id"]: s.get("name", "?") for s in (workflow.get("definitions") or {}).get("subgraphs", [])}
    for node in active:
        if node["type"] in subgraphs or _SUBGRAPH_TYPE.fullmatch(node["type"]):
            name = subgraphs.get(node["type"], node.get("title", "?"))
            raise WorkflowError(
                f'The workflow holds the sub-graph "{name}" (node {node["id"]}); unpack it in the page and save again.'
            )
    missing = sorted({n["type"] for n in active if n["type"] not in object_info})
    if missing:
        raise WorkflowError(
            f"The server does not have the node type{'s' * (len(missing) > 1)} {', '.join(missing)}. "
            "Is the pack that brings it installed, and did it load? The server's log says so at its start."
        )
    for node in active:
        specs = {k: spec for group in object_info[node["type"]].get("input", {}).values() for k, spec in group.items()}
        name = next((name for name, spec in specs.items() if spec[0] == GROWING), None)
        if name:
            raise WorkflowError(
                f'Node {node["id"]} ({node["type"]}): what follows its "{name}" depends on what is chosen there; run it in the page.'
            )


def _links(workflow: dict) -> dict[int, Link]:
    """Links by id. Older files hold [id, origin, slot, target, slot, type], newer ones records."""
    links = {}
    for entry in workflow.get("links") or []:
        if isinstance(entry, dict):
            links[entry["id"]] = Link(str(entry["origin_id"]), entry["origin_slot"], entry["type"])
        elif entry:
            links[entry[0]] = Link(str(entry[1]), entry[2], entry[5])
    return links


class _Graph:
    """Follows a link back to where its value is really made."""

    def __init__(self, nodes: dict[str, dict], links: dict[int, Link]):
        self.nodes, self.links = nodes, links

    def source(self, link_id: int | None) -> Any:
        """[node id, slot] for a linked output, _Value for a PrimitiveNode's value, None where nothing is connected."""
        wanted = None
        for _ in range(len(self.links) + 1):
            link = self.links.get(link_id)
            if link is None or link.origin not in self.nodes:
                return None
            wanted = wanted or link.type
            node = self.nodes[link.origin]
            if node["type"] == PRIMITIVE:
                return _Value(node["widgets_values"][0])
            if node.get("mode", 0) == BYPASSED:
                link_id = _input_link(node, _bypass_input(node, link.slot, wanted))
            elif node["type"] == REROUTE:
                link_id = _input_link(node, 0)
            else:
                return [link.origin, link.slot]
        raise WorkflowError(f"Link {link_id} leads in a circle.")


@dataclass(frozen=True)
class _Value:
    value: Any


def _input_link(node: dict, index: int | None) -> int | None:
    inputs = node.get("inputs") or []
    return inputs[index].get("link") if index is not None and index < len(inputs) else None


def _bypass_input(node: dict, slot: int, wanted: str) -> int | None:
    """Which input a bypassed node hands through for its output `slot`: the one at the same place if the type fits, else
    the first of exactly that type, else the first that fits."""
    types = [i.get("type", "*") for i in node.get("inputs") or []]
    made = node["outputs"][slot]["type"]
    if wanted in ("*", ""):
        return slot if slot < len(types) else 0
    if slot < len(types) and _fits(types[slot], made) and _fits(types[slot], wanted):
        return slot
    if wanted in types:
        return types.index(wanted)
    return next((i for i, t in enumerate(types) if _fits(t, made) and _fits(t, wanted)), None)


def _fits(a: str, b: str) -> bool:
    """Whether two socket types may be joined: any with any, or one of "A,B" with one of "B,C"."""
    a, b = str(a).lower(), str(b).lower()
    return not {a, b}.isdisjoint(("*", "", "0")) or not set(a.split(",")).isdisjoint(b.split(","))


def _api_node(node: dict, info: dict, graph: _Graph) -> dict:
    inputs = {}
    for name, value in _widget_values(node, info):
        inputs[name] = {"__value__": value} if isinstance(value, list) else value  # a bare list would be read as a link
    for socket in node.get("inputs") or []:
        source = graph.source(socket.get("link"))
        if isinstance(source, _Value):
            inputs[socket["name"]] = source.value
        elif source is not None:
            inputs[socket["name"]] = source
    title = node.get("title") or info.get("display_name") or node["type"]
    if node["type"].startswith("PureCC"):
        title = re.sub(r" \(.*\)$", "", title)  # the words for the search box, which js/titles.js leaves out too
    return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}


def _widget_values(node: dict, info: dict) -> Iterator[tuple[str, Any]]:
    """(input name, value) for each widget that the server is sent."""
    stored = node.get("widgets_values") or []
    if isinstance(stored, dict):
        for name, spec in _widgets(info):
            if spec is not None:
                yield name, stored[name] if name in stored else _default(node, name, spec)
        return
    for place, (name, spec) in enumerate(_widgets(info)):
        if spec is not None:
            yield name, stored[place] if place < len(stored) else _default(node, name, spec)


def _widgets(info: dict) -> Iterator[tuple[str, list | None]]:
    """A node's widgets in the page's order: (name, input specification), without one for those that only the page has."""
    for group in ("required", "optional"):
        specs = info.get("input", {}).get(group) or {}
        order = (info.get("input_order") or {}).get(group) or list(specs)
        upload = False
        for name in order:
            options = _options(specs[name])
            kind = "COMBO" if isinstance(specs[name][0], list) else options.get("widgetType", specs[name][0])
            upload |= any(options.get(u) for u in UPLOADS)
            if kind not in WIDGET_TYPES or options.get("forceInput"):
                continue
            yield name, specs[name]
            controlled = options.get("control_after_generate")
            if controlled is None:
                controlled = kind == "INT" and name in SEED_NAMES
            if kind in ("INT", "COMBO") and controlled:
                yield "control_after_generate", None
                if kind == "COMBO":
                    yield "control_filter_list", None
        if upload and group == "required":
            yield "upload", None  # the page puts its button behind the required widgets


def _options(spec: list) -> dict:
    return spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}


def _default(node: dict, name: str, spec: list) -> Any:
    """What the page shows in a widget that the file has no value for (the file is older than the widget)."""
    options = _options(spec)
    if options.get("default") is not None:
        return options["default"]
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    if choices:
        return choices[0]
    if any(i["name"] == name and i.get("link") is not None for i in node.get("inputs") or []):
        return None
    raise WorkflowError(
        f'Node {node["id"]} ({node["type"]}): no value for "{name}" in the file, and the node has no default for it.'
    )
