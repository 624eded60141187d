"""The estimate of a run's memory against the bytes that are alive in real steps."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from tiny import noise

from benchmarks.live_bytes import LiveBytes
from purecc.adaln_table import UNFORESEEN, WINDOW
from purecc.concept_set import NULL, ConceptSet, build_concept_set
from purecc.encoding import PocketTextEncoder, TextBatch
from purecc.flow import LatentScaling
from purecc.forwards import SAMPLES
from purecc.frozen import Storage, store
from purecc.lora import ActingLora, narrowed
from purecc.memory import Estimate, Inputs, estimate
from purecc.network import PURE, AdaptedNetwork
from purecc.pocket.model import load_pocket
from purecc.prompts import Placeholder
from purecc.sampling import euler, guided_velocity
from purecc.scenes import with_scenes
from purecc.settings import PureSettings, TrainSettings
from purecc.stages import ExtractorJob, PureJob
from purecc.targets import lora_modules

SD35_MEDIUM = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24, "attention_head_dim": 64,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
}  # fmt: skip
SETTINGS = TrainSettings(steps=2, batch_size=4, learning_rate=1e-4)
BIG = Inputs(tokens=1024, rows=333)  # 512 x 512 px, CLIP and T5


def test_live_bytes_counts_storages_and_not_views() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)  # 4000 bytes
        b = a + 1
        view = b[:10].view(2, 5)
        assert live.now == 8000
        del a, b
        assert live.now == 4000 and view.shape == (2, 5)
        del view
    assert (live.now, live.peak) == (0, 8000)


@pytest.fixture(scope="module")
def pocket_data() -> ConceptSet:
    pocket = load_pocket()
    return build_concept_set(
        [noise(8, 8, 3, seed=i) for i in range(4)],
        ["a dog on the beach", "a dog", "", "a dog in the snow"],
        trigger="[V]",
        class_word="dog",
        kind="instance",
        tokens=1,
        encode_picture=lambda picture: noise(16, 16, 16, seed=int(1000 * picture.sum())),
        text_encoder=lambda trigger, placeholder: PocketTextEncoder(pocket, trigger, placeholder),
    )


@pytest.mark.parametrize(
    ("original", "dtype", "checkpointing", "storage"),
    [
        (None, torch.float32, False, "whole"),
        (None, torch.float32, True, "whole"),
        ("frozen base", torch.float32, False, "whole"),
        ("trainable", torch.float32, True, "whole"),
        ("frozen base", torch.bfloat16, False, "whole"),
        ("frozen base", torch.bfloat16, False, "float8"),
        ("frozen base", torch.float32, True, "nf4"),
    ],
)
def test_within_a_tenth_of_a_real_run(
    tmp_path: Path, pocket_data: ConceptSet, original, dtype, checkpointing, storage
) -> None:
    settings = TrainSettings(steps=3, batch_size=4, checkpointing=checkpointing, frozen_weights=storage)
    pure = PureSettings(original=original) if original else None
    scaling, extractor = LatentScaling(1.0, 0.0), None
    if pure:
        first = ExtractorJob(network(dtype), pocket_data, TrainSettings(steps=1), scaling, tmp_path, "base")
        list(first)
        extractor = first.concept
    adapted = network(dtype, storage)
    if pure:
        job = PureJob(adapted, pocket_data, settings, scaling, tmp_path, "base", pure, extractor)
    else:
        job = ExtractorJob(adapted, pocket_data, settings, scaling, tmp_path, "base")
    told = estimate(adapted.transformer.config, Inputs.of(pocket_data, 2), settings, pure, dtype, "cpu")
    with LiveBytes() as live, closing(iter(job)) as steps:
        next(steps), next(steps)  # from the second on AdamW's moments are there
    beside_weights = told.peak - told.weights
    print(f"estimated {beside_weights / 1e6:.2f} MB, measured {live.peak / 1e6:.2f} MB")
    assert beside_weights == pytest.approx(live.peak, rel=0.1)


def test_the_drawing_of_class_pictures_counts(tmp_path: Path, pocket_data: ConceptSet) -> None:
    """It holds more than a step of one picture whose blocks are computed again."""
    settings = TrainSettings(steps=1, batch_size=1, checkpointing=True)
    pure = PureSettings(method="LoRA + prior preservation", class_pictures=4, class_steps=1)
    adapted = network(torch.float32)
    job = PureJob(adapted, pocket_data, settings, LatentScaling(1.0, 0.0), tmp_path, "base", pure, None)
    told = estimate(adapted.transformer.config, Inputs.of(pocket_data, 2), settings, pure, torch.float32, "cpu")
    with LiveBytes() as live:
        job.class_pictures()
    print(f"estimated {told.step / 1e6:.2f} MB, measured {live.peak / 1e6:.2f} MB")
    assert told.step == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("LoRA", {}), ("LoRA", {"scenes_apart": True}), ("LoRA", {"checkpointing": True}), ("LoRA + DOP", {}),
        ("LoRA + DOP", {"checkpointing": True}),
    ],
)  # fmt: skip
def test_the_anchors_count(tmp_path: Path, pocket_data: ConceptSet, method: str, changed: dict) -> None:
    """Surroundings and scenes, as the nodes come and beside DOP, with the masks that the base finds and the scenes that it draws."""
    settings = TrainSettings(steps=3, batch_size=4, **changed)
    pure = PureSettings(method, background_anchor=1.0, scene_anchor=1.0, scene_concept=0.5, class_steps=1)
    adapted = network(torch.float32)
    data = with_scenes(pocket_data, PocketTextEncoder(load_pocket(), "[V]", Placeholder(1, "dog")))
    job = PureJob(adapted, data, settings, LatentScaling(1.0, 0.0), tmp_path, "base", pure, None)
    told = estimate(adapted.transformer.config, Inputs.of(data, 2), settings, pure, torch.float32, "cpu")
    with LiveBytes() as live, closing(iter(job)) as steps:
        next(steps), next(steps)
    beside_weights = told.peak - told.weights
    print(f"estimated {beside_weights / 1e6:.2f} MB, measured {live.peak / 1e6:.2f} MB")
    assert beside_weights == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_validation_picture_counts(pocket_data: ConceptSet, dtype: torch.dtype) -> None:
    """With its negative, both by the base too; its decoding is the host's."""
    adapted, (example, *_) = network(dtype), pocket_data.examples
    texts = [TextBatch.of([pocket_data.encoded[words]], "cpu") for words in (example.texts.complete, NULL)]
    told = estimate(adapted.transformer.config, Inputs.of(pocket_data, 2), TrainSettings(), None, dtype, "cpu")
    noise = torch.randn(1, *pocket_data.examples[0].latent.shape)
    with LiveBytes() as live:
        euler(guided_velocity(adapted, *texts, 4.0, None, held="instance"), noise, 2, 3.0)
    print(f"estimated {told.validation / 1e6:.2f} MB, measured {live.peak / 1e6:.2f} MB")
    assert told.validation == pytest.approx(live.peak, rel=0.1)


def network(dtype: torch.dtype, storage: Storage = "whole") -> AdaptedNetwork:
    transformer = load_pocket().transformer.to(dtype)
    if storage != "whole":
        store(transformer, storage)
    return AdaptedNetwork(transformer)


@pytest.mark.parametrize(
    ("checkpointing", "storage"), [(False, "whole"), (True, "whole"), (False, "float8"), (True, "nf4")]
)
def test_within_a_tenth_of_a_step_of_sd35_medium_without_its_weights(monkeypatch, checkpointing, storage) -> None:
    """Full width and depth on the meta device, float32; attention as the fused kernels have it."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused_attention)
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**SD35_MEDIUM)
    assert sum(p.numel() for p in transformer.parameters()) == pytest.approx(2.243e9, rel=0.001)
    store(transformer, storage)
    settings = TrainSettings(checkpointing=checkpointing, frozen_weights=storage)
    told = estimate(SD35_MEDIUM, BIG, settings, None, torch.float32, "cpu")
    if storage != "whole":
        tensors = [*transformer.parameters(), *transformer.buffers()]
        there = sum(t.nbytes for t in tensors) - 4 * 1536 * (384**2 - BIG.tokens)  # the table is cut
        assert told.weights == pytest.approx(there, rel=0.001)
    adapted = AdaptedNetwork(transformer)
    modules = lora_modules(adapted.transformer, "attention")
    assert len(modules) == 191
    adapted.add_new(PURE, 4, 4.0, modules, seed=0)
    for parameter in adapted.lora_parameters(PURE):
        parameter.requires_grad_(True)
    adapted.checkpoint_activations(checkpointing)
    factors = narrowed(adapted._matrices[PURE], adapted._groups[PURE], adapted.dtype)
    adapted._loras = (ActingLora(factors, 1.0, 1.0, slice(None)),)
    empty = lambda *shape: torch.empty(shape, device="meta")  # noqa: E731
    inputs = lambda count: (empty(count, 16, 64, 64), empty(count, BIG.rows, 4096), empty(count, 2048), empty(count))  # noqa: E731
    with LiveBytes() as live:
        with torch.no_grad():  # what is asked for outside of steps
            adapted.transformer(*inputs(SAMPLES))
        adapted.transformer(*inputs(2)).sample.square().mean().backward()
    print(f"estimated {told.step / 1e9:.2f} GB, measured {live.peak / 1e9:.2f} GB")
    assert told.step == pytest.approx(live.peak, rel=0.1)


class FusedAttention(torch.autograd.Function):
    """What a fused kernel allocates: the output, and in the backward pass three gradients."""

    @staticmethod
    def forward(context, q, k, v):
        output = torch.empty_like(q)
        context.save_for_backward(q, k, v, output)
        return output

    @staticmethod
    def backward(context, gradient):
        return tuple(torch.empty_like(t) for t in context.saved_tensors[:3])


def fused_attention(q, k, v, **_):
    return FusedAttention.apply(q, k, v)


def of(settings: TrainSettings) -> Estimate:
    return estimate(SD35_MEDIUM, BIG, settings, PureSettings(), torch.bfloat16)


def test_the_weights_are_those_of_the_file_less_most_of_the_position_table() -> None:
    assert of(SETTINGS).weights == pytest.approx(4.49e9, rel=0.005)


def test_the_table_of_adaln_takes_a_third_of_the_weights_off() -> None:
    assert of(replace(SETTINGS, modulation_table=True)).weights == pytest.approx(2 * (2.243e9 - 0.767e9), rel=0.005)


def test_what_a_base_in_float8_and_one_in_main_memory_leave_on_the_gpu() -> None:
    tabulated = replace(SETTINGS, modulation_table=True, checkpointing=True)
    whole, float8 = of(tabulated), of(replace(tabulated, frozen_weights="float8"))
    streamed = of(replace(tabulated, frozen_weights="float8", stream_blocks=True))
    blocks = 2 * (whole.weights - float8.weights)  # bfloat16: twice float8's
    assert blocks == pytest.approx(2 * 1.39e9, rel=0.05)
    assert float8.weights - streamed.weights == pytest.approx(blocks / 2 * 23 / 24, rel=0.05)  # one of 24 is there
    assert blocks / 2 <= streamed.host - float8.host < blocks  # pinned: rounded up
    outputs = (WINDOW * 16 + UNFORESEEN) * 1.0e6  # rows to come, of four pictures' four texts, a megabyte each
    assert whole.host == pytest.approx(2 * 0.767e9 + outputs, rel=0.02)
    assert of(SETTINGS).host == 0


def test_what_the_table_gave_waits_on_a_gpu_too() -> None:
    """Of 16 forwards, a row of SD3.5 Medium a megabyte: of eight rows outside of steps, or of two texts of a large batch."""
    for batch, rows in ((2, 8), (6, 12)):
        settings = replace(SETTINGS, batch_size=batch)
        tabulated, pure = replace(settings, modulation_table=True), PureSettings()
        step = lambda given, device, pure=pure: estimate(SD35_MEDIUM, BIG, given, pure, torch.bfloat16, device).step  # noqa: E731
        norms = step(settings, "cuda") - step(settings, "cpu")
        waiting = step(tabulated, "cuda") - step(tabulated, "cpu") - norms
        assert waiting == pytest.approx(16 * rows * 1.0e6, rel=0.15)
