"""The drawings that the pocket's pictures are composed of: one atlas picture and one index for each split."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

ART = Path(__file__).parent / "art"
SIDE = 96  # pixels of a drawing's square in the atlas
_COLUMNS = 16


@dataclass(frozen=True)
class Sprite:
    """One drawing: RGBA picture of SIDE x SIDE, the class it shows, and who drew it."""

    class_word: str
    vendor: str
    drawing: str
    image: Image.Image


class Atlas:
    """A split's drawings on disk: `<split>.png` beside `<split>.json`."""

    @staticmethod
    def write(path: Path, index: list[dict], images: list[Image.Image]) -> None:
        sheet = Image.new("RGBA", (_COLUMNS * SIDE, -(-len(images) // _COLUMNS) * SIDE))
        for i, image in enumerate(images):
            sheet.paste(image, (i % _COLUMNS * SIDE, i // _COLUMNS * SIDE))
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path.with_suffix(".png"), optimize=True)
        rows = ",\n".join(json.dumps(row) for row in index)
        path.with_suffix(".json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> list[Sprite]:
        index = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        with Image.open(path.with_suffix(".png")) as sheet:
            sheet = sheet.convert("RGBA")
        sprites = []
        for i, row in enumerate(index):
            x, y = i % _COLUMNS * SIDE, i // _COLUMNS * SIDE
            image = sheet.crop((x, y, x + SIDE, y + SIDE))
            sprites.append(Sprite(row["class"], row["vendor"], row["drawing"], image))
        return sprites


@cache
def sprites(split: str) -> tuple[Sprite, ...]:
    """All drawings of one split: "base", "judges", "development", or, for the bench alone, the other keys of `SPLITS`."""
    return tuple(Atlas.read(ART / split))


@cache
def sprites_by_class(split: str) -> dict[str, tuple[Sprite, ...]]:
    """The drawings of a split, by class word."""
    table: dict[str, list[Sprite]] = {}
    for sprite in sprites(split):
        table.setdefault(sprite.class_word, []).append(sprite)
    return {word: tuple(found) for word, found in table.items()}
