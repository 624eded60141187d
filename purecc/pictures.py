"""Reading a folder of pictures as people keep them: captions and masks beside the files, any sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .shapes import Shape, fit, size_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MASK = ".mask"  # dog.png has its mask in dog.mask.png


@dataclass(frozen=True)
class Picture:
    pixels: Tensor  # [height, width, 3] in 0..1
    caption: str  # of <name>.txt, or empty
    mask: Tensor | None  # [height, width] in 0..1, 1 on the concept
    name: str = ""  # of its file
    texts: Mapping[str, str] = field(default_factory=dict)  # "base", "target": those that a data set states itself

    def fitted(self, resolution: int, shape: Shape) -> "Picture":
        """At the size that it is trained at (`shapes.size_of`), its mask with it; `resolution` in pixels."""
        size = size_of(*self.pixels.shape[:2], resolution, shape)
        mask = None if self.mask is None else fit(self.mask[..., None], size)[..., 0]
        return replace(self, pixels=fit(self.pixels, size), mask=mask)


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder by name, masks left out."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and Path(p.stem).suffix != MASK]
    return sorted(found, key=lambda p: p.name.lower())


def read_folder(folder: Path) -> list[Picture]:
    """All pictures of a folder. Raises ValueError for a folder without any, or a file that is no picture."""
    files = picture_files(folder) if folder.is_dir() else []
    if not files:
        raise ValueError(f'The folder "{folder.name}" holds no pictures ({", ".join(SUFFIXES)}).')
    return [read_picture(path) for path in files]


def read_picture(path: Path) -> Picture:
    """A picture with the caption and the mask beside it. Raises ValueError where it cannot be read."""
    text = path.with_suffix(".txt")
    mask = next((m for s in SUFFIXES if (m := path.with_suffix(MASK + s)).is_file()), None)
    try:
        pixels = _open(path, "RGB")
        masked = None if mask is None else _open(mask, "L")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read as a picture: {error}") from error
    if masked is not None and masked.shape != pixels.shape[:2]:
        raise ValueError(
            f"{mask.name} is {tuple(masked.shape)}, its picture {tuple(pixels.shape[:2])}; make them alike."
        )
    caption = text.read_text(encoding="utf-8-sig").strip() if text.is_file() else ""
    return Picture(pixels, " ".join(caption.split()), masked, path.name)


def _open(path: Path, mode: str) -> Tensor:
    with Image.open(path) as image:
        array = np.asarray(ImageOps.exif_transpose(image).convert(mode), dtype=np.float32)
    return torch.from_numpy(array / 255)
