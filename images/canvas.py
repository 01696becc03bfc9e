"""Translated and cluttered images (section 4.1), made a whole batch at a time on the images' device.

After the authors' generator of Cluttered MNIST: windows cut from random images of the same split, then the image
itself, each added to an empty canvas at a uniformly random place, and the sum cut off at white.

    images, centres = draw_canvases(images, pool, size=60, num_clutter=4, generator=generator)
"""

from typing import NamedTuple

import torch
from torch import Tensor

WINDOW = 8  # width and height of a clutter piece, in pixels


class Canvases(NamedTuple):
    images: Tensor  # (B, C, size, size) uint8
    centres: Tensor  # (B, 2), (x, y) in [-1, 1] of the middle of the image that was placed


def draw_canvases(
    images: Tensor,
    pool: Tensor,
    *,
    size: int,
    num_clutter: int,
    generator: torch.Generator | None = None,
    shard: tuple[slice, int] | None = None,
) -> Canvases:
    """Places each image on a canvas of its own, among clutter.

    Args:
        images: (B, C, H, W) uint8, at most size x size.
        pool: (N, C, H, W) uint8, the images that clutter is cut from.
        size: width and height of a canvas, in pixels.
        num_clutter: pieces per canvas.
        generator: source of pieces and places, on the images' device.
        shard: (part, count), if the images are this part of a batch of so many, to be placed as in the whole batch.
    """
    batch, channels, height, width = images.shape
    part, count = shard or (slice(None), batch)

    def draw(high: int, *shape: int) -> Tensor:
        """Uniform whole numbers from 0 to high."""
        return torch.randint(high + 1, (count, *shape), device=images.device, generator=generator)[part]

    # Whole numbers either way: int16 takes a processor half as long, and holds the sum of 128 pieces.
    exact = torch.int16 if images.device.type == "cpu" and num_clutter < 128 else torch.float32
    canvas = torch.zeros(batch, channels, size * size, dtype=exact, device=images.device)
    if num_clutter:
        rows, columns = min(WINDOW, height), min(WINDOW, width)
        source = draw(len(pool) - 1, num_clutter)[..., None, None]  # (B, num_clutter, 1, 1)
        row = draw(height - rows, num_clutter)[..., None, None] + _steps(rows, images)
        column = draw(width - columns, num_clutter)[..., None, None]
        plane = source * channels + _steps(channels, images)[:, None]
        starts = (plane * height + row) * width + column  # of the pieces' rows, each of which is copied whole
        pieces = pool.flatten().unfold(0, columns, 1).index_select(0, starts.flatten())
        pieces = pieces.view(*starts.shape, columns)  # (B, num_clutter, C, rows, columns)
        _add(canvas, pieces, draw(size - rows, num_clutter), draw(size - columns, num_clutter), size)
    top, left = draw(size - height, 1), draw(size - width, 1)
    _add(canvas, images[:, None], top, left, size)
    middles = torch.cat([left + width / 2, top + height / 2], dim=1)  # (B, 2), in pixels
    return Canvases(canvas.clamp_(max=255).to(torch.uint8).view(batch, channels, size, size), middles / size * 2 - 1)


def _add(canvas: Tensor, pieces: Tensor, tops: Tensor, lefts: Tensor, size: int):
    """Adds pieces (B, K, C, h, w) to canvas (B, C, size * size), with their top left corners at (B, K)."""
    height, width = pieces.shape[-2:]
    rows = tops[..., None, None] + _steps(height, pieces)[:, None]
    columns = lefts[..., None, None] + _steps(width, pieces)
    index = (rows * size + columns).flatten(1)[:, None].expand(-1, canvas.shape[1], -1)  # (B, C, K * h * w)
    canvas.scatter_add_(2, index, pieces.transpose(1, 2).flatten(2).to(canvas.dtype))


def _steps(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)
