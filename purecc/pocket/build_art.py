"""Rasterises the drawings of `specification.SPLITS` into one picture and one index for each split.

    python -m purecc.pocket.build_art FOLDER [--splits NAME ...]

FOLDER holds the unpacked npm packages `@iconify-json/<vendor>` as `<vendor>/package/` (each carries `icons.json` and
`info.json` with its licence). Needs `resvg-py`. Run once; the result in `art/` is part of the repository.
"""

import argparse
import io
import json
import re
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from .art import ART, SIDE, Atlas
from .specification import SPLITS

_ON_DISCS = ("streamline-kameleon-color",)  # vendors whose every drawing lies on a disc, its first path
_DISC = re.compile(r'<path fill="#\w+" d="M24 4[78][^"]*"/>')


def rasterise(icons: dict, name: str) -> Image.Image | None:
    """The drawing as RGBA, cropped to what is drawn, centred in a square of SIDE pixels; None where it is not there."""
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    if name not in icons["icons"]:
        return None
    icon = icons["icons"][name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIDE, height=4 * SIDE))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    image = image.crop(box)
    scale = SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return square


def take_discs_away(icons: dict) -> None:
    for icon in icons["icons"].values():
        icon["body"] = _DISC.sub("", icon["body"], count=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    args = parser.parse_args()
    for split in args.splits:
        drawings, index, images = SPLITS[split], [], []
        for vendor in drawings.vendors:
            icons = json.loads((args.folder / vendor / "package" / "icons.json").read_text(encoding="utf-8"))
            if vendor in _ON_DISCS:
                take_discs_away(icons)
            info = json.loads((args.folder / vendor / "package" / "info.json").read_text(encoding="utf-8"))
            for class_word, names in drawings.names.items():
                seen: list[np.ndarray] = []
                for name in names:
                    image = rasterise(icons, name)
                    if image is None:
                        continue
                    pixels = np.asarray(image.convert("RGBa"), dtype=np.float32)
                    if any(np.abs(pixels - other).mean() < 1.0 for other in seen):
                        continue  # one drawing under two names
                    seen.append(pixels)
                    licence = info["license"]["spdx"]
                    index.append({"vendor": vendor, "drawing": name, "class": class_word, "licence": licence})
                    images.append(image)
        Atlas.write(ART / split, index, images)
        print(f"{split}: {len(images)} drawings")


if __name__ == "__main__":
    main()
