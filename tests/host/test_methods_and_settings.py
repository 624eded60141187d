"""Settings and the five methods on the real server: what they change, what they leave alone, what they say."""

from __future__ import annotations

import json
import re
import time
from io import BytesIO
from typing import Any

import pytest
from graph import Prompt
from PIL import Image
from safetensors import safe_open

from benchmarks.pocketbench.arms import ARMS, SHIPPED
from purecc.launch.client import HostError
from purecc.launch.server import Server
from purecc.presets import SHIPPED as SHIPPED_SETTINGS
from purecc.settings import METHODS

DEADLINE = 400  # seconds, of one prompt
DEFAULTS = {
    "preset": "as shown", "gate": "off", "targets": "attention", "first_block": 0, "last_block": -1, "alpha": 0.0,
    "stage2_embeddings": "as the extractor", "train_embeddings": True, "extractor_lora": True, "target": "null-relative",
    "eta_schedule": "constant", "lambda_multiplier": 1.0, "lambda_min": -100.0, "lambda_max": 100.0, "base_anchor": 0.0,
    "null_anchor": 0.0, "preservation_weight": 1.0, "class_pictures": 16, "class_texts": "class", "class_steps": 28,
    "class_guidance": 4.5, "class_shift": 3.0, "background_weight": 1.0, "schedule": "constant", "warmup": 0,
    "times": "logit-normal", "shift": 3.0, "accumulate": 1, "checkpointing": False, "modulation_table": False, "max_grad_norm": 1.0,
    "weight_decay": 1e-4, "checkpoint_every": 50, "validation_prompts": "", "validation_every": 0,
    "stop_patience": 0, "stop_every": 25, "stop_gain": 0.01, "token_embeddings": False, "validation_seeds": "0",
    "dtype": "auto", "memory": "auto",
}  # fmt: skip


def settings(p: Prompt, **changed: Any) -> str:
    return p.add("PureCCSettings", **(DEFAULTS | changed))


def identity(server: Server, report: str) -> dict[str, Any]:
    """What the run that a report names was trained with."""
    run = server.base / "output" / "purecc" / "runs" / re.search(r"run: (\S+)", report)[1]
    return json.loads((run / "settings.json").read_text(encoding="utf-8"))


def trained(
    server: Server, *, of: dict[str, Any] | None, extractor: bool = True, **face: Any
) -> tuple[str, dict, Prompt]:
    """Pure Learning in two steps; `of`: values of Settings, on both stages, or None for no such node."""
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket)
    wired = {} if of is None else {"settings": [settings(p, **of), 0]}
    first = p.extractor(pocket, data, steps=2, **wired) if extractor else None
    report = p.show([p.pure(pocket, data, first, **({"steps": 2} | face), **wired), 2])
    outputs = server.client.run(p.nodes, timeout=DEADLINE)["outputs"]
    (text,) = outputs[report]["text"]
    return text, outputs, p


def test_the_nodes_defaults_are_the_packs(server: Server) -> None:
    inputs = server.client.object_info()["PureCCSettings"]["input"]["required"]
    assert {name: options["default"] for name, (_, options) in inputs.items()} == DEFAULTS
    assert all(len(options["tooltip"]) > 20 for _, options in inputs.values())


def test_pure_learnings_defaults_are_those_that_pocketbench_calls_shipped(server: Server) -> None:
    inputs = server.client.object_info()["PureCCPureLearning"]["input"]
    shown = {
        name: options["default"]
        for name, (_, options) in (inputs["required"] | inputs["optional"]).items()
        if "default" in options
    }
    arm = ARMS[SHIPPED].pure_settings
    advanced = server.client.object_info()["PureCCSettings"]["input"]["optional"]
    for name in ("scene_concept", "background_loss"):
        assert advanced[name][1]["default"] == getattr(arm, name)
    assert {name: shown[name] for name in ("method", "eta", "background_anchor", "scene_anchor", "original")} == {
        "method": arm.method, "eta": arm.eta, "background_anchor": arm.background_anchor, "scene_anchor": arm.scene_anchor, "original": arm.original,
    }  # fmt: skip


def test_at_its_defaults_it_changes_no_run(server: Server) -> None:
    without, _, _ = trained(server, of=None)
    with_, _, _ = trained(server, of={})
    # what is free moves, and what is finished needs less
    told = lambda text: [line for line in text.splitlines() if not line.startswith(("memory", "phases"))]  # noqa: E731
    assert told(with_) == told(without)  # the same run, returned from disk: even the seconds
    assert "no steps: this run was finished before" in with_


def test_the_dtype_is_the_runs(server: Server) -> None:
    of_16, _, _ = trained(server, of={"dtype": "bfloat16"})
    of_32, _, _ = trained(server, of={})
    assert [identity(server, report)["dtype"] for report in (of_16, of_32)] == ["torch.bfloat16", "torch.float32"]


def test_what_it_sets_reaches_both_stages(server: Server) -> None:
    changed = {
        "gate": "rows", "targets": "text stream only", "first_block": 1, "last_block": 2, "alpha": 2.0, "schedule": "cosine",
        "warmup": 1, "times": "diffusers grid", "shift": 2.0, "accumulate": 2, "checkpointing": True, "max_grad_norm": 0.5,
        "weight_decay": 0.01, "checkpoint_every": 1, "background_weight": 0.25, "train_embeddings": False,
        "target": "in-context", "eta_schedule": "low noise", "lambda_multiplier": 0.5, "lambda_min": 0.0,
        "base_anchor": 0.5, "null_anchor": 0.25, "validation_every": 1000,
    }  # fmt: skip
    report, _, _ = trained(server, of=changed)
    # what keeps and saves changes no result: a run is the same with it and without
    others = ("lambda_", "validation_", "checkpoint")
    asked = {name: value for name, value in changed.items() if not name.startswith(others)}
    asked |= {"scale_multiplier": 0.5, "scale_min": 0.0, "scale_max": None}
    got = identity(server, report)
    assert {name: got[name] for name in asked} == asked
    stage1 = [
        json.loads(path.read_text()) for path in (server.base / "output/purecc/runs").glob("extractor-*/settings.json")
    ]
    of_stage1 = {name: asked[name] for name in ("gate", "targets", "first_block", "accumulate", "shift")}
    assert any({name: one[name] for name in of_stage1} == of_stage1 for one in stage1)
    concept = server.base / "output/purecc/runs" / re.search(r"run: (\S+)", report)[1] / "concept.safetensors"
    with safe_open(concept, "pt") as file:
        assert json.loads(file.metadata()["purecc.gate"]) == "rows"
        modules = {key.rsplit(".lora_A", 1)[0] for key in file.keys() if "lora_A" in key}
        assert float(file.get_tensor(f"{min(modules)}.alpha")) == 2.0
    assert len(modules) == 2 * 4 and all("add_" in m and (".1." in m or ".2." in m) for m in modules)
    assert "distance from the base, base texts" in report and "null text" in report


def test_memory_is_told_for_each_phase(server: Server) -> None:
    report, _, _ = trained(server, of={"memory": "6 GB", "checkpointing": True}, seed=5)  # a run of its own
    told, phases = (next(line for line in report.splitlines() if line.startswith(s)) for s in ("memory", "phases"))
    assert "are free" in told and "Turned on" not in told  # the pocket fits
    assert re.search(r"text encoders \d+ MB, then VAE \d+ MB .*; steps: \d+ MB; validation: \d+ MB", phases)


def test_the_merged_stage_without_eta_is_refused(server: Server) -> None:
    with pytest.raises(HostError, match="Set eta above 0"):
        trained(server, of=None, extractor=False, method="merged stage", eta=0.0)


def test_memory_is_told_before_each_phase(server: Server) -> None:
    p, texts = Prompt(), []
    pocket = p.pocket()
    p.show([p.pure(pocket, p.concept_set(pocket, trigger="[M]"), None, method="LoRA", steps=2, seed=11), 2])

    def on_event(kind: str, value: Any) -> None:
        if kind == "purecc.text":
            texts.append(value["text"])

    server.client.run(p.nodes, on_event=on_event, timeout=DEADLINE)
    said = ("encoding, before the training: text encoders", "memory: about", "step 1 /")
    places = [next(i for i, text in enumerate(texts) if words in text) for words in said]
    assert places == sorted(places)


def test_a_preset_stands_above_what_the_nodes_show(server: Server) -> None:
    p = Prompt()
    shown = p.show([settings(p, preset="public code", gate="rows"), 0])
    outputs = server.client.run(p.nodes, timeout=DEADLINE)["outputs"]
    assert "preset public code" in str(outputs["1"]) and shown in outputs


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(server: Server, method: str) -> None:
    of = {"class_pictures": 2, "class_steps": 2, "validation_every": 1000}
    report, _, _ = trained(server, of=of, extractor=method == "PureCC", method=method)
    assert report.startswith(method)
    assert ("L_PureCC" in report) == (method in ("PureCC", "merged stage"))
    assert ("loss on class pictures" in report) == (method == "LoRA + prior preservation")
    assert ("distance from the base, base texts" in report) == (method == "LoRA + DOP")
    assert ("L_CC of the extractor" in report) == (method == "merged stage")
    assert ("around the concept" in report) == (method in ("PureCC", "merged stage"))


def test_scenes_are_drawn_by_the_base_and_what_is_beside_is_held(server: Server) -> None:
    """On the face, and off with the preset of the paper, which has no anchors."""
    text, _, _ = trained(server, of={"class_steps": 2, "validation_every": 1000}, scene_anchor=1.5)
    asked = identity(server, text)
    assert asked["scene_anchor"] == 1.5 and asked["scenes"] and asked["class_steps"] == 2
    for name in ("scene_concept", "background_loss"):  # no such widgets in an older workflow
        assert asked[name] == SHIPPED_SETTINGS[name] > 0
    assert "in scenes, what is beside the concept: distance from the base" in text
    text, _, _ = trained(server, of={"preset": "paper", "validation_every": 1000}, scene_anchor=1.5)
    assert "scenes" not in identity(server, text)


def test_at_eta_0_no_extractor_is_needed(server: Server) -> None:
    text, _, _ = trained(server, of=None, extractor=False, eta=0.0)
    assert (
        text.startswith("PureCC at eta 0, without an extractor: L_CC and the anchors: rank 4, 2 steps")
        and "around the concept" in text
        and "L_PureCC" not in text
    )
    with pytest.raises(HostError, match="PureCC needs an extractor: .* Without one eta must be 0"):
        trained(server, of=None, extractor=False, eta=0.1)


def test_class_pictures_show_progress_and_obey_cancel(server: Server) -> None:
    p = Prompt()
    pocket = p.pocket()
    wire = [settings(p, class_pictures=64, class_steps=100), 0]
    p.show([p.pure(pocket, p.concept_set(pocket), None, method="LoRA + prior preservation", settings=wire, seed=5), 2])
    kept = server.base / "output" / "purecc" / "runs" / "class_pictures"
    before = set(kept.iterdir()) if kept.is_dir() else set()
    texts: list[str] = []

    def on_event(kind: str, value: Any) -> None:
        if kind == "purecc.text" and "pictures of the class" in str(value):
            texts.append(str(value))
            if len(texts) == 3:
                server.client.post("/interrupt", {})

    start = time.monotonic()
    with pytest.raises(HostError, match="(?i)interrupt|cancel"):
        server.client.run(p.nodes, on_event=on_event, timeout=DEADLINE)
    assert "the class: 0%" in texts[0]  # the first of 16 samplings of 100 steps
    assert len(texts) < 200, f"{len(texts)} steps drawn in {time.monotonic() - start:.0f} s after a cancel"
    assert (set(kept.iterdir()) if kept.is_dir() else set()) == before


def test_input_embeddings_learn_guide_sample_and_are_exported(server: Server) -> None:
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket)
    wire = [settings(p, token_embeddings=True, extractor_lora=False), 0]
    first = p.extractor(pocket, data, steps=3, embeddings="none", rank=0, embedding_rate=0.1, settings=wire)
    pure = p.pure(pocket, data, first, steps=2, settings=wire)
    applied = p.apply(pocket, [first, 0])
    with_it = p.picture(applied, pocket, "a [V] dog", "t/token")
    without = p.picture(pocket, pocket, "a dog", "t/token-base")
    export = p.add("PureCCExportConcept", concept=[first, 0], model=[pocket, 0], name="t/a dog", clip=[pocket, 1])
    shown = p.show([export, 0])
    reports = [p.show([first, 1]), p.show([pure, 2])]
    outputs = server.client.run(p.nodes, timeout=DEADLINE)["outputs"]
    of_extractor, of_pure = (outputs[report]["text"][0] for report in reports)
    assert "base texts 0.0000, null text 0.0000" in of_extractor  # nothing else can move
    assert identity(server, of_pure)["token_embeddings"]  # as its extractor
    drawn = [outputs[node]["images"][0] for node in (with_it, without)]
    assert len({server.client.view(image["filename"], image["subfolder"]) for image in drawn}) == 2
    with safe_open(outputs[shown]["text"][0], "pt") as file:
        assert {key: file.get_slice(key).get_shape() for key in file.keys()} == {"clip_l": [1, 128], "clip_g": [1, 128]}
        assert file.metadata()["modelspec.trigger_phrase"] == "embedding:t/a_dog dog"


def test_validation_prompts_are_drawn(server: Server) -> None:
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket)
    prompts = "a [V] dog in the snow\n\n  a red   house\n"
    wire = [settings(p, validation_prompts=prompts, validation_every=1, validation_seeds="0, 7"), 0]
    pure = p.pure(pocket, data, None, method="LoRA", steps=2, learning_rate=3e-2, settings=wire)
    saved = p.add("SaveImage", images=[pure, 1], filename_prefix="t/validation")
    images = server.client.run(p.nodes, timeout=DEADLINE)["outputs"][saved]["images"]
    assert len(images) == 2 * (2 + 2 * 2)  # for each seed the example's pair, and a pair for each prompt
    drawn = [server.client.view(image["filename"], image["subfolder"]) for image in images]
    assert len(set(drawn)) == 12  # the base model and the customised one differ, and so do the prompts and seeds


def test_a_looks_validation_pictures_are_behind_its_gate(server: Server) -> None:
    """As Apply Concept draws them: with the trigger the negative is the base's; without it the text is as it was trained."""

    def drawn(kind: str) -> list[bytes]:
        p = Prompt()
        pocket = p.pocket()
        data = p.concept_set(pocket, kind=kind, captions="a dog in {concept}", texts="own templates")
        wire = [settings(p, validation_prompts="a house in [V] dog\na red house", validation_every=1000), 0]
        pure = p.pure(pocket, data, None, method="LoRA", steps=2, learning_rate=3e-2, settings=wire)
        saved = p.add("SaveImage", images=[pure, 1], filename_prefix="t/gate")
        images = server.client.run(p.nodes, timeout=DEADLINE)["outputs"][saved]["images"]
        files = [server.client.view(image["filename"], image["subfolder"]) for image in images]
        return [Image.open(BytesIO(file)).tobytes() for file in files]  # the files hold the graph too

    instance, style = drawn("instance"), drawn("style")
    same = [a == b for a, b in zip(instance, style, strict=True)]
    assert same == [
        False,
        False,
        True,
        False,
        True,
        True,
    ]  # pairs of base and model: the example (another base text), with it, without it


@pytest.mark.parametrize("seeds", ["", "one", "1.5", "-1"])
def test_seeds_that_are_none_are_told_in_a_sentence(server: Server, seeds: str) -> None:
    p = Prompt()
    p.show([settings(p, validation_seeds=seeds), 0])
    with pytest.raises(HostError, match=f'validation_seeds is "{seeds}"; it must be whole numbers from 0'):
        server.client.run(p.nodes, timeout=DEADLINE)


@pytest.mark.parametrize(
    ("of", "face", "message"),
    [
        ({"last_block": 9}, {}, "this model has 0 to 3"),
        ({"warmup": 5}, {}, "warmup is 5; it must be below the number of steps, 2"),
        ({"lambda_min": 2.0, "lambda_max": 1.0}, {}, "lambda_min is 2; it must be at most lambda_max, 1"),
        ({"extractor_lora": False}, {"embeddings": "none"}, "nothing would guide"),
    ],
)
def test_bad_settings_are_told_in_a_sentence(server: Server, of: dict, face: dict, message: str) -> None:
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket)
    extractor = p.extractor(pocket, data, **({"steps": 2} | face))  # of an earlier test, or two steps
    p.show([p.pure(pocket, data, extractor, steps=2, settings=[settings(p, **of), 0]), 2])
    with pytest.raises(HostError, match=message):
        server.client.run(p.nodes, timeout=DEADLINE)


def test_scenes_hold_the_concept_too(server: Server) -> None:
    of, face = {"scene_concept": 0.5, "class_steps": 2}, {"eta": 0.0, "scene_anchor": 1.0}
    text, _, _ = trained(server, of=of, extractor=False, **face)
    assert "at the concept's place: from what it is alone " in text and identity(server, text)["scene_concept"] == 0.5
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket, kind="style", class_word="style", texts="bundled templates")
    report = p.show([p.pure(pocket, data, None, **face, steps=2, settings=[settings(p, **of), 0]), 2])
    (text,) = server.client.run(p.nodes, timeout=DEADLINE)["outputs"][report]["text"]
    assert "without an extractor" in text and "scene_concept" not in identity(server, text)  # a style has no scenes


def test_a_finished_concept_is_no_extractor(server: Server) -> None:
    p = Prompt()
    pocket = p.pocket()
    data = p.concept_set(pocket)
    first = p.pure(pocket, data, None, method="LoRA", steps=2)
    p.show([p.pure(pocket, data, first, steps=2), 2])
    with pytest.raises(HostError, match="is the finished concept"):
        server.client.run(p.nodes, timeout=DEADLINE)
