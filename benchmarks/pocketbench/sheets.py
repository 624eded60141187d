"""Contact sheets for eyes, shaped as the paper's figures, as JPEG: `python -m benchmarks.pocketbench --sheets`.

methods             what each arm draws, beside the base, same noise: from the pictures that cases left in the work folder
parts               the same for the ablations that were run, as is "lambda and eta"
along training      x0 as predicted from v_original, v_PureCC and v_complete, step by step (a run of its own, kept)
sampled             pictures integrated along v_PureCC itself, beside what the model has learnt
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from purecc.files import load_tensors, save_tensors
from purecc.grid import draw_grid
from purecc.pocket import specification as spec

from .along import SHOWN, STEPS, TIME, AlongTraining
from .arms import SHIPPED
from .bench import Bench
from .concepts import TRIGGER, BenchConcept, concept, prompts
from .hypotheses import GUIDED, KEEPING

MOST_BYTES = 200_000
_SIDE = spec.RESOLUTION

#: sheet -> arms, a row each; those that have left no pictures are left out
SHEETS = {
    "methods": ("LoRA", "LoRA + DOP", "PureCC, paper", "PureCC", GUIDED, KEEPING, SHIPPED, "eta 0 + scenes 0.25, input embedding, gated"),
    "parts": (
        "LoRA + prior preservation", "PureCC, eta 0", "merged stage", "PureCC, trainable, detached", "PureCC, offset", "PureCC, no embeddings",
        "embeddings alone, 4 tokens", "input embedding alone", "LoRA, rows", "LoRA, conditioning",
    ),
    "lambda and eta": (
        "PureCC, lambda 0", "PureCC, lambda 1", "PureCC, lambda 3", "PureCC, lambda 5", "PureCC", "PureCC, eta 0.5", "PureCC, eta 1.5",
        "PureCC, eta 2", "PureCC, eta 3",
    ),
}  # fmt: skip
_COLUMNS = (0, 1, 2, 4, 5, 6, 8, 9, 12)  # of the 13 prompts: five with the concept, four without


def broken(text: str, width: int = 19) -> str:
    """A text in lines of at most `width` letters where words allow it."""
    lines = [""]
    for word in (text or '""').split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def save_jpeg(picture: Image.Image, path: Path) -> Path:
    """As good as MOST_BYTES allow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(90, 30, -6):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            break
    return path


def kept_rows(path: Path) -> list[list[Image.Image]]:
    """The base's and the arm's pictures of a case, from the sheet that `Bench.keep` left."""
    with Image.open(path) as sheet:
        sheet = sheet.convert("RGB")
    boxes = [(x, y, x + _SIDE, y + _SIDE) for y in (0, _SIDE) for x in range(0, sheet.width, _SIDE)]
    cells = [sheet.crop(box) for box in boxes]
    return [cells[: len(cells) // 2], cells[len(cells) // 2 :]]


def arm_sheet(work: Path, taught: BenchConcept, arms: tuple[str, ...], seed: int = 0) -> Image.Image | None:
    """The base model's row, then one for each arm at strength 1; None where fewer than half of the arms have left pictures."""
    folder, rows = work / "pictures" / taught.name, {}
    for arm in arms:
        path = folder / f"{arm}, seed {seed}, strength 1.png"
        if path.is_file():
            rows.setdefault("base model", kept_rows(path)[0])
            rows[arm] = kept_rows(path)[1]
    if 2 * (len(rows) - 1) < len(arms):
        return None
    asked = [prompts(taught)[i] for i in _COLUMNS]
    labels = [broken(p.complete.replace(TRIGGER, "[V]")) for p in asked]
    cells = [[row[i] for i in _COLUMNS] for row in rows.values()]
    return draw_grid(cells, [broken(name, 16) for name in rows], labels, font_size=13)


def as_pictures(pixels: Tensor) -> list[Image.Image]:
    """[batch, 3, height, width] in [-1, 1] -> pictures."""
    arrays = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]


def snapshots(work: Path, taught: BenchConcept, arm: str) -> dict[str, Tensor]:
    """What `AlongTraining` found, from the work folder or from a run that takes some minutes: "x0 ..." and "sampled ..."."""
    bench = Bench(work)
    key = hashlib.sha256(json.dumps([bench.protocol, taught.name, arm, STEPS, SHOWN, TIME]).encode()).hexdigest()[:12]
    path = work / "sheets" / f"{key}.safetensors"
    if not path.is_file():
        x0, sampled = AlongTraining(bench, taught, arm).run()
        tensors = {f"x0 {name}": pixels for name, pixels in x0.items()}
        save_tensors(path, tensors | {f"sampled {name}": pixels for name, pixels in sampled.items()})
    return load_tensors(path)[0]


def along_sheets(work: Path, taught: BenchConcept) -> dict[str, Image.Image]:
    """Both sources of v_original: "along training" and "sampled"."""
    x0, drawn, names = [], [], {"paper": "PureCC, paper", "frozen base": "PureCC"}
    labels: dict[str, list[str]] = {"x0": [], "sampled": []}
    for source, arm in names.items():
        found = snapshots(work, taught, arm)
        for name in ("v_original", "v_PureCC", "v_complete"):
            x0.append(as_pictures(found[f"x0 {name}"]))
            labels["x0"].append(f"{source}\n{name}")
        for name in ("base model", "v_PureCC", "learnt"):
            if name != "base model" or not drawn:
                drawn.append(as_pictures(found[f"sampled {name}"]))
                labels["sampled"].append(name if name == "base model" else f"{source}\n{name}")
    asked = [broken(p.complete.replace(TRIGGER, "[V]")) for p in prompts(taught)[: len(drawn[0])]]
    steps = [f"step {step}" for step in SHOWN]
    return {
        "along training": draw_grid(x0, labels["x0"], steps, font_size=13),
        "sampled": draw_grid(drawn, labels["sampled"], asked, font_size=13),
    }


def write_all(work: Path, out: Path, name: str = "poodle", look: str = "poster") -> list[Path]:
    """Every sheet that can be made of one drawing and one look; the paths of the pictures."""
    torch.set_num_threads(1)
    made = {}
    for taught in (concept(name), concept(look)):
        made |= {f"{taught.name}, {title}": arm_sheet(work, taught, arms) for title, arms in SHEETS.items()}
    made |= {f"{name}, {title}": sheet for title, sheet in along_sheets(work, concept(name)).items()}
    return [save_jpeg(sheet, out / f"{title}.jpg") for title, sheet in made.items() if sheet is not None]
