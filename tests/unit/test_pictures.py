"""Folders of pictures as people keep them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from purecc.pictures import (
    Picture,
    masks_for_all,
    picture_files,
    read_folder,
    require_masks,
    three_channels,
    unread_files,
)


def make(folder: Path, name: str, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
    folder.mkdir(exist_ok=True)
    Image.new(mode, size, 255).save(folder / name)
    return folder / name


def test_captions_and_masks_belong_to_the_picture_of_their_name(tmp_path: Path) -> None:
    folder = tmp_path / "my dog"
    make(folder, "b.jpg")
    make(folder, "a.PNG")
    make(folder, "a.Mask.PNG", mode="L")
    (folder / "a.TXT").write_text("\ufeff a dog\n on the beach ", encoding="utf-8")
    (folder / "notes.md").write_text("not a picture", encoding="utf-8")

    first, second = read_folder(folder)

    assert [p.name for p in picture_files(folder)] == ["a.PNG", "b.jpg"]
    assert (first.caption, second.caption) == ("a dog on the beach", "")
    assert first.pixels.shape == (6, 8, 3) and first.mask is not None and first.mask.shape == (6, 8)
    assert second.mask is None
    assert float(first.pixels.max()) == 1


def test_a_folder_without_pictures_and_a_broken_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no pictures"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="holds no pictures"):
        read_folder(tmp_path / "not there")
    (tmp_path / "._dog.png").write_bytes(b"macOS keeps its own there")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        read_folder(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png cannot be read"):
        read_folder(tmp_path)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    make(tmp_path, "a.mask.png", (4, 4), "L")
    with pytest.raises(ValueError, match=r"a.mask.png is \(4, 4\), its picture \(6, 8\)"):
        read_folder(tmp_path)


def test_a_mask_follows_its_picture(tmp_path: Path) -> None:
    """A white square stands where the mask says, after scaling and cropping too."""
    image, mask = Image.new("RGB", (300, 200)), Image.new("L", (300, 200))
    for one in (image, mask):
        one.paste("white", (40, 60, 120, 140))
    image.save(tmp_path / "a.png"), mask.save(tmp_path / "a.mask.png")
    (picture,) = read_folder(tmp_path)
    for shape, size in (("buckets", (112, 160)), ("square", (128, 128))):
        made = picture.fitted(128, shape)
        assert made.pixels.shape[:2] == made.mask.shape == size
        torch.testing.assert_close(made.pixels[..., 0], made.mask)
    assert (made.name, picture.mask.shape) == ("a.png", (200, 300))


def test_a_picture_turned_by_its_camera_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    (turned,) = read_folder(tmp_path)
    assert turned.pixels.shape == (30, 20, 3) and turned.mask is None


def test_what_is_transparent_in_a_mask_is_not_in_it(tmp_path: Path) -> None:
    """As programs save a mask that was painted on nothing: white all over, and clear where nothing was painted."""
    make(tmp_path, "a.png", (8, 6))
    mask = Image.new("RGBA", (8, 6), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (2, 1, 5, 4))
    mask.save(tmp_path / "a.mask.png")
    (picture,) = read_folder(tmp_path)
    assert picture.mask[1:4, 2:5].min() == 1 and float(picture.mask.sum()) == 9


def test_a_cut_out_stands_on_white_and_its_mask_is_what_is_not_transparent(tmp_path: Path) -> None:
    """What lies under the transparency is of no meaning: editors leave the old background there, or black."""
    whole = Image.new("RGBA", (30, 20), (255, 0, 0, 255))
    whole.paste((0, 0, 0, 0), (0, 0, 5, 5))  # a screenshot's corner is none
    whole.save(tmp_path / "whole.png")
    whole.paste((0, 255, 0, 0), (0, 0, 10, 20))
    whole.putpixel((29, 0), (255, 0, 0, 51))
    whole.save(tmp_path / "cut.png")
    whole.convert("RGB").quantize(4).save(tmp_path / "palette.png", transparency=0)
    cut, palette, opaque = read_folder(tmp_path)
    assert cut.cut_out and cut.pixels[0, 0].tolist() == [1, 1, 1] and cut.pixels[0, 15].tolist() == [1, 0, 0]
    assert cut.mask[:, :10].max() == 0 and cut.mask[1:, 10:].min() == 1
    torch.testing.assert_close(cut.mask[0, 29], torch.tensor(0.2))
    torch.testing.assert_close(cut.pixels[0, 29], torch.tensor([1.0, 0.8, 0.8]))
    assert palette.cut_out and 0 < palette.mask.mean() < 1
    assert opaque.mask is None and not opaque.cut_out and opaque.pixels[0, 0].tolist() == [1, 1, 1]


def test_masks_of_cut_outs_count_where_every_picture_has_one(tmp_path: Path) -> None:
    cut = Image.new("RGBA", (30, 20), (255, 0, 0, 255))
    cut.paste((0, 0, 0, 0), (0, 0, 10, 20))
    for name in "ab":
        cut.save(tmp_path / f"{name}.png")
    drawn = Image.new("L", (30, 20), 255)
    drawn.save(tmp_path / "b.mask.png")
    both = masks_for_all(read_folder(tmp_path))
    assert [p.cut_out for p in both] == [True, False] and both[1].mask.min() == 1  # a file stands above it
    Image.new("RGB", (30, 20)).save(tmp_path / "c.png")
    assert [p.mask is None for p in masks_for_all(read_folder(tmp_path))] == [True, False, True]


def test_sixteen_bits_of_grey_are_grey(tmp_path: Path) -> None:
    steps = np.array([[0, 1000, 30000, 65535]], dtype=np.uint16)
    Image.fromarray(steps).save(tmp_path / "a.png")
    (picture,) = read_folder(tmp_path)
    assert (picture.pixels[0, :, 1] * 255).round().tolist() == [0, 3, 116, 255]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_caption_may_be_written_by_any_editor(tmp_path: Path, encoding: str) -> None:
    make(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("a dog\non a café’s floor\n", encoding=encoding)
    (picture,) = read_folder(tmp_path)
    assert picture.caption == "a dog on a café’s floor"


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.png", (40, 40))
    (tmp_path / "a.txt").write_bytes("a café".encode("cp1252"))
    with pytest.raises(ValueError, match="a.txt is not in UTF-8"):
        read_folder(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "IMG_2.HEIC").write_bytes(b"an iPhone's")
    (tmp_path / "._IMG_2.HEIC").write_bytes(b"macOS's")
    assert unread_files(tmp_path) == ["IMG_2.HEIC"] and len(read_folder(tmp_path)) == 1
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "IMG_3.heic").touch()
    with pytest.raises(ValueError, match="holds no pictures .* IMG_3.heic: such files are not read"):
        read_folder(tmp_path / "phone")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="a.png cannot be read as a picture: Image size"):
        read_folder(tmp_path)


def test_a_text_in_a_png_that_is_too_large_is_told_with_its_file(tmp_path: Path) -> None:
    more = PngImagePlugin.PngInfo()
    more.add_text("comment", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png", pnginfo=more)
    with pytest.raises(ValueError, match="a.png cannot be read as a picture: Decompressed data too large"):
        read_folder(tmp_path)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_any_channels_have_three(channels: int) -> None:
    pixels = torch.rand(2, 3, channels)
    made = three_channels(pixels)
    assert made.shape == (2, 3, 3) and torch.equal(made, pixels[..., :3].expand(2, 3, 3))


def test_masks_are_for_all_pictures_and_mark_something(tmp_path: Path) -> None:
    def pictures() -> list[Picture]:
        return [picture.fitted(32, "square") for picture in read_folder(tmp_path)]

    for name in ("a", "b"):
        make(tmp_path, f"{name}.png", (64, 32))
    require_masks(pictures())
    make(tmp_path, "a.mask.png", (64, 32), "L")
    with pytest.raises(ValueError, match="There is no mask for b.png"):
        require_masks(pictures())
    matte = Image.new("L", (64, 32), 5)  # a little grey everywhere, and one stray pixel
    matte.putpixel((30, 10), 255)
    matte.paste(255, (0, 0, 10, 32))  # and what the square cuts off
    matte.save(tmp_path / "b.mask.png")
    with pytest.raises(ValueError, match="The mask of b.png is empty, or what it marks is cut off"):
        require_masks(pictures())
    matte.paste(20, (20, 8, 40, 28))  # faint
    matte.save(tmp_path / "b.mask.png")
    require_masks(pictures())
