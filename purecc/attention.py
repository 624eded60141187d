"""The attention of an SD3 block, in place of diffusers' own: the same to rounding, in fewer kernels and with less of Python between them.

What reads the same is read together, with what LoRAs add to it (`lora.read_together`). Queries, keys and values keep the layout in which
they come, so that neither a norm nor a gradient needs a copy in another.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from .lora import ActingLora, read_together
from .targets import TOGETHER, in_text_stream

_PICTURE, _TEXT = TOGETHER
_OUT, _TEXT_OUT = ("to_out.0",), ("to_add_out",)
Loras = Callable[[], Sequence[ActingLora]]


@dataclass(frozen=True, eq=False)
class _Linears:
    """Linears of an Attention that read the same."""

    linears: Sequence[nn.Linear]  # one that peft wraps later stays what it is
    names: Sequence[str]  # in the transformer
    in_text: bool


class JointAttention:
    """A processor of diffusers' Attention: of a picture's stream, and of a text's where there is one. SD3 has no dropout."""

    def __init__(self, name: str, attention: Attention, loras: Loras):
        """`name`: the Attention's in the transformer; `loras`: those that act now."""
        self.loras, there = loras, dict(attention.named_modules())
        self._together = {
            own: _Linears(
                [there[linear] for linear in own],
                [f"{name}.{linear}" for linear in own],
                in_text_stream(f"{name}.{own[0]}"),
            )
            for own in (_PICTURE, _TEXT, _OUT, _TEXT_OUT)
            if there.keys() >= set(own)
        }

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Streams [batch, rows, width] -> the same of each. SD3 masks nothing."""
        heads = self._heads(attn, _PICTURE, hidden_states, attn.norm_q, attn.norm_k)
        if encoder_hidden_states is not None:
            text = self._heads(attn, _TEXT, encoder_hidden_states, attn.norm_added_q, attn.norm_added_k)
            heads = [torch.cat([heads.pop(0), text.pop(0)], dim=1) for _ in range(3)]  # what was copied goes at once
        heads = [part.transpose(1, 2) for part in heads]
        if hidden_states.device.type == "mps":  # where it has been wrong in such a layout (pytorch 163597, 170874)
            heads = [part.contiguous() for part in heads]
        out = F.scaled_dot_product_attention(*heads)
        out = out.transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return self._read(attn, _OUT, out)[0]
        picture, text = out.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        (picture,) = self._read(attn, _OUT, picture)
        if not attn.context_pre_only:
            (text,) = self._read(attn, _TEXT_OUT, text)
        return picture, text

    # diffusers asks for it at each call, and Python would find it out anew
    __call__.__signature__ = inspect.signature(__call__)

    def _heads(
        self, attn: Attention, linears: tuple[str, ...], x: Tensor, norm_q: nn.Module | None, norm_k: nn.Module | None
    ) -> list[Tensor]:
        """Queries, keys and values, [batch, rows, heads, width of a head]."""
        q, k, v = (part.view(*x.shape[:2], attn.heads, -1) for part in self._read(attn, linears, x))
        if norm_q is not None:
            q = norm_q(q)
        if norm_k is not None:
            k = norm_k(k)
        return [q, k, v]

    def _read(self, attn: Attention, linears: tuple[str, ...], x: Tensor) -> Sequence[Tensor]:
        """What each Linear gives of x: together where each LoRA that acts is on all of them, or on none."""
        own, loras = self._together[linears], self.loras()
        if any(lora.is_apart(own.names) for lora in loras):
            return [attn.get_submodule(name)(x) for name in linears]  # a hook adds what LoRAs do
        return read_together(x, own.linears, own.names[0], loras, own.in_text)


def join_attention(transformer: SD3Transformer2DModel, loras: Loras) -> None:
    """Puts `JointAttention` in the place of the transformer's processors."""
    for name, module in transformer.named_modules():
        if isinstance(module, Attention):
            module.set_processor(JointAttention(name, module, loras))
