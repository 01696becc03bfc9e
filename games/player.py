"""The model as a player: it looks at each frame once, then acts, until the game ends; and the loss that trains it.

Mnih et al. 2014, section 4.2. A frame is looked at by the same loop of glimpses as an image, and answered by the
network that names an image's class.

    games = draw_games(256, Rules(), generator)
    played = play(model, games)  # Play
    played.actions, played.locations, played.rewards
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model import Losses, RecurrentAttention, draw_first_locations
from modules import Scene


class Games(Protocol):
    """What can be played: a batch of B games in one frame; see games/catch.py."""

    def frames(self) -> Tensor:
        """What is to be seen: (B, C, H, W), uint8."""

    def step(self, actions: Tensor) -> "Games":
        """The next frame, after actions (B,)."""

    @property
    def rewards(self) -> Tensor:
        """(B,), once the game has ended."""


class Play(NamedTuple):
    """A game that the model plays to its end: T frames, in each of which it looks once, then acts."""

    log_probs: Tensor  # (B, T, num_actions), log-probabilities of the actions
    actions: Tensor  # (B, T) int64, those it took
    locations: Tensor  # (B, T, 2), (x, y) looked at, in [-1, 1]
    log_pis: Tensor  # (B, T - 1), log pi of all locations but the first; trains the location network alone
    values: Tensor  # (B, T), reward expected at h_t; trains the core, too
    rewards: Tensor  # (B,), of the whole game


class Playing:
    """A batch of games, the environment that changes by itself and by what the model does.

    Args:
        model: the player.
        games: in their first frame.
        noise: (T, B, num_actions), of the actions; None: the likeliest.
    """

    def __init__(self, model: RecurrentAttention, games: Games, noise: Tensor | None):
        self.model = model
        self.games = games
        self.noise = noise
        self.log_probs: list[Tensor] = []  # (B, num_actions) of each frame
        self.actions: list[Tensor] = []  # (B,) of each frame

    def show(self) -> Scene:
        """The frame, read once."""
        model = self.model
        return model.retina.prepare(self.games.frames(), 1, model.image_mean, model.image_std)

    def answer(self, hidden: Tensor):
        """Acts on h_t (B, hidden_size), which ends the frame."""
        log_probs = self.model.classifier(hidden)
        scores = log_probs if self.noise is None else log_probs + self.noise[len(self.actions)]
        actions = scores.argmax(dim=-1)
        self.games = self.games.step(actions)
        self.log_probs.append(log_probs)
        self.actions.append(actions)


def play(
    model: RecurrentAttention,
    games: Games,
    first_locations: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Play:
    """Plays games to their end, which takes num_glimpses frames.

    Gaze and hidden state outlast a frame, not a game. In training mode actions are drawn from their probabilities; in
    evaluation mode they are the likeliest.

    Args:
        model: the player; its classes are the actions.
        games: B of them, in their first frame.
        first_locations: (B, 2), or (B, K, 2) to fix the first K, as `RecurrentAttention.forward` takes them.
        noise: (T, B, 2 + num_actions), see `draw_noise`; None draws it in training mode, and is no noise in evaluation
            mode.
        generator: source of what is drawn, on the games' device.
    """
    frames = games.frames()
    if first_locations is None:
        first_locations = draw_first_locations(model.first_location, len(frames), frames.device, generator)
    if noise is None and model.training:
        noise = draw_noise(model, len(frames), frames.device, generator)
    unchosen = model.num_glimpses - model.num_choices
    shifts, luck = (None, None) if noise is None else (noise[unchosen:, :, :2], noise[:, :, 2:])
    playing = Playing(model, games, luck)
    gaze = model.look_around(playing, first_locations, shifts)
    # The expected reward trains the core, too: the sparse reward of a game alone hardly does.
    with torch.autocast(frames.device.type, enabled=False):  # differences of values count: float32
        values = model.baseliner(torch.stack(gaze.hiddens[1:]).float()).T
    return Play(
        log_probs=torch.stack(playing.log_probs, dim=1),
        actions=torch.stack(playing.actions, dim=1),
        locations=gaze.locations,
        log_pis=gaze.log_pis,
        values=values,
        rewards=playing.games.rewards,
    )


def draw_noise(
    model: RecurrentAttention, batch: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """The noise of both policies in one game, (T, B, 2 + num_actions): standard normal for the location, then Gumbel's
    for each action, which is added to its log-probability: the largest sum is a draw."""
    num_actions = model.classifier.scores.out_features
    gaze = torch.randn(model.num_glimpses, batch, 2, device=device, generator=generator)
    waits = torch.empty(model.num_glimpses, batch, num_actions, device=device).exponential_(generator=generator)
    return torch.cat([gaze, -waits.clamp(min=1e-20).log()], dim=2)


def game_loss(
    played: Play,
    *,
    reinforce_weight: float,
    gae_lambda: float,
    entropy_weight: float,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Losses:
    """Policy gradient for actions and places, squared error for the expected reward, which trains the core, too.

    The advantage is that of generalised advantage estimation (Schulman et al. 2016, "High-dimensional continuous
    control using generalized advantage estimation"), without discount: a sum of what the expected reward changes by
    from a frame to the next, with weights that fall by gae_lambda a frame. It is normalised over the batch.

    Args:
        played: B games.
        reinforce_weight, entropy_weight: of the places' policy gradient, and of the entropy of the actions.
        gae_lambda: 0: a change in the next frame alone counts; 1: the reward minus the expected one.
        total: sums over the processes that share the batch.
    """
    values, steps = played.values.detach(), played.values.shape[1]
    after = torch.cat([values[:, 1:], played.rewards[:, None]], dim=1)  # expected after each frame's action
    frame = torch.arange(steps, device=values.device)
    ahead = frame[:, None] - frame
    # (T, T): what a later frame's change counts for an action.
    weights = torch.where(ahead >= 0, gae_lambda ** ahead.clamp(min=0).float(), 0.0)
    advantage = (after - values) @ weights  # (B, T)
    sums = [torch.ones_like(advantage).sum(), advantage.sum(), advantage.square().sum()]
    count, first, second = total(torch.stack(sums))
    mean = first / count
    normal = (advantage - mean) / ((second / count - mean.square()).clamp(min=0).sqrt() + 1e-8)
    chosen = played.log_probs.gather(2, played.actions[:, :, None])[:, :, 0]
    entropy = -(played.log_probs.exp() * played.log_probs).sum(dim=-1).mean()
    action = (-chosen * normal).mean() - entropy_weight * entropy
    # The location of each frame but the first was chosen together with the action before it.
    reinforce = (-played.log_pis * normal[:, :-1]).sum() / normal.numel()
    baseline = (played.values - (advantage + values)).square().mean()
    total_loss = action + baseline + reinforce_weight * reinforce
    return Losses(total_loss, action, baseline, reinforce, played.rewards.mean())
