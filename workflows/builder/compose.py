"""From what the workflows saved to what the repository shows: thumbnails, the README's pictures and its table.

python -m workflows.builder.compose KEPT [PART ...]     # `python run.py pictures` calls it
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from purecc.evaluation import colour_fidelity, pixel_drift
from purecc.grid import PAPER, draw_grid
from purecc.launch.pictures import GUIDED, TURNED, weights_digest
from purecc.pictures import read_folder

PROJECT = Path(__file__).resolve().parents[2]
WORKFLOWS = PROJECT / "workflows"
FIGURES = WORKFLOWS / "figures"  # pictures of the README alone
REFERENCES = WORKFLOWS / "pictures" / "pink poodle"
BEGIN, END = "<!-- written by `python run.py pictures` -->", "<!-- end -->"
_SHOWN = 2  # pictures of each kind in a row
_DEFAULT, _GUIDED = "eta 0", f"eta {GUIDED:g}"  # the shipped one, and where lambda is turned
_COLUMNS = [*["with [V]"] * _SHOWN, *["without"] * _SHOWN]


def main(kept: Path, parts: list[str]) -> None:
    FIGURES.mkdir(exist_ok=True)
    for part in parts:
        if part == "turning":
            turned(kept / part)
        else:
            if part == "01":
                icon().save(FIGURES / "icon.png", optimize=True)
            save(square(THUMBNAILS[part](kept / part)), thumbnail(part), of_pocket=part != "03")


def thumbnail(part: str) -> Path:
    (workflow,) = WORKFLOWS.glob(f"{part}_*.json")
    return workflow.with_suffix(".jpg")


def square(picture: Image.Image) -> Image.Image:
    """On white: the templates browser crops what is not square."""
    side = max(picture.size)
    return ImageOps.pad(picture, (side, side), color=PAPER)


def whole_job(kept: Path) -> Image.Image:
    references = [Image.open(REFERENCES / f"{number}.png").convert("RGB") for number in range(1, 2 * _SHOWN + 1)]
    arms = [row(kept, arm) for arm in ("original", "PureCC", "plain_LoRA")]
    labels = ["learnt\nfrom", "base\nmodel", "PureCC", "plain\nLoRA"]
    return stack(draw_grid([references], labels[:1]), draw_grid(arms, labels[1:], _COLUMNS))


def stack(above: Image.Image, below: Image.Image) -> Image.Image:
    """Two grids of as many columns, their right edges in one line."""
    whole = Image.new("RGB", (max(above.width, below.width), above.height + below.height), PAPER)
    for part, top in ((above, 0), (below, above.height)):
        whole.paste(part, (whole.width - part.width, top))
    return whole


def icon() -> Image.Image:
    """The pack's icon: the drawing of a reference picture, cut out."""
    picture, mask = (Image.open(REFERENCES / name) for name in ("1.png", "1.mask.png"))
    cut = picture.convert("RGBA")
    cut.putalpha(mask.convert("L"))
    return cut.crop(mask.convert("L").getbbox()).resize((256, 256), Image.Resampling.LANCZOS)


def loaded(kept: Path) -> Image.Image:
    parts = ("with", "without")
    rows = [[load(kept, f"02_{part}_{arm}")[0] for part in parts] for arm in ("original", "customised")]
    return draw_grid(rows, ["base\nmodel", "with the\nconcept"], ["with [V]", "without"])


def graph(kept: Path) -> Image.Image:
    """The left part of the drawing: model, training, apply."""
    picture = Image.open(kept / "graph.png").convert("RGB")
    return picture.crop((0, 0, picture.height, picture.height)).resize((900, 900), Image.Resampling.LANCZOS)


def grid(kept: Path) -> Image.Image:
    """What Picture Grid drew."""
    return Image.open(kept / f"{kept.name}_grid_01.png").convert("RGB")


THUMBNAILS = {"01": whole_job, "02": loaded, "03": graph, "04": grid, "05": grid}


def turned(kept: Path) -> None:
    """The rows for eta and the anchors, those for lambda, and their figures into the README."""
    base = row(kept / "reference", "original")
    lora = row(kept / "reference", "plain_LoRA")
    of = {name: row(kept / name, "PureCC") for name in TURNED}
    etas = sorted((name for name in of if name.startswith("eta")), key=lambda name: float(name.split()[1]))
    scales = sorted((name for name in of if name.startswith("lambda")), key=lambda name: float(name.split()[1]))
    labels = ["base\nmodel", *etas, _DEFAULT + "\nno anchors", "plain\nLoRA"]
    rows = [base, *(of[name] for name in (*etas, "no anchors")), lora]
    save(draw_grid(rows, labels, _COLUMNS), FIGURES / "eta.jpg")
    labels = ["base\nmodel", "adaptive", *(name.replace(" ", "\n") for name in scales)]
    rows = [base, of[_GUIDED], *(of[name] for name in scales)]
    save(draw_grid(rows, labels, _COLUMNS), FIGURES / "lambda.jpg")
    write_table(kept, [*etas, "no anchors", *scales])


def write_table(kept: Path, names: list[str]) -> None:
    """Between the README's marks: likeness and change for every setting, over all pictures that were sampled."""
    originals = {part: tensor(load(kept / "reference", f"{part}_original")) for part in ("with", "without")}
    references = read_folder(REFERENCES)
    arms = [(name, kept / name, "PureCC") for name in names] + [("plain LoRA", kept / "reference", "plain_LoRA")]
    lines = ["| | likeness in colour | change with [V] | change without [V] |", "|---|---|---|---|"]
    for name, folder, arm in arms:
        likeness = colour_fidelity(
            tensor(load(folder, f"with_{arm}")), originals["with"], [p.pixels for p in references],
            [p.mask for p in references],
        )  # fmt: skip
        with_, without = (pixel_drift(originals[p], tensor(load(folder, f"{p}_{arm}"))) for p in ("with", "without"))
        shown = "cannot be told" if likeness is None else f"{likeness:.2f}"
        lines.append(f"| {name} | {shown} | {with_:.1f} | {without:.1f} |")
    readme = PROJECT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END, 1)[1]
    readme.write_text(before + "\n".join([BEGIN, *lines, END]) + after, encoding="utf-8", newline="\n")


def row(folder: Path, arm: str) -> list[Image.Image]:
    """Some pictures with the trigger in the prompt, and some without."""
    return load(folder, f"with_{arm}")[:_SHOWN] + load(folder, f"without_{arm}")[:_SHOWN]


def load(folder: Path, name: str) -> list[Image.Image]:
    found = sorted(folder.glob(f"{name}_[0-9]*.png"))
    if not found:
        sys.exit(f"{folder} holds no pictures named {name}: run the part that makes them.")
    return [Image.open(path).convert("RGB") for path in found]


def tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """[batch, height, width, 3] in 0..1."""
    return torch.from_numpy(np.stack([np.asarray(p, dtype=np.float32) / 255 for p in pictures]))


def save(picture: Image.Image, path: Path, of_pocket: bool = True) -> None:
    """A JPEG whose comment names the weights that drew it, so that a test can tell when they were replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = f"weights {weights_digest(PROJECT)}" if of_pocket else "graph"
    picture.save(path, quality=84, optimize=True, comment=comment)
    print(f"  {path.relative_to(PROJECT)}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
