"""Reading a folder of pictures as people keep them: captions and masks beside the files, any sizes."""

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .mask_weights import touched
from .shapes import Shape, fit, size_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".tif", ".tiff", ".gif")  # pictures too, which are told rather than taken
MASK = ".mask"  # dog.png has its mask in dog.mask.png
CUT_OUT = 0.05  # share of a picture that is transparent, from which on it is a cut-out: rounded corners and soft edges are none
_CELL = 8  # pixels that a latent's one stands for


@dataclass(frozen=True)
class Picture:
    pixels: Tensor  # [height, width, 3] in 0..1
    caption: str  # of <name>.txt, or empty
    mask: Tensor | None  # [height, width] in 0..1, 1 on the concept
    name: str = ""  # of its file
    texts: Mapping[str, str] = field(default_factory=dict)  # "base", "target": those that a data set states itself
    came: tuple[int, int] | None = None  # height and width before it was fitted
    cut_out: bool = False  # the mask is what is not transparent

    def fitted(self, resolution: int, shape: Shape) -> "Picture":
        """At the size that it is trained at (`shapes.size_of`), its mask with it; `resolution` in pixels."""
        size = size_of(*self.pixels.shape[:2], resolution, shape)
        mask = None if self.mask is None else fit(self.mask[..., None], size)[..., 0]
        return replace(self, pixels=fit(self.pixels, size), mask=mask, came=tuple(self.pixels.shape[:2]))


def as_it_is(picture: Picture) -> Picture:
    return picture


def three_channels(pixels: Tensor) -> Tensor:
    """[..., channels] as float32 [..., 3]: of a grey one three alike, of one with alpha its colours."""
    return (pixels.expand(*pixels.shape[:-1], 3) if pixels.shape[-1] == 1 else pixels[..., :3]).float()


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder by name, masks left out."""
    found = [p for p in _seen(folder) if p.suffix.lower() in SUFFIXES and Path(p.stem).suffix.lower() != MASK]
    return sorted(found, key=lambda p: p.name.lower())


def _seen(folder: Path) -> list[Path]:
    """A folder's files, less those that people do not see: macOS puts ._dog.png beside dog.png on other systems' disks."""
    return [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]


def unread_files(folder: Path) -> list[str]:
    """Names of the pictures of a folder whose format is not read."""
    return sorted(p.name for p in _seen(folder) if p.suffix.lower() in UNREAD)


def read_text(path: Path) -> str:
    """A text in UTF-8, or in UTF-16 with its mark, as PowerShell's ">" writes it. Raises ValueError, with the file's name, for another."""
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not in UTF-8; save it anew in that encoding.") from error


def read_folder(folder: Path, prepare: Callable[[Picture], Picture] = as_it_is) -> list[Picture]:
    """All pictures of a folder, each prepared as soon as it is read: whole ones may be large.

    Raises ValueError for a folder without any, or a file that is no picture.
    """
    files = picture_files(folder) if folder.is_dir() else []
    if not files:
        others = unread_files(folder) if folder.is_dir() else []
        also = f" {', '.join(others)}: such files are not read." if others else ""
        raise ValueError(f'The folder "{folder.name}" holds no pictures ({", ".join(SUFFIXES)}).{also}')
    return [prepare(read_picture(path)) for path in files]


def read_picture(path: Path) -> Picture:
    """A picture with the caption and the mask beside it. Raises ValueError where it cannot be read."""
    beside, stem = {p.name.lower(): p for p in path.parent.iterdir()}, path.stem.lower()
    text = beside.get(f"{stem}.txt")
    mask = next((m for s in SUFFIXES if (m := beside.get(f"{stem}{MASK}{s}"))), None)
    try:
        pixels, opaque = _on_white(path)
        masked = None if mask is None else _open(mask, "L")
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:  # Pillow's for what is damaged
        raise ValueError(f"{path.name} cannot be read as a picture: {error}") from error
    if masked is not None and masked.shape != pixels.shape[:2]:
        raise ValueError(
            f"{mask.name} is {tuple(masked.shape)}, its picture {tuple(pixels.shape[:2])}; make them alike."
        )
    caption, cut_out = "" if text is None else read_text(text), masked is None and opaque is not None
    return Picture(pixels, " ".join(caption.split()), opaque if cut_out else masked, path.name, cut_out=cut_out)


def masks_for_all(pictures: Sequence[Picture]) -> list[Picture]:
    """Cut-outs without the masks that their transparency gives, where not every picture has a mask."""
    if all(picture.mask is not None for picture in pictures):
        return list(pictures)
    return [replace(picture, mask=None, cut_out=False) if picture.cut_out else picture for picture in pictures]


def require_masks(pictures: Sequence[Picture]) -> None:
    """Raises ValueError where a mask of a fitted picture marks nothing, or where some have one and others none: the concept would be held back."""
    for number, picture in enumerate(pictures, 1):
        name = picture.name or f"picture {number}"
        if picture.mask is None and any(p.mask is not None for p in pictures):
            raise ValueError(f"There is no mask for {name}, and there is one for others. Give one for each, or none.")
        if picture.mask is not None and not touched(avg_pool2d(picture.mask[None].float(), _CELL)).any():
            raise ValueError(
                f"The mask of {name} is empty, or what it marks is cut off. Paint the concept white in it, or leave masks out: the concept is "
                "looked for then. (Load Image gives an empty mask for a picture without transparency.)"
            )


def _on_white(path: Path) -> tuple[Tensor, Tensor | None]:
    """Colours [height, width, 3], and how opaque they are, [height, width]; None of a picture that is no cut-out."""
    with Image.open(path) as image:
        clear = "A" in image.getbands() or "transparency" in image.info
    if not clear:
        return _open(path, "RGB"), None
    colours, opaque = _open(path, "RGBA").split([3, 1], dim=-1)
    blended = torch.where(opaque == 1, colours, colours * opaque + 1 - opaque)
    return blended, opaque[..., 0] if float(opaque.mean()) < 1 - CUT_OUT else None


def _open(path: Path, mode: str) -> Tensor:
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
            image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
        elif mode == "L" and ("A" in image.getbands() or "transparency" in image.info):
            # a mask: nothing where it is transparent
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
        array = np.asarray(image.convert(mode), dtype=np.float32)
    return torch.from_numpy(array / 255)
