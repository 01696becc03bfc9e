"""Makes any picture what a model was trained on: a photo, a scan, a drawing.

    seen = fit_picture(read_picture("digit.jpg"), MNIST)
    seen.image, seen.notes    # (1, 28, 28) uint8; what was done

Digits of MNIST are light ink on black, 20 pixels tall or wide, their centre of mass in the middle of 28x28.
A photo has dark ink on paper of any size, unevenly lit: `fit_picture` finds the ink and places it the same way.
"""

import io
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from images.folder import FORMATS, sixteen_to_eight
from images.listing import ENDINGS
from training.cli import InputError

Fit = Literal["auto", "ink", "pad", "stretch", "none"]
Invert = Literal["auto", "True", "False"]

ENDINGS_OF_ONE = (*ENDINGS, ".gif")
FORMATS_OF_ONE = (*FORMATS, "GIF")
LARGEST = 100_000_000  # pixels of a picture that is read; a damaged header may claim any number
WORKING = 400  # pixels of the longer side at which ink is looked for
DIGIT = 28  # pixels of MNIST's images
PEN = 0.11  # of a digit's longer side: a thinner pen is widened to this, or it would vanish
FAINT = 0.06  # least difference between ink and paper, of that between black and white


class Kind(NamedTuple):
    """What images a model was trained on."""

    channels: int  # 1 for grey, 3 for colour
    size: tuple[int, int]  # height and width
    canvas: bool  # they were somewhere on a larger canvas
    light_on_dark: bool  # they are light on black
    box: int  # pixels of a digit's longer side, of DIGIT; 0: they are no digits
    placed: tuple[int, int]  # height and width of a digit's image, before it came on a canvas
    beyond: tuple[float, ...]  # what pads a picture, from 0 to 1, for each channel


MNIST = Kind(1, (DIGIT, DIGIT), False, True, 20, (DIGIT, DIGIT), (0.0,))


class Seen(NamedTuple):
    """A picture as a model receives it."""

    image: Tensor  # (C, H, W) uint8
    centre: tuple[float, float]  # (x, y) in [-1, 1] of the middle of what was placed
    notes: list[str]  # what was done to the picture, in words


def read_picture(source: str | Path | bytes) -> Image.Image:
    """A picture, upright, of mode L or RGB, on paper if it is transparent.

    Args:
        source: a file, or its content.
    Raises:
        InputError: it cannot be read, is no image, or is larger than LARGEST pixels. Its text goes on after the name of
            the picture, as do those of `fit_picture`: "cannot be read ...".
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is read all the same
            # Not opened by its name; see `images.folder.open_image`.
            file = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
            with file, Image.open(file, formats=FORMATS_OF_ONE) as image:
                if image.width * image.height > LARGEST:
                    raise InputError(f"has {image.width} x {image.height} pixels, more than {LARGEST:,}: reduce it")
                return _plain(ImageOps.exif_transpose(image))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError("is no file: name one that exists") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"has more than {LARGEST:,} pixels: reduce it") from error
    except UnidentifiedImageError as error:
        raise InputError("is no image of a kind that can be read: name a PNG or a JPEG, say") from error
    except InputError:
        raise
    except Exception as error:  # Pillow names no set of errors for damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"cannot be read as an image ({reason}): repair it, or name another") from error


def _plain(image: Image.Image) -> Image.Image:
    """Any mode as L or RGB. What is transparent becomes white under dark ink and black under light ink."""
    if image.mode.startswith("I;16"):
        return sixteen_to_eight(image)
    if image.mode in ("I", "F"):  # 32 bits, which convert would cut off at 255
        values = np.asarray(image, dtype=np.float32)
        low, high = values.min(), values.max()
        return Image.fromarray(np.uint8(255 * (values - low) / max(high - low, 1e-6)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            small = np.asarray(_at_most(image, 256), dtype=np.float32)
            alpha = small[..., 3]
            ink = (small[..., :3].mean(axis=2) * alpha).sum() / max(alpha.sum(), 1)
            paper = Image.new("RGBA", image.size, "black" if ink > 127 else "white")
            image = Image.alpha_composite(paper, image)
    return image if image.mode == "L" else image.convert("L" if image.mode in ("1", "LA") else "RGB")


def fit_picture(picture: Image.Image, kind: Kind, fit: Fit = "auto", invert: Invert = "auto") -> Seen:
    """A picture as the images that a model was trained on.

    Args:
        picture: of `read_picture`.
        kind: of the model's images.
        fit: "ink" finds the ink and places it as MNIST's digits are; "pad" and "stretch" resize the whole picture with
            its aspect kept or not; "none" does not resize. "auto" takes a picture as it is that has the model's size
            already, or is smaller than its canvas; else it finds the ink of digits, and pads other pictures. Dark ink
            on paper of MNIST's size is no image of MNIST, and its ink is found, too.
        invert: whether to turn dark ink on white into light ink on black. "auto" does so for models of light things on
            black, if the picture's paper is lighter than its ink.
    Raises:
        InputError: nothing is drawn in the picture; or it is larger than the model's and not to be resized.
    """
    grey = kind.channels == 1
    colours = _to_tensor(picture.convert("L" if grey else "RGB"))
    notes = ["colour to grey"] if grey and picture.mode == "RGB" and not _is_grey(picture) else []
    inverted = invert == "True" or (invert == "auto" and kind.light_on_dark and is_dark_on_light(colours))
    if inverted:
        colours = 1 - colours
        notes.append("dark ink on light paper inverted")
    if fit == "auto":
        height, width = kind.size
        as_trained = picture.size == (width, height) and (kind.canvas or not inverted)
        small = kind.canvas and picture.height <= height and picture.width <= width
        fit = "none" if as_trained or small else "ink" if kind.box else "pad"
    if fit == "ink":
        return _fit_ink(colours, kind, notes)
    return _fit_whole(colours, kind, fit, notes)


def _at_most(picture: Image.Image, pixels: int) -> Image.Image:
    """A picture whose longer side is below twice so many pixels."""
    return picture.reduce(max(1, max(picture.size) // pixels))


def _is_grey(picture: Image.Image) -> bool:
    """Whether an RGB picture has no colour that one would see."""
    red, green, blue = np.asarray(_at_most(picture, 256), dtype=np.int16).transpose(2, 0, 1)
    return max(abs(red - green).max(), abs(green - blue).max()) < 16


def _fit_ink(colours: Tensor, kind: Kind, notes: list[str]) -> Seen:
    """The ink alone, scaled as a digit; where it is in the picture, there it is on a canvas, if there is room."""
    digit, (x, y) = place_ink(colours.mean(0), kind.box or MNIST.box)
    digit = _resize(digit, kind.placed if kind.canvas else kind.size).expand(kind.channels, -1, -1)
    notes = [*notes, "ink found and scaled as a digit"]
    return _on_canvas(digit, kind, (x, y), torch.zeros(kind.channels), notes)


def _fit_whole(colours: Tensor, kind: Kind, fit: Fit, notes: list[str]) -> Seen:
    (height, width), (rows, columns) = kind.size, colours.shape[1:]
    if fit == "none" and (rows > height or columns > width):
        raise InputError(
            f"is {columns} x {rows} pixels, and the model takes {width} x {height}: reduce it, or let it be resized"
        )
    if fit == "stretch":
        size = kind.size
    elif fit == "pad":
        ratio = min(height / rows, width / columns)
        size = max(round(rows * ratio), 1), max(round(columns * ratio), 1)
    else:
        size = rows, columns
    if size != (rows, columns):
        notes = [*notes, f"{columns} x {rows} to {size[1]} x {size[0]} pixels"]
        colours = _resize(colours, size)
    around = torch.zeros(kind.channels) if kind.light_on_dark else torch.tensor(kind.beyond)
    return _on_canvas(colours, kind, (0.5, 0.5), around, notes)


def _on_canvas(image: Tensor, kind: Kind, at: tuple[float, float], around: Tensor, notes: list[str]) -> Seen:
    """An image (C, h, w) on a canvas of the model's size, its middle at (x, y) from 0 to 1, if there is room."""
    (height, width), (rows, columns) = kind.size, image.shape[1:]
    if (rows, columns) == kind.size:
        return Seen(_to_bytes(image), (0.0, 0.0), notes)
    left = _between(round(at[0] * width - columns / 2), width - columns)
    top = _between(round(at[1] * height - rows / 2), height - rows)
    whole = around.view(-1, 1, 1).expand(kind.channels, height, width).clone()
    whole[:, top : top + rows, left : left + columns] = image
    middle = (2 * (left + columns / 2) / width - 1, 2 * (top + rows / 2) / height - 1)
    return Seen(_to_bytes(whole), middle, [*notes, f"placed on {width} x {height}"])


def is_dark_on_light(image: Tensor) -> bool:
    """Whether the ink, which covers less than half of an image (C, H, W), is darker than the paper."""
    grey = _reduced(image.mean(0), 128)
    paper = grey.median()
    return bool(paper - grey.min() > grey.max() - paper)


def place_ink(grey: Tensor, box: int = MNIST.box) -> tuple[Tensor, tuple[float, float]]:
    """Light ink on dark paper (H, W), from 0 to 1, as one of MNIST's digits.

    Args:
        box: pixels that its longer side becomes.
    Returns:
        The digit, (1, 28, 28), and the middle of its box in the picture, (x, y) from 0 to 1.
    Raises:
        InputError: there is no ink.
    """
    grey = _reduced(grey, WORKING)
    ink = (grey - _paper(grey)).clamp(min=0)
    smooth = F.avg_pool2d(ink[None], 3, 1, 1)[0] if max(ink.shape) >= 128 else ink  # without the noise
    top = smooth.max()
    if top < FAINT:
        raise InputError("shows no ink: it must differ from its paper")
    drawn = smooth > 0.4 * top
    (above, below), (left, right) = (
        (int(lines[0]), int(lines[-1]) + 1) for lines in (drawn.any(d).nonzero()[:, 0] for d in (1, 0))
    )
    ink, drawn = ink[above:below, left:right] / top, drawn[above:below, left:right]
    ink = ((ink - 0.2) / 0.6).clamp(0, 1)
    longer = max(ink.shape)
    thicker = round((PEN * longer - pen_width(drawn)) / 2)
    if thicker > 0:
        ink = F.pad(ink, [thicker] * 4)
        ink = _lightest(ink, thicker)
    ratio = box / max(ink.shape)
    digit = _resize(ink[None], [max(round(side * ratio), 1) for side in ink.shape])
    digit = digit / digit.max()
    return _by_mass(digit), ((left + right) / 2 / grey.shape[1], (above + below) / 2 / grey.shape[0])


def pen_width(drawn: Tensor) -> float:
    """The mean width of strokes (h, w) of booleans, in pixels: twice their area by the length of their outline."""
    inside = F.pad(drawn, [1, 1, 1, 1])
    edge = ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]) & drawn
    return 2 * drawn.sum().item() / max(edge.sum().item(), 1)


def _paper(grey: Tensor) -> Tensor:
    """The paper under light ink: an opening, which removes what is narrower than a quarter of the picture."""
    small = _reduced(grey, 128)
    reach = max(small.shape) // 8
    opened = _lightest(-_lightest(-small, reach), reach)
    return _resize(opened[None], grey.shape)[0]


def _lightest(grey: Tensor, reach: int) -> Tensor:
    """The lightest pixel of (H, W) in a square that reaches so many pixels to each side."""
    rows = F.max_pool2d(grey[None], (2 * reach + 1, 1), 1, (reach, 0))
    return F.max_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach))[0]


def _by_mass(digit: Tensor) -> Tensor:
    """A digit (1, h, w) in 28x28, its centre of mass in the middle as far as there is room."""
    whole = torch.zeros(1, DIGIT, DIGIT)
    starts = []
    for axis in (1, 2):
        weights = digit.sum(dim=3 - axis).flatten()
        centre = (weights * (torch.arange(len(weights)) + 0.5)).sum() / weights.sum()
        starts.append(_between(round(DIGIT / 2 - centre.item()), DIGIT - len(weights)))
    top, left = starts
    whole[:, top : top + digit.shape[1], left : left + digit.shape[2]] = digit
    return whole


def _between(value: int, highest: int) -> int:
    return min(max(value, 0), highest)


def _reduced(grey: Tensor, longest: int) -> Tensor:
    """(H, W), smaller if its longer side is above so many pixels."""
    ratio = longest / max(grey.shape)
    return grey if ratio >= 1 else _resize(grey[None], [max(round(side * ratio), 1) for side in grey.shape])[0]


def _resize(image: Tensor, size) -> Tensor:
    """(C, H, W) -> (C, *size), bilinear, every pixel of the larger image counted."""
    return F.interpolate(image[None], tuple(size), mode="bilinear", antialias=True)[0].clamp(0, 1)


def _to_tensor(picture: Image.Image) -> Tensor:
    """(C, H, W), from 0 to 1."""
    pixels = np.array(picture)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).float() / 255


def _to_bytes(image: Tensor) -> Tensor:
    return (255 * image.clamp(0, 1)).round().to(torch.uint8)
