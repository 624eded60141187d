"""One transformer, several models: theta3 (the base), theta1 (the extractor) and theta2 (what learns).

Each model but the base is a peft LoRA adapter and a set of layer-wise embeddings on the same frozen weights; a forward
names the model it wants. A model's gate says where it acts:

    "off"           the LoRA acts everywhere, the embeddings at the trigger's rows
    "picture"       the LoRA acts where the text holds the trigger, and in the negative that it is guided against
    "conditioning"  both act in those samples of a batch only whose text holds the trigger
    "rows"          the LoRA acts at the trigger's rows of the text stream only; the picture stream keeps its weights

With all but "off", pictures whose prompt lacks the trigger are the base model's bit for bit. "conditioning" and "rows" guide
against the base's own null prediction: what LoRA shifts in common no longer cancels, and guidance multiplies it.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .attention import join_attention
from .concept import Concept, ConceptEmbeddings, Gate, LoraWeights
from .encoding import TextBatch
from .layerwise import LayerwiseEmbeddings
from .lora import ActingLora, Scale, changed, narrowed
from .norms import fuse_norms
from .targets import groups, in_text_stream
from .token_embeddings import TokenEmbeddings, TokenEncoder, Vectors

BASE = None  # the name of theta3
EXTRACTOR, PURE = "extractor", "pure"  # theta1, theta2
Times = Tensor  # [batch] in [0, 1]

# in joint_attention_kwargs, which a checkpointed block gets again when it is computed again
_ACTING = "purecc_acting"


@dataclass(frozen=True, eq=False)
class _Acting:
    """What acts during one forward."""

    loras: tuple[ActingLora, ...]
    embeddings: tuple[tuple[LayerwiseEmbeddings, Tensor], ...]  # each with the marks [batch, rows] where it acts
    strength: float  # of the embeddings


class AdaptedNetwork:
    """An SD3 transformer whose weights are frozen, with named models on top of it. `device` and `dtype` are its own.

    One network to a transformer: of a second one's forwards the first would know nothing, and the other way round.
    """

    def __init__(self, transformer: SD3Transformer2DModel):
        self.transformer = transformer.requires_grad_(False)
        self._fuse()
        self.embeddings: dict[str, LayerwiseEmbeddings] = {}
        self.tokens: dict[str, TokenEmbeddings] = {}
        self.token_encoder: TokenEncoder | None = None  # needed for models with input embeddings only
        self.gates: dict[str, Gate] = {}  # of a model; "off" where there is none
        self._unit: dict[str, float] = {}  # alpha / rank of each LoRA
        self._layers: dict[str, BaseTunerLayer] = {}  # every Linear that carries a LoRA, by module name
        self._matrices: dict[str, dict[str, tuple[nn.Parameter, nn.Parameter]]] = {}  # of each LoRA: module -> A, B
        self._groups: dict[str, list[tuple[str, ...]]] = {}  # of its modules, by what reads the same
        self._loras: tuple[ActingLora, ...] = ()  # that act now
        self._choices: dict[tuple[bool, ...], Tensor] = {}  # of samples, on the device
        self.device, self.dtype = transformer.device, transformer.dtype  # kept: asking walks all parameters
        for index, block in enumerate(transformer.transformer_blocks):
            block.register_forward_pre_hook(self._hook(index), with_kwargs=True)

    def _fuse(self) -> None:
        """Puts parts of fewer kernels in place of diffusers' own."""
        fuse_norms(self.transformer)
        join_attention(self.transformer, lambda: self._loras)

    def _precision(self) -> AbstractContextManager:
        """No autocast, whatever surrounds a forward: all of it is in the base's dtype."""
        kind = self.device.type
        foreign = kind != "meta" and torch.is_autocast_enabled(kind)
        return torch.autocast(kind, enabled=False) if foreign else nullcontext()

    @property
    def models(self) -> set[str]:
        """The models on top of the base."""
        return set(self._unit) | set(self.embeddings) | set(self.tokens)

    @property
    def blocks(self) -> int:
        return len(self.transformer.transformer_blocks)

    @property
    def width(self) -> int:
        return self.transformer.inner_dim

    def velocity(
        self,
        x_t: Tensor,
        t: Times,
        text: TextBatch,
        model: str | None | Sequence[str | None],
        *,
        strength: float = 1.0,
        embedding_strength: float = 1.0,
    ) -> Tensor:
        """v_theta(x_t, y) of one of the models, [batch, channels, height, width], float32; computed in the base's dtype.

        `model`: of all samples, or one for each. `strength` multiplies the LoRA's change, `embedding_strength` blends the
        embeddings in (`LayerwiseEmbeddings.act`); 0 and 0 are the base. Raises ValueError for a model that is not there.
        """
        loras, embeddings = [], []
        for name, own in _samples(model, len(x_t)).items():
            if name not in self.models:
                raise ValueError(f"There is no model {name} here; there are {sorted(self.models)} and the base.")
            theirs = replace(text, marks=text.marks * own[:, None], guided=text.shows & own)
            if name in self.tokens:
                read = self.tokens[name].read(theirs, embedding_strength)
                text = replace(text, rows=read.rows, pooled=read.pooled)
            loras += self._lora(name, own, text, theirs, strength)
            if name in self.embeddings and embedding_strength and bool(theirs.marks.any()):
                embeddings.append((self.embeddings[name], self._marks_here(text, own)))
        acting = _Acting(tuple(loras), tuple(embeddings), embedding_strength)
        self._loras = acting.loras
        dtype = self.dtype
        try:
            with self._precision():
                return self.transformer(
                    x_t.to(dtype),
                    text.rows.to(dtype),
                    text.pooled.to(dtype),
                    1000 * t.float(),
                    joint_attention_kwargs={_ACTING: acting},
                ).sample.float()
        finally:
            self._loras = ()  # their scales may be in a recording's memory

    def add_new(self, name: str, rank: int, alpha: float, targets: tuple[str, ...], seed: int) -> None:
        """A fresh LoRA that changes nothing yet: A gaussian of variance 1 / rank, B zero. `targets`: names or their ends."""
        self._add_lora(name, rank, alpha, list(targets))
        generator = torch.Generator().manual_seed(seed)
        for a, b in self._matrices[name].values():
            a.data.copy_(torch.randn(a.shape, generator=generator) / math.sqrt(rank))
            b.data.zero_()

    def add_concept(self, name: str, concept: Concept) -> None:
        """A trained LoRA, its embeddings and its gate. Raises ValueError where they do not fit this network."""
        if concept.lora:
            self._require_fit(concept.lora)
        if concept.embeddings:
            self.add_embeddings(name, concept.embeddings)
        if concept.token_embeddings:
            self.add_tokens(name, concept.token_embeddings)
        if concept.lora:
            self._add_lora(name, concept.lora.rank, concept.lora.alpha, list(concept.lora.matrices))
            for module, own in self._matrices[name].items():
                for parameter, value in zip(own, concept.lora.matrices[module], strict=True):
                    parameter.data.copy_(value)
        self.gates[name] = concept.gate

    @contextmanager
    def gated(self, name: str, gate: Gate) -> Iterator[None]:
        """Another gate for a model, for a while."""
        before = dict(self.gates)
        self.gates[name] = gate
        try:
            yield
        finally:
            self.gates = before

    def add_embeddings(self, name: str, embeddings: ConceptEmbeddings) -> None:
        """Layer-wise embeddings for a model. Raises ValueError where blocks or width are another network's."""
        expected, got = (self.blocks, self.width), (embeddings.clip.shape[0], embeddings.clip.shape[2])
        if expected != got:
            raise ValueError(
                f"The concept's embeddings are for {got[0]} blocks of width {got[1]}; this model has "
                f"{expected[0]} of width {expected[1]}."
            )
        self.embeddings[name] = LayerwiseEmbeddings(embeddings).to(self.device)

    def add_tokens(self, name: str, vectors: Vectors | None = None) -> None:
        """Input embeddings for a model; None: from the class word's. Raises ValueError where the text encoders do not fit."""
        if self.token_encoder is None:
            raise ValueError("This concept has embeddings in the text encoders, which are not at hand here.")
        start = self.token_encoder.initial()
        vectors = start if vectors is None else vectors
        shapes = [{key: tuple(v.shape) for key, v in one.items()} for one in (start, vectors)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"The concept's embeddings are for other text encoders: {shapes[1]}; these have {shapes[0]}."
            )
        self.tokens[name] = TokenEmbeddings(vectors, self.token_encoder).to(self.device)

    def clear(self) -> None:
        """Lets go of the models and of the transformer's weights: the network is of no more use, whoever still holds it."""
        self.transformer.to(torch.device("meta"))
        for own in (self.embeddings, self.tokens, self._matrices, self._unit, self._choices):
            own.clear()
        self.token_encoder = None

    def embedding_parameters(self, name: str) -> list[nn.Parameter]:
        """Of the layer-wise embeddings, then of those in the text encoders."""
        return [p for own in (self.embeddings, self.tokens) if name in own for p in own[name].parameters()]

    def checkpoint_activations(self, on: bool) -> None:
        """Whether a backward pass computes activations again, block by block, rather than keep them."""
        if on:
            self.transformer.enable_gradient_checkpointing()
        else:
            self.transformer.disable_gradient_checkpointing()

    def lora_parameters(self, name: str) -> list[nn.Parameter]:
        return [parameter for own in self._matrices.get(name, {}).values() for parameter in own]

    def lora_weights(self, name: str, alpha: float) -> LoraWeights | None:
        """A copy on the CPU of a model's LoRA."""
        copy = lambda p: p.detach().float().cpu().clone()  # noqa: E731
        matrices = {module: (copy(a), copy(b)) for module, (a, b) in self._matrices.get(name, {}).items()}
        return LoraWeights(matrices, alpha) if matrices else None

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
        with warnings.catch_warnings():  # peft warns of a second adapter, which is meant here
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            self.transformer.add_adapter(config, adapter_name=name)
        self._unit[name] = alpha / rank
        for module, layer in self.transformer.named_modules():
            if not isinstance(layer, BaseTunerLayer):
                continue
            asked = {p: p.requires_grad for p in layer.parameters()}
            layer.enable_adapters(False)  # see `lora`; it takes the gradients away as well
            for parameter, value in asked.items():
                parameter.requires_grad_(value)
            if module not in self._layers:
                self._layers[module] = layer
                layer.register_forward_hook(self._change(module, in_text_stream(module)))
        self._matrices[name] = {
            module: (layer.lora_A[name].weight, layer.lora_B[name].weight)
            for module, layer in self._layers.items()
            if name in layer.lora_A
        }
        self._groups[name] = groups(self._matrices[name])
        for parameter in self.lora_parameters(name):
            # peft takes the base's dtype and device: it may be in float8, or in main memory
            parameter.data = parameter.data.to(self.device, torch.float32)

    def _lora(self, model: str, own: Tensor, text: TextBatch, theirs: TextBatch, strength: float) -> list[ActingLora]:
        """The model's LoRA as its gate lets it act in its `own` samples; none where it does not. `theirs`: with their marks alone."""
        gate = self.gates.get(model, "off")
        opened = {"off": own, "picture": theirs.shows}.get(gate, (theirs.marks > 0).any(1))
        if model not in self._unit or strength == 0 or not bool(opened.any()):
            return []
        factors = narrowed(self._matrices[model], self._groups[model], self.dtype)
        scale: Scale = strength * self._unit[model]
        if gate == "rows":
            at_marks = scale * (self._marks_here(text, own) > 0)[..., None].float()
            return [ActingLora(factors, 0.0, at_marks, slice(None))]
        samples = _run(opened)
        if samples is None or (torch.is_grad_enabled() and samples != slice(None)):
            scale, samples = scale * self._choice(opened)[:, None, None].float(), slice(None)
        return [ActingLora(factors, scale, scale, samples)]

    def _marks_here(self, text: TextBatch, own: Tensor) -> Tensor:
        """Marks on the device, of the `own` samples alone, [batch, rows]."""
        device = text.rows.device
        if (here := text.here) is None:  # only CUDA holds what a copy still has to read
            here = text.marks.to(device, non_blocking=device.type == "cuda")
        return here if bool(own.all()) else here * self._choice(own)[:, None]

    def _choice(self, samples: Tensor) -> Tensor:
        """[batch] bool on the device; each pattern is sent there once."""
        key = tuple(samples.tolist())
        if key not in self._choices:
            self._choices[key] = samples.to(self.device)
        return self._choices[key]

    def _change(self, module: str, is_text: bool):
        def change(layer: BaseTunerLayer, args: tuple, out: Tensor) -> Tensor:
            for lora in self._loras:
                out = changed(out, args[0], module, lora, is_text)
            return out

        return change

    def _hook(self, block: int):
        def act(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            # diffusers calls a block by keywords, and by position (picture, text, time, options) under checkpointing
            stream, options = (
                (args[1], args[3]) if args else (kwargs["encoder_hidden_states"], kwargs["joint_attention_kwargs"])
            )
            acting: _Acting | None = (options or {}).get(_ACTING)
            if acting is None:
                return None
            self._loras = acting.loras  # computed again in the backward pass, after forwards of other models
            for embeddings, marks in acting.embeddings:
                stream = embeddings.act(block, stream, marks, acting.strength)
            options = {name: value for name, value in options.items() if name != _ACTING}
            if args:
                return (args[0], stream, args[2], options), kwargs
            return args, {**kwargs, "encoder_hidden_states": stream, "joint_attention_kwargs": options}

        return act


def _run(chosen: Tensor) -> slice | None:
    """[batch] bool on the CPU, of which some are: those as a slice, where they follow one another."""
    if bool(chosen.all()):
        return slice(None)
    first, count = int(chosen.int().argmax()), int(chosen.sum())
    return slice(first, first + count) if bool(chosen[first : first + count].all()) else None


def _samples(model: str | None | Sequence[str | None], count: int) -> dict[str, Tensor]:
    """Which of `count` samples are whose, [batch] bool on the CPU; the base's are left out. Raises ValueError where a list has another length."""
    of = [model] * count if model is BASE or isinstance(model, str) else model
    if len(of) != count:
        raise ValueError(f"{len(of)} models were named for {count} samples; name one for each.")
    models = [name for name in dict.fromkeys(of) if name is not BASE]
    return {name: torch.tensor([one == name for one in of], device="cpu") for name in models}
