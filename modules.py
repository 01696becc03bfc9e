"""The boxes of the paper's figure 1: retina, glimpse, core, location, action and baseline networks.

"Recurrent Models of Visual Attention", Mnih, Heess, Graves, Kavukcuoglu 2014, section 3.

    retina = Retina(patch_size=8, num_patches=3, glimpse_scale=2)
    glimpse = retina(images, locations)  # (B, 3 * C * 8 * 8)
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Scene(NamedTuple):
    """A batch of images made ready to be read at any place; see `Retina.prepare`."""

    pixels: Tensor  # (B, C, (H + 2) * (W + 2)), the images in a frame of zeros
    sums: Tensor | None  # (B, C, (H + 1) * (W + 1)), their summed-area table; None where no patch is coarse
    size: Tensor  # (2,), width and height in pixels


class Retina(nn.Module):
    """The glimpse sensor rho(x, l): square patches around a location, each wider and coarser than the one before.

    Patch i is g * s**i pixels wide and is average pooled back to g x g (section 3.1). A patch of width w around pixel c
    covers [c - w // 2, c - w // 2 + w); outside the image is 0. The finest patch is read pixel by pixel, the coarse
    ones from a summed-area table, so that a glimpse costs about num_patches * g * g reads however wide it is.

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
        cells = torch.tensor([glimpse_scale**i for i in range(num_patches)])  # width of a pooled cell, per patch
        corners = torch.arange(patch_size + 1) * cells[:, None] - (patch_size * cells[:, None]) // 2
        self.register_buffer("fine_offsets", corners[0, :-1], persistent=False)  # (g,), of pixels
        self.register_buffer("coarse_offsets", corners[1:], persistent=False)  # (num_patches - 1, g + 1), of corners
        self.register_buffer("coarse_areas", (cells[1:] ** 2)[:, None, None], persistent=False)

    def forward(self, images: Tensor, locations: Tensor) -> Tensor:
        """One glimpse of each image.

        Args:
            images: (B, C, H, W).
            locations: (B, 2), (x, y); (-1, -1) is the top-left corner, (1, 1) the bottom-right.
        Returns:
            (B, num_patches * C * g * g), ordered patch, channel, row, column.
        """
        return self.look(self.prepare(images), locations)

    def prepare(self, images: Tensor) -> Scene:
        """What all glimpses of a batch share: made once, read by `look` at every step."""
        sums = None
        if self.num_patches > 1:
            # Differences of large sums lose digits: double precision where the device has it (Apple's has not).
            precise = torch.float32 if images.device.type == "mps" else torch.float64
            table = images.to(precise).cumsum(-1).cumsum(-2)
            sums = F.pad(table, (1, 0, 1, 0)).flatten(2)
        size = torch.tensor([images.shape[3], images.shape[2]], device=images.device)
        return Scene(F.pad(images, (1, 1, 1, 1)).flatten(2), sums, size)

    def look(self, scene: Scene, locations: Tensor) -> Tensor:
        """The glimpses of a prepared batch; arguments and result as `forward`."""
        centres = ((locations + 1) / 2 * scene.size).floor().long()  # (B, 2)
        # Whatever lies beyond the border is read in the frame of zeros.
        places = (centres[:, :, None] + self.fine_offsets).clamp_min(-1).minimum(scene.size[:, None]) + 1  # (B, 2, g)
        fine = _read(scene.pixels, places[:, 1], places[:, 0], scene.size[0] + 2)  # (B, C, g, g)
        if scene.sums is None:
            return fine.flatten(1)

        corners = (centres[:, :, None, None] + self.coarse_offsets).clamp_min(0)  # (B, 2, num_patches - 1, g + 1)
        corners = corners.minimum(scene.size[:, None, None])
        corner_sums = _read(scene.sums, corners[:, 1], corners[:, 0], scene.size[0] + 1)
        cells = corner_sums.diff(dim=-1).diff(dim=-2) / self.coarse_areas  # (B, C, num_patches - 1, g, g)
        coarse = cells.to(fine.dtype).transpose(1, 2)
        return torch.cat([fine.flatten(1), coarse.flatten(1)], dim=1)


def _read(planes: Tensor, rows: Tensor, columns: Tensor, width: Tensor) -> Tensor:
    """The crossings of rows and columns: planes (B, C, H * W), rows and columns (B, ..., n) -> (B, C, ..., n, n)."""
    index = rows[..., :, None] * width + columns[..., None, :]
    batch, channels, _ = planes.shape
    return planes.gather(2, index.view(batch, 1, -1).expand(-1, channels, -1)).view(batch, channels, *index.shape[1:])


class GlimpseNetwork(nn.Module):
    """f_g: what was seen and where, joined into g_t (section 3.1).

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
    """f_h: the recurrent state h_t = Rect(Linear(h_{t-1}) + Linear(g_t)) (section 3.1)."""

    def __init__(self, *, hidden_size: int):
        super().__init__()
        self.from_glimpse = nn.Linear(hidden_size, hidden_size)
        self.from_hidden = nn.Linear(hidden_size, hidden_size, bias=False)  # the sum has one bias

    def forward(self, glimpse: Tensor, hidden: Tensor | None) -> Tensor:
        """g_t (B, hidden_size), h_{t-1} (B, hidden_size), None for h_0 = 0 -> h_t (B, hidden_size)."""
        inputs = self.from_glimpse(glimpse)
        if hidden is not None:  # a product with zeros would cost as much as any other
            inputs = inputs + self.from_hidden(hidden)
        return F.relu(inputs)


class LocationNetwork(nn.Module):
    """f_l: the mean of the Gaussian from which the next location is drawn (section 3.1).

    Args:
        hidden_size: size of h_t.
        locator_hidden: units of a hidden layer; 0 is the paper's linear network.
        num_steps: locations that the policy chooses in a rollout.
        scan_radius: where the means start. 0: all at the centre, as the paper's. Above 0: each step has a bias of its
            own, learned like the rest, that starts the means on a circle of this radius, evenly spread.
    """

    def __init__(self, *, hidden_size: int, locator_hidden: int, num_steps: int, scan_radius: float):
        super().__init__()
        self.hidden = nn.Identity()
        if locator_hidden:
            self.hidden = nn.Sequential(nn.Linear(hidden_size, locator_hidden), nn.ReLU())
        self.mean = nn.Linear(locator_hidden or hidden_size, 2)
        self.scan = None
        if scan_radius:
            angles = 2 * math.pi * torch.arange(num_steps) / max(num_steps, 1)
            self.scan = nn.Parameter(torch.atanh(scan_radius * torch.stack([angles.cos(), angles.sin()], dim=1)))

    def forward(self, hidden: Tensor, step: int) -> Tensor:
        """The mean of the next location.

        Args:
            hidden: h_t, (B, hidden_size).
            step: t, from 0 for the first location that the policy chooses.
        Returns:
            (B, 2), in (-1, 1).
        """
        mean = self.mean(self.hidden(hidden))
        if self.scan is not None:
            mean = mean + self.scan[step]
        return torch.tanh(mean)


class ActionNetwork(nn.Module):
    """f_a: the classifier, a linear softmax on the last hidden state (section 4)."""

    def __init__(self, *, hidden_size: int, num_classes: int):
        super().__init__()
        self.scores = nn.Linear(hidden_size, num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """h_T (B, hidden_size) -> log-probabilities (B, num_classes)."""
        return F.log_softmax(self.scores(hidden), dim=-1)


class BaselineNetwork(nn.Module):
    """b_t: the reward expected at h_t, which takes variance out of REINFORCE (section 3.2)."""

    def __init__(self, *, hidden_size: int):
        super().__init__()
        self.expected_reward = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """h_t (..., hidden_size) -> b_t (...)."""
        return self.expected_reward(hidden).squeeze(-1)
