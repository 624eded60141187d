"""One transformer, several models: theta3 (the base), theta1 (the extractor) and theta2 (what learns).

Each model but the base is a peft LoRA adapter and a set of layer-wise embeddings on the same frozen weights; a forward
names the model it wants.
"""

import math
from dataclasses import dataclass

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .concept import T5_SLOT, Concept, ConceptEmbeddings, LoraWeights
from .encoding import TextBatch

BASE = None  # the name of theta3
_UNKNOWN = "?"
Times = Tensor  # [batch] in [0, 1]


_ACTIVE = (
    "purecc_embeddings"  # in joint_attention_kwargs, which a checkpointed block gets again when it is computed again
)


@dataclass
class _Active:
    """What the embedding hooks read during one forward."""

    embeddings: "LayerwiseEmbeddings"
    marks: Tensor  # [batch, rows]


class LayerwiseEmbeddings(nn.Module):
    """The concept embeddings {Y_tar^l} of eq. 7 as parameters (float32)."""

    def __init__(self, embeddings: ConceptEmbeddings):
        super().__init__()
        self.mode = embeddings.mode
        self.clip = nn.Parameter(embeddings.clip.detach().float().clone())
        self.t5 = None if embeddings.t5 is None else nn.Parameter(embeddings.t5.detach().float().clone())

    def act(self, block: int, stream: Tensor, marks: Tensor) -> Tensor:
        """The text stream [batch, rows, width] as joint block `block` reads it."""
        slots = (marks - 1).clamp_min(0)
        values = self.clip[block][slots.clamp_max(T5_SLOT - 1) % self.clip.shape[1]]
        if self.t5 is not None:
            of_t5 = self.t5[block][(slots - T5_SLOT).clamp_min(0) % self.t5.shape[1]]
            values = torch.where((slots >= T5_SLOT)[..., None], of_t5, values)
        values = values.to(stream.dtype)
        return torch.where((marks > 0)[..., None], stream + values if self.mode == "offset" else values, stream)

    def snapshot(self) -> ConceptEmbeddings:
        t5 = None if self.t5 is None else self.t5.detach().cpu().clone()
        return ConceptEmbeddings(self.clip.detach().cpu().clone(), t5, self.mode)


class AdaptedNetwork:
    """An SD3 transformer whose weights are frozen, with named models on top of it. `device` and `dtype` are its own."""

    def __init__(self, transformer: SD3Transformer2DModel):
        self.transformer = transformer.requires_grad_(False)
        self.embeddings: dict[str, LayerwiseEmbeddings] = {}
        self._lora: set[str] = set()
        self._layers: list[tuple[str, BaseTunerLayer]] = []  # every Linear that carries a LoRA, by module name
        self._routed: str | None = BASE
        self.device, self.dtype = transformer.device, transformer.dtype  # kept: asking walks all parameters
        for index, block in enumerate(transformer.transformer_blocks):
            block.register_forward_pre_hook(self._hook(index), with_kwargs=True)

    @property
    def models(self) -> set[str]:
        """The models on top of the base."""
        return self._lora | set(self.embeddings)

    @property
    def blocks(self) -> int:
        return len(self.transformer.transformer_blocks)

    @property
    def width(self) -> int:
        return self.transformer.inner_dim

    def velocity(self, x_t: Tensor, t: Times, text: TextBatch, model: str | None) -> Tensor:
        """v_theta(x_t, y) of one of the models, [batch, channels, height, width], float32 (autocast where the base is bf16)."""
        self._route(model)
        embeddings = self.embeddings.get(model)
        options = None
        if embeddings is not None and bool(text.marks.any()):
            options = {_ACTIVE: _Active(embeddings, text.marks)}
        dtype = self.dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self.transformer(
                x_t.to(dtype),
                text.rows.to(dtype),
                text.pooled.to(dtype),
                1000 * t.float(),
                joint_attention_kwargs=options,
            ).sample.float()

    def add_new(self, name: str, rank: int, alpha: float, targets: tuple[str, ...], seed: int) -> None:
        """A fresh LoRA that changes nothing yet: A gaussian of variance 1 / rank, B zero."""
        self._add_lora(name, rank, alpha, list(targets))
        generator = torch.Generator().manual_seed(seed)
        for _, a, b in self._matrices(name):
            a.data.copy_(torch.randn(a.shape, generator=generator) / math.sqrt(rank))
            b.data.zero_()

    def add_concept(self, name: str, concept: Concept) -> None:
        """A trained LoRA and its embeddings. Raises ValueError where they do not fit this network."""
        if concept.lora:
            self._require_fit(concept.lora)
        if concept.embeddings:
            self.add_embeddings(name, concept.embeddings)
        if concept.lora:
            self._add_lora(name, concept.lora.rank, concept.lora.alpha, list(concept.lora.matrices))
            for module, a, b in self._matrices(name):
                for parameter, value in zip((a, b), concept.lora.matrices[module], strict=True):
                    parameter.data.copy_(value)

    def add_embeddings(self, name: str, embeddings: ConceptEmbeddings) -> None:
        """Layer-wise embeddings for a model. Raises ValueError where blocks or width are another network's."""
        expected, got = (self.blocks, self.width), (embeddings.clip.shape[0], embeddings.clip.shape[2])
        if expected != got:
            raise ValueError(
                f"The concept's embeddings are for {got[0]} blocks of width {got[1]}; this model has "
                f"{expected[0]} of width {expected[1]}."
            )
        self.embeddings[name] = LayerwiseEmbeddings(embeddings).to(self.device)

    def lora_parameters(self, name: str) -> list[nn.Parameter]:
        return [p for _, a, b in self._matrices(name) for p in (a, b)]

    def lora_weights(self, name: str, alpha: float) -> LoraWeights | None:
        """A copy on the CPU of a model's LoRA."""
        copy = lambda p: p.detach().float().cpu().clone()  # noqa: E731
        matrices = {module: (copy(a), copy(b)) for module, a, b in self._matrices(name)}
        return LoraWeights(matrices, alpha) if matrices else None

    @torch.no_grad()
    def stream_at_marks(self, x_t: Tensor, t: Times, text: TextBatch) -> dict[int, Tensor]:
        """What the base model's text stream holds at each slot before each block, slot -> [blocks, width]: eq. 7's start."""
        seen: list[Tensor] = []

        def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen.append((kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]).float())

        handles = [b.register_forward_pre_hook(look, with_kwargs=True) for b in self.transformer.transformer_blocks]
        try:
            self.velocity(x_t, t, text, BASE)
        finally:
            for handle in handles:
                handle.remove()
        marks = [mark for mark in text.marks.unique().tolist() if mark]
        return {mark - 1: torch.stack([rows[text.marks == mark].mean(0) for rows in seen]) for mark in marks}

    def _require_fit(self, lora: LoraWeights) -> None:
        """Raises ValueError where a matrix of the LoRA has no Linear of its shape here."""
        for module, (a, b) in lora.matrices.items():
            try:
                layer = self.transformer.get_submodule(module)
            except AttributeError:
                raise ValueError(f"The concept was made for another model: this one has no {module}.") from None
            expected, got = (layer.out_features, layer.in_features), (b.shape[0], a.shape[1])
            if expected != got:
                raise ValueError(
                    f"The concept was made for another model: {module} is {expected} here, {got} in the concept."
                )

    def _add_lora(self, name: str, rank: int, alpha: float, targets: list[str]) -> None:
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
        self.transformer.add_adapter(config, adapter_name=name)
        self._lora.add(name)
        self._layers = [(n, m) for n, m in self.transformer.named_modules() if isinstance(m, BaseTunerLayer)]
        for parameter in self.lora_parameters(name):
            parameter.data = parameter.data.float()
        self._routed = _UNKNOWN  # peft leaves layers that were switched off as they were

    def _matrices(self, name: str) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
        return [
            (module, layer.lora_A[name].weight, layer.lora_B[name].weight)
            for module, layer in self._layers
            if name in layer.lora_A
        ]

    def _route(self, model: str | None) -> None:
        """Makes one model's LoRA act, or none. Leaves alone which parameters ask for a gradient."""
        if model not in self._lora:
            model = BASE
        if model == self._routed:
            return
        for _, layer in self._layers:
            asked = {p: p.requires_grad for p in layer.parameters()}
            layer.enable_adapters(model is not BASE)
            if model is not BASE:
                layer.set_adapter([model])
            for parameter, value in asked.items():
                parameter.requires_grad_(value)
        self._routed = model

    def _hook(self, block: int):
        def act(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            # diffusers calls a block by keywords, and by position (picture, text, time, options) under checkpointing
            stream, options = (
                (args[1], args[3]) if args else (kwargs["encoder_hidden_states"], kwargs["joint_attention_kwargs"])
            )
            active = (options or {}).get(_ACTIVE)
            if active is None:
                return None
            stream = active.embeddings.act(block, stream, active.marks)
            options = {name: value for name, value in options.items() if name != _ACTIVE}
            if args:
                return (args[0], stream, args[2], options), kwargs
            return args, {**kwargs, "encoder_hidden_states": stream, "joint_attention_kwargs": options}

        return act
