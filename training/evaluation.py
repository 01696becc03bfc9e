"""One pass over images that the model is not trained on serves validation and test.

metrics, predictions = evaluate(RecurrentAttention.load(path), loader, config)
print(class_table(confusion_of(loader.examples.labels, predictions, 10), loader.spec.classes))
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config
from games.catch import Games
from games.player import game_loss, play
from images.batches import Loader
from model import draw_first_locations, hybrid_loss
from training.cli import printable
from training.distributed import World
from training.fixed_policies import fixed_locations
from utils import AverageMeter, Stream, make_generator


class Metrics(NamedTuple):
    """Means over a pass through a data set."""

    loss: float  # the hybrid loss
    loss_action: float
    loss_baseline: float
    loss_reinforce: float
    acc: float  # %
    correct: int  # images


class Evaluation(NamedTuple):
    metrics: Metrics
    predictions: Tensor  # (N,) int64, the class predicted for each image of the data set; of games 0


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Loader, config: Config, after_batch: Callable[[], None] = lambda: None
) -> Evaluation:
    """Looks at the policy's mean locations, M times per image, from first locations that the seed fixes.

    Loss terms are means over the M rollouts; the prediction is the class of the highest mean probability.

    Args:
        model: to be evaluated; it is left in evaluation mode.
        loader: of the images.
        config: read for M, random_seed and the loss's weights, and as `fixed_locations` reads it.
        after_batch: called after each batch; it may raise.
    """
    model.eval()
    locations = evaluation_locations(config, loader)
    meter = AverageMeter()
    correct = torch.zeros((), dtype=torch.long, device=loader.device)
    predictions = torch.zeros(loader.num_images, dtype=torch.long, device=loader.device)  # 0 in others' shards
    begin = 0
    for images, labels, _, count, shard in tqdm(loader, desc="Evaluate", leave=False, disable=loader.world.hide_bars):
        given = locations[:, begin : begin + count][:, shard.part]
        if isinstance(images, Games):
            outcome = play_games(model, images, given[0], config, loader.world)
        else:
            outcome = predict(model, images, labels, given, config)
        meter.update(outcome.losses, shard.images)
        correct += outcome.correct[: shard.images].sum()
        if outcome.predicted is not None:
            predictions[begin : begin + count][shard.part][: shard.images] = outcome.predicted[: shard.images]
        begin += count
        after_batch()
    *losses, _ = (loader.world.sum(meter.total) / loader.num_images).tolist()
    correct = loader.world.sum(correct).item()
    metrics = Metrics(*losses, acc=100 * correct / loader.num_images, correct=correct)
    return Evaluation(metrics, loader.world.sum(predictions))


def confusion_of(labels: Tensor, predictions: Tensor, num_classes: int) -> np.ndarray:
    """How many images of each class (row) were predicted to be of each class (column), (num_classes, num_classes)."""
    from sklearn.metrics import confusion_matrix  # takes a second to import

    return confusion_matrix(labels.numpy(force=True), predictions.numpy(force=True), labels=range(num_classes))


def class_accuracies(confusion: np.ndarray) -> list[float | None]:
    """Accuracy of each class, %; None for a class without images."""
    counts = confusion.sum(axis=1)
    return [100 * int(right) / int(count) if count else None
            for right, count in zip(confusion.diagonal(), counts, strict=True)]  # fmt: skip


def class_table(confusion: np.ndarray, classes: list[str]) -> str:
    """A line for each class: images, how many are right, and as what the others are taken most often."""
    names = [printable(name) for name in classes]
    width = max(map(len, ["class", *names]))
    lines = [f"{'class':{width}}  {'images':>7} {'right':>7} {'%':>7}   most often taken for"]
    for k, (name, acc) in enumerate(zip(names, class_accuracies(confusion), strict=True)):
        wrong = confusion[k].copy()
        wrong[k] = 0
        other = f"{names[wrong.argmax()]} ({wrong.max()})" if wrong.any() else ""
        shown = "" if acc is None else f"{acc:.2f}"
        lines.append(f"{name:{width}}  {confusion[k].sum():7} {confusion[k, k]:7} {shown:>7}   {other}".rstrip())
    return "\n".join(lines)


class Outcome(NamedTuple):
    """What a model did with a batch."""

    losses: Tensor  # (terms,), means
    correct: Tensor  # (B,) bool, whether the predicted class is right, or the ball caught
    predicted: Tensor | None = None  # (B,), classes; of games there are none


def predict(model: nn.Module, images: Tensor, labels: Tensor, locations: Tensor, config: Config) -> Outcome:
    """Predicts classes by M rollouts, from locations (M, B, 2), or along (M, B, T, 2)."""
    weighting = {"reinforce_weight": config.training.reinforce_weight, "reward": config.training.reward}
    rollouts = [model(images, each) for each in locations]
    losses = [hybrid_loss(rollout, labels, **weighting) for rollout in rollouts]
    probabilities = torch.stack([rollout.log_probs.exp() for rollout in rollouts]).mean(dim=0)
    mean = torch.stack([torch.stack(terms) for terms in losses]).mean(dim=0)
    predicted = probabilities.argmax(dim=-1)
    return Outcome(mean, predicted == labels, predicted)


def play_games(model: nn.Module, games: Games, locations: Tensor, config: Config, world: World) -> Outcome:
    """Plays this process's shard of a batch of games, from locations (B, 2), or along (B, T, 2)."""
    played = play(model, games, locations)
    losses = game_loss(played, **config.training.game_weights, total=world.sum)
    return Outcome(torch.stack(losses), played.rewards > 0)


def evaluation_locations(config: Config, loader: Loader) -> Tensor:
    """Where M rollouts look in a loader's N images: first locations, (M, N, 2), or whole fixed paths, (M, N, T, 2).

    Drawn on the CPU, so that every device begins at the same places.
    """
    rollouts = config.training.M
    count = rollouts * loader.num_images
    generator = make_generator(Stream.EVALUATION, config.training.random_seed)
    first_locations = draw_first_locations(config.model.first_location, count, torch.device("cpu"), generator)
    centres = loader.centres.cpu().repeat(rollouts, 1)
    locations = fixed_locations(config, first_locations, centres, generator)
    return locations.view(rollouts, loader.num_images, *locations.shape[1:]).to(loader.device)
