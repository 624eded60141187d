"""At which size a picture is trained: about resolution^2 pixels, sides that a token divides, cropped and never squashed."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Shape = Literal["buckets", "own shape", "square"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
MULTIPLE = 16  # pixels a token: 8 for a cell of SD3's latents (VAE), 2 x 2 cells for a token (transformer)
ASPECTS = (1, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2, 5 / 2, 3)  # longer side to shorter: the formats of cameras and screens


class Size(NamedTuple):
    height: int  # pixels
    width: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


def buckets(resolution: int, multiple: int = MULTIPLE) -> tuple[Size, ...]:
    """The sizes that pictures are sorted into, of about `resolution`^2 pixels each, upright and lying, without doubles.

    Aspect-ratio bucketing after NovelAI (2022). The aspects are few, so that of few pictures some share a bucket and make
    batches. `resolution` and `multiple` in pixels.
    """
    found = dict.fromkeys(_around(resolution, aspect, multiple) for aspect in ASPECTS)
    return tuple(dict.fromkeys([*found, *(Size(wide.width, wide.height) for wide in found)]))


def size_of(height: int, width: int, resolution: int, shape: Shape, multiple: int = MULTIPLE) -> Size:
    """The size that a picture of `height` x `width` pixels is trained at.

    "buckets": the bucket nearest in aspect (by its logarithm). "own shape": its own aspect, sides rounded to `multiple`.
    "square": `resolution` x `resolution`. Raises ValueError for another shape, or a resolution below `multiple`.
    """
    if resolution < multiple:
        raise ValueError(f"The resolution is {resolution}; it must be at least {multiple} pixels.")
    aspect = width / height
    if shape == "own shape":
        return _around(resolution, aspect, multiple)
    if shape == "square":
        return _around(resolution, 1, multiple)
    if shape == "buckets":
        return min(
            buckets(resolution, multiple), key=lambda size: abs(math.log(size.width / size.height) - math.log(aspect))
        )
    raise ValueError(f'The shape is "{shape}"; it must be one of {", ".join(SHAPES)}.')


def fit(pixels: Tensor, size: Size) -> Tensor:
    """A picture or a mask [height, width, channels] in 0..1, scaled until it covers `size` and cropped about its centre."""
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    scale = max(size.height / height, size.width / width)
    covering = Size(max(size.height, round(height * scale)), max(size.width, round(width * scale)))
    image = pixels.movedim(-1, 0)[None]  # HWC -> 1CHW
    image = torch.nn.functional.interpolate(image, covering, mode="bicubic", antialias=True, align_corners=False)
    top, left = (covering.height - size.height) // 2, (covering.width - size.width) // 2
    image = image[0].movedim(0, -1)  # 1CHW -> HWC
    return image[top : top + size.height, left : left + size.width].clamp(0, 1)


def described(height: int, width: int, size: Size) -> str:
    """What `fit` does to a picture, in words: "1200 x 800 px -> 624 x 416, 0 % cut off"."""
    scale = max(size.height / height, size.width / width)
    cut = 1 - size.height * size.width / (height * width * scale**2)
    enlarged = f", enlarged {scale:.1f} times" if scale > 1.05 else ""
    return f"{width} x {height} px -> {size}, {100 * max(cut, 0):.0f} % cut off{enlarged}"


def _around(resolution: int, aspect: float, multiple: int) -> Size:
    """Of `resolution`^2 pixels and an aspect (width / height), each side rounded to `multiple`."""
    height, width = resolution / math.sqrt(aspect), resolution * math.sqrt(aspect)
    return Size(*(max(multiple, round(side / multiple) * multiple) for side in (height, width)))
