"""Where to look if nothing is learned about it: what a policy must beat, and the oracle that it cannot beat.

locations = fixed_locations(config, first_locations, batch.centres, generator)
rollout = model(images, locations)
"""

import torch
from torch import Tensor

from config import Config
from model import draw_first_locations
from modules import circle


def fixed_locations(
    config: Config,
    first_locations: Tensor,
    centres: Tensor,
    generator: torch.Generator | None = None,
    shard: tuple[slice, int] | None = None,
) -> Tensor:
    """The locations that a rollout is given; see `RecurrentAttention.forward`.

    Args:
        config: read for its policy and num_glimpses, and for scan_radius or patch_size and canvas_size.
        first_locations: (B, 2); every path begins there, the oracle's too.
        centres: (B, 2), of the objects that an oracle knows of.
        generator: what a random path is drawn from, on the device of the locations.
        shard: (part, count), if these are this part of a batch of so many, whose paths are those of the whole.
    Returns:
        (B, 2) for a learned policy, else the whole path, (B, T, 2).
    """
    batch, device, policy = len(first_locations), first_locations.device, config.training.policy
    steps = config.model.num_glimpses - 1
    if policy == "learned" or not steps:
        return first_locations
    if policy == "random":
        part, count = shard or (slice(None), batch)
        path = draw_first_locations("random", count * steps, device, generator).view(count, steps, 2)[part]
    elif policy == "still":
        path = first_locations[:, None].expand(-1, steps, -1)
    elif policy == "scan":
        path = circle(steps, config.model.scan_radius, device).expand(batch, -1, -1)
    else:  # the oracle: at the object, then half a patch from its middle
        around = circle(steps - 1, config.model.patch_size / config.data.canvas_size, device)
        path = centres[:, None] + torch.cat([torch.zeros(1, 2, device=device), around])
    return torch.cat([first_locations[:, None], path], dim=1).clamp(-1, 1)
