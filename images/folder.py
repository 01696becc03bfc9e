"""A user's own images: what the files are, and their pixels as a viewer shows them.

headers = read_headers(list_images(Path("images/train")).paths, resized=False)
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from training.cli import InputError
from utils import ignore_stop_signals, spared_signals

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")  # a file may call itself .png and be one that starts a program
BACKGROUND = "white"  # behind what is transparent
MOST_BROKEN = 3  # files named in a message
ORIENTATION = 0x0112  # EXIF's tag: how to turn what the camera's sensor saw
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Headers(NamedTuple):
    """What the headers of a set of images say."""

    channels: int  # 3 if any image is in colour, else 1
    size: tuple[int, int]  # height and width of the first image, in pixels, turned as a viewer turns it


def read_headers(paths: Sequence[str], resized: bool, hide_bars: bool | None = None) -> Headers:
    """Opens every image, without decoding it.

    Args:
        resized: the images may have any size.
        hide_bars: tqdm's `disable`.
    Raises:
        InputError: some cannot be read, have pixels of more than 16 bits, or another size, unless they are resized.
    """
    colour, first, broken = False, None, []
    for path in tqdm(paths, "Open images", unit="img", leave=False, disable=hide_bars):
        try:
            with open_image(path) as image:
                mode = image.mode
                size = (image.width, image.height) if turn_of(image) in SIDEWAYS else (image.height, image.width)
        except MemoryError:
            raise
        except Exception as error:  # Pillow names no set of errors for bytes that are not an image
            broken.append((path, reason(error)))
            continue
        if mode in ("I", "F"):  # nobody knows between which numbers they lie
            raise InputError(f"{path} has pixels of 32 bits: save the images with 8 or 16")
        colour |= mode not in ("1", "L", "LA") and not mode.startswith("I;16")
        first = first or (size, path)
        if size != first[0] and not resized:
            (height, width), earlier = first
            raise InputError(
                f"{path} is {size[1]} x {size[0]} pixels and {earlier} {width} x {height}: "
                f"give all one size with --image_width= and --image_height="
            )
    reject_broken(broken, len(paths))
    return Headers(3 if colour else 1, first[0])


def reject_broken(broken: list[tuple[str, str]], count: int):
    """Raises InputError, which names the first broken ones, (path, reason), of so many images, if there are any."""
    if len(broken) == 1:
        [(path, why)] = broken
        raise InputError(f"{path} cannot be read as an image ({why}): repair or remove it")
    if broken:
        named = ", ".join(f"{path} ({why})" for path, why in broken[:MOST_BROKEN])
        more = f" and {len(broken) - MOST_BROKEN} more" if len(broken) > MOST_BROKEN else ""
        raise InputError(
            f"{len(broken)} of {count} files cannot be read as images: {named}{more}: repair or remove them"
        )


def reason(error: Exception) -> str:
    """Why Pillow could not read a file, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """An image, whose pixels are not decoded yet. Nothing warns of damaged tags."""
    # Not opened by its name: Pillow would map a TIFF into memory, and misread one that is to be turned.
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=FORMATS) as image:
            yield image


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """How to turn an image that was just opened, by its EXIF tag; None if there is none, or it is damaged.

    TIFF's own tag is followed by Pillow as it decodes. A PNG's is read if it stands before the pixels, as it should:
    Pillow would decode the whole image to look for a later one.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return None
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # a damaged tag stops nothing
        return None


SIDEWAYS = {TURNS[orientation] for orientation in (5, 6, 7, 8)}


class Decoded(NamedTuple):
    """A batch of images, as a worker process hands it over."""

    images: Tensor  # (B, C, H, W) uint8; black where one is broken
    broken: list[tuple[str, str]]  # (path, reason) of those that cannot be read


class Decoder(Dataset):
    """Decodes lists of files, in a worker process or this one.

    Args:
        channels: 1 for grey, 3 for colour; images are converted.
        size: (height, width); images are resized.
    """

    def __init__(self, channels: int, size: tuple[int, int]):
        self.channels = channels
        self.size = size

    def __getitems__(self, paths: list[str]) -> Decoded:
        images, broken = torch.zeros(len(paths), self.channels, *self.size, dtype=torch.uint8), []
        for image, path in zip(images, paths, strict=True):
            try:
                image.copy_(self.decode(path))
            except MemoryError:
                raise
            except Exception as error:  # Pillow names no set of errors for bytes that are not an image
                broken.append((path, reason(error)))
        return Decoded(images, broken)

    def decode(self, path: str) -> Tensor:
        """The pixels that a viewer shows, (C, H, W) uint8."""
        with open_image(path) as image:
            turn = turn_of(image)
            shown = opaque(image).convert("L" if self.channels == 1 else "RGB")
        if turn is not None:
            shown = shown.transpose(turn)
        if shown.size != self.size[::-1]:
            shown = shown.resize(self.size[::-1], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(shown)).view(*self.size, self.channels).permute(2, 0, 1)


def opaque(image: Image.Image) -> Image.Image:
    """The image on a white background, with 8 bits a channel."""
    if image.mode.startswith("I;16"):
        return sixteen_to_eight(image)
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)


def sixteen_to_eight(image: Image.Image) -> Image.Image:
    """The upper 8 of 16 bits, on white; convert would cut off at 255."""
    pixels, transparent = np.asarray(image), image.info.get("transparency", -1)
    return Image.fromarray(np.where(pixels == transparent, 255, pixels >> 8).astype(np.uint8))


class DecoderPool:
    """Worker processes that decode files. They are started at the first pass and serve all later ones.

    Args:
        decoder: what each of them runs.
        num_workers: how many; 0 decodes in this process.
    """

    def __init__(self, decoder: Decoder, num_workers: int):
        self.decoder = decoder
        self.num_workers = num_workers
        self.order: list[list[str]] = []  # of the pass, which the loader reads as it begins one
        self.loader: DataLoader | None = None
        self.is_busy = False

    def decode(self, batches: list[list[str]]) -> Iterator[Decoded]:
        """Yields each batch, given by its paths."""
        if self.is_busy:  # with a pass that is not over: this one has workers of its own
            with spared_signals():
                decoded = iter(self._make_loader(batches, persistent=False))
            yield from decoded
            return
        self.is_busy = True
        try:
            self.loader = self.loader or self._make_loader(self.order, persistent=self.num_workers > 0)
            self.order[:] = batches
            with spared_signals():
                decoded = iter(self.loader)
            yield from decoded
        finally:
            self.is_busy = False

    def _make_loader(self, order: list[list[str]], persistent: bool) -> DataLoader:
        # The loader draws a seed for its workers; not from the global generator, which draws the initial weights.
        return DataLoader(self.decoder, batch_sampler=order, num_workers=self.num_workers, collate_fn=_as_it_is,
                          persistent_workers=persistent, generator=torch.Generator(),
                          worker_init_fn=ignore_stop_signals)  # fmt: skip


def _as_it_is(decoded: Decoded) -> Decoded:
    return decoded


class ImageFiles:
    """Images of a folder that are decoded as they are asked for.

    Args:
        paths: of the images.
        labels: (N,) int64.
        pool: decodes them.
    """

    def __init__(self, paths: list[str], labels: Tensor, pool: DecoderPool):
        self.paths = paths
        self.labels = labels
        self.pool = pool

    def take(self, index: Tensor) -> "ImageFiles":
        return ImageFiles([self.paths[i] for i in index.tolist()], self.labels[index.cpu()], self.pool)

    def decode(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (images, labels) of each batch, given as indices (B,).

        Raises:
            InputError: an image cannot be read.
        """
        order = [[self.paths[i] for i in index.tolist()] for index in batches]
        for index, (images, broken) in zip(batches, self.pool.decode(order), strict=True):
            reject_broken(broken, len(index))
            yield images, self.labels[index.cpu()]

    def decode_all(self, hide_bars: bool | None = None) -> Tensor:
        """All images, (N, C, H, W) uint8.

        Raises:
            InputError: some cannot be read.
        """
        decoder, count = self.pool.decoder, len(self.paths)
        images, broken = torch.empty(count, decoder.channels, *decoder.size, dtype=torch.uint8), []
        places = torch.arange(count).split(256)
        order = [[self.paths[i] for i in index.tolist()] for index in places]
        with tqdm(total=count, desc="Read images", unit="img", leave=False, disable=hide_bars) as bar:
            for index, decoded in zip(places, self.pool.decode(order), strict=True):
                images[index] = decoded.images
                broken += decoded.broken
                bar.update(len(index))
        reject_broken(broken, count)
        return images
