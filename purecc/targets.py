"""Which Linears of an SD3 transformer carry the LoRA."""

from collections.abc import Iterable

from torch import nn

_PICTURE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
_TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
_ATTN2 = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
_MLP = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
ATTENTION = _PICTURE + _TEXT
TARGETS = {
    "attention": ATTENTION,
    "attention and attn2": ATTENTION + _ATTN2,
    "attention, attn2 and mlp": ATTENTION + _ATTN2 + _MLP,
    "text stream only": _TEXT,
}
TOGETHER = (
    ("to_q", "to_k", "to_v"),
    ("add_q_proj", "add_k_proj", "add_v_proj"),
)  # Linears of an attention that read the same


def in_text_stream(module: str) -> bool:
    """Whether a Linear reads the text stream's rows; the others read the picture's."""
    return module.endswith(_TEXT) or ".ff_context." in module


def lora_modules(
    transformer: nn.Module, targets: str, first_block: int = 0, last_block: int | None = None, text_only: bool = False
) -> tuple[str, ...]:
    """The full names of the Linears that a key of TARGETS means, in blocks first..last (None: the last there is)."""
    there = dict(transformer.named_modules())
    end = len(transformer.transformer_blocks) if last_block is None else last_block + 1
    names = [f"transformer_blocks.{block}.{name}" for block in range(first_block, end) for name in TARGETS[targets]]
    return tuple(name for name in names if name in there and (in_text_stream(name) or not text_only))


def groups(modules: Iterable[str]) -> list[tuple[str, ...]]:
    """Those of TOGETHER that are all there, the others alone."""
    there, found = dict.fromkeys(modules), {}
    for module in there:
        attention, _, linear = module.rpartition(".")
        together = next((own for own in TOGETHER if linear in own), (linear,))
        whole = tuple(f"{attention}.{one}" for one in together)
        found[whole if there.keys() >= set(whole) else (module,)] = None
    return list(found)
