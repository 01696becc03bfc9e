"""The game of Catch, and a model that plays it."""

import numpy as np
import pytest
import torch

from images.catch import LEFT, RIGHT, Rules, draw_games, trivial_players


class SlowGame:
    """One game, in NumPy, the slow and plain way."""

    def __init__(self, ball: np.float32, speed: np.float32, paddle: int, rules: Rules):
        self.ball, self.speed, self.paddle, self.row, self.rules = ball, speed, paddle, 0, rules

    def frame(self) -> np.ndarray:
        screen = np.zeros((self.rules.grid_size, self.rules.grid_size), np.uint8)
        for i in range(self.rules.paddle_size):
            screen[-1, self.paddle + i] = 255
        screen[self.row, self.column] = 255
        return screen

    @property
    def column(self) -> int:
        return min(int(np.floor(self.ball)), self.rules.grid_size - 1)

    def step(self, action: int):
        width = np.float32(self.rules.grid_size)
        self.paddle = min(max(self.paddle + (action == RIGHT) - (action == LEFT), 0), 
                          self.rules.grid_size - self.rules.paddle_size)  # fmt: skip
        self.ball += self.speed
        if self.ball < 0:
            self.ball, self.speed = -self.ball, -self.speed
        elif self.ball > width:
            self.ball, self.speed = 2 * width - self.ball, -self.speed
        self.row += 1

    @property
    def reward(self) -> int:
        return int(self.paddle <= self.column < self.paddle + self.rules.paddle_size)


@pytest.mark.parametrize(
    "rules",
    [Rules(), Rules(ball_speed=1 / 3, paddle_start="middle"), Rules(9, ball_speed=9.0, paddle_size=4), Rules(2)],
)
def test_a_batch_of_games_equals_slow_games_frame_by_frame(rules, generator):
    games = draw_games(200, rules, generator)
    slow = [SlowGame(ball.numpy()[()], speed.numpy()[()], paddle.item(), rules)
            for ball, speed, paddle in zip(games.ball, games.speed, games.paddle, strict=True)]  # fmt: skip
    for _ in range(rules.num_steps):
        assert np.array_equal(games.frames()[:, 0], np.stack([game.frame() for game in slow]))
        actions = torch.randint(3, (200,), generator=generator)
        games = games.step(actions)
        for game, action in zip(slow, actions.tolist(), strict=True):
            game.step(action)
    assert np.array_equal(games.frames()[:, 0], np.stack([game.frame() for game in slow]))
    assert games.rewards.tolist() == [game.reward for game in slow]
    assert 0 < games.rewards.mean() < 1 or rules.grid_size == 2


@pytest.mark.parametrize(
    ("rules", "follows"), [(Rules(), 0.545), (Rules(ball_speed=1 / 3, paddle_start="middle"), 0.85)]
)
def test_what_trivial_players_catch(rules, follows, generator):
    still, random, chase, knows = trivial_players(draw_games(20_000, rules, generator), generator).values()
    assert still == pytest.approx(2 / 24, abs=0.01) and random == pytest.approx(2 / 24, abs=0.01)
    assert chase == pytest.approx(follows, abs=0.02)
    assert knows == 1
