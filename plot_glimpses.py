"""Shows where a model looks: glimpse by glimpse in a few images, or over a whole test set.

    python plot_glimpses.py --plot_dir=./plots/ram_6_8x8_1 --epoch=30     # what the training saved
    python plot_glimpses.py --checkpoint=./models/mnist.pt                # any model's file, on test images
    python plot_glimpses.py --checkpoint=./ckpt/ram_6_8x8_1/best.pt --errors=True --out=errors.png
    python plot_glimpses.py --checkpoint=./ckpt/ram_6_8x8_1/best.pt --averages=True

A GIF or PNG needs nothing more than the requirements; --out=NAME.mp4 needs ffmpeg.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from config import Config, make_config
from training.cli import Bounds, InputError, PathText, Positive, Settings, run_command


@dataclass(frozen=True)
class PlotConfig(Settings):
    """Shows where a model looks: its glimpses in a few images, or a summary of the whole test set."""

    plot_dir: PathText = ""
    """Folder of a run's saved glimpses, and of the pictures; empty: plots/RUN, of the checkpoint's run or else of
    main.py's default run."""
    epoch: int | None = None
    """Epoch whose saved glimpses to draw; None: the latest saved."""
    checkpoint: PathText = ""
    """Draw what the model of this file does on test images, instead of what a training saved."""
    data_dir: PathText = ""
    """Folder of the data sets, for --checkpoint; empty: ./data."""
    num_images: Positive = 6
    """Images, or games, to draw, at most; --indices draws all that it names."""
    indices: str = ""
    """Draw these images alone, by their place in the test set or among those saved, from 0: --indices=0,7,42."""
    label: str = ""
    """Draw images of this class alone, by its name: --label=7, --label=sneaker."""
    errors: bool = False
    """Draw only images whose class the model predicts wrong, or games that it loses."""
    averages: bool = False
    """Draw a summary of the whole test set instead, for --checkpoint: NAME_heat_maps.png, where the glimpses fall, and
    NAME_accuracy.png, how often the prediction is right after each glimpse; NAME is the checkpoint's. Of a game:
    NAME_gaze.png, where the gaze is in each frame against ball and paddle."""
    out: PathText = ""
    """File to write: .gif, .mp4, or .png, a sheet of all glimpses; empty: a GIF in the run's plot_dir."""
    fps: Annotated[float, Bounds("above 0 and at most 50", lambda value: 0 < value <= 50)] = 1.5
    """Glimpses a second."""

    def __post_init__(self):
        super().__post_init__()
        if self.out and Path(self.out).suffix not in (".gif", ".mp4", ".png"):
            raise InputError(f"out={self.out} is not allowed: it must end in .gif, .mp4 or .png")
        if not all(part.strip().isdecimal() for part in self.indices.split(",") if self.indices):
            raise InputError(f"indices={self.indices} must be whole numbers with commas between: --indices=0,7,42")
        if self.checkpoint and self.epoch is not None:
            raise InputError(f"epoch={self.epoch} names saved glimpses: leave it or --checkpoint= out")
        if not self.checkpoint and (self.averages or self.data_dir):
            raise InputError("averages and data_dir need the model: name its file with --checkpoint=")
        if self.averages and (self.indices or self.label or self.errors or self.out):
            raise InputError(
                "averages=True draws the whole test set, into plot_dir: leave indices, label, errors and out out"
            )


def main(config: PlotConfig) -> list[Path]:
    """Writes the pictures and returns their paths.

    Raises:
        InputError: there are no such glimpses or images, or no ffmpeg for an MP4.
    """
    # Imported here, not above: --help and a typo's message need not wait for torch and matplotlib.
    from viz.figures import glimpse_frames
    from viz.files import animation, png, save_picture
    from viz.games import choose_games, game_frames, gaze_figure, holds_games, load_games, play_all, play_chosen
    from viz.record import choose, load_glimpses, look_at_chosen, open_checkpoint
    from viz.test_set import accuracy_figure, heat_map_figure, summarise

    if Path(config.out).suffix == ".mp4" and not shutil.which("ffmpeg"):
        raise InputError(f"{config.out} needs ffmpeg, which is not installed: install it, or write a .gif")
    indices = [int(part) for part in config.indices.split(",") if part]
    chosen = {"indices": indices, "missed": config.errors, "count": config.num_images}
    wanted = {"indices": indices, "label": config.label, "errors": config.errors, "count": config.num_images}
    if config.checkpoint:
        source = open_checkpoint(config.checkpoint, config.data_dir or "./data")
        folder, stem = plots_of(config, source.config), Path(config.checkpoint).stem
        is_game = source.config.data.task == "catch"
        if config.averages and is_game:
            return [save_picture(folder / f"{stem}_gaze.png", png(gaze_figure(play_all(source))))]
        if config.averages:
            summary = summarise(source)
            print(f"[*] Right after 1 to {len(summary.correct)} glimpses, of {summary.num_images} images: "
                  + ", ".join(f"{100 * count / summary.num_images:.2f}%" for count in summary.correct))  # fmt: skip
            return [
                save_picture(folder / f"{stem}_heat_maps.png", png(heat_map_figure(summary))),
                save_picture(folder / f"{stem}_accuracy.png", png(accuracy_figure(summary))),
            ]
        found = play_chosen(source, **chosen) if is_game else look_at_chosen(source, **wanted)
    else:
        folder = Path(config.plot_dir or make_config().run_plots)
        saved = find_glimpses(folder, config.epoch)
        is_game, stem = holds_games(saved), saved.stem
        found = choose_games(load_games(saved), **chosen) if is_game else choose(load_glimpses(saved), **wanted)
    if is_game and config.label:
        raise InputError(f"label={config.label} is for images: a game has no class; leave it out")
    name = "_".join([stem, *["errors"] * config.errors, *[config.label] * bool(config.label)])
    path = Path(config.out) if config.out else folder / f"{name}.gif"
    return [save_picture(path, animation((game_frames if is_game else glimpse_frames)(found), path.suffix, config.fps))]


def find_glimpses(plot_dir: Path, epoch: int | None) -> Path:
    """The file of an epoch's glimpses, or the latest one.

    Raises:
        InputError: there is none.
    """
    named = [(path.stem.removeprefix("glimpses_"), path) for path in plot_dir.glob("glimpses_*.npz")]
    saved = {int(number): path for number, path in named if number.isdecimal()}
    if not saved:
        raise InputError(
            f"no saved glimpses in {plot_dir}: train first, or name the run's folder with --plot_dir=, or a model's "
            f"file with --checkpoint="
        )
    if epoch is not None and epoch not in saved:
        raise InputError(f"epoch={epoch} is not among those saved in {plot_dir}: {', '.join(map(str, sorted(saved)))}")
    return saved[max(saved) if epoch is None else epoch]


def plots_of(config: PlotConfig, trained: Config) -> Path:
    """Where a checkpoint's pictures go: to plots/RUN if it lies in the folder of its run, else to plots/STEM."""
    if config.plot_dir:
        return Path(config.plot_dir)
    path = Path(config.checkpoint).resolve()
    return Path("plots") / (trained.name if path.parent.name == trained.name else path.stem)


if __name__ == "__main__":
    run_command(main, PlotConfig, prog="plot_glimpses.py")
