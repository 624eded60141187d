"""`learned_embeds.pt` of the paper's public code: the token that it learns in the two CLIPs' vocabularies.

    new_concept_token   str               its placeholder, "<new1>"
    initializer_token   str               the word that it started from
    embedding_one       [768] or absent   CLIP-L
    embedding_two       [1280] or absent  CLIP-G

A pickle, which can run any program. It is read by torch's weights-only loading, which knows tensors and plain values and
refuses all else; before torch 2.6 that could be got round (CVE-2025-32434), so an older torch is refused.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CLIP_L, CLIP_G = "clip_l", "clip_g"  # as ComfyUI's embedding files name the encoders
_ENCODERS = {"embedding_one": (CLIP_L, 768), "embedding_two": (CLIP_G, 1280)}  # key -> encoder and its width
_TOKEN, _WORD = "new_concept_token", "initializer_token"
_SAFE = (2, 6)  # torch's first version whose weights-only loading keeps its promise
_LARGEST = 2**30  # bytes: two rows are 8 KB, but saved on a CPU the whole vocabularies (0.4 GB) lie behind them


@dataclass(frozen=True)
class TokenEmbedding:
    """A learned input embedding: what the text encoders read at a token of its own."""

    token: str  # as its prompts wrote it
    initializer: str  # the word that it started from, or empty
    rows: dict[str, Tensor]  # encoder ("clip_l" [tokens, 768], "clip_g" [tokens, 1280]) -> float32, at least one


def read_learned_embeds(path: Path, torch_version: str = torch.__version__) -> TokenEmbedding:
    """The token embedding of a file, on the CPU.

    Raises ValueError, with the file's name and the reason, for a file that is not there, too large, no such file of
    torch's, holds anything but tensors and plain values, or lacks these keys; and for embeddings of another width, of no
    numbers or not finite. Nothing of the file is run.
    """
    if tuple(int(part) for part in torch_version.split("+")[0].split(".")[:2]) < _SAFE:
        raise ValueError(f"{path.name} is a pickle; torch {torch_version} cannot read one safely. Update torch to 2.6.")
    if not path.is_file():
        raise ValueError(f"There is no file {path.name}.")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, more than a token embedding can have.")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} holds more than tensors and plain values, or is broken, and was not loaded{_named(error)}."
        ) from error
    except Exception as error:  # torch raises as it likes on a broken archive
        raise ValueError(f"{path.name} is not a readable file of torch's: {error or type(error).__name__}") from error
    if not isinstance(held, Mapping):
        raise ValueError(f"{path.name} holds a {type(held).__name__}, not a token embedding.")
    token, word = held.get(_TOKEN), held.get(_WORD) or ""
    if not isinstance(token, str) or not token.strip() or not isinstance(word, str):
        keys = ", ".join(sorted(str(key) for key in held)[:5]) or "none"
        raise ValueError(f"{path.name} names no {_TOKEN}; it is not of PureCC's public code. Its keys: {keys}.")
    rows = {
        encoder: _rows(held, key, width, path.name) for key, (encoder, width) in _ENCODERS.items() if _there(held, key)
    }
    if not rows:
        raise ValueError(f"{path.name} holds no embedding: neither {' nor '.join(_ENCODERS)} is there.")
    if len({len(of_encoder) for of_encoder in rows.values()}) > 1:
        raise ValueError(
            f"{path.name} has {' and '.join(str(len(r)) for r in rows.values())} tokens in the two encoders."
        )
    return TokenEmbedding(token.strip(), word.strip(), rows)


def _there(held: Mapping[Any, Any], key: str) -> bool:
    return held.get(key) is not None


def _rows(held: Mapping[Any, Any], key: str, width: int, name: str) -> Tensor:
    """[tokens, width], float32. Raises ValueError for anything else."""
    value = held[key]
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        raise ValueError(f"{name}: {key} is no tensor of numbers.")
    if value.ndim not in (1, 2) or value.shape[-1] != width or not value.numel():
        raise ValueError(
            f"{name}: {key} is {list(value.shape)}; expected is [{width}], or a row of {width} for each token."
        )
    rows = value.detach().float().reshape(-1, width).clone()
    if not torch.isfinite(rows).all() or not rows.any():
        raise ValueError(f"{name}: {key} is not finite, or 0 throughout: nothing was learnt in it.")
    return rows


def _named(error: Exception) -> str:
    """What a refused pickle asked for. The rest of torch's message tells how to switch the protection off."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f": it asks for {found[1]}" if found else ""
