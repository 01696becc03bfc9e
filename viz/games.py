"""How a model plays: games as arrays, as pictures frame by frame, and where it looks in all test games.

played = play_chosen(open_checkpoint("models/catch.pt"), indices=[], missed=False, count=6)
frames = list(game_frames(played))
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from games.catch import ACTIONS, Games, landing
from games.player import play
from model import RecurrentAttention
from training.checkpoint import check_archive, write_whole
from training.cli import InputError
from viz.figures import (
    BARS,
    BOX_COLOURS,
    COLUMN,
    GAP,
    RIGHT,
    WRONG,
    columns,
    draw_bars,
    draw_boxes,
    draw_path,
    new_figure,
    place,
    show_patch,
)
from viz.files import by_defaults, to_image
from viz.record import Glimpses, Source

LARGEST_FILE = 2**30  # bytes of saved games, unpacked
PER_GAME = ("frames", "locations", "patches", "probabilities", "actions", "values", "caught", "balls", "paddles")
ALL_CAUGHT = "the model catches the ball in all of these games: leave --errors=True out, or name others"
RECENT = 4  # glimpses whose path is drawn: a whole game's would hide the ball


class PlayedGames(NamedTuple):
    """N games of T frames, and the frame in which they end."""

    frames: np.ndarray  # (N, 1 + T, 1, H, W), from 0 to 1
    locations: np.ndarray  # (N, T, 2), (x, y) in [-1, 1]
    patches: np.ndarray  # (N, T, num_patches, 1, g, g), from 0 to 1: the retina's output
    probabilities: np.ndarray  # (N, T, num_actions)
    actions: np.ndarray  # (N, T), taken after each glimpse
    values: np.ndarray  # (N, T), reward that the model expects after each glimpse
    caught: np.ndarray  # (N,) bool
    balls: np.ndarray  # (N, T, 2), (x, y) of the middle of the ball's pixel, in pixels
    paddles: np.ndarray  # (N, T, 2), of the paddle's middle
    landings: np.ndarray  # (N,), x of the middle of the pixel in which the ball lands, in pixels
    outside: np.ndarray  # (1,), what the retina reads beyond the border
    glimpse_scale: int

    def take(self, index) -> "PlayedGames":
        """Some of the games: a slice, or an array of numbers or booleans (N,)."""
        return self._replace(**{name: getattr(self, name)[index] for name in (*PER_GAME, "landings")})

    def frame(self, step: int) -> Glimpses:
        """A frame, as images with the glimpses taken up to it, RECENT at most; the last glimpse is of this frame."""
        recent = slice(max(step + 1 - RECENT, 0), step + 1)
        return Glimpses(
            images=self.frames[:, step],
            labels=self.actions[:, step],
            locations=self.locations[:, recent],
            patches=self.patches[:, recent],
            probabilities=self.probabilities[:, recent],
            classes=np.array(ACTIONS),
            outside=self.outside,
            glimpse_scale=self.glimpse_scale,
        )


@torch.no_grad()
def watch(model: RecurrentAttention, games: Games, first_locations: Tensor) -> PlayedGames:
    """Lets a model, in evaluation mode, play games in their first frame.

    Args:
        model: on the games' device.
        first_locations: (B, 2), or whole fixed paths, (B, T, 2).
    """
    played, retina, now = play(model, games, first_locations), model.retina, games
    screens, read, balls, paddles = [now.frames()], [], [], []
    for location, action in zip(played.locations.unbind(1), played.actions.unbind(1), strict=True):
        scene = retina.prepare(screens[-1], 1, model.image_mean, model.image_std)
        read.append(retina.look(scene, location))
        balls.append(torch.stack([now.column, now.row], dim=1) + 0.5)
        middle = now.paddle + now.rules.paddle_size / 2
        paddles.append(torch.stack([middle, torch.full_like(middle, now.rules.grid_size - 0.5)], dim=1))
        now = now.step(action)
        screens.append(now.frames())
    patches = torch.stack(read, dim=1).view(*played.actions.shape, retina.num_patches, 1, *[retina.patch_size] * 2)
    arrays = (
        torch.stack(screens, dim=1) / 255,
        played.locations,
        model.denormalize(patches),
        played.log_probs.exp(),
        played.actions,
        played.values,
        played.rewards > 0,
        torch.stack(balls, dim=1),
        torch.stack(paddles, dim=1),
        landing(games) + 0.5,
        model.image_mean.flatten(),
    )
    return PlayedGames(*(tensor.numpy(force=True) for tensor in arrays), glimpse_scale=retina.glimpse_scale)


def play_chosen(source: Source, *, indices: list[int], missed: bool, count: int) -> PlayedGames:
    """How a model plays some test games.

    Args:
        indices: these alone; empty: any.
        missed: those alone that it loses.
        count: so many, at most; all, if indices are given.
    Raises:
        InputError: there are none such.
    """
    model, loader, first_locations, _ = source
    games = loader.examples.images
    if indices and max(indices) >= len(games.row):
        raise InputError(f"indices={max(indices)} is not among the {len(games.row)} games, counted from 0")
    index = torch.tensor(indices or range(len(games.row)), device=loader.device)
    if missed:
        with torch.no_grad():
            index = index[play(model, games.take(index), first_locations[index]).rewards == 0]
    index = index if indices else index[:count]
    if not len(index):
        raise InputError(ALL_CAUGHT)
    return watch(model, games.take(index), first_locations[index])


def play_all(source: Source) -> PlayedGames:
    """How a model plays all test games."""
    return watch(source.model, source.loader.examples.images, source.first_locations)


def save_games(path: Path, played: PlayedGames):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **played._asdict())
    write_whole(path, buffer.getvalue())


def holds_games(path: Path) -> bool:
    """Whether a training of a game saved this file; False, too, if it cannot be read."""
    try:
        check_archive(path, LARGEST_FILE)
        with np.load(path, allow_pickle=False) as arrays:
            return "frames" in arrays
    except Exception:  # neither zipfile nor numpy names what damaged bytes raise
        return False


def load_games(path: Path) -> PlayedGames:
    """Reads what `save_games` wrote, without pickle.

    Raises:
        InputError: the file is missing, or holds something else.
    """
    try:
        check_archive(path, LARGEST_FILE)
        with np.load(path, allow_pickle=False) as arrays:
            played = PlayedGames(**{name: arrays[name] for name in PlayedGames._fields})
        count, steps, _, _, _, _ = played.patches.shape
        screens, paths = played.frames.shape, (count, steps, 2)
        shapes = {"frames": (count, 1 + steps, 1, *screens[3:]), "locations": paths, "balls": paths, "paddles": paths,
                  "probabilities": (count, steps, len(ACTIONS)), "actions": (count, steps), "values": (count, steps),
                  "caught": (count,), "landings": (count,), "outside": (1,), "glimpse_scale": ()}  # fmt: skip
        for name, shape in shapes.items():
            array = getattr(played, name)
            if array.shape != shape or array.size == 0 or not np.isfinite(array).all():
                raise ValueError(f"its {name} are {array.shape}, or not finite numbers")
        if not 0 <= played.actions.min() <= played.actions.max() < len(ACTIONS):
            raise ValueError("its actions are none")
        return played._replace(glimpse_scale=int(played.glimpse_scale))
    except Exception as error:  # neither zipfile nor numpy names what damaged bytes raise
        raise InputError(
            f"{path} does not hold saved games of this version ({error}): draw the run's checkpoint with "
            f"--checkpoint=, or train with --plot_freq=1"
        ) from error


def choose_games(played: PlayedGames, *, indices: list[int], missed: bool, count: int) -> PlayedGames:
    """Some of the games that a training saved; arguments and errors as `play_chosen`."""
    total = len(played.caught)
    chosen = np.array(indices or range(total))
    if chosen.max() >= total:
        raise InputError(f"indices={chosen.max()} is not among the {total} games, counted from 0")
    chosen = chosen[~played.caught[chosen]] if missed else chosen
    if not len(chosen):
        raise InputError(ALL_CAUGHT)
    return played.take(chosen if indices else chosen[:count])


def game_frames(played: PlayedGames) -> Iterator[Image.Image]:
    """A picture of each frame, and one of the end."""
    for step in tqdm(range(1 + played.actions.shape[1]), "Draw", unit="frame", leave=False, disable=None):
        yield to_image(game_figure(played, step))


@by_defaults
def game_figure(played: PlayedGames, step: int) -> Figure:
    """A frame of each game: the screen, the boxes and the latest path of the gaze, and the action that follows; below,
    the patches and the probabilities of the actions. After the last frame: how the games ended."""
    steps, num_patches = played.actions.shape[1], played.patches.shape[2]
    ended = step == steps
    glimpses = played.frame(min(step, steps - 1))
    glimpses = glimpses._replace(images=played.frames[:, step])
    side = min((COLUMN - GAP) / max(num_patches, 2), 0.6)  # of a patch, inches
    whole = glimpses._replace(locations=played.locations)  # all frames have room for the boxes of each
    figure, places = columns(whole, side + GAP + BARS + 0.16 + GAP)
    title = "the end" if ended else f"frame {step + 1} of {steps}"
    figure.text(0.5, 1 - 0.06 / figure.get_figheight(), title, ha="center", va="top", fontsize=10)
    boxes, last = glimpses.boxes(), glimpses.locations.shape[1] - 1
    for i, (ax, left, top) in enumerate(places):
        if ended:
            sign, colour = ("caught \N{CHECK MARK}", RIGHT) if played.caught[i] else ("missed \N{BALLOT X}", WRONG)
            ax.text(0, 1, sign, transform=ax.transAxes, fontsize=9, va="bottom", color=colour, weight="bold")
            continue
        draw_path(ax, glimpses, i, last)
        draw_boxes(ax, boxes[i, last])
        said = f"expects {played.values[i, step]:.2f}\n{ACTIONS[played.actions[i, step]]}"
        ax.text(0, 1, said, transform=ax.transAxes, fontsize=9, va="bottom")
        start = left + (COLUMN - GAP - num_patches * side) / 2
        for k, patch in enumerate(glimpses.patches[i, last]):
            frame = place(figure, start + k * side + 0.02, top + GAP, side - 0.04, side - 0.04)
            show_patch(frame, patch, BOX_COLOURS[k % len(BOX_COLOURS)])
        bars = place(figure, left, top + GAP + side + GAP, COLUMN - GAP, BARS)
        draw_bars(bars, glimpses, i, last, list(range(len(ACTIONS))), upright=True)
    return figure


@by_defaults
def gaze_figure(played: PlayedGames) -> Figure:
    """Where the gaze is in each frame, against ball and paddle: its height, and its distance from both sideways."""
    height, width = played.frames.shape[-2:]
    gaze = (played.locations + 1) / 2 * np.array([width, height])  # (N, T, 2), pixels
    frames = np.arange(1, gaze.shape[1] + 1)
    figure = new_figure(9, 3.8)
    rows, distances = figure.subplots(1, 2)
    middle, spread = gaze[..., 1].mean(axis=0), gaze[..., 1].std(axis=0)
    rows.fill_between(frames, middle - spread, middle + spread, color=BOX_COLOURS[0], alpha=0.25, linewidth=0)
    rows.plot(frames, middle, color=BOX_COLOURS[0], label="gaze, and its standard deviation")
    rows.plot(frames, played.balls[..., 1].mean(axis=0), color=RIGHT, linestyle="--", label="ball")
    rows.plot(frames, played.paddles[..., 1].mean(axis=0), color=WRONG, linestyle=":", label="paddle")
    rows.set(ylim=(height, 0), xlabel="frame", ylabel="height, pixels from the top")
    for name, place_x, style in (
        ("ball", played.balls[..., 0], {"color": RIGHT, "linestyle": "--"}),
        ("paddle", played.paddles[..., 0], {"color": WRONG, "linestyle": ":"}),
        ("where the ball will land", played.landings[:, None], {"color": "#009E73"}),
    ):
        distances.plot(frames, np.abs(gaze[..., 0] - place_x).mean(axis=0), label=name, **style)
    distances.set(ylim=(0, None), xlabel="frame", ylabel="mean distance of the gaze sideways, pixels")
    caught = 100 * played.caught.mean()
    figure.suptitle(f"{len(played.caught)} test games, {caught:.1f} % caught", fontsize=10)
    for ax in (rows, distances):
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["right", "top"]].set_visible(False)
    figure.tight_layout()
    return figure
