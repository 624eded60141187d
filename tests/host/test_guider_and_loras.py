"""Pure Guider, Export Concept and Import LoRA on the real server, with the concept that comes with the pack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from graph import Prompt
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from purecc.launch.client import HostError
from purecc.launch.layout import PROJECT
from purecc.launch.server import Server

DEADLINE = 300  # seconds, of one prompt
BUNDLED = "example pink poodle.safetensors"
FILE = PROJECT / "workflows" / "concepts" / BUNDLED
NOT_LOADED = "lora key not loaded"


def saved(p: Prompt, samples: list, pocket: str) -> str:
    return p.add("SaveImage", images=[p.add("VAEDecode", samples=samples, vae=[pocket, 2]), 0], filename_prefix="t/g")


def sampled(p: Prompt, model: list, clip: list, pocket: str, text: str) -> str:
    """A picture by the stock KSampler, its texts encoded by `clip`."""
    positive, negative = (p.add("CLIPTextEncode", clip=clip, text=words) for words in (text, ""))
    latent = p.add("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    made = p.add(
        "KSampler", model=model, positive=[positive, 0], negative=[negative, 0], latent_image=[latent, 0], seed=3, steps=4,
        cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    return saved(p, [made, 0], pocket)


def guided(p: Prompt, guider: str, pocket: str) -> str:
    """A picture by the stock SamplerCustomAdvanced."""
    latent = p.add("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    sigmas = p.add("BasicScheduler", model=[pocket, 0], scheduler="normal", steps=6, denoise=1.0)
    made = p.add(
        "SamplerCustomAdvanced", noise=[p.add("RandomNoise", noise_seed=7), 0], guider=[guider, 0], sigmas=[sigmas, 0],
        sampler=[p.add("KSamplerSelect", sampler_name="euler"), 0], latent_image=[latent, 0],
    )  # fmt: skip
    return saved(p, [made, 0], pocket)


def pictures(server: Server, p: Prompt, nodes: dict[str, str]) -> dict[str, bytes]:
    """The pixels of each SaveImage node, by name."""
    from PIL import Image

    outputs, found = server.client.run(p.nodes, timeout=DEADLINE)["outputs"], {}
    for name, node in nodes.items():
        (entry,) = outputs[node]["images"]
        with Image.open(server.base / "output" / entry["subfolder"] / entry["filename"]) as image:
            found[name] = image.convert("RGB").tobytes()
    return found


def pure_guider(p: Prompt, pocket: str, concept: str, **changed) -> str:
    values = {"prompt": "a [V] dog in the snow", "cfg": 4.0, "fixed_lambda": 1.0, "end_factor": 1.0}
    values |= {"target": "null-relative"} | changed
    return p.add("PureCCGuider", model=[pocket, 0], clip=[pocket, 1], extractor=[concept, 0], **values)


def test_the_guider_is_the_stock_one_at_lambda_0_and_moves_with_lambda(server: Server) -> None:
    p = Prompt()
    pocket = p.pocket()
    concept = p.add("PureCCLoadConcept", name=BUNDLED)
    texts = [p.add("CLIPTextEncode", clip=[pocket, 1], text=words) for words in ("a dog in the snow", "")]
    stock = p.add("CFGGuider", model=[pocket, 0], positive=[texts[0], 0], negative=[texts[1], 0], cfg=4.0)
    nodes = {"stock": guided(p, stock, pocket)}
    for scale, end in ((0.0, 1.0), (1.0, 1.0), (1.0, 0.0)):
        guider = pure_guider(p, pocket, concept, fixed_lambda=scale, end_factor=end)
        nodes[f"{scale} to {end}"] = guided(p, guider, pocket)
    nodes["wired"] = guided(
        p,
        pure_guider(p, pocket, concept, fixed_lambda=0.0, prompt="", base=[texts[0], 0], negative=[texts[1], 0]),
        pocket,
    )
    found = pictures(server, p, nodes)
    assert found["0.0 to 1.0"] == found["wired"] == found["stock"]
    assert len({found["stock"], found["1.0 to 1.0"], found["1.0 to 0.0"]}) == 3


def test_the_guider_wants_the_base_model(server: Server) -> None:
    p = Prompt()
    pocket = p.pocket()
    concept = p.add("PureCCLoadConcept", name=BUNDLED)
    applied = p.apply(pocket, [concept, 0])
    guided(p, p.add("PureCCGuider", model=[applied, 0], clip=[pocket, 1], extractor=[concept, 0], prompt="a [V] dog", cfg=4.0,
                    fixed_lambda=1.0, end_factor=1.0, target="in-context"), pocket)  # fmt: skip
    with pytest.raises(HostError, match="is already applied to this MODEL, so it is no base"):
        server.client.run(p.nodes, timeout=DEADLINE)


@pytest.fixture(scope="module")
def exported(server: Server) -> tuple[Path, str]:
    """The file that Export Concept wrote, and what the node said is lost."""
    p = Prompt()
    concept = p.add("PureCCLoadConcept", name=BUNDLED)
    export = p.add("PureCCExportConcept", concept=[concept, 0], model=[p.pocket(), 0], name="tests/a poodle")
    shown = p.show([export, 1])
    (text,) = server.client.run(p.nodes, timeout=DEADLINE)["outputs"][shown]["text"]
    return server.base / "models" / "loras" / "tests" / "a poodle.safetensors", text


def test_the_stock_loader_does_exactly_what_the_lora_part_does(server: Server, exported: tuple[Path, str]) -> None:
    p = Prompt()
    pocket = p.pocket()
    names = {"lora_name": "tests/a poodle.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    stock = p.add("LoraLoader", model=[pocket, 0], clip=[pocket, 1], **names)
    concept = p.add("PureCCLoadConcept", name=BUNDLED)
    ours = p.apply(pocket, [concept, 0], embedding_strength=0.0, gate="off")
    words = "a dog dog in the snow"
    before = server.log_text().count(NOT_LOADED)
    found = pictures(server, p, {
        "stock": sampled(p, [stock, 0], [stock, 1], pocket, words),
        "ours": sampled(p, [ours, 0], [pocket, 1], pocket, words),
        "base": sampled(p, [pocket, 0], [pocket, 1], pocket, words),
    })  # fmt: skip
    assert found["stock"] == found["ours"] != found["base"]
    assert server.log_text().count(NOT_LOADED) == before  # no key was left out


def test_the_exported_file_and_its_node_say_what_is_lost(exported: tuple[Path, str]) -> None:
    path, said = exported
    with safe_open(path, "pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
    with safe_open(FILE, "pt") as file:
        modules = {key.removesuffix(".lora_A.weight") for key in file.keys() if key.endswith(".lora_A.weight")}
    ends = ("lora_A.weight", "lora_B.weight")
    assert keys == {f"{module}.{end}" for module in modules for end in ends}
    assert metadata["modelspec.trigger_phrase"] == "dog dog" and metadata["ss_network_dim"] == "4"
    for word in ('write "dog dog"', "embeddings stay behind", "gate stays behind"):
        assert word in said and word in metadata["modelspec.description"]


def test_a_lora_of_the_public_code_is_read_where_the_stock_loader_reads_nothing(
    server: Server, exported: tuple[Path, str]
) -> None:
    path, _ = exported
    pairs = {key: value for key, value in load_file(path).items() if not key.endswith(".alpha")}
    public = {key.replace("transformer.", "transformer.base_model.model.", 1): value for key, value in pairs.items()}
    save_file(public, path.with_name("pytorch_lora_weights.safetensors"))
    name = "tests/pytorch_lora_weights.safetensors"
    p = Prompt()
    pocket = p.pocket()
    stock = p.add("LoraLoaderModelOnly", model=[pocket, 0], lora_name=name, strength_model=1.0)
    own = p.add("LoraLoaderModelOnly", model=[pocket, 0], lora_name="tests/a poodle.safetensors", strength_model=1.0)
    read = p.add("PureCCImportLora", file=name, trigger="[v]", class_word="dog", kind="instance", alpha=0.0)
    open_, gated = p.apply(pocket, [read, 0], gate="off"), p.apply(pocket, [read, 0], gate="as trained")
    words, clip = "a dog dog in the snow", [pocket, 1]
    found = pictures(server, p, {
        "base": sampled(p, [pocket, 0], clip, pocket, words),
        "stock": sampled(p, [stock, 0], clip, pocket, words),
        "own": sampled(p, [own, 0], clip, pocket, words),
        "imported": sampled(p, [open_, 0], clip, pocket, words),
        "gated": sampled(p, [gated, 0], [gated, 1], pocket, words),
        "called": sampled(p, [gated, 0], [gated, 1], pocket, "a [v] dog in the snow"),
    })  # fmt: skip
    assert found["stock"] == found["base"]  # it only warns
    assert found["imported"] == found["own"] != found["base"]
    assert found["gated"] == found["base"] != found["called"]


def test_the_public_codes_token_comes_along_and_is_told_where_it_does_not_fit(
    server: Server, exported: tuple[Path, str]
) -> None:
    path, _ = exported
    held = {"new_concept_token": "<new1>", "initializer_token": "dog"}
    held |= {"embedding_one": torch.ones(768), "embedding_two": torch.ones(1280)}
    torch.save(held, path.parent / "learned_embeds.pt")
    p = Prompt()
    pocket = p.pocket()
    names = {"file": "tests/a poodle.safetensors", "learned_token": "tests/learned_embeds.pt"}
    read = p.add("PureCCImportLora", **names, trigger="[v]", class_word="dog", kind="instance", alpha=0.0)
    p.show([read, 1])
    told = server.client.run(p.nodes, timeout=DEADLINE)["outputs"][read]["text"][0]
    assert "modules, rank 4" in told and "a token in clip_l and clip_g" in told
    torch.save(
        {name: value for name, value in held.items() if name != "embedding_two"}, path.parent / "learned_embeds.pt"
    )
    told = server.client.run(p.nodes, timeout=DEADLINE)["outputs"][read]["text"][0]
    assert told.endswith("a token in clip_l; its base is not known"), "a file written anew is read anew"
    p.show([p.apply(pocket, [read, 0]), 2])
    with pytest.raises(HostError, match="width 768 for clip_l, which is of width 128 in this CLIP"):
        server.client.run(p.nodes, timeout=DEADLINE)


def test_a_data_set_of_the_public_code_is_read(server: Server) -> None:
    folder = server.base / "input" / "robot toy"
    (folder / "images").mkdir(parents=True)
    rows = ["image_path,prompt,target_prompt,base_prompt,instance_word"]
    for number in range(1, 4):
        picture = (PROJECT / "workflows" / "pictures" / "pink poodle" / f"{number}.png").read_bytes()
        (folder / "images" / f"{number}.png").write_bytes(picture)
        rows.append(f'images/{number}.png,"a [v] dog, picture {number}",a [v] dog,"one dog, picture {number}",dog')
    (folder / "robot_toy.csv").write_text("\n".join(rows), encoding="utf-8")
    p = Prompt()
    shown = p.show([p.concept_set(p.pocket(), folder="robot toy", trigger="ohwx"), 1])
    (text,) = server.client.run(p.nodes, timeout=DEADLINE)["outputs"][shown]["text"]
    assert (
        "3 pictures" in text and "a ohwx dog, picture 2   |   base: one dog, picture 2" in text
    )  # its own, not one made of the prompt
    assert "target: a ohwx dog" in text


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        ("PureCCExportConcept", {"name": "../../outside"}, "is not a name for a file here"),
        ("PureCCImportLora", {"file": "../secrets.safetensors"}, "There is no LoRA"),
        ("PureCCImportLora", {"file": "tests/a poodle.safetensors", "trigger": " "}, "neither may be empty"),
        ("PureCCImportLora", {"file": "tests/a poodle.safetensors", "trigger": "dog"}, "holds the trigger"),
    ],
)
def test_bad_names_are_told_in_a_sentence(
    server: Server, exported: tuple[Path, str], node: str, inputs: dict, message: str
) -> None:
    p = Prompt()
    if node == "PureCCExportConcept":
        wires = {"concept": [p.add("PureCCLoadConcept", name=BUNDLED), 0], "model": [p.pocket(), 0]}
        made = p.add(node, **wires, **inputs)
    else:
        made = p.add(node, **({"trigger": "[v]", "class_word": "dog", "kind": "instance", "alpha": 0.0} | inputs))
    p.show([made, 0 if node == "PureCCExportConcept" else 1])
    with pytest.raises(HostError, match=message):
        server.client.run(p.nodes, timeout=DEADLINE)
    assert not list(server.base.rglob("outside.safetensors"))


def test_the_new_wires_have_names(server: Server) -> None:
    info = server.client.object_info()
    for node in ("PureCCGuider", "PureCCExportConcept", "PureCCImportLora"):
        inputs = info[node]["input"]["required"] | info[node]["input"].get("optional", {})
        assert all(len(options["tooltip"]) > 10 for _, options in inputs.values()), node
        assert all(info[node]["output_tooltips"]), json.dumps(info[node]["output_tooltips"])
