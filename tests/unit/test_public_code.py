"""Files of the paper's public code: LoRAs with its double prefix, csv data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from tiny import CHANNELS, SIDE, network, noise, text, transformer

from purecc.files import load_tensors, save_tensors
from purecc.network import PURE
from purecc.public_code import csv_file, read_csv, read_lora

MODULES = ("transformer_blocks.0.attn.to_q", "transformer_blocks.3.attn.to_out.0")


def written(
    path: Path, prefix: str, rank: int = 4, **more: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    pairs = {module: (torch.randn(rank, 8), torch.randn(16, rank)) for module in MODULES}
    tensors = {f"{prefix}{m}.lora_A.weight": a for m, (a, _) in pairs.items()}
    tensors |= {f"{prefix}{m}.lora_B.weight": b for m, (_, b) in pairs.items()}
    save_tensors(path, tensors | {f"{prefix}{name}": value for name, value in more.items()})
    return pairs


@pytest.mark.parametrize("prefix", ["transformer.base_model.model.", "base_model.model.", "transformer.", ""])
def test_a_lora_is_read_whatever_stands_before_its_names(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    pairs = written(path, prefix)
    concept = read_lora(path, "[v]", "dog", "instance")
    assert set(concept.lora.matrices) == set(MODULES)
    for module, (a, b) in pairs.items():
        got = concept.lora.matrices[module]
        assert torch.equal(got[0], a) and torch.equal(got[1], b)
    assert (concept.lora.alpha, concept.lora.scale, concept.embeddings, concept.base) == (4.0, 1.0, None, "")


def test_alpha_is_asked_then_told_then_the_rank(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    written(path, "base_model.model.")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    assert read_lora(path, "[v]", "dog", "instance").lora.scale == 2.0
    assert read_lora(path, "[v]", "dog", "instance", alpha=2.0).lora.scale == 0.5
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16, "lora_alpha": 8}))
    with pytest.raises(ValueError, match="belongs to another LoRA: r is 16, here 4"):
        read_lora(path, "[v]", "dog", "instance")
    inside = tmp_path / "inside.safetensors"
    written(inside, "transformer.", **{f"{module}.alpha": torch.tensor(6.0) for module in MODULES})
    assert read_lora(inside, "[v]", "dog", "instance").lora.alpha == 6.0


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_the_alpha_that_diffusers_writes_into_its_files_is_read(tmp_path: Path, rslora: bool, scale: float) -> None:
    """alpha 8, rank 4; of rsLoRA alpha / sqrt(rank)."""
    theirs = transformer()
    config = LoraConfig(r=4, lora_alpha=8, use_rslora=rslora, target_modules=["attn.to_q"], init_lora_weights=False)
    theirs.add_adapter(config)
    StableDiffusion3Pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(theirs),
        **_collate_lora_metadata({"transformer": theirs}),
    )
    concept = read_lora(next(tmp_path.glob("*.safetensors")), "[v]", "dog", "instance")
    assert concept.lora.scale == scale
    ours, (x, t, words) = network(), (noise(1, CHANNELS, SIDE, SIDE), torch.tensor([0.5]), text("a dog"))
    ours.add_concept(PURE, concept)
    with torch.no_grad():
        expected = theirs(x, words.rows, words.pooled, 1000 * t).sample
        torch.testing.assert_close(ours.velocity(x, t, words, PURE), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"transformer.lora_alpha": 8, "transformer.r": 16}, "belongs to another LoRA: r is 16, here 4"),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"to_q": 2}}, "modules of different alpha or rank"),
        ({"transformer.lora_alpha": 8, "transformer.rank_pattern": {"to_q": 2}}, "modules of different alpha or rank"),
        ({"transformer.lora_alpha": None, "transformer.r": 4}, "the alpha None, which is no number"),
        ([1], "cannot be read"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, said: object, message: str) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    written(path, "transformer.")
    save_tensors(path, load_tensors(path)[0], {"lora_adapter_metadata": json.dumps(said)})
    with pytest.raises(ValueError, match=message):
        read_lora(path, "[v]", "dog", "instance")
    assert read_lora(path, "[v]", "dog", "instance", alpha=4.0).lora.scale == 1.0


@pytest.mark.parametrize("said", [{}, {"text_encoder.lora_alpha": 8}])
def test_metadata_that_says_nothing_of_the_transformer_is_passed_over(tmp_path: Path, said: dict) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    written(path, "transformer.")
    save_tensors(path, load_tensors(path)[0], {"lora_adapter_metadata": json.dumps(said)})
    assert read_lora(path, "[v]", "dog", "instance").lora.scale == 1.0
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    assert read_lora(path, "[v]", "dog", "instance").lora.scale == 2.0


def test_other_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for tensors, message in (
        ({"lora_unet_down.lora_up.weight": torch.ones(2, 2)}, "'lora_unet_down.lora_up.weight' is not understood"),
        ({"transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2)}, "transformer_blocks.0.attn.to_q"),
        ({"transformer_blocks.0.attn.to_q.alpha": torch.ones(())}, "there are no such keys"),
    ):
        save_tensors(path, tensors)
        with pytest.raises(ValueError, match=message):
            read_lora(path, "[v]", "dog", "instance")
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_lora(path, "[v]", "dog", "instance")
    with pytest.raises(ValueError, match=r"There is no file learned_embeds.pt"):
        read_lora(tmp_path / "learned_embeds.pt", "[v]", "dog", "instance")
    held = {
        "new_concept_token": "<new1>",
        "initializer_token": "dog",
        "embedding_one": torch.ones(768),
        "embedding_two": torch.ones(1280),
    }
    torch.save(held, tmp_path / "learned_embeds.pt")
    concept = read_lora(tmp_path / "learned_embeds.pt", "[v]", "dog", "instance")
    assert {name: tuple(v.shape) for name, v in concept.token_embeddings.items()} == {
        "clip_l": (1, 768),
        "clip_g": (1, 1280),
    }
    assert concept.lora is None and concept.tokens == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "robot toy"
    (made / "images").mkdir(parents=True)
    for i in range(8):
        Image.new("RGB", (8, 6), (20 * i, 0, 0)).save(made / "images" / f"{i}.png")
    Image.new("RGB", (8, 6), (0, 99, 0)).save(made / "flat.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "outside.png")
    return made


HEADER = "image_path,prompt,target_prompt,base_prompt,instance_word\n"


def table(folder: Path, *rows: str) -> Path:
    path = folder / "robot_toy.csv"
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_all_rows_of_a_csv_are_read(folder: Path) -> None:
    rows = [f'images/{i}.png,"a [v]  robot, number {i}",[v] robot,"a robot, number {i}",robot' for i in range(8)]
    rows += ["/home/someone/data/flat.png,a [V] robot,[v] robot,a robot,Robot"]
    rows += ["data\\images\\flat.png,a robot at night,[v] robot,a robot at night,"]
    pictures = read_csv(table(folder, *rows), "ohwx", "robot")
    assert [p.caption for p in pictures] == [
        *(f"a ohwx robot, number {i}" for i in range(8)), "a ohwx robot", "a robot at night",
    ]  # fmt: skip
    assert pictures[0].texts == {"base": "a robot, number 0", "target": "ohwx robot"}
    assert [round(float(p.pixels[0, 0, 0]) * 255) for p in pictures[:8]] == [20 * i for i in range(8)]
    assert float(pictures[8].pixels[0, 0, 1]) == float(pictures[9].pixels[0, 0, 1]) > 0.3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("images/99.png,a [v] robot,,,robot", 'line 2: there is no picture "images/99.png"'),
        ("../outside.png,a [v] robot,,,robot", "there is no picture"),
        ("images/1.png,a [v] robot,[v] robot,a [v] robot,robot", 'the base_prompt "a ohwx robot" holds the concept'),
        ("images/1.png,a [v] robot,a robot,a robot,robot", r'the target_prompt "a robot" lacks \[v\]'),
        ("images/1.png,a [v] toy,,,toy", 'the instance_word is "toy", the class word "robot"'),
    ],
)
def test_a_row_that_does_not_fit_is_named(folder: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_csv(table(folder, row), "ohwx", "robot")


@pytest.mark.parametrize(("between", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-16"), (",", "utf-8")])
def test_a_csv_may_come_from_a_spreadsheet(folder: Path, between: str, encoding: str) -> None:
    lines = [["image_path", "prompt"], ["images/3.png", '"a [v] robot, asleep, at night, alone"']]
    text = "".join(f"{between.join(line)}\r\n" for line in lines)
    (folder / "robot_toy.csv").write_bytes(text.encode(encoding))
    (picture,) = read_csv(csv_file(folder), "ohwx", "robot")
    assert picture.caption == "a ohwx robot, asleep, at night, alone"


def test_a_csv_of_another_kind_is_named(folder: Path) -> None:
    (folder / "a.csv").write_text("file,text\nx.png,a dog\n", encoding="utf-8")
    with pytest.raises(ValueError, match='no rows with a column "image_path"'):
        read_csv(csv_file(folder), "ohwx", "robot")
    (folder / "b.csv").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="holds 2 csv files"):
        csv_file(folder)
