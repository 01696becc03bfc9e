"""Shows where a model looks: glimpse by glimpse in a few images, or on average over a test set.

    python plot_glimpses.py --plot_dir=./plots/ram_6_8x8_1 --epoch=30     # what the training saved
    python plot_glimpses.py --checkpoint=./ckpt/ram_6_8x8_1/best.pt       # a checkpoint, on test images
    python plot_glimpses.py --checkpoint=./ckpt/ram_6_8x8_1/best.pt --errors=True --out=errors.png
    python plot_glimpses.py --checkpoint=./ckpt/ram_6_8x8_1/best.pt --averages=True

A GIF or PNG needs nothing more than the requirements; --out=NAME.mp4 needs ffmpeg.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from config import Config, InputError
from flags import parse_flags, refusals_told

DEFAULT_DIR = "./plots/ram_6_8x8_1"


@dataclass(frozen=True)
class PlotConfig:
    """Shows where a model looks: its glimpses in a few images, or on average over the test set."""

    plot_dir: str = ""
    """Folder of a run's saved glimpses and of the pictures; empty: that of the checkpoint's run, or of main.py's
    default run."""
    epoch: int | None = None
    """Epoch whose saved glimpses to draw; None: the latest saved."""
    checkpoint: str = ""
    """Draw what the model of this file does on test images, instead of what a training saved."""
    data_dir: str = ""
    """Folder of the data sets, for --checkpoint; empty: the one it was trained from."""
    num_images: int = 6
    """Images to draw, at most; --indices draws all that it names."""
    indices: str = ""
    """Draw these images alone, by their place in the test set or among those saved, from 0: --indices=0,7,42."""
    label: str = ""
    """Draw images of this class alone, by its name: --label=7, --label=sneaker."""
    errors: bool = False
    """Draw only images to which the model gives a wrong answer."""
    averages: bool = False
    """Draw the whole test set's averages instead, for --checkpoint: NAME_heat_maps.png, where the glimpses fall, and
    NAME_accuracy.png, how often the answer is right after each; NAME is the checkpoint's."""
    out: str = ""
    """File to write: .gif, .mp4, or .png, a sheet of all glimpses; empty: a GIF in the run's plot_dir."""
    fps: float = 1.5
    """Glimpses a second."""

    def __post_init__(self):
        if self.num_images < 1 or not 0 < self.fps <= 50:
            raise InputError(f"num_images={self.num_images} and fps={self.fps} must be at least 1, and above 0 to 50")
        if self.out and Path(self.out).suffix not in (".gif", ".mp4", ".png"):
            raise InputError(f"out={self.out} must end in .gif, .mp4 or .png")
        if not all(part.strip().isdecimal() for part in self.indices.split(",") if self.indices):
            raise InputError(f"indices={self.indices} must be whole numbers with commas between: --indices=0,7,42")
        if self.checkpoint and self.epoch is not None:
            raise InputError(f"epoch={self.epoch} is of saved glimpses: leave it or --checkpoint= out")
        if not self.checkpoint and (self.averages or self.data_dir):
            raise InputError("averages and data_dir need the model: name it with --checkpoint=")
        if self.averages and (self.indices or self.label or self.errors or self.out):
            raise InputError(
                "averages are of the whole test set, in plot_dir: leave indices, label, errors and out out"
            )


def main(config: PlotConfig) -> list[Path]:
    """Writes the pictures and returns their paths.

    Raises:
        InputError: there are no such glimpses or images, or no ffmpeg for an MP4.
    """
    # Imported here, not above: --help and a typo's message need not wait for torch and matplotlib.
    from averages import accuracy_figure, average, heat_map_figure
    from glimpses import choose, load_glimpses, look_at_chosen, open_checkpoint
    from pictures import animation, glimpse_frames, png

    if Path(config.out).suffix == ".mp4" and not shutil.which("ffmpeg"):
        raise InputError(f"{config.out} needs ffmpeg, which is not installed: install it, or write a .gif")
    indices = [int(part) for part in config.indices.split(",") if part]
    wanted = {"indices": indices, "label": config.label, "errors": config.errors, "count": config.num_images}
    if not config.checkpoint:
        folder = Path(config.plot_dir or DEFAULT_DIR)
        saved = find_glimpses(folder, config.epoch)
        glimpses, stem = choose(load_glimpses(saved), **wanted), saved.stem
    else:
        source = open_checkpoint(config.checkpoint, config.data_dir)
        folder, stem = plots_of(config, source.config), Path(config.checkpoint).stem
        if config.averages:
            averages = average(source)
            print(f"[*] Right after 1 to {len(averages.correct)} glimpses, of {averages.num_images} images: "
                  + ", ".join(f"{100 * count / averages.num_images:.2f}%" for count in averages.correct))  # fmt: skip
            return [
                write(folder / f"{stem}_heat_maps.png", png(heat_map_figure(averages))),
                write(folder / f"{stem}_accuracy.png", png(accuracy_figure(averages))),
            ]
        glimpses = look_at_chosen(source, **wanted)
    name = "_".join([stem, *["errors"] * config.errors, *[config.label] * bool(config.label)])
    path = Path(config.out) if config.out else folder / f"{name}.gif"
    return [write(path, animation(glimpse_frames(glimpses), path.suffix, config.fps))]


def find_glimpses(plot_dir: Path, epoch: int | None) -> Path:
    """The file of an epoch, or the latest.

    Raises:
        InputError: there is none.
    """
    named = [(path.stem.removeprefix("glimpses_"), path) for path in plot_dir.glob("glimpses_*.npz")]
    saved = {int(number): path for number, path in named if number.isdecimal()}
    if not saved:
        raise InputError(f"no saved glimpses in {plot_dir}: train first, or name the run's folder with --plot_dir=")
    if epoch is not None and epoch not in saved:
        raise InputError(f"epoch={epoch} is not among those saved in {plot_dir}: {', '.join(map(str, sorted(saved)))}")
    return saved[max(saved) if epoch is None else epoch]


def plots_of(config: PlotConfig, trained: Config) -> Path:
    """Where a checkpoint's pictures go: the plots folder of the run it lies in, else one named after the file."""
    if config.plot_dir:
        return Path(config.plot_dir)
    path = Path(config.checkpoint).resolve()
    return trained.run_plots if path.parent.name == trained.name else Path("plots") / path.stem


def write(path: Path, content: bytes) -> Path:
    """Writes a picture, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    from runs import write_whole

    try:
        write_whole(path, content)
    except InputError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise InputError(f"cannot write {path} ({reason}): choose another --out= or --plot_dir=") from error
    print(f"[*] Picture in {path}")
    return path


if __name__ == "__main__":
    try:
        with refusals_told():
            main(parse_flags(PlotConfig, None, PlotConfig(), prog="plot_glimpses.py"))
    except InputError as error:
        sys.exit(f"plot_glimpses.py: {error}")
