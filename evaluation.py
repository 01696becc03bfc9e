"""What a model is worth on images that it is not trained on: one pass serves validation and test.

metrics = evaluate(RecurrentAttention.load(path), loader, config)
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config
from data_loader import Loader
from model import draw_first_locations, hybrid_loss
from policies import given_locations
from utils import AverageMeter, Stream, make_generator


class Metrics(NamedTuple):
    """Means over a pass through a data set."""

    loss: float  # the hybrid loss
    loss_action: float
    loss_baseline: float
    loss_reinforce: float
    acc: float  # %
    correct: int  # images


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, config: Config) -> Metrics:
    """Looks at the policy's mean locations, M times per image, from first locations that the seed fixes.

    Loss terms are means over the M rollouts; the answer is the class of the highest mean probability.
    """
    model.eval()
    locations = evaluation_locations(config, loader)
    weighing = {"reinforce_weight": config.reinforce_weight, "reward": config.reward}
    meter = AverageMeter()
    correct = torch.zeros((), dtype=torch.long, device=loader.device)
    begin = 0
    for images, labels, _, count in tqdm(loader, desc="Evaluate", leave=False, disable=loader.world.hide_bars):
        share = loader.world.share(count)
        given = locations[:, begin : begin + count][:, share.part]
        rollouts = [model(images, each) for each in given]
        losses = [hybrid_loss(rollout, labels, **weighing) for rollout in rollouts]
        meter.update(torch.stack([torch.stack(terms) for terms in losses]).mean(dim=0), share.images)
        probabilities = torch.stack([rollout.log_probs.exp() for rollout in rollouts]).mean(dim=0)
        correct += (probabilities.argmax(dim=-1) == labels)[: share.images].sum()
        begin += count
    *losses, _ = (loader.world.sum(meter.total) / loader.num_images).tolist()
    correct = loader.world.sum(correct).item()
    return Metrics(*losses, acc=100 * correct / loader.num_images, correct=correct)


def evaluation_locations(config: Config, loader: Loader) -> Tensor:
    """What M rollouts are told of where to look in a loader's N images: (M, N, 2), or (M, N, T, 2) for whole paths.

    Drawn on the CPU, so that every device begins at the same places.
    """
    count = config.M * loader.num_images
    generator = make_generator(Stream.EVALUATION, config.random_seed)
    first_locations = draw_first_locations(config.first_location, count, torch.device("cpu"), generator)
    centres = loader.centres.cpu().repeat(config.M, 1)
    locations = given_locations(config, first_locations, centres, generator)
    return locations.view(config.M, loader.num_images, *locations.shape[1:]).to(loader.device)
