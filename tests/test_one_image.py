"""A picture of any kind becomes what a model was trained on, and is read; what is no picture is one clear line."""

import io

import numpy as np
import pytest
import torch
from helpers import ROOT, put, seven
from PIL import Image

from images.folder import Decoder
from images.one_image import MNIST, Kind, fit_picture, is_dark_on_light, pen_width, read_picture
from training.cli import InputError

CANVAS = MNIST._replace(size=(60, 60), canvas=True)
COLOUR = Kind(3, (20, 30), False, False, 0, (28, 28), (0.5, 0.25, 1.0))
SHIPPED = ROOT / "models" / "mnist.pt"
MODELS = [path for path in sorted((ROOT / "models").glob("*.pt")) if path.stem != "catch"]


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two images are of the same thing: JPEG and rounding leave a few grey levels between them."""
    return (a.float() - b.float()).abs().mean() < 2


def test_ink_is_placed_as_mnist_places_its_digits():
    image = fit_picture(seven(), MNIST).image
    assert image.shape == (1, 28, 28) and image.dtype == torch.uint8
    assert image[0, 0, 0] == 0 and image.max() == 255  # light ink on black
    drawn = (image[0] > 20).nonzero()
    height, width = (drawn.max(0).values - drawn.min(0).values + 1).tolist()
    assert max(height, width) == 20 and abs(height / width - 2) < 0.35  # 120 x 60 pixels
    weights = image[0].float()
    middle = (weights.sum(1) * torch.arange(28)).sum() / weights.sum()
    assert abs(middle - 13.5) <= 1


@pytest.mark.parametrize("box", [(5, 5, 65, 125), (230, 75, 290, 195), (120, 40, 180, 160)])
def test_where_the_ink_is_and_how_large_makes_no_difference(box):
    here = fit_picture(seven(box=box), MNIST).image
    assert is_close(here, fit_picture(seven(), MNIST).image)
    large = seven((1200, 800), tuple(4 * side for side in box), pen=48)
    assert (fit_picture(large, MNIST).image.float() - here.float()).abs().mean() < 12


def test_dark_and_light_ink_become_the_same_and_the_notes_say_which_was_inverted():
    dark, light = seven(), seven(ink=255, paper=0)
    assert torch.equal(fit_picture(dark, MNIST).image, fit_picture(light, MNIST).image)
    assert any("inverted" in note for note in fit_picture(dark, MNIST).notes)
    assert not any("inverted" in note for note in fit_picture(light, MNIST).notes)
    stretched = fit_picture(dark, MNIST, "stretch", invert="False").image
    assert stretched[0, 0, 0] == 255 and fit_picture(dark, MNIST, "stretch", invert="True").image[0, 0, 0] == 0
    assert fit_picture(dark, COLOUR._replace(channels=1, beyond=(0.0,))).image.max() == 255  # of other models: never


def test_a_photo_is_turned_upright_by_its_exif_data():
    upright = fit_picture(seven(), MNIST).image
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    for orientation, method in back.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo = saved(seven().transpose(method), "JPEG", exif=exif, quality=95)
        assert is_close(fit_picture(read_picture(photo), MNIST).image, upright)
        assert not is_close(fit_picture(Image.open(io.BytesIO(photo)).convert("L"), MNIST).image, upright)


@pytest.mark.parametrize("ink", [0, 255])
def test_transparent_paper_differs_from_the_ink_on_it(ink):
    strength = seven(ink=255, paper=0)
    image = Image.merge("LA", (Image.new("L", strength.size, ink), strength))
    upright = fit_picture(seven(), MNIST).image
    for mode in ("LA", "RGBA"):
        assert torch.equal(fit_picture(read_picture(saved(image.convert(mode), "PNG")), MNIST).image, upright)


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "CMYK", "I;16", "I", "F"])
def test_every_mode_is_read(mode):
    image = seven()
    if mode in ("I;16", "I"):
        converted = Image.fromarray(np.asarray(image).astype({"I;16": np.uint16, "I": np.int32}[mode]) * 257)
    else:
        converted = image.convert(mode)
    picture = read_picture(saved(converted, "TIFF"))
    assert picture.mode in ("L", "RGB")
    assert is_close(fit_picture(picture, MNIST).image, fit_picture(image, MNIST).image)


def test_a_thin_pen_is_widened_and_a_thick_one_is_not():
    thin, thick = (fit_picture(seven((900, 900), (200, 100, 500, 700), pen), MNIST).image for pen in (6, 70))
    assert thin.float().mean() > 10 and abs(thin.float().mean() - thick.float().mean()) < 12
    assert pen_width(torch.ones(4, 100, dtype=torch.bool)) == pytest.approx(4, rel=0.1)


def test_shade_on_the_paper_is_no_ink():
    shade = np.linspace(1, 0.4, 300)
    image = Image.fromarray((np.asarray(seven(paper=230)) * shade).astype(np.uint8))
    assert (fit_picture(image, MNIST).image.float() - fit_picture(seven(), MNIST).image.float()).abs().mean() < 4


def test_an_image_as_the_training_had_them_goes_in_as_it_is():
    random = np.random.default_rng(1)
    for kind, side in ((MNIST, 28), (CANVAS, 60)):
        pixels = random.integers(1, 256, (side, side), dtype=np.uint8) * (random.random((side, side)) < 0.2)
        seen = fit_picture(Image.fromarray(pixels), kind)
        np.testing.assert_array_equal(seen.image[0], pixels)
        assert seen.notes == []


def test_an_image_smaller_than_a_canvas_is_placed_in_its_middle():
    pixels = np.asarray(seven((20, 28), (4, 4, 16, 24), 3, ink=255, paper=0))
    seen = fit_picture(Image.fromarray(pixels), CANVAS)
    np.testing.assert_array_equal(seen.image[0, 16:44, 20:40], pixels)
    assert seen.image.sum() == pixels.sum() and seen.centre == (0, 0)
    assert seen.notes == ["placed on 60 x 60"]


def test_a_digit_stays_where_it_was_in_the_picture_on_a_canvas():
    for box, (x, y) in (((10, 10, 70, 130), (-1, -1)), ((230, 75, 290, 195), (1, 1)), ((120, 40, 180, 160), (0, 0))):
        seen = fit_picture(seven(box=box), CANVAS)
        assert seen.image.shape == (1, 60, 60)
        rows, columns = (seen.image[0] > 20).nonzero().float().mean(0) / 30 - 1
        assert np.allclose(seen.centre, (columns, rows), atol=0.15)
        assert all((want == 0 and abs(at) < 0.1) or at * want > 0 for at, want in zip(seen.centre, (x, y), strict=True))


def test_padding_keeps_the_aspect_and_stretching_does_not():
    image = Image.new("RGB", (100, 100), (10, 20, 30))
    padded, stretched = (fit_picture(image, COLOUR, fit).image for fit in ("pad", "stretch"))
    assert padded.shape == stretched.shape == (3, 20, 30)
    assert padded[:, 0, 5:25].unique(dim=1).flatten().tolist() == [10, 20, 30]
    assert padded[:, 0, 0].tolist() == [128, 64, 255]  # what the model takes for the world beyond
    assert stretched[:, 0, 0].tolist() == [10, 20, 30]
    assert torch.equal(fit_picture(image, COLOUR).image, padded)


def test_without_resizing_an_image_must_fit():
    small = Image.new("RGB", (10, 20))
    assert fit_picture(small, COLOUR, "none").image[:, 0, 0].tolist() == [128, 64, 255]
    with pytest.raises(InputError, match="is 31 x 20 pixels, and the model takes 30 x 20"):
        fit_picture(Image.new("RGB", (31, 20)), COLOUR, "none")


@pytest.mark.parametrize("paper", [0, 128, 255])
def test_empty_paper_is_said_to_be_empty(paper):
    noise = np.random.default_rng(0).integers(-3, 3, (200, 200))
    image = Image.fromarray((paper + noise).clip(0, 255).astype(np.uint8))
    with pytest.raises(InputError, match="shows no ink"):
        fit_picture(image, MNIST)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_pictures_of_a_line_or_a_point_break_nothing(size):
    image = Image.new("L", size)
    image.putpixel((0, 0), 255)
    for kind in (MNIST, CANVAS, COLOUR):
        for fit in ("auto", "ink", "pad", "stretch"):
            try:
                assert fit_picture(image, kind, fit).image.shape == (kind.channels, *kind.size)
            except InputError as error:
                assert "no ink" in str(error)


def test_what_is_no_picture_is_said_to_be_none(tmp_path):
    whole = saved(seven(), "PNG")
    huge = whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:]  # a header that claims 3,600 million pixels
    for content in (b"", b"hello", whole[:100], saved(seven(), "JPEG")[:300], huge):
        (tmp_path / "a.png").write_bytes(content)
        for source in (content, tmp_path / "a.png"):
            with pytest.raises(InputError, match=r"^(is no|cannot be read)"):
                read_picture(source)
    for name in ("missing.png", ""):
        with pytest.raises(InputError, match="is no file"):
            read_picture(tmp_path / name)


def test_a_large_picture_is_rejected_before_it_is_decoded():
    with pytest.raises(InputError, match="has 12000 x 9000 pixels, more than 100,000,000"):
        read_picture(saved(Image.new("1", (12_000, 9_000)), "PNG"))


def test_the_ink_is_dark_whatever_its_part_of_the_paper():
    for pen in (4, 12, 30):
        assert is_dark_on_light(torch.from_numpy(np.array(seven(pen=pen))[None] / 255))
        assert not is_dark_on_light(torch.from_numpy(np.array(seven(pen=pen, ink=255, paper=0))[None] / 255))


# The command.


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_that_is_to_be_turned_is_read_as_every_other_picture(compression, tmp_path):
    upright = seven()
    path = tmp_path / "seven.tif"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees to see it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, compression=compression)
    assert np.array_equal(np.asarray(read_picture(path)), np.asarray(upright))
    assert np.array_equal(np.asarray(read_picture(path.read_bytes())), np.asarray(upright))


@pytest.mark.parametrize("side", [11_000, 15_000])
def test_a_picture_of_too_many_pixels_is_to_be_reduced(side, tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (side, side)).save(path)
    with pytest.raises(InputError, match=r"more than 100,000,000.*: reduce it"):
        read_picture(path)


def test_sixteen_bits_become_eight_as_in_a_folder(tmp_path):
    path = tmp_path / "deep.png"
    put(path, (np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64))
    decoded = Decoder(1, (64, 64)).decode(str(path))[0].numpy()
    assert np.array_equal(np.asarray(read_picture(path)), decoded)
