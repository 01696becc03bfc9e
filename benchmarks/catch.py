"""How many frames of Catch a second a training takes: this project, and the plain way, in turn.

    python -m benchmarks.catch

The plain way is how a game is usually written down: one game at a time, in NumPy, whose frame goes through the model in
a batch of one; after so many games, a step on all of them. Networks, loss, optimizer and number of games are the same.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.throughput import new_trainer, project_steps, seconds_per_step
from config import Config, make_config
from games.catch import LEFT, RIGHT, Rules
from games.player import Play, game_loss
from trainer import Trainer
from training.cli import Positive, Settings, run_command
from training.distributed import pick_device
from training.run_folder import environment
from utils import describe_device


@dataclass(frozen=True)
class Benchmark(Settings):
    """Times training steps of this project and of the plain way, in turn."""

    batch_size: Positive = 128
    """Games per step."""
    rounds: Positive = 5
    """Rounds, in each of which every way takes a few steps; each way's time is its median over them."""
    steps: Positive = 4
    """Steps of this project per round; the plain way takes one."""
    use_gpu: bool = True
    """Use a GPU if there is one."""


class PlainGame:
    """One game."""

    def __init__(self, rules: Rules, random: np.random.Generator):
        self.rules = rules
        self.ball = random.uniform(0, rules.grid_size)
        self.speed = random.uniform(-rules.ball_speed, rules.ball_speed)
        self.paddle = int(random.integers(rules.grid_size - rules.paddle_size + 1))
        self.row = 0

    def frame(self) -> np.ndarray:
        size = self.rules.grid_size
        frame = np.zeros((size, size), np.uint8)
        frame[-1, self.paddle : self.paddle + self.rules.paddle_size] = 255
        frame[self.row, min(int(self.ball), size - 1)] = 255
        return frame

    def step(self, action: int):
        size = self.rules.grid_size
        shift = {LEFT: -1, RIGHT: 1}.get(action, 0)
        self.paddle = min(max(self.paddle + shift, 0), size - self.rules.paddle_size)
        self.ball += self.speed
        if not 0 <= self.ball <= size:
            self.ball = -self.ball if self.ball < 0 else 2 * size - self.ball
            self.speed = -self.speed
        self.row += 1

    @property
    def reward(self) -> float:
        return float(0 <= min(int(self.ball), self.rules.grid_size - 1) - self.paddle < self.rules.paddle_size)


def play_plainly(trainer: Trainer, random: np.random.Generator) -> list[Tensor]:
    """One game through the model: the fields of a `Play` of a batch of one."""
    model, device = trainer.model, trainer.device
    game = PlainGame(trainer.train_loader.rules, random)
    location, state = torch.zeros(1, 2, device=device), None
    log_probs, actions, locations, log_pis, values = [], [], [], [], []
    for t in range(model.num_glimpses):
        image = torch.from_numpy(game.frame())[None, None].to(device).float() / 255
        locations.append(location)
        hidden, state = model.rnn(model.sensor(model.retina(model.normalize(image), location), location), state)
        log_probs.append(model.classifier(hidden))
        values.append(model.baseliner(hidden))
        actions.append(torch.distributions.Categorical(logits=log_probs[-1]).sample())
        game.step(actions[-1].item())
        if t < model.num_glimpses - 1:
            policy = torch.distributions.Normal(model.locator(hidden.detach(), t), model.std)
            sample = policy.sample()
            log_pis.append(policy.log_prob(sample).sum(dim=1))
            location = sample.clamp(-1, 1)
    fields = [torch.stack(parts, dim=1) for parts in (log_probs, actions, locations, log_pis, values)]
    return [*fields, torch.tensor([game.reward], device=device)]


def plain_steps(trainer: Trainer, games: int) -> Iterator[None]:
    """Yields after each training step of the plain way."""
    training, random = trainer.config.training, np.random.default_rng(0)
    while True:
        played = [play_plainly(trainer, random) for _ in range(games)]
        play = Play(*(torch.cat(parts) for parts in zip(*played, strict=True)))
        loss = game_loss(play, **training.game_weights).total
        trainer.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), training.clip_grad_norm)
        trainer.optimizer.step()
        loss.item()  # as a progress bar reads it
        yield


def settings_of(args: Benchmark) -> dict[str, Config]:
    """This project's ways, by name."""
    config = make_config(task="catch", batch_size=args.batch_size, epochs=1)
    return {"float32": config.replace(precision="float32"), "default": config}


def main(args: Benchmark):
    device = pick_device(args.use_gpu)
    machine = describe_device(device) if device.type == "cuda" else environment()["machine"]
    print(f"{machine}, torch {torch.__version__}, {args.batch_size} games a step\n")
    trainers = {name: new_trainer(config, device) for name, config in settings_of(args).items()}
    frames = args.batch_size * trainers["default"].model.num_glimpses
    plain = new_trainer(settings_of(args)["float32"], device)
    ways = {"plain, float32": (plain_steps(plain, args.batch_size), 1)}
    ways |= {name: (project_steps(trainer), args.steps) for name, trainer in trainers.items()}
    for steps, _ in ways.values():
        next(steps)  # warm up
    times = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, (steps, count) in ways.items():
            times[name].append(seconds_per_step(steps, count))
    median = {name: statistics.median(values) for name, values in times.items()}
    print("| way | ms a step | frames/s | times plain |\n| --- | --- | --- | --- |")
    for name, value in median.items():
        print(f"| {name} | {1000 * value:.1f} | {frames / value:,.0f} | {median['plain, float32'] / value:.1f} |")


if __name__ == "__main__":
    run_command(main, Benchmark, prog="benchmarks.catch")
