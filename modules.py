"""The networks of the paper: retina, glimpse, core (two), location, action and baseline.

"Recurrent Models of Visual Attention", Mnih, Heess, Graves, Kavukcuoglu 2014, sections 3 and 4.

    retina = Retina(patch_size=8, num_patches=3, glimpse_scale=2)
    glimpse = retina(images, locations)  # (B, 3 * C * 8 * 8)
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TABLE_COST = 3.0  # making a pixel's entry of a summed-area table takes as long as so many reads of a pixel
PATCH_COST = 1000  # so do the operations of a coarse patch that is read without a table, whatever its size


class Scene(NamedTuple):
    """A batch of images, ready to be read at any place; see `Retina.prepare`."""

    pixels: Tensor  # (B, C, H * W), uint8 or normalised
    mean: Tensor | None  # (C, 1, 1), by which uint8 pixels are normalised once they are read
    std: Tensor | None  # (C, 1, 1)
    sums: Tensor | None  # (B, C, (H + 1) * (W + 1)), their summed-area table; None if it would not pay
    height: int
    width: int


class Retina(nn.Module):
    """The glimpse sensor rho(x, l): square patches around a location, each wider and coarser than the one before.

    Patch i is g * s**i pixels wide and is average pooled back to g x g (section 4). A patch of width w around pixel c
    covers [c - w // 2, c - w // 2 + w); outside the normalised image is 0. Patches are read from a summed-area table,
    so that a glimpse costs about num_patches * g * g reads however wide it is. If the table would cost more than it
    saves, as for a single patch or large images, they are read row by row, and only pixels of the glimpse are touched.

    Args:
        patch_size: g, in pixels.
        num_patches: number of patches.
        glimpse_scale: s, a whole number.
    """

    def __init__(self, patch_size: int, num_patches: int, glimpse_scale: int):
        super().__init__()
        self.patch_size = patch_size
        self.num_patches = num_patches
        self.glimpse_scale = glimpse_scale
        self.cells = [glimpse_scale**i for i in range(num_patches)]  # width of a pooled cell, per patch
        cells = torch.tensor(self.cells)[:, None]
        corners = torch.arange(patch_size + 1) * cells - (patch_size * cells) // 2  # of the patches' cells
        self.register_buffer("corners", corners, persistent=False)  # (num_patches, g + 1)
        self.register_buffer("areas", (cells**2)[:, :, None], persistent=False)  # (num_patches, 1, 1)

    def forward(self, images: Tensor, locations: Tensor) -> Tensor:
        """One glimpse of each image.

        Args:
            images: (B, C, H, W), normalised.
            locations: (B, 2), (x, y); (-1, -1) is the top-left corner, (1, 1) the bottom-right.
        Returns:
            (B, num_patches * C * g * g), ordered patch, channel, row, column.
        """
        return self.look(self.prepare(images, num_glimpses=1), locations)

    def prepare(
        self, images: Tensor, num_glimpses: int, mean: Tensor | None = None, std: Tensor | None = None
    ) -> Scene:
        """Prepares a batch for num_glimpses glimpses: made once, read by `look` at every step.

        Args:
            images: (B, C, H, W), normalised, or uint8, whose pixels are normalised as they are read if that is less.
            num_glimpses: how often they will be looked at.
            mean, std: (C, 1, 1), of uint8 images as numbers from 0 to 1.
        """
        height, width = images.shape[2:]
        without_table = num_glimpses * sum((self.patch_size * cell) ** 2 + PATCH_COST for cell in self.cells[1:])
        sums = None
        if TABLE_COST * height * width < without_table:
            # Bytes add up exactly. Differences of large sums of real numbers lose digits: double precision where the
            # device has it (Apple's has not).
            precise = torch.float32 if images.device.type == "mps" else torch.float64
            whole = torch.int32 if 255 * height * width < 2**31 else torch.int64
            precise = whole if images.dtype == torch.uint8 else precise
            # A dtype for each sum: compiled, one without it would be of int64, and four times as slow.
            padded = F.pad(images.to(precise), (1, 0, 1, 0))
            sums = padded.cumsum(-1, dtype=precise).cumsum(-2, dtype=precise).flatten(2)
        return Scene(images.flatten(2), mean, std, sums, height, width)

    def look(self, scene: Scene, locations: Tensor) -> Tensor:
        """The glimpses of a prepared batch; arguments and result as `forward`."""
        columns = ((locations[:, 0] + 1) / 2 * scene.width).floor().long()  # (B,)
        rows = ((locations[:, 1] + 1) / 2 * scene.height).floor().long()
        if scene.sums is not None:
            return self._difference(scene, rows, columns).transpose(1, 2).flatten(1)
        patches = [self._crop(scene, rows, columns)]
        patches += [self._pool(scene, rows, columns, cell) for cell in self.cells[1:]]
        return torch.cat([patch.flatten(1) for patch in patches], dim=1)

    def _difference(self, scene: Scene, rows: Tensor, columns: Tensor) -> Tensor:
        """The means of the cells of all patches, out of the summed-area table: (B, C, num_patches, g, g)."""
        rows = (rows[:, None, None] + self.corners).clamp(0, scene.height)  # (B, num_patches, g + 1)
        columns = (columns[:, None, None] + self.corners).clamp(0, scene.width)
        sums = _read(scene.sums, rows, columns, scene.width + 1).diff(dim=-1).diff(dim=-2)  # of the cells' pixels
        if scene.pixels.dtype != torch.uint8:
            return (sums / self.areas).to(scene.pixels.dtype)
        # The mean is taken off for each pixel of a cell that is inside the image.
        heights = 255 * scene.mean[:, None] * rows.diff(dim=-1)[:, None, :, :, None]  # (B, C, num_patches, g, 1)
        widths = columns.diff(dim=-1).float()[:, None, :, None]  # (B, 1, num_patches, 1, g)
        return sums.float().addcmul(heights, widths, value=-1) / (255 * scene.std[:, None] * self.areas)

    def _crop(self, scene: Scene, rows: Tensor, columns: Tensor) -> Tensor:
        """The pixels of the finest patch: (B, C, g, g), 0 outside the image."""
        rows, inside_rows = _span(rows, self.patch_size, scene.height)
        columns, inside_columns = _span(columns, self.patch_size, scene.width)
        rows, columns = rows.clamp(0, scene.height - 1), columns.clamp(0, scene.width - 1)
        inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
        pixels = _read(scene.pixels, rows, columns, scene.width)
        return normalized(pixels, scene.mean, scene.std).where(inside, 0)

    def _pool(self, scene: Scene, rows: Tensor, columns: Tensor, cell: int) -> Tensor:
        """The means of a patch's cells, each of cell x cell pixels: (B, C, g, g).

        A row is copied whole, which is much faster than pixel by pixel. If the patch crosses the image's left or right
        border, the copy starts or ends at the border, and only the pixels that the patch covers count.
        """
        batch, channels, _ = scene.pixels.shape
        size, cells = self.patch_size * cell, (self.patch_size, cell)
        rows, inside_rows = _span(rows, size, scene.height)
        columns, inside_columns = _span(columns, size, scene.width)
        length = min(size, scene.width)  # of the copied part of a row
        first = columns[:, :1].clamp(0, scene.width - length)  # its first column, (B, 1)
        planes = torch.arange(batch * channels, device=rows.device).view(batch, channels, 1)
        starts = (planes * scene.height + rows.clamp(0, scene.height - 1)[:, None]) * scene.width + first[:, None]
        copied = scene.pixels.flatten().unfold(0, length, 1).index_select(0, starts.flatten())
        copied = normalized(copied.view(batch, channels, size, length), scene.mean, scene.std)
        copied = copied * inside_rows[:, None, :, None]
        strips = copied.unflatten(2, cells).sum(3)  # (B, C, g, length)
        index = (columns - first).clamp(0, length - 1)[:, None, None].expand(-1, channels, self.patch_size, -1)
        pixels = strips.gather(3, index) * inside_columns[:, None, None]  # (B, C, g, size)
        return pixels.unflatten(3, cells).sum(4) / cell**2


def normalized(pixels: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Pixels (..., C, h, w): uint8 by the mean and std of numbers from 0 to 1; others are normalised already."""
    return pixels if pixels.dtype != torch.uint8 else (pixels.float() - 255 * mean) / (255 * std)


def _span(centres: Tensor, size: int, end: int) -> tuple[Tensor, Tensor]:
    """The rows, or columns, of patches around centres (B,), and which are in an image of so many: (B, size) each."""
    lines = centres[:, None] + torch.arange(size, device=centres.device) - size // 2
    return lines, (lines >= 0) & (lines < end)


def _read(planes: Tensor, rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """The crossings of rows and columns: planes (B, C, H * W), rows and columns (B, ..., n) -> (B, C, ..., n, n)."""
    index = (rows[..., :, None] * width + columns[..., None, :])[:, None]  # (B, 1, ..., n, n)
    batch, channels, size = planes.shape
    # With an index of one dimension the compiler would divide to find each entry's row and column, which takes longer.
    planes = planes.view(batch, channels, *[1] * (index.ndim - 3), size).expand(-1, -1, *index.shape[2:-1], -1)
    return planes.gather(-1, index.expand(-1, channels, *index.shape[2:]))


class GlimpseNetwork(nn.Module):
    """f_g: what was seen and where, joined into g_t (section 3.1; the layers, section 4).

    h_g = Rect(Linear(rho)), h_l = Rect(Linear(l)), g_t = Rect(Linear(h_g) + Linear(h_l)).
    """

    def __init__(self, *, glimpse_size: int, glimpse_hidden: int, loc_hidden: int, hidden_size: int):
        super().__init__()
        self.what = nn.Linear(glimpse_size, glimpse_hidden)
        self.where = nn.Linear(2, loc_hidden)
        # Linear(h_g) + Linear(h_l) as one map of both side by side: faster than two products of half the size.
        self.joined = nn.Linear(glimpse_hidden + loc_hidden, hidden_size)

    def forward(self, glimpse: Tensor, location: Tensor) -> Tensor:
        """glimpse (B, glimpse_size), location (B, 2) -> g_t (B, hidden_size)."""
        what_and_where = torch.cat([self.what(glimpse), self.where(location)], dim=1)
        return F.relu(self.joined(F.relu(what_and_where)))


class CoreNetwork(nn.Module):
    """f_h: the recurrent state h_t = Rect(Linear(h_{t-1}) + Linear(g_t)) (section 4).

    Args:
        hidden_size: size of g_t and h_t.
        keep: start with h_t as the sum of h_{t-1} and what is new, so that early glimpses last: the recurrent weights
            are the identity (Le, Jaitly and Hinton 2015, "A simple way to initialize recurrent networks of rectified
            linear units").
    """

    def __init__(self, *, hidden_size: int, keep: bool = False):
        super().__init__()
        self.from_glimpse = nn.Linear(hidden_size, hidden_size)
        self.from_hidden = nn.Linear(hidden_size, hidden_size, bias=False)  # the sum has one bias
        if keep:
            nn.init.eye_(self.from_hidden.weight)

    def forward(self, glimpse: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """g_t (B, hidden_size), the state before, None for h_0 = 0 -> h_t (B, hidden_size), the state after."""
        hidden = self.from_glimpse(glimpse)
        if state is not None:  # a product with zeros would cost as much as any other
            hidden = hidden + self.from_hidden(state)
        hidden = F.relu(hidden)
        return hidden, hidden


class LSTMCore(nn.Module):
    """f_h as an LSTM, which the paper uses for its game alone (section 4.2).

    Args:
        hidden_size: size of g_t and h_t.
        keep: start with a forget gate of bias 1, so that early glimpses last.
    """

    def __init__(self, *, hidden_size: int, keep: bool = False):
        super().__init__()
        self.cell = nn.LSTMCell(hidden_size, hidden_size)
        if keep:
            with torch.no_grad():
                self.cell.bias_hh[hidden_size : 2 * hidden_size].fill_(1.0)  # gates: input, forget, cell, output

    def forward(self, glimpse: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `CoreNetwork.forward`; the state is h_t and the cell, (B, hidden_size) each."""
        hidden, cell = self.cell(glimpse, state)
        return hidden, (hidden, cell)


class LocationNetwork(nn.Module):
    """f_l: the mean of the Gaussian from which the next location is drawn (section 4).

    Args:
        hidden_size: size of h_t.
        locator_hidden: units of a hidden layer; 0 is the paper's linear network.
        num_steps: locations that the policy chooses in a rollout.
        scan_radius: 0: the means start at the centre, as the paper's. Above 0: each step has a bias of its own, learned
            like the rest, that starts the means on a circle of this radius, evenly spread.
    """

    def __init__(self, *, hidden_size: int, locator_hidden: int, num_steps: int, scan_radius: float):
        super().__init__()
        self.hidden = nn.Identity()
        if locator_hidden:
            self.hidden = nn.Sequential(nn.Linear(hidden_size, locator_hidden), nn.ReLU())
        self.mean = nn.Linear(locator_hidden or hidden_size, 2)
        self.scan = None
        if scan_radius:
            self.scan = nn.Parameter(torch.atanh(circle(num_steps, scan_radius)))

    def forward(self, hidden: Tensor, step: int) -> Tensor:
        """The mean of the next location.

        Args:
            hidden: h_t, (B, hidden_size).
            step: t, from 0 for the first location that the policy chooses.
        Returns:
            (B, 2), in (-1, 1).
        Raises:
            ValueError: there is no bias for this step, as the model was built with fewer.
        """
        # Two numbers an image: a sum that fuses with its neighbours costs less than a product, and stays float32.
        mean = (self.hidden(hidden)[:, None] * self.mean.weight).sum(dim=-1) + self.mean.bias
        if self.scan is not None:
            if step >= len(self.scan):
                raise ValueError(f"the policy has a bias for each of {len(self.scan)} locations, none for another")
            mean = mean + self.scan[step]
        return torch.tanh(mean)


def circle(count: int, radius: float, device: torch.device | None = None) -> Tensor:
    """Locations around the centre, evenly spread: (count, 2)."""
    angles = 2 * math.pi * torch.arange(count, device=device) / max(count, 1)
    return radius * torch.stack([angles.cos(), angles.sin()], dim=1)


class ActionNetwork(nn.Module):
    """f_a: the classifier, a linear softmax on the last hidden state (section 4)."""

    def __init__(self, *, hidden_size: int, num_classes: int):
        super().__init__()
        self.scores = nn.Linear(hidden_size, num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """h_T (B, hidden_size) -> log-probabilities (B, num_classes)."""
        return F.log_softmax(self.scores(hidden), dim=-1, dtype=torch.float32)


class BaselineNetwork(nn.Module):
    """b_t: the reward expected at h_t, which takes variance out of REINFORCE (section 3.2)."""

    def __init__(self, *, hidden_size: int):
        super().__init__()
        self.expected_reward = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """h_t (..., hidden_size) -> b_t (...)."""
        return self.expected_reward(hidden).squeeze(-1)
