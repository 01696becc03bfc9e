"""The pixels of a folder's images are those that a viewer shows: transparency, turns, parts."""

import struct

import numpy as np
import pytest
import torch
from helpers import noise, put, read_folder
from PIL import Image

UPRIGHT = noise(6, 9)
# How a camera stores an upright picture under each orientation of EXIF.
STORED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, -1),
}


def ink(mode: str) -> tuple[Image.Image, dict]:
    """White paper with a black square at its top left, where the paper is transparent and black below."""
    alpha = np.zeros((6, 9), np.uint8)
    alpha[:3, :3] = 255
    black = np.zeros((6, 9), np.uint8)
    if mode in ("RGBA", "LA"):
        return Image.merge(mode, [Image.fromarray(black)] * (len(mode) - 1) + [Image.fromarray(alpha)]), {}
    kind, transparent = {"P": ("P", 7), "L": ("L", 7), "RGB": ("RGB", (7, 7, 7)), "1": ("1", 1), "I;16": ("I;16", 7)}[
        mode
    ]
    pixels = np.where(alpha, 0, 7)
    if kind == "I;16":
        return Image.fromarray(pixels.astype(np.uint16)), {"transparency": transparent}
    if kind == "1":
        return Image.fromarray(alpha == 0), {"transparency": transparent}
    image = Image.fromarray(pixels.astype(np.uint8))
    if kind == "P":
        image.putpalette([0, 0, 0] * 256)
    return image if kind != "RGB" else image.convert("RGB"), {"transparency": transparent}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "1", "I;16"])
def test_what_is_transparent_is_white_as_viewers_show_it(tmp_path, mode):
    image, options = ink(mode)
    put(tmp_path / "train" / "a" / "1.png", image, **options)
    put(tmp_path / "train" / "b" / "2.png", Image.new("L", (9, 6)))
    shown = read_folder(tmp_path).images[0]
    expected = torch.full_like(shown, 255)
    expected[:, :3, :3] = 0
    assert torch.equal(shown, expected)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    put(tmp_path / "train" / "a" / "1.webp", Image.new("RGBA", (9, 6), (0, 100, 200, 51)), lossless=True, exact=True)
    put(tmp_path / "train" / "b" / "2.png", Image.new("RGB", (9, 6)))
    shown = read_folder(tmp_path).images[0]
    assert (shown.view(3, -1) - torch.tensor([[204], [224], [244]])).abs().max() <= 1  # a fifth of the colour


def test_opaque_images_keep_their_pixels(tmp_path):
    colour, grey = noise(6, 9, 3), noise(6, 9)
    put(tmp_path / "train" / "a" / "1.png", colour)
    put(tmp_path / "train" / "b" / "2.png", np.dstack([colour, np.full((6, 9), 255, np.uint8)]))
    put(tmp_path / "train" / "b" / "3.png", grey)
    shown = read_folder(tmp_path).images
    for image, pixels in zip(shown, (colour, colour, np.dstack([grey] * 3)), strict=True):
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(pixels))


def tag(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("ending, options", [("png", {}), ("webp", {"lossless": True}), ("tiff", {}), ("jpg", {})])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_turned_as_their_tag_says(tmp_path, ending, options, orientation):
    stored = np.ascontiguousarray(STORED[orientation](UPRIGHT))
    if ending == "jpg":
        options = {"quality": 100}
    put(tmp_path / "train" / "a" / f"1.{ending}", Image.fromarray(stored), exif=tag(orientation), **options)
    put(tmp_path / "train" / "b" / "2.png", UPRIGHT)  # of the same size, once the first is turned
    shown = read_folder(tmp_path).images[0]
    assert shown.shape[1:] == UPRIGHT.shape
    grey = shown.float().mean(0)
    assert (grey - torch.from_numpy(UPRIGHT)).abs().max() <= (8 if ending == "jpg" else 1)


def test_a_phones_picture_of_several_parts_is_read(tmp_path):
    turned = Image.fromarray(np.rot90(np.dstack([UPRIGHT] * 3)).copy())
    put(tmp_path / "train" / "a" / "1.jpg", turned, format="MPO", save_all=True, append_images=[turned], exif=tag(6))
    put(tmp_path / "train" / "b" / "2.png", UPRIGHT)
    assert Image.open(tmp_path / "train" / "a" / "1.jpg").format == "MPO"
    assert read_folder(tmp_path).images.shape == (2, 3, 6, 9)


def test_a_damaged_tag_stops_nothing(tmp_path):
    put(tmp_path / "whole.jpg", np.zeros((8, 8), np.uint8), exif=tag(3))
    whole = (tmp_path / "whole.jpg").read_bytes()
    begin, random = whole.index(b"Exif"), np.random.default_rng(1)
    for i in range(60):
        damaged = bytearray(whole)
        for place in random.integers(begin + 6, begin + 32, 3):
            damaged[place] = random.integers(256)
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged)
    assert read_folder(tmp_path).images.shape == (60, 1, 8, 8)


def test_a_png_whose_tag_comes_after_its_pixels_is_not_decoded_to_look_for_it(plain, monkeypatch):
    path = plain / "train" / "a" / "0.png"
    content = path.read_bytes()
    exif = tag(6).tobytes().removeprefix(b"Exif\x00\x00")
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + b"\0\0\0\0"
    path.write_bytes(content[:-12] + chunk + content[-12:])
    assert read_folder(plain).images.shape == (40, 1, 6, 9)
