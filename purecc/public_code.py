"""What the paper's public code reads and writes: its LoRA files as concepts, its csv data sets as pictures with captions.

Its token embeddings (`learned_embeds.pt`) are read by learned_embeds.py, and become a concept's too.
"""

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path, PurePosixPath, PureWindowsPath

from torch import Tensor

from .concept import Concept, ForeignLoraError, lora_of
from .files import load_tensors
from .learned_embeds import read_learned_embeds
from .pictures import Picture, as_it_is, read_picture, read_text
from .prompts import Kind, find_trigger

COLUMNS = ("image_path", "prompt")  # and target_prompt, base_prompt, instance_word
_TEXTS = {"complete": "prompt", "base": "base_prompt", "target": "target_prompt"}
PLACEHOLDER = "[v]"  # stands for the concept in its texts
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_PREFIXES = ("transformer.", "base_model.model.")
PEFT_CONFIG = "adapter_config.json"  # beside a file
_DIFFUSERS = "lora_adapter_metadata"  # in a file's own metadata
_ALPHA = ("lora_alpha", "r")  # in either


def csv_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv")


def csv_file(folder: Path) -> Path | None:
    """The data set's csv in a folder, if there is one; raises ValueError where there are several."""
    found = csv_files(folder)
    if len(found) > 1:
        raise ValueError(
            f'The folder "{folder.name}" holds {len(found)} csv files; leave the one of your concept there.'
        )
    return found[0] if found else None


def read_csv(
    path: Path, trigger: str, class_word: str, prepare: Callable[[Picture], Picture] = as_it_is
) -> list[Picture]:
    """All pictures that a csv names, with its prompts as captions and its own base and target texts, `[v]` replaced by the trigger.

    Each is prepared as soon as it is read.

    A picture is looked for inside the csv's folder: by its path, or by its name alone where the path leads elsewhere.
    Raises ValueError, with the line, for a missing column or picture, where `instance_word` is another class word, for a base text
    with the concept and a target text without.
    """
    text = read_text(path)
    between = max(",;\t", key=text.partition("\n")[0].count)  # Excel's lists are separated as its country does it
    rows = list(csv.DictReader(StringIO(text, newline=""), delimiter=between))
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f'{path.name} has no rows with a column "{missing[0]}"; needed are {", ".join(COLUMNS)}.')
    pictures = []
    for line, row in enumerate(rows, 2):
        picture = _inside(path.parent, (row["image_path"] or "").strip())
        if picture is None:
            raise ValueError(
                f'{path.name}, line {line}: there is no picture "{row["image_path"]}" in the folder "{path.parent.name}".'
            )
        word = (row.get("instance_word") or "").strip()
        if word and word.lower() != class_word.strip().lower():
            raise ValueError(
                f'{path.name}, line {line}: the instance_word is "{word}", the class word "{class_word}". Write "{word}" as '
                "the class word."
            )
        said = {name: _with_trigger(row.get(column), trigger) for name, column in _TEXTS.items()}
        texts = {name: text for name, text in said.items() if text and name != "complete"}
        if find_trigger(trigger, texts.get("base", "")):
            raise ValueError(f'{path.name}, line {line}: the base_prompt "{texts["base"]}" holds the concept.')
        if "target" in texts and not find_trigger(trigger, texts["target"]):
            raise ValueError(f'{path.name}, line {line}: the target_prompt "{texts["target"]}" lacks {PLACEHOLDER}.')
        pictures.append(replace(prepare(read_picture(picture)), caption=said["complete"], texts=texts))
    return pictures


def _with_trigger(text: str | None, trigger: str) -> str:
    return " ".join((text or "").replace(PLACEHOLDER.upper(), PLACEHOLDER).replace(PLACEHOLDER, trigger).split())


def _inside(folder: Path, name: str) -> Path | None:
    """The file that a csv means, inside `folder` only."""
    names = PureWindowsPath(name) if "\\" in name else PurePosixPath(name)
    for candidate in (folder.joinpath(*names.parts), folder / names.name):
        if candidate.is_file() and folder.resolve() in candidate.resolve().parents:
            return candidate
    return None


def read_lora(path: Path, trigger: str, class_word: str, kind: Kind, alpha: float = 0.0) -> Concept:
    """A LoRA file over an SD3 transformer, by peft or diffusers, as a concept without embeddings and without a known base;
    or `learned_embeds.pt`, as one of input embeddings alone.

    `alpha` 0: what the file or an adapter_config.json beside it says, else the rank. Raises ValueError for other files.
    """
    if path.suffix.lower() in PICKLES:
        return Concept(
            trigger=trigger, class_word=class_word, kind=kind, role="concept", base="", lora=None, embeddings=None,
            token_embeddings=read_learned_embeds(path).rows, settings={"imported": path.name},
        )  # fmt: skip
    tensors, metadata = load_tensors(path)
    matrices, alphas = _matrices(tensors, path.name)
    rank = next(iter(matrices.values()))[0].shape[0]
    told = [alpha] if alpha else alphas or [told_alpha(path, metadata, rank)]
    return Concept(
        trigger=trigger, class_word=class_word, kind=kind, role="concept", base="", lora=lora_of(path.name, matrices, told),
        embeddings=None, settings={"imported": path.name},
    )  # fmt: skip


def _matrices(tensors: Mapping[str, Tensor], name: str) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Tensor]]:
    """module -> (A, B), and the alphas. Raises ForeignLoraError for a key that is none of these."""
    parts: dict[str, dict[str, Tensor]] = {}
    strange, alphas = [], []
    for key, value in tensors.items():
        module = key
        while module.startswith(_PREFIXES):
            module = module.removeprefix(_PREFIXES[0]).removeprefix(_PREFIXES[1])
        module = module.replace(".default.weight", ".weight")  # peft's name of an adapter
        if module.endswith(".alpha"):
            alphas.append(value)
        elif module.endswith((".lora_A.weight", ".lora_B.weight")) and module.startswith("transformer_blocks."):
            parts.setdefault(module[: -len(".lora_A.weight")], {})[module[-len("A.weight")]] = value.float()
        else:
            strange.append(key)
    half = [module for module, both in parts.items() if len(both) < 2]
    if strange or half or not parts:
        what = f"{(strange or half)[0]!r} is not understood" if strange or half else "there are no such keys"
        raise ForeignLoraError(
            f"{name} is no LoRA of an SD3 transformer: {what}. Expected are keys as "
            "transformer_blocks.0.attn.to_q.lora_A.weight, after transformer. or base_model.model."
        )
    return {module: (both["A"], both["B"]) for module, both in parts.items()}, alphas


def told_alpha(path: Path, metadata: Mapping[str, str], rank: int) -> float:
    """What multiplies B A, times the rank, by the file's own metadata (diffusers) or an adapter_config.json beside it (peft); the rank where
    neither is there, which is what the public code trains with.
    """
    beside = path.with_name(PEFT_CONFIG)
    try:
        said, own = dict(json.loads(metadata.get(_DIFFUSERS, "{}"))), "transformer."
        where, told = path.name, {name.removeprefix(own): value for name, value in said.items() if name.startswith(own)}
        if not told and beside.is_file():
            where, told = f"{beside.name} beside {path.name}", dict(json.loads(beside.read_text(encoding="utf-8")))
        if not told:
            return float(rank)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"What {path.name} says of its alpha cannot be read ({error}). Set alpha in the node."
        ) from error
    alpha, of_rank = (told.get(name) for name in _ALPHA)
    if of_rank and of_rank != rank:
        raise ValueError(f"{where} belongs to another LoRA: r is {of_rank}, here {rank}.")
    if not isinstance(alpha, int | float):
        raise ValueError(f"{where} states the alpha {alpha}, which is no number. Set alpha in the node.")
    if any(told.get(name) for name in ("alpha_pattern", "rank_pattern")):
        raise ValueError(f"{where} has modules of different alpha or rank; PureCC's concepts have one.")
    return float(alpha) * (math.sqrt(rank) if told.get("use_rslora") else 1.0)
