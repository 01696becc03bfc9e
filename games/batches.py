"""Batches of games, which are new in each epoch, and the games of validation and test, which are the same in all runs.

loader = GameLoader(Rules(), 32768, batch_size=128, device=torch.device("cpu"), seed=1)
"""

import torch
from torch import Tensor

from config import DataConfig
from games.catch import Games, Rules, draw_games
from images.batches import Loader
from images.datasets import Examples
from utils import Stream, make_generator


class GameLoader(Loader):
    """Batches of games of Catch, new ones each epoch.

    Args:
        rules: of the games.
        num_games: of an epoch.
        batch_size, device: as of a `Loader`.
        seed: of the games.
    """

    in_memory = True

    def __init__(self, rules: Rules, num_games: int, *, batch_size: int, device: torch.device, seed: int):
        super().__init__(None, batch_size=batch_size, device=device, canvas=rules, canvas_seed=seed)
        self.rules = rules
        self.num_games = num_games

    @property
    def num_images(self) -> int:
        return self.num_games

    def blank(self, count: int) -> Games:
        return draw_games(count, self.rules, torch.Generator(self.device))

    def read(self, index: Tensor, generator: torch.Generator | None = None) -> Examples:
        """This process's shard of a batch of games, drawn from the generator."""
        part = self.world.shard(len(index)).part  # all processes draw the whole batch
        return unlabelled(draw_games(len(index), self.rules, generator).take(part))


def rules_of(data: DataConfig) -> Rules:
    return Rules(data.grid_size, data.ball_speed, data.paddle_size, data.paddle_start)


def draw_examples(count: int, rules: Rules, seed: int) -> Examples:
    """Games that a model is not trained on, drawn on the CPU: the same on every device."""
    return unlabelled(draw_games(count, rules, make_generator(Stream.CANVAS, seed)))


def unlabelled(games: Games) -> Examples:
    return Examples(games, torch.zeros_like(games.row))
