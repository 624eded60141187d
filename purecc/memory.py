"""Bytes that a training run will need, told from its settings before any work.

Counted, not measured: the frozen weights, what AdamW holds of the LoRA, and what a forward keeps for its backward pass.
The tables below say what one joint block of an SD3 transformer keeps, in bytes for each token and channel of its width,
where s is the size of the compute dtype; tests compare with the bytes alive in real steps (within 10 %). What a GPU's
allocator loses and what its libraries hold comes on top.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import SD3Transformer2DModel

from .adaln_table import ON_DEVICE, UNFORESEEN, WINDOW, is_modulation
from .concept_set import ConceptSet
from .forwards import SAMPLES
from .frozen import bytes_of, linears
from .settings import PureSettings, TrainSettings
from .targets import TOGETHER, in_text_stream, lora_modules
from .terms import Term, pure_objective

_WIDE = 4  # bytes of float32
_MLP = 4  # the MLP is so many times as wide as the block
_QKV, _OUTPUTS = sum(TOGETHER, ()), (".to_out.0", ".to_add_out")
# times s, alive at once in a block whose forward keeps nothing: in the MLP of one stream while the other waits, or in the
# attention of both, whose norms a CPU computes in float32
_OWN_MLP, _OTHER_STREAM, _ATTENTION = 13.0, 3.5, 12.0
_AT_LINEAR = 0.5  # of what a forward without a graph holds at most: while it multiplies by its largest weight
# bytes that CUDA's allocator loses for each matrix in NF4: it leaves a rest of less than 1 MiB unsplit. Fitted to an H200, where
# SD3.5 Medium's 337 took 0.16 to 0.2 GB more than was counted
_UNSPLIT = 2**19
_LATENTS = 12  # float32 tensors of a velocity's size that a step holds


@dataclass(frozen=True)
class Inputs:
    """The largest forward of a concept set, for each picture."""

    tokens: int  # of the picture stream
    rows: int  # of the text stream
    texts: int = 0  # bytes of all texts, in float32

    @staticmethod
    def of(data: ConceptSet, patch: int) -> "Inputs":
        """`patch`: the transformer's patch size."""
        areas = [-(-e.latent.shape[1] // patch) * -(-e.latent.shape[2] // patch) for e in data.examples]
        texts = data.encoded.values()
        size = sum(text.rows.nbytes + text.pooled.nbytes for text in texts)
        return Inputs(max(areas), max(len(text.marks) for text in texts), size)


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device that trains."""

    weights: int  # of the frozen transformer
    learnt: int  # LoRAs and embeddings, their gradients and AdamW's moments
    inputs: int  # texts, latents and velocities of a step
    step: int  # the most that a step, or a forward outside of steps, holds beside these; adaLN's tabulated outputs too
    validation: int  # the same of a validation picture, its decoding aside
    host: int = 0  # main memory: adaLN's layers and their outputs to come, blocks that wait there
    texts: int = 0  # all of them, which are on a GPU that has room for more than a step; `peak` has them not

    @property
    def peak(self) -> int:
        """The most at once, on the device."""
        return self.weights + self.learnt + self.inputs + max(self.step, self.validation)

    def __str__(self) -> str:
        rest = self.peak - self.weights
        return f"about {in_words(self.peak)} ({in_words(self.weights)} for the model, {in_words(rest)} for the steps)"


def in_words(size: int) -> str:
    """1500000000 -> 1.5 GB"""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def estimate(
    config: Mapping[str, Any],
    inputs: Inputs,
    settings: TrainSettings,
    pure: PureSettings | None,
    dtype: torch.dtype,
    device: str = "cuda",
) -> Estimate:
    """Of one run. `config`: the transformer's; `pure`: None for stage 1; `device`: its type."""
    transformer = _without_storage(tuple((name, _hashable(value)) for name, value in config.items()))
    layout = _Layout(transformer, inputs, settings, dtype.itemsize, device)
    batch, asked = settings.batch_size, _Asked.of(pure, settings.batch_size, settings.scenes_apart)
    frozen = _frozen(transformer, inputs, settings, asked.rows, dtype.itemsize, device)
    if settings.checkpointing:
        blocks = range(len(layout.blocks))
        # a block's inputs are kept; its own activations live while it is computed again
        backward = max(asked.graph * (i + 2) * layout.boundary() + batch * layout.kept(i) for i in blocks)
    else:
        backward = asked.graph * sum(layout.kept(i) for i in range(len(layout.blocks)))
    backward += (batch if settings.checkpointing else asked.graph) * layout.backward()
    no_graph = asked.together * layout.forward()
    no_graph = max(no_graph, _AT_LINEAR * no_graph + frozen.widened)
    channels = transformer.config.out_channels * transformer.config.patch_size**2
    text = 6 * inputs.rows * transformer.config.joint_attention_dim
    return Estimate(
        weights=frozen.weights,
        learnt=_learnt(layout.lora, transformer, settings, pure),
        inputs=_WIDE * batch * (text + _LATENTS * inputs.tokens * channels),
        step=int(
            max(backward + frozen.widened, no_graph, SAMPLES * layout.forward() + frozen.widened) + frozen.outputs
        ),
        validation=int(4 * layout.forward() + frozen.widened + frozen.outputs),
        host=frozen.host,
        texts=inputs.texts * dtype.itemsize // _WIDE,
    )


@lru_cache(maxsize=2)
def _without_storage(config: tuple[tuple[str, Any], ...]) -> SD3Transformer2DModel:
    """Kept, for a plan asks for one model again and again."""
    with torch.device("meta"):
        return SD3Transformer2DModel(**dict(config))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class _Frozen:
    """Bytes of the base."""

    weights: int  # on the device
    outputs: int  # of adaLN's layers on the device, where they are tabulated
    widened: int  # of the largest weight, for its product, where it is stored in fewer bytes
    host: int  # in main memory


def _frozen(
    transformer: SD3Transformer2DModel,
    inputs: Inputs,
    settings: TrainSettings,
    rows: int,
    s: int,
    device: str,
) -> _Frozen:
    """`rows`: of a step's forwards together; `s`: of the dtype. On a CPU what waits in main memory is there."""
    plain = sum(p.numel() for p in transformer.parameters()) + inputs.tokens * transformer.inner_dim  # table cropped
    host, outputs = 0.0, 0
    if settings.modulation_table:
        modulation = [p for name, p in transformer.named_parameters() if is_modulation(name)]
        taken, row = sum(p.numel() for p in modulation), s * sum(p.numel() for p in modulation if p.ndim == 1)
        plain -= taken
        host += s * taken + (WINDOW * rows + UNFORESEEN) * row
        forwards = 1 if rows == settings.batch_size else 2  # of a step
        outputs = 0 if device == "cpu" else ON_DEVICE * max(rows // forwards, SAMPLES) * row
    by_block, largest, pinned = [0.0] * len(transformer.transformer_blocks), 0, 0
    for name, linear in linears(transformer):
        count = linear.weight.numel()
        plain -= count
        size = bytes_of(count, linear.out_features, settings.frozen_weights, s)
        by_block[int(name.split(".")[1])] += size + (
            _UNSPLIT if device == "cuda" and settings.frozen_weights == "nf4" else 0
        )
        largest = max(largest, count)
        # PyTorch rounds pinned memory up to powers of two; a CPU needs none
        pinned += int(size) if device == "cpu" else 1 << (int(size) - 1).bit_length()
    stored = sum(by_block)
    if settings.stream_blocks:
        host, stored = host + pinned, max(by_block)
    each = {"whole": 0, "float8": s, "nf4": s + 2}[settings.frozen_weights]  # NF4: beside it two bytes of an index
    return _Frozen(int(plain * s + stored), outputs, largest * each, int(host))


class _Layout:
    """What the blocks keep and hold, in bytes for each picture of a batch."""

    def __init__(
        self, transformer: SD3Transformer2DModel, inputs: Inputs, settings: TrainSettings, s: int, device: str
    ):
        self.inputs, self.s, self.width, self.device = inputs, s, transformer.inner_dim, device
        self.blocks = transformer.transformer_blocks
        self.qk_norm = bool(transformer.config.qk_norm)
        # what q's and k's norms read: CUDA's kernel (PyTorch 2.9 on, with a backward of its own) keeps it as it came, else it is
        # kept in float32
        fused = device == "cuda" and hasattr(torch.ops.aten, "_fused_rms_norm_backward")
        self.of_qk_norm = 2 * (s if fused else _WIDE)
        blocks = settings.first_block, settings.last_block
        carrying = lora_modules(transformer, settings.targets, *blocks, text_only=settings.gate == "rows")
        self.lora = carrying if settings.rank else ()

    def kept(self, index: int) -> float:
        """For the backward pass, by one block."""
        block, s, last = self.blocks[index], self.s, index == len(self.blocks) - 1
        attention = 4 * s  # q, k, v, output
        if self.qk_norm:
            attention += self.of_qk_norm
        norms = s * (1 if index == 0 else 2)  # what they read; the first one's has no gradient
        picture = text = attention + norms + _MLP * s  # the MLP: before its activation
        if last:  # its text stream ends with the attention
            text -= s + _MLP * s
        if getattr(block, "attn2", None) is not None and index:
            picture += attention
        of_lora = {True: 0.0, False: 0.0}
        for is_text in of_lora:
            of_lora[is_text] = self._lora_inputs(index, is_text)
        changes = (12 if getattr(block, "attn2", None) is None else 15) * s  # adaLN's shifts, scales and gates
        tokens, rows = self.inputs.tokens, self.inputs.rows
        return self.width * (tokens * (picture + of_lora[False]) + rows * (text + of_lora[True]) + changes)

    def _lora_inputs(self, index: int, is_text: bool) -> float:
        """Inputs of the Linears with a LoRA, of which q, k and v share theirs.

        An attention's output is kept already; on a GPU, where that was not measured, it is counted again.
        """
        shared: set[str] = set()
        size = 0.0
        for name in self.lora:
            if not name.startswith(f"transformer_blocks.{index}.") or in_text_stream(name) != is_text:
                continue
            if name.endswith(_OUTPUTS) and self.device == "cpu":
                continue
            attention, _, linear = name.rpartition(".")
            if linear in _QKV:
                if attention in shared:
                    continue
                shared.add(attention)
            size += self.s * (_MLP if name.endswith("net.2") else 1)
        return size

    def boundary(self) -> float:
        """What a checkpointed block keeps: both streams."""
        return self.s * self.width * (self.inputs.tokens + self.inputs.rows)

    def backward(self) -> float:
        """Held for a moment in the backward pass: two gradients of the MLP's width."""
        return 2 * _MLP * self.s * self.width * max(self.inputs.tokens, self.inputs.rows)

    def forward(self) -> float:
        """Held for a moment in a forward that keeps nothing."""
        fewer, more = sorted((self.inputs.tokens, self.inputs.rows))
        held = _OWN_MLP * more + _OTHER_STREAM * fewer
        if self.s < _WIDE:
            held = max(held, _ATTENTION * (fewer + more))
        if any(getattr(block, "attn2", None) is not None for block in self.blocks):
            held += self.inputs.tokens
        return self.s * self.width * held


@dataclass(frozen=True)
class _Asked:
    """Samples that the forwards of a step read."""

    rows: int  # in all
    together: int  # the most that share a forward without a graph, as `terms.Velocities` has it
    graph: int  # whose activations wait for one backward pass

    @staticmethod
    def of(pure: PureSettings | None, batch: int, scenes_apart: bool) -> "_Asked":
        """`pure`: None for stage 1."""
        if pure is None:
            return _Asked(batch, 0, batch)
        objective = pure_objective(pure)
        parts = [_Asked._of(part.of, batch) for part in (objective.parts if scenes_apart else (objective,))]
        own = batch if pure.method == "LoRA + prior preservation" else 0  # class pictures
        most = lambda name: max(getattr(part, name) for part in parts)  # noqa: E731
        return _Asked(sum(part.rows for part in parts), most("together"), most("graph") + own)

    @staticmethod
    def _of(terms: tuple[Term, ...], batch: int) -> "_Asked":
        frozen, learning = (set().union(*asked) for asked in ((t.frozen for t in terms), (t.learning for t in terms)))
        count = lambda some: sum(math.ceil(batch / 2) if text.startswith("scene") else batch for _, text in some)  # noqa: E731
        return _Asked(count(frozen) + count(learning), count(frozen), count(learning))


def _learnt(
    lora: tuple[str, ...], transformer: SD3Transformer2DModel, settings: TrainSettings, pure: PureSettings | None
) -> int:
    layers = [transformer.get_submodule(name) for name in lora]
    values = settings.rank * sum(layer.in_features + layer.out_features for layer in layers)
    if settings.embeddings != "none":
        values += 2 * len(transformer.transformer_blocks) * transformer.inner_dim
    in_training = 4 * values  # weights, gradients and two moments
    guide = 0 if pure is None or not pure.is_pure else values
    return _WIDE * (in_training + (in_training if pure and pure.method == "merged stage" else guide))


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU ran out of memory; what the driver finds out late comes as an error of its own."""
    late = isinstance(error, getattr(torch, "AcceleratorError", ())) and "out of memory" in str(error)
    return late or isinstance(error, torch.cuda.OutOfMemoryError)
