"""The game of Catch, and a model that plays it."""

import itertools
import json
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import ROOT, SIZES, assert_same, command, loader_for_test, loaders_of, metrics_of
from PIL import Image

from config import get_config
from games.catch import LEFT, RIGHT, Rules, draw_games, trivial_players
from games.player import draw_noise, game_loss, play
from images.batches import Loader
from model import RecurrentAttention
from plot_glimpses import PlotConfig
from plot_glimpses import main as plot
from training.checkpoint import load_checkpoint
from training.cli import InputError
from viz.games import game_figure, play_all
from viz.record import open_checkpoint


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


class Frozen(NamedTuple):
    """A game in which nothing moves."""

    images: torch.Tensor

    def frames(self) -> torch.Tensor:
        return self.images

    def step(self, actions: torch.Tensor) -> "Frozen":
        return self

    @property
    def rewards(self) -> torch.Tensor:
        return torch.zeros(len(self.images))


@pytest.fixture
def model() -> RecurrentAttention:
    torch.manual_seed(1)
    return RecurrentAttention(**{**SIZES, "core": "lstm", "first_location": "centre"}).normalize_by([0.3], [0.2])


def test_an_image_is_a_game_that_never_changes(model, generator):
    images = torch.randint(256, (5, 1, 20, 24), generator=generator, dtype=torch.uint8)
    noise = draw_noise(model, 5, images.device, generator)
    rollout = model(images, noise=noise[1:, :, :2])
    played = play(model, Frozen(images), noise=noise)
    torch.testing.assert_close(played.locations, rollout.locations)
    torch.testing.assert_close(played.log_pis, rollout.log_pis)
    torch.testing.assert_close(played.log_probs[:, -1], rollout.log_probs)
    torch.testing.assert_close(played.values, model.baseliner(rollout.hiddens))


def test_actions_are_drawn_in_training_and_the_likeliest_in_evaluation(model, generator):
    games = Frozen(torch.full((4000, 1, 12, 12), 90, dtype=torch.uint8))
    played = play(model, games, generator=generator)
    drawn = torch.nn.functional.one_hot(played.actions, 3).float().mean(dim=0)  # (T, num_actions)
    torch.testing.assert_close(drawn, played.log_probs.exp().mean(dim=0), atol=0.03, rtol=0)
    played = play(model.eval(), games)
    assert torch.equal(played.actions, played.log_probs.argmax(dim=-1))
    assert torch.equal(played.locations, play(model, games).locations)


def test_the_games_loss_equals_slow_sums(model, generator):
    played = play(model, draw_games(6, Rules(5), generator), generator=generator)
    played = played._replace(rewards=torch.tensor([0.0, 1, 0, 0, 1, 1]))
    losses = game_loss(played, reinforce_weight=0.5, gae_lambda=0.8, entropy_weight=0.1)
    batch, steps = played.actions.shape
    values, advantages = played.values.detach().numpy(), np.zeros((batch, steps))
    for i in range(batch):
        for t in range(steps):
            for later in range(t, steps):
                after = values[i, later + 1] if later + 1 < steps else played.rewards[i].item()
                advantages[i, t] += 0.8 ** (later - t) * (after - values[i, later])
    normal = torch.tensor((advantages - advantages.mean()) / advantages.std()).float()
    action = reinforce = entropy = torch.tensor(0.0)
    for i in range(batch):
        for t in range(steps):
            log_probs = played.log_probs[i, t]
            action = action - log_probs[played.actions[i, t]] * normal[i, t] / (batch * steps)
            entropy = entropy - (log_probs.exp() * log_probs).sum() / (batch * steps)
            if t + 1 < steps:  # the next place is chosen together with this action
                reinforce = reinforce - played.log_pis[i, t] * normal[i, t] / (batch * steps)
    baseline = torch.tensor(advantages**2).float().mean()
    expected = action - 0.1 * entropy, baseline, reinforce
    torch.testing.assert_close((losses.action, losses.baseline, losses.reinforce), expected)
    torch.testing.assert_close(losses.total, expected[0] + baseline + 0.5 * reinforce)
    assert losses.accuracy == 0.5


def test_places_train_the_location_network_alone_and_the_expected_reward_trains_the_core(model, generator):
    played = play(model, draw_games(6, Rules(5), generator), generator=generator)
    losses = game_loss(played, reinforce_weight=1, gae_lambda=0.9, entropy_weight=0)
    trained = {}
    for name in ("action", "baseline", "reinforce"):
        model.zero_grad()
        getattr(losses, name).backward(retain_graph=True)
        trained[name] = {key.split(".")[0] for key, weight in model.named_parameters() if weight.grad is not None}
    core = {"sensor", "rnn"}
    assert trained == {"action": {*core, "classifier"}, "baseline": {*core, "baseliner"}, "reinforce": {"locator"}}


SMALL = ("--task=catch", "--grid_size=6", "--num_glimpses=5", "--games_per_epoch=512", "--valid_size=0.5")


def test_a_run_learns_resumes_to_the_bit_and_is_tested_beside_the_trivial_players(run, capsys):
    config = run(*SMALL, "--epochs=4", "--run_name=straight")
    run(*SMALL, "--epochs=4", "--run_name=resumed", "--stop_after_epoch=2")
    resumed = run(*SMALL, "--epochs=4", "--run_name=resumed", "--resume=True", "--stop_after_epoch=0")
    first, second = (load_checkpoint(each.run_dir / "last.pt") for each in (config, resumed))
    assert_same(dict(first["trained_state"]), dict(second["trained_state"]))
    capsys.readouterr()
    run(*SMALL, "--is_train=False", "--run_name=straight")
    printed = capsys.readouterr().out
    assert re.search(r"Test Acc: \d+/10000 ", printed) and "knows where it lands 100.0%" in printed
    record = json.loads((config.run_dir / "test.json").read_text())["tests"]["M=1"]
    assert record["images"] == 10_000


def test_a_test_does_not_depend_on_the_size_of_batches(run):
    run(*SMALL, "--epochs=1")
    correct = []
    for batch_size in (128, 999):
        config = run(*SMALL, "--is_train=False", f"--batch_size={batch_size}")
        correct.append(json.loads((config.run_dir / "test.json").read_text())["tests"]["M=1"]["correct"])
    assert correct[0] == correct[1]


@pytest.mark.slow
def test_a_small_game_is_learned(run):
    config = run(*SMALL, "--games_per_epoch=4096", "--epochs=8", "--hidden_size=64", "--init_lr=0.003")
    assert max(line["valid"]["acc"] for line in metrics_of(config)) > 80


@pytest.mark.parametrize("policy", ["random", "still"])
def test_a_gaze_that_is_not_learned(run, policy):
    config = run(*SMALL, "--epochs=1", f"--policy={policy}")
    assert metrics_of(config)[0]["valid"]["acc"] > 0


def test_training_validation_and_test_play_other_games_and_each_seed_trains_on_its_own():
    config = get_config(["--task=catch", "--games_per_epoch=400", "--valid_size=0.5"])

    def balls(loader: Loader) -> torch.Tensor:
        """Where those of the first games of a pass begin, which is drawn before all else."""
        return next(iter(loader)).images.ball[:50]

    loaders = loaders_of(config)
    training, validation = map(balls, loaders)
    others = map(balls, loaders_of(config.replace(random_seed=2)))
    test = balls(loader_for_test(config, loaders[0].spec))
    other_training, other_validation = others
    assert torch.equal(validation, other_validation)  # the same for all seeds
    for first, second in itertools.combinations([training, other_training, validation, test], 2):
        assert not torch.isin(first, second).any()


def test_a_games_loss_is_weighed_by_the_settings():
    config = get_config(["--task=catch", "--reinforce_weight=0.7", "--gae_lambda=0.4", "--entropy_weight=0.02"])
    assert config.training.game_weights == {"reinforce_weight": 0.7, "gae_lambda": 0.4, "entropy_weight": 0.02}


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--grid_size=12"], "num_glimpses=23 is not allowed: it must be grid_size - 1"),
        (["--ball_speed=30"], "ball_speed=30.0 is not allowed: it must be at most grid_size"),
        (["--paddle_size=30"], "paddle_size=30 is not allowed"),
        (["--canvas_size=60"], "canvas_size=60 is not allowed"),
        (["--M=10"], "M=10 is not allowed"),
        (
            ["--games_per_epoch=7"],
            "games_per_epoch=7 is not allowed: it must be more: valid_size=0.125 of them leaves no",
        ),
        (["--first_location=learned"], "first_location=learned is not allowed: it must be random or centre"),
    ],
)
def test_settings_that_do_not_fit_the_game_are_rejected(flags, hint):
    with pytest.raises(InputError, match=re.escape(hint)):
        get_config(["--task=catch", *flags])


def test_games_are_drawn_and_their_gaze_over_the_test_set(run, tmp_path):
    config = run(*SMALL, "--epochs=1")
    best, plots = str(config.run_dir / "best.pt"), str(tmp_path / "pictures")
    [saved] = plot(PlotConfig(plot_dir=str(config.run_plots), num_images=2))
    [chosen] = plot(PlotConfig(checkpoint=best, plot_dir=plots, indices="3,1", out=str(tmp_path / "games.png")))
    [lost] = plot(PlotConfig(checkpoint=best, plot_dir=plots, errors=True, num_images=1))
    [gaze] = plot(PlotConfig(checkpoint=best, plot_dir=plots, averages=True))
    for path in (saved, lost):
        with Image.open(path) as picture:
            assert picture.n_frames == 6  # five frames, and the end
    assert chosen.name == "games.png" and gaze.name == "best_gaze.png"
    with pytest.raises(InputError, match="a game has no class"):
        plot(PlotConfig(checkpoint=best, label="left"))


def test_games_under_the_settings_of_another_task_are_drawn(run, tmp_path):
    small = ["--dataset=catch", "--grid_size=6", "--num_glimpses=5", "--games_per_epoch=64", "--run_name=other"]
    config = run("--task=mnist", *small, "--epochs=1")
    best = str(config.run_dir / "best.pt")
    for averages in (False, True):
        [picture] = plot(PlotConfig(checkpoint=best, plot_dir=str(tmp_path / "pictures"), averages=averages))
        assert picture.exists()
    with pytest.raises(InputError, match="not among the 10000 games"):
        plot(PlotConfig(checkpoint=best, indices="10000"))


def test_what_is_drawn_is_what_is_played(run):
    config = run(*SMALL, "--epochs=1")
    source = open_checkpoint(config.run_dir / "best.pt")
    played = play_all(source)
    games = source.loader.examples.images
    rewards = play(source.model, games, source.first_locations).rewards
    assert np.array_equal(played.caught, rewards.numpy() > 0)
    assert played.frames.shape == (10_000, 6, 1, 6, 6)
    ends = played.frames[:, -1, 0, -1]  # the bottom row: paddle alone, or the ball beside it
    assert np.array_equal(ends.sum(axis=1) == 2, played.caught)
    ball = np.argwhere(played.frames[7, 2, 0, :-1])  # one pixel above the bottom row
    assert np.array_equal(ball[0][::-1] + 0.5, played.balls[7, 2])


def test_all_frames_of_an_animation_have_one_margin(run):
    config = run(*SMALL, "--epochs=1", "--num_patches=1", "--patch_size=2")
    source = open_checkpoint(config.run_dir / "best.pt")
    played = play_all(source).take(slice(2))
    played.locations[:, 3] = 1  # a glimpse at the corner, whose boxes need room that those of the others do not
    assert len({game_figure(played, step).axes[0].get_xlim() for step in range(6)}) == 1


@pytest.mark.slow
def test_the_shipped_player_catches_what_its_record_says():
    """But for the games that another processor's rounding, or that of the weights to half precision, decides."""
    record = json.loads((ROOT / "results" / "catch_seed1.json").read_text())
    printed = command("main.py", "--is_train=False", f"--checkpoint={ROOT / 'models' / 'catch.pt'}").stdout
    caught = int(re.search(r"Test Acc: (\d+)/10000", printed)[1])
    assert abs(caught - record["tests"]["M=1"]["correct"]) <= 10
