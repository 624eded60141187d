"""Concept Set on the real server: pictures of any shape as people keep them, captions, masks, templates, mirrored pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graph import Prompt
from PIL import Image

from purecc.launch.client import HostError
from purecc.launch.server import Server
from purecc.templates import TEMPLATES

DEADLINE = 300  # seconds, of one prompt
SHAPES = {"a lying": (300, 200), "b upright": (90, 150), "c square": (200, 200), "d lying too": (270, 180)}


@pytest.fixture(scope="module")
def folder(server: Server) -> str:
    """Four pictures of three shapes; the first two have captions, all have masks."""
    made = server.base / "input" / "several shapes"
    made.mkdir(parents=True)
    for i, (name, size) in enumerate(SHAPES.items()):
        image, mask = Image.new("RGB", size, (60 * i, 90, 200)), Image.new("L", size)
        for one in (image, mask):
            one.paste("white", (10, 20, 60, 70))
        image.save(made / f"{name}.png"), mask.save(made / f"{name}.mask.png")
    (made / "a lying.txt").write_text("a dog on the grass", encoding="utf-8")
    (made / "b upright.txt").write_text("a [V] dog at a door", encoding="utf-8")
    return made.name


def summary(server: Server, **changed: object) -> str:
    p = Prompt()
    shown = p.show([p.concept_set(p.pocket(), **changed), 1])
    (text,) = server.client.run(p.nodes, timeout=DEADLINE)["outputs"][shown]["text"]
    return text


def test_each_picture_of_a_folder_goes_to_its_bucket_with_its_caption(server: Server, folder: str) -> None:
    assert summary(server, folder=folder).splitlines() == [
        "4 pictures, 160 x 112, 128 x 128, 96 x 176 px",
        "a lying.png: 300 x 200 px -> 160 x 112, 5 % cut off",
        "b upright.png: 90 x 150 px -> 96 x 176, 9 % cut off, enlarged 1.2 times",
        "c square.png: 200 x 200 px -> 128 x 128, 0 % cut off",
        "d lying too.png: 270 x 180 px -> 160 x 112, 5 % cut off",
        "- a [V] dog on the grass   |   base: a dog on the grass",
        "- a [V] dog at a door   |   base: a dog at a door",
        "- a [V] dog   |   base: a dog",
        "target: [V] dog",
    ]


def test_the_other_shapes_and_mirrored_pictures(server: Server, folder: str) -> None:
    square = summary(server, folder=folder, shape="square", flip=True)
    assert square.startswith("4 pictures, 128 x 128 px, each mirrored too\n")
    assert "mirrored pictures turn round" not in square
    sided = summary(server, folder=folder, flip=True, captions="a dog\na dog\na dog on the Left\na dog")
    assert "which mirrored pictures turn round" in sided
    own = summary(server, folder=folder, shape="own shape")
    assert own.startswith("4 pictures, 160 x 112, 128 x 128, 96 x 160 px\n")


def test_what_would_spoil_a_training_is_said_before_it(server: Server) -> None:
    """An empty mask, as Load Image gives it; a mask too few; a trigger that prompts cannot hold. What is not read is told."""
    p = Prompt()
    Image.new("RGB", (128, 128), "white").save(server.base / "input" / "opaque.png")
    loaded = p.add("LoadImage", image="opaque.png")
    wired = {"folder": "(pictures from the input)", "pictures": [loaded, 0]}
    p.show([p.concept_set(p.pocket(), masks=[loaded, 1], **wired), 1])
    with pytest.raises(HostError, match="The mask of picture 1 is empty"):
        server.client.run(p.nodes, timeout=DEADLINE)
    made = server.base / "input" / "from a phone"
    made.mkdir()
    for name in ("1.png", "1.mask.png", "2.png"):
        Image.new("RGB", (128, 128), "white").save(made / name)
    (made / "3.heic").write_bytes(b"another format")
    with pytest.raises(HostError, match="There is no mask for 2.png"):
        summary(server, folder=made.name)
    (made / "1.mask.png").unlink()
    assert summary(server, folder=made.name).endswith("are read: 3.heic")
    with pytest.raises(HostError, match="which prompts read as weights"):
        summary(server, folder=made.name, trigger="(ohwx)")


def test_what_is_changed_in_a_sub_folder_is_read_again(server: Server) -> None:
    made = server.base / "input" / "a table"
    (made / "images").mkdir(parents=True)
    (made / "DATA.CSV").write_text("image_path,prompt\nimages/1.png,a [v] dog\n", encoding="utf-8")
    for size in ((128, 128), (192, 128)):
        Image.new("RGB", size, "white").save(made / "images" / "1.png")
        assert f"1.png: {size[0]} x {size[1]} px" in summary(server, folder=made.name)


def test_a_line_is_needed_for_each_picture_where_some_have_no_caption(server: Server, folder: str) -> None:
    with pytest.raises(HostError, match="Pictures: 4, captions: 2"):
        summary(server, folder=folder, captions="one dog\ntwo dogs")


def test_captions_of_another_set_do_not_matter_where_every_picture_has_its_own(server: Server) -> None:
    made = server.base / "input" / "all said"
    made.mkdir()
    Image.new("RGB", (128, 128), "white").save(made / "1.png")
    (made / "1.txt").write_text("a dog asleep", encoding="utf-8")
    assert "base: a dog asleep\n" in summary(server, folder=made.name, captions="a dog\na dog on a chair")


def test_bundled_and_own_templates_stand_in_place_of_captions(server: Server, folder: str) -> None:
    text = summary(server, folder=folder, texts="bundled templates")
    assert f"{len(TEMPLATES['instance'])} templates" in text and "grass" not in text
    assert "- a photo of my [V] dog   |   base: a photo of my dog" in text
    style = summary(
        server, folder=folder, texts="own templates", captions="a sketch in {concept}\n\n{concept}", kind="style",
        class_word="style",
    )  # fmt: skip
    assert "2 templates" in style and "- a sketch in [V] style   |   base: a sketch\n" in style
    assert "- [V] style   |   base: \n" in style
    for captions, message in (("", "There are no templates"), ("a dog", "it must hold {concept} once")):
        with pytest.raises(HostError, match=message):
            summary(server, folder=folder, texts="own templates", captions=captions)


def test_lists_of_stock_nodes_are_taken_with_a_caption_for_each(server: Server) -> None:
    """Pictures of several sizes come as a list, and so do their texts."""
    made = server.base / "input" / "stock set"
    made.mkdir()
    for i, (name, size) in enumerate(SHAPES.items()):
        Image.new("RGB", size, (60 * i, 0, 0)).save(made / f"{name}.png")
        (made / f"{name}.txt").write_text(f"a dog, number {i}\nand more", encoding="utf-8")
    p = Prompt()
    loaded = p.add("LoadImageTextDataSetFromFolder", folder=made.name)
    data = p.concept_set(
        p.pocket(), folder="(pictures from the input)", pictures=[loaded, 0], captions=[loaded, 1]
    )  # fmt: skip
    shown = p.show([data, 1])
    (text,) = server.client.run(p.nodes, timeout=DEADLINE)["outputs"][shown]["text"]
    assert text.startswith("4 pictures, 160 x 112, 128 x 128, 96 x 176 px")
    for i in range(4):
        assert f"base: a dog, number {i} and more\n" in text


def test_both_stages_train_on_all_of_it_and_tell_why_they_stopped(server: Server, folder: str) -> None:
    """Three sizes, masks, both orientations, templates; early stop with a gain that no run has."""
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket, folder=folder, flip=True, texts="bundled templates")
    defaults = server.client.object_info()["PureCCSettings"]["input"]["required"]
    values = {name: options["default"] for name, (_, options) in defaults.items()}
    values |= {
        "background_weight": 0.2,
        "stop_patience": 1,
        "stop_every": 2,
        "stop_gain": 0.9,
        "validation_every": 1000,
    }
    wired = {"settings": [p.add("PureCCSettings", **values), 0]}
    first = p.extractor(pocket, data, steps=9, **wired)
    shown = [p.show([first, 1]), p.show([p.pure(pocket, data, first, steps=9, **wired), 2])]
    outputs = server.client.run(p.nodes, timeout=DEADLINE)["outputs"]
    for report in (outputs[node]["text"][0] for node in shown):
        assert "stopped at step 4 of 9, after 1 evaluations that gained less than 90 %; kept step " in report
        run = server.base / "output" / "purecc" / "runs" / report.split("run: ")[1].split()[0]
        assert len((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 4
        assert json.loads((run / "settings.json").read_text(encoding="utf-8"))["stop_gain"] == 0.9
        assert isinstance(run, Path) and (run / "concept.safetensors").is_file()
