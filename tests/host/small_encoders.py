"""Text encoders with few layers, as files in the host's folders, and what training reads of them; for scripts run in the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.sd
import folder_paths
import torch
from purecc_pack.nodes.host import text, token_text
from purecc_pack.purecc.encoding import EncodedText
from purecc_pack.purecc.prompts import Placeholder
from safetensors.torch import save_file
from sd3_files import T5_SMALL, cast, clip_shapes, random_values, scaled_float8, t5_shapes
from torch import Tensor

LAYERS = 3  # of each CLIP
SMALL = {
    "clip_l_model_config": {"num_hidden_layers": LAYERS},
    "clip_g_model_config": {"num_hidden_layers": LAYERS},
    "t5xxl_model_config": T5_SMALL,
}
CLIP_L, CLIP_G = random_values(clip_shapes(768, LAYERS)), random_values(clip_shapes(1280, LAYERS))
CLIP_G["text_model.encoder.layers.30.mlp.fc1.weight"] = torch.zeros(1, 1280)  # by which the host knows it
FLOAT8 = torch.float8_e4m3fn
T5 = cast(
    random_values(t5_shapes(**T5_SMALL), FLOAT8), torch.bfloat16
)  # of values that float8 holds: the plain fp8 file is exact
FILES = {
    "clip_l": lambda: CLIP_L, "clip_l fp16": lambda: cast(CLIP_L, torch.float16),
    "clip_g": lambda: CLIP_G, "clip_g fp16": lambda: cast(CLIP_G, torch.float16),
    "t5": lambda: T5, "t5 fp16": lambda: cast(T5, torch.float16), "t5 fp8": lambda: cast(T5, FLOAT8),
    "t5 scaled fp8": lambda: scaled_float8(T5),
}  # fmt: skip
PROMPT = "a [V] dog on a bench"
COLUMNS = {"clip_l": slice(768), "clip_g": slice(768, 2048), "t5": slice(None)}  # of each encoder's rows
POOLED = COLUMNS | {"t5": slice(0)}


def few_layers() -> None:
    """From here on the host makes CLIPs of few layers, which no loader node can be told; all else is the host's own."""
    made = comfy.sd.CLIP.__init__

    def init(self, *args, model_options=None, **named) -> None:
        given = model_options or {}
        small = {
            name: given.get(name, {}) | fewer for name, fewer in SMALL.items()
        }  # the host has set CLIP's positions
        made(self, *args, model_options=given | small, **named)

    comfy.sd.CLIP.__init__ = init


@contextmanager
def written(folder: str, files: dict[str, dict[str, Tensor]]) -> Iterator[list[str]]:
    """Files in one of the host's model folders, for as long as the block lasts; their names."""
    paths = [Path(folder_paths.models_dir) / folder / f"{name}.safetensors" for name in files]
    for path, values in zip(paths, files.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(values, path)
    folder_paths.filename_list_cache.clear()
    try:
        yield [path.name for path in paths]
    finally:
        for path in paths:
            path.unlink()


class Reader:
    """Reads a prompt with the trigger as training does, and says how far that is from what the encoders give without files."""

    def __init__(self) -> None:
        parts = [dict(CLIP_L), dict(CLIP_G), dict(T5)]
        clip = comfy.sd.load_text_encoder_state_dicts(parts, None, comfy.sd.CLIPType.SD3)
        self.expected, self.words = _encoded(clip, PROMPT), token_text.t5_words(clip, "dog")
        self.another_prompt = self.apart(_encoded(clip, "a cat on a bench"), COLUMNS)  # what no form may come near

    def read(self, clip: comfy.sd.CLIP, encoders: Iterable[str]) -> dict:
        """`encoders`: of COLUMNS, those that the CLIP is to have."""
        encoded, words = _encoded(clip, PROMPT), token_text.t5_words(clip, "dog")
        return {
            "rows": list(encoded.rows.shape),
            "pooled": len(encoded.pooled),
            "marked": {int(row): int(encoded.marks[row]) for row in encoded.marks.nonzero()},
            "finite": bool(encoded.rows.isfinite().all() and encoded.pooled.isfinite().all()),
            "apart": self.apart(encoded, encoders),
            "t5 words": _apart(words, self.words) if words is not None else None,
        }

    def apart(self, encoded: EncodedText, encoders: Iterable[str]) -> dict[str, float]:
        """Of each encoder the distance of rows or of the pooled vector, whichever is larger."""
        apart, clip_rows = {}, 77 * any(part != "t5" for part in encoders)
        for part in encoders:
            at, expected_at = (slice(clip_rows, None), slice(77, None)) if part == "t5" else (slice(77), slice(77))
            rows = _apart(encoded.rows[at, COLUMNS[part]], self.expected.rows[expected_at, COLUMNS[part]])
            apart[part] = max(rows, _apart(encoded.pooled[POOLED[part]], self.expected.pooled[POOLED[part]]))
        return apart


def _encoded(clip: comfy.sd.CLIP, words: str) -> EncodedText:
    return text.HostTextEncoder(clip, "[V]", Placeholder(1, "dog")).encode(words)


def _apart(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-9))
