"""Which rows of the text stream stand for which concept, and how that rides from the CLIP to the MODEL.

Two carriers, written by text.py and read by acting.py. The map: an int64 tensor in the CONDITIONING's `model_conds`, which
the host cuts, repeats and concatenates like the text itself. The code: the same number in the lowest bits of the row's own
floats, for the two places where the host drops the map (the second part of a Conditioning Concat, CLIP hooks with a
schedule). A lowest bit is half the rounding error of the encoder, and the host rounds to the model's dtype only after it
was read; so the code costs nothing, and what changes the rows (Conditioning Average) erases it while the map stays.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...purecc.concept import T5_SLOT

CONCEPTS = "purecc_concepts"  # key in transformer_options: concept's number -> acting.Applied
MAP = "purecc_map"  # key in model_conds, and so the name of the argument that apply_model gets
_SLOTS = 2 * T5_SLOT
_CODE_BITS = 35  # of a number below 2^29 * 64
_SIGNATURE = 0x0B5A_D3C6_E917_24F5  # any number of 61 bits with as many ones as zeros: what tells a code from chance
_CHANNELS = 96  # 61 bits of signature, 35 of code


def number(concept: int, slot: int) -> int:
    """A row's number: 0 is an ordinary row."""
    return concept * _SLOTS + slot + 1


def concept_of(marks: Tensor) -> Tensor:
    """The concepts of numbers above 0."""
    return (marks - 1) // _SLOTS


def slot_of(marks: Tensor) -> Tensor:
    """The slots (see `purecc.concept.T5_SLOT`) of numbers above 0."""
    return (marks - 1) % _SLOTS


def write_code(rows: Tensor, marks: Tensor) -> Tensor:
    """A copy of `rows` [1, n, width] with the numbers `marks` [1, n] in the lowest bits of the marked rows."""
    marked = marks[0].nonzero().flatten()
    if not len(marked) or rows.dtype != torch.float32:
        return rows
    rows = rows.clone()
    codes = marks[0, marked].to(rows.device) - 1  # below 2^35
    bits = torch.cat(
        [_signature(rows.device).expand(len(codes), -1), codes[:, None] >> _steps(_CODE_BITS, rows) & 1], 1
    )
    whole = rows[0, marked, :_CHANNELS].contiguous().view(torch.int32)
    rows[0, marked, :_CHANNELS] = (whole & ~1 | bits.to(torch.int32)).view(torch.float32)
    return rows


def read_code(rows: Tensor) -> Tensor:
    """The numbers [batch, n] that `write_code` left in `rows` [batch, n, width]; 0 where it left none."""
    if rows.dtype != torch.float32 or rows.shape[-1] < _CHANNELS:
        return rows.new_zeros(rows.shape[:2], dtype=torch.int64)
    bits = rows[..., :_CHANNELS].contiguous().view(torch.int32) & 1
    signed = (bits[..., :-_CODE_BITS] == _signature(rows.device)).all(-1)
    codes = (bits[..., -_CODE_BITS:].to(torch.int64) << _steps(_CODE_BITS, rows)).sum(-1)
    return torch.where(signed, codes + 1, torch.zeros_like(codes))


def marks_of(rows: Tensor, token_map: Tensor | None) -> Tensor:
    """The numbers [batch, n] of a conditioning's rows [batch, n, width], from its map where there is one and its code."""
    marks = read_code(rows)
    if token_map is not None:
        token_map = token_map.to(rows.device)[:, : rows.shape[1]]
        # Conditioning Concat lengthens the rows and keeps the first part's map
        token_map = torch.nn.functional.pad(token_map, (0, rows.shape[1] - token_map.shape[1]))
        marks = torch.where(token_map != 0, token_map, marks)
    # Conditioning Zero Out keeps the map of what it zeroed
    return marks * (rows != 0).any(-1)


def marks_in(one: dict[str, Any]) -> Tensor | None:
    """The numbers [batch, n] of one conditioning of a sampling; None where it has no text.

    While it samples, its text is in `model_conds`: for areas the host makes negatives of copies of the prompt, whose `cross_attn`
    stays the prompt's.
    """
    carried = one.get("model_conds", {})
    rows = carried["c_crossattn"].cond if "c_crossattn" in carried else one.get("cross_attn")
    return None if rows is None else marks_of(rows, getattr(carried.get(MAP), "cond", None))


def concepts_in(texts: Iterable[dict[str, Any]] | None) -> set[int]:
    """The numbers of the concepts that a side of a sampling (its prompt, its negative) names."""
    found = [marks for marks in map(marks_in, texts or ()) if marks is not None]
    return {number for marks in found for number in concept_of(marks[marks > 0]).unique().tolist()}


def _steps(bits: int, like: Tensor) -> Tensor:
    return torch.arange(bits, device=like.device)


def _signature(device: torch.device) -> Tensor:
    """[61] int64 of 0 and 1."""
    bits = _CHANNELS - _CODE_BITS
    return torch.tensor([_SIGNATURE >> i & 1 for i in range(bits)], device=device)
