"""Folders of pictures as people keep them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from purecc.pictures import picture_files, read_folder


def make(folder: Path, name: str, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
    folder.mkdir(exist_ok=True)
    Image.new(mode, size, 255).save(folder / name)
    return folder / name


def test_captions_and_masks_belong_to_the_picture_of_their_name(tmp_path: Path) -> None:
    folder = tmp_path / "my dog"
    make(folder, "b.jpg")
    make(folder, "a.PNG")
    make(folder, "a.mask.png", mode="L")
    (folder / "a.txt").write_text("\ufeff a dog\n on the beach ", encoding="utf-8")
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


def test_a_picture_turned_by_its_camera_stands_upright_and_alpha_is_left_out(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGBA", (30, 20), (255, 0, 0, 10)).save(tmp_path / "b.png")
    turned, clear = read_folder(tmp_path)
    assert turned.pixels.shape == (30, 20, 3) and clear.pixels.shape == (20, 30, 3)
    assert clear.pixels[0, 0].tolist() == [1, 0, 0]
