"""UI-format workflow -> prompt, on small node types in the shape of the server's /object_info."""

from __future__ import annotations

import pytest

from purecc.launch.workflow import BYPASSED, MUTED, WorkflowError, to_prompt

IMAGE_OUT = [{"name": "IMAGE", "type": "IMAGE", "links": []}]
OBJECT_INFO = {
    "Make": {  # the old schema: a combo is a list of its choices
        "input": {
            "required": {
                "seed": ["INT", {"default": 0}],
                "method": [["fast", "good"], {}],
                "model": ["MODEL", {}],
                "scale": ["FLOAT", {"default": 1.0}],
            },
            "optional": {
                "mask": ["MASK"],
                "note": ["STRING", {"default": "none"}],
                "text": ["STRING", {"forceInput": True}],
            },
        },
        "input_order": {"required": ["seed", "model", "method", "scale"], "optional": ["mask", "note", "text"]},
        "display_name": "Make it",
    },
    "Train": {  # the new schema
        "input": {
            "required": {
                "image": ["IMAGE", {}],
                "seed": ["INT", {"default": 3, "control_after_generate": False}],
                "mode": ["COMBO", {"options": ["a", "b"], "default": "b"}],
            }
        },
        "display_name": "Train it",
    },
    "Load": {
        "input": {
            "required": {"file": [["x.png"], {"image_upload": True}]},
            "optional": {"size": ["INT", {"default": 8}]},
        },
        "display_name": "Load it",
    },
    "Write": {"input": {"optional": {"mode": ["COMFY_DYNAMICCOMBO_V3", {}]}, "hidden": {"prompt": "PROMPT"}}},
    "Invert": {"input": {"required": {"image": ["IMAGE"]}}, "display_name": "Invert it"},
    "Save": {"input": {"required": {"images": ["IMAGE"], "prefix": ["STRING", {}]}}, "display_name": "Save it"},
}


def node(
    id: int, type: str, values: list | dict | None = None, links: dict | None = None, mode: int = 0, **more
) -> dict:
    inputs = [{"name": n, "type": t, "link": link} for n, (t, link) in (links or {}).items()]
    return {
        "id": id,
        "type": type,
        "mode": mode,
        "inputs": inputs,
        "widgets_values": values or [],
        "outputs": IMAGE_OUT,
        **more,
    }


def link(id: int, origin: int, target: int, type: str = "IMAGE") -> list:
    return [id, origin, 0, target, 0, type]


def convert(*nodes: dict, links: list = (), **more) -> dict:
    return to_prompt({"nodes": list(nodes), "links": list(links), **more}, OBJECT_INFO)


def test_values_follow_the_input_order_and_the_seed_takes_two_places() -> None:
    made = convert(node(1, "Make", [7, "randomize", "good", 0.5, "hello"]))["1"]
    assert made["inputs"] == {"seed": 7, "method": "good", "scale": 0.5, "note": "hello"}
    assert made["class_type"] == "Make"
    assert made["_meta"] == {"title": "Make it"}


def test_a_seed_without_control_takes_one_place_and_a_missing_value_is_the_default() -> None:
    assert convert(node(1, "Train", [9]))["1"]["inputs"] == {"seed": 9, "mode": "b"}


def test_values_by_name() -> None:
    assert convert(node(1, "Train", {"mode": "a", "seed": 1}))["1"]["inputs"] == {"seed": 1, "mode": "a"}


def test_the_upload_button_stands_behind_the_required_widgets() -> None:
    assert convert(node(1, "Load", ["y.png", "image", 16]))["1"]["inputs"] == {"file": "y.png", "size": 16}


def test_a_list_value_is_wrapped_so_that_it_is_no_link() -> None:
    assert convert(node(1, "Train", [[1, 2], "a"]))["1"]["inputs"]["seed"] == {"__value__": [1, 2]}


def test_a_link_replaces_a_widgets_value_but_not_its_place() -> None:
    made = convert(
        node(1, "Make", [1, "fixed", "fast", 2.0, "n"]),
        node(2, "Train", [5, "a"], {"mode": ("COMBO", 4)}),
        links=[link(4, 1, 2, "COMBO")],
    )
    assert made["2"]["inputs"] == {"seed": 5, "mode": ["1", 0]}


@pytest.mark.parametrize("as_records", [False, True])
def test_reroutes_are_followed_in_both_link_formats(as_records: bool) -> None:
    links = [link(1, 1, 2), link(2, 2, 3, "*"), link(3, 3, 4, "*")]
    if as_records:
        links = [
            {"id": i, "origin_id": o, "origin_slot": s, "target_id": t, "target_slot": u, "type": k}
            for i, o, s, t, u, k in links
        ]
    made = convert(
        node(1, "Load", ["x.png"]),
        node(2, "Reroute", links={"": ("*", 1)}),
        node(3, "Reroute", links={"": ("*", 2)}),
        node(4, "Save", ["p"], {"images": ("IMAGE", 3)}),
        links=links,
    )
    assert set(made) == {"1", "4"}
    assert made["4"]["inputs"] == {"images": ["1", 0], "prefix": "p"}


def test_a_bypassed_node_hands_its_input_through() -> None:
    made = convert(
        node(1, "Load", ["x.png"]),
        node(2, "Invert", links={"image": ("IMAGE", 1)}, mode=BYPASSED),
        node(3, "Save", ["p"], {"images": ("IMAGE", 2)}),
        links=[link(1, 1, 2), link(2, 2, 3)],
    )
    assert made["3"]["inputs"]["images"] == ["1", 0]
    assert "2" not in made


def test_a_bypassed_node_looks_for_an_input_of_the_right_type() -> None:
    made = convert(
        node(1, "Load", ["x.png"]),
        node(2, "Make", links={"model": ("MODEL", None), "picture": ("IMAGE", 1)}, mode=BYPASSED),
        node(3, "Save", ["p"], {"images": ("IMAGE", 2)}),
        links=[link(1, 1, 2), link(2, 2, 3)],
    )
    assert made["3"]["inputs"]["images"] == ["1", 0]


def test_what_comes_from_a_muted_node_is_not_connected() -> None:
    made = convert(
        node(1, "Load", ["x.png"], mode=MUTED), node(3, "Save", ["p"], {"images": ("IMAGE", 2)}), links=[link(2, 1, 3)]
    )
    assert made == {"3": {"class_type": "Save", "inputs": {"prefix": "p"}, "_meta": {"title": "Save it"}}}


def test_a_primitive_gives_its_value_and_notes_are_left_out() -> None:
    made = convert(
        node(1, "PrimitiveNode", [42, "fixed"]),
        node(2, "Train", [0, "a"], {"seed": ("INT", 1)}, title="My training"),
        node(3, "Note", ["read me"]),
        node(4, "MarkdownNote", ["# read me"]),
        links=[link(1, 1, 2, "INT")],
    )
    assert made == {
        "2": {"class_type": "Train", "inputs": {"seed": 42, "mode": "a"}, "_meta": {"title": "My training"}}
    }


def test_missing_node_types_are_all_named() -> None:
    with pytest.raises(WorkflowError, match="Absent, Gone"):
        convert(node(1, "Gone"), node(2, "Absent"), node(3, "MutedAndAbsent", mode=MUTED))


def test_a_sub_graph_is_refused_by_its_name() -> None:
    uid = "0f3b2c1a-1111-2222-3333-444455556666"
    with pytest.raises(WorkflowError, match="Train block"):
        convert(node(1, uid), definitions={"subgraphs": [{"id": uid, "name": "Train block"}]})


def test_widgets_that_come_and_go_are_refused() -> None:
    with pytest.raises(WorkflowError, match=r'Node 7 \(Write\).* "mode" depends'):
        convert(node(7, "Write", ["on", 0.7]))
    assert convert(node(7, "Write", ["on", 0.7], mode=MUTED)) == {}


def test_an_api_file_is_refused() -> None:
    with pytest.raises(WorkflowError, match="no list of nodes"):
        to_prompt({"1": {"class_type": "Load", "inputs": {}}}, OBJECT_INFO)


def test_a_value_that_is_nowhere_is_named() -> None:
    with pytest.raises(WorkflowError, match=r'Node 3 \(Save\): no value for "prefix"'):
        convert(node(3, "Save"))


def test_a_circle_of_reroutes_is_an_error() -> None:
    with pytest.raises(WorkflowError, match="circle"):
        convert(
            node(1, "Reroute", links={"": ("*", 2)}),
            node(2, "Reroute", links={"": ("*", 1)}),
            node(3, "Save", ["p"], {"images": ("IMAGE", 3)}),
            links=[link(1, 1, 2), link(2, 2, 1), link(3, 2, 3)],
        )
