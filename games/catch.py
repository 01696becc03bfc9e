"""The game of Catch (section 4.2): a ball falls, and a paddle on the bottom row catches it or does not.

    games = draw_games(256, Rules(), generator)
    for _ in range(games.rules.num_steps):
        games = games.step(actions)  # (256,), LEFT, STAY or RIGHT
    games.rewards

A batch of games is played at once, on the device of its tensors. The ball falls a row a frame and drifts sideways at a
speed of its own; it bounces off the sides. All games of a batch begin together and last rules.num_steps frames.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LEFT, STAY, RIGHT = range(3)
ACTIONS = ["left", "stay", "right"]


class Rules(NamedTuple):
    """What the paper leaves open has a default of ours."""

    grid_size: int = 24  # width and height of the screen, pixels
    ball_speed: float = 1.0  # largest sideways speed, pixels a frame
    paddle_size: int = 2  # width of the paddle, pixels
    paddle_start: str = "random"  # or "middle"

    @property
    def num_steps(self) -> int:
        """Frames that a player sees and answers: the ball is on the top row in the first, on the last but one in the
        last. The last answer decides."""
        return self.grid_size - 1


class Games(NamedTuple):
    """A batch of B games in one frame."""

    ball: Tensor  # (B,) float32, the ball's place from left to right, from 0 to grid_size; its pixel is the floor
    speed: Tensor  # (B,) float32, pixels a frame to the right
    row: Tensor  # (B,) int64, the ball's, from 0 at the top
    paddle: Tensor  # (B,) int64, the column of the paddle's left end
    rules: Rules

    def step(self, actions: Tensor) -> "Games":
        """The next frame, after actions (B,): LEFT, STAY or RIGHT by one pixel; the sides stop the paddle."""
        width = self.rules.grid_size
        ball = (self.ball + self.speed).abs()  # bounces off the left side
        beyond = ball > width
        return self._replace(
            ball=torch.where(beyond, 2 * width - ball, ball),
            speed=torch.where(beyond | (self.ball + self.speed < 0), -self.speed, self.speed),
            row=self.row + 1,
            paddle=(self.paddle + actions - STAY).clamp(0, width - self.rules.paddle_size),
        )

    @property
    def column(self) -> Tensor:
        """(B,) int64, the ball's."""
        return self.ball.long().clamp(max=self.rules.grid_size - 1)

    @property
    def rewards(self) -> Tensor:
        """(B,) float32, the reward at the end of a game: 1 if the ball is above the paddle or on it, else 0."""
        offset = self.column - self.paddle
        return ((offset >= 0) & (offset < self.rules.paddle_size)).float()

    def frames(self) -> Tensor:
        """The screen: (B, 1, grid_size, grid_size) uint8, 255 where the ball or the paddle is, else 0."""
        size, batch, device = self.rules.grid_size, len(self.row), self.row.device
        paddle = (size - 1) * size + self.paddle[:, None] + torch.arange(self.rules.paddle_size, device=device)
        pixels = torch.cat([paddle, (self.row * size + self.column)[:, None]], dim=1)  # those that are not black
        screens = torch.zeros(batch, size**2, dtype=torch.uint8, device=device).scatter_(1, pixels, 255)
        return screens.view(batch, 1, size, size)

    def take(self, index: Tensor | slice) -> "Games":
        """Some of the games."""
        return self.map(lambda tensor: tensor[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Games":
        """Games whose tensors are the function's of these."""
        return Games(*map(function, self[:-1]), self.rules)


def draw_games(count: int, rules: Rules, generator: torch.Generator) -> Games:
    """So many games in their first frame, on the generator's device."""
    ball, speed, paddle = torch.rand(3, count, generator=generator, device=generator.device)
    places = rules.grid_size - rules.paddle_size + 1  # of the paddle
    middle = torch.full_like(ball, (rules.grid_size - rules.paddle_size) // 2)
    return Games(
        ball=ball * rules.grid_size,
        speed=(2 * speed - 1) * rules.ball_speed,
        row=torch.zeros_like(ball, dtype=torch.long),
        paddle=((paddle * places).floor() if rules.paddle_start == "random" else middle).long(),
        rules=rules,
    )


def landing(games: Games) -> Tensor:
    """(B,) int64, the column in which the ball arrives at the bottom row, of games in their first frame."""
    for _ in range(games.rules.num_steps):
        games = games.step(torch.full_like(games.paddle, STAY))
    return games.column


def towards(games: Games, column: Tensor) -> Tensor:
    """(B,) int64, the actions that bring the paddle under a column (B,), or keep it there."""
    offset = column - games.paddle
    return STAY + (offset >= games.rules.paddle_size).long() - (offset < 0).long()


def trivial_players(games: Games, generator: torch.Generator) -> dict[str, float]:
    """What players catch that see the game itself, by name: the fraction of games (B,), in their first frame.

    Args:
        generator: of the random player, on the games' device.
    """
    batch, device, goal = len(games.row), games.row.device, landing(games)
    players: dict[str, Callable[[Games], Tensor]] = {
        "a paddle that stands still": lambda now: torch.full_like(now.paddle, STAY),
        "random actions": lambda now: torch.randint(len(ACTIONS), (batch,), generator=generator, device=device),
        "goes to where the ball is": lambda now: towards(now, now.column),
        "knows where it lands": lambda now: towards(now, goal),
    }
    caught = {}
    for name, act in players.items():
        now = games
        for _ in range(games.rules.num_steps):
            now = now.step(act(now))
        caught[name] = now.rewards.mean().item()
    return caught
