"""Shows where a model looks: glimpse by glimpse in a few images, or over a whole test set.

    python plot_glimpses.py --plot_dir=./plots/ram_6_8x8_1 --epoch=30     # what the training saved
    python plot_glimpses.py --checkpoint=./models/mnist.pt                # any model's file, on test images
    python plot_glimpses.py --checkpoint=./ckpt/ram_6_8x8_1/best.pt --errors=True --out=errors.png
    python plot_glimpses.py --checkpoint=./ckpt/ram_6_8x8_1/best.pt --averages=True
    python plot_glimpses.py --checkpoint=./models/mnist.pt --image=digit.png       # a picture of your own

--out=NAME.mp4 needs ffmpeg; a GIF, PNG or HTML page needs nothing more than the requirements.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from config import Config, make_config
from training.cli import Bounds, InputError, Names, PathText, Positive, Settings, run_command, say


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
    """Draw a summary of the whole test set instead, for --checkpoint: NAME_heat_maps.png, where the glimpses fall,
    NAME_accuracy.png, how often the prediction is right after each glimpse, and NAME_confusion.png, which classes are
    taken for which; NAME is the checkpoint's. Of a game: NAME_gaze.png, where the gaze is in each frame against ball
    and paddle."""
    image: Names = ()
    """Read these pictures of your own, for --checkpoint: files, folders, which print a table, or - for standard
    input."""
    image_fit: Literal["auto", "ink", "pad", "stretch", "none"] = "auto"
    """How a picture gets the model's size. ink: find the ink and scale it as a digit; pad: resize it, aspect kept;
    stretch: resize it; none: do not resize it. auto: none if it has the size already or is smaller than a canvas, ink
    for models of digits, else pad."""
    invert: Literal["auto", "True", "False"] = "auto"
    """Turn dark ink on white into light ink on black, as in MNIST; auto: where a picture needs it."""
    csv: bool = False
    """Print what was read in the pictures as CSV, and nothing else."""
    out: PathText = ""
    """File to write: .gif, .mp4, .html, a page that plays them, or .png, a sheet of all glimpses; empty: a GIF in the
    run's plot_dir, or none for a folder of pictures, or with csv=True."""
    fps: Annotated[float, Bounds("from 0.01 to 50", lambda value: 0.01 <= value <= 50)] = 1.5
    """Glimpses a second."""

    def __post_init__(self):
        super().__post_init__()
        if self.out and Path(self.out).suffix not in (".gif", ".mp4", ".html", ".png"):
            raise InputError(f"out={self.out} is not allowed: it must end in .gif, .mp4, .html or .png")
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
        if self.image and not self.checkpoint:
            raise InputError("image needs the model: name its file with --checkpoint=")
        if self.image and (self.averages or self.indices or self.label or self.errors or self.data_dir):
            raise InputError("image names your own pictures: leave averages, indices, label, errors and data_dir out")
        if self.image and not self.images:
            raise InputError("image names no file: --image=digit.png")
        if self.images.count("-") > 1:
            raise InputError("image names standard input twice: name it once")
        if not self.image and (self.image_fit != "auto" or self.invert != "auto" or self.csv):
            raise InputError("image_fit, invert and csv are for pictures of your own: name them with --image=")

    @property
    def images(self) -> tuple[str, ...]:
        """What --image names."""
        return tuple(os.path.expanduser(name) for names in self.image for name in names)


def main(config: PlotConfig) -> list[Path]:
    """Writes the pictures and returns their paths.

    Raises:
        InputError: there are no such glimpses or images, or no ffmpeg for an MP4.
    """
    if Path(config.out).suffix == ".mp4" and not shutil.which("ffmpeg"):
        raise InputError(f"{config.out} needs ffmpeg, which is not installed: install it, or write a .gif")
    return read_own(config) if config.image else draw(config)


def draw(config: PlotConfig) -> list[Path]:
    """Draws saved glimpses, or those in test images."""
    # Imported here, not above: --help and a typo's message need not wait for torch and matplotlib.
    from viz.figures import glimpse_frames
    from viz.files import animation, png, save_picture
    from viz.games import choose_games, game_frames, gaze_figure, holds_games, load_games, play_all, play_chosen
    from viz.record import choose, load_glimpses, look_at_chosen, open_checkpoint
    from viz.test_set import accuracy_figure, confusion_figure, heat_map_figure, summarise

    indices = [int(part) for part in config.indices.split(",") if part]
    chosen = {"indices": indices, "missed": config.errors, "count": config.num_images}
    wanted = {"indices": indices, "label": config.label, "errors": config.errors, "count": config.num_images}
    if config.checkpoint:
        source = open_checkpoint(config.checkpoint, config.data_dir or "./data")
        folder, stem = plots_of(config, source.config), Path(config.checkpoint).stem
        is_game = source.config.data.dataset == "catch"
        if config.averages and is_game:
            return [save_picture(folder / f"{stem}_gaze.png", png(gaze_figure(play_all(source))))]
        if config.averages:
            summary = summarise(source)
            print(f"[*] Right after 1 to {len(summary.correct)} glimpses, of {summary.num_images} images: "
                  + ", ".join(f"{100 * count / summary.num_images:.2f}%" for count in summary.correct))  # fmt: skip
            return [
                save_picture(folder / f"{stem}_heat_maps.png", png(heat_map_figure(summary))),
                save_picture(folder / f"{stem}_accuracy.png", png(accuracy_figure(summary))),
                save_picture(folder / f"{stem}_confusion.png", png(confusion_figure(summary))),
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


def read_own(config: PlotConfig) -> list[Path]:
    """Prints what the model reads in pictures of the user's own, and draws its glimpses in the first num_images.

    Raises:
        InputError: after the others were read and drawn, that some could not be.
    """
    from viz.figures import glimpse_frames
    from viz.files import animation, save_picture
    from viz.own_images import CsvTable, files_of, open_reader, read_files, sentences, table_line
    from viz.record import joined

    trained, files = open_reader(config.checkpoint), files_of(config.images)
    is_table = any(Path(name).is_dir() for name in config.images)
    width = max(map(len, files))
    table = CsvTable(sys.stdout) if config.csv else None
    drawn, failed = [], []
    for answer in read_files(files, trained, config.image_fit, config.invert):
        if table:
            table.write(answer)
        elif len(files) > 1 or not answer.error:
            for line in [table_line(answer, width)] if is_table else sentences(answer):
                say(line)
        if answer.error:
            failed.append(answer)
        elif len(drawn) < config.num_images:
            drawn.append(answer.glimpses)

    written = []
    if drawn and (config.out or not (is_table or table)):
        stem = "images" if len(files) > 1 else "image" if files == ["-"] else f"image_{Path(files[0]).stem}"
        path = Path(config.out) if config.out else plots_of(config, trained.config) / f"{stem}.gif"
        frames = animation(glimpse_frames(joined(drawn)), path.suffix, config.fps)
        written = [save_picture(path, frames, quiet=config.csv)]
    if failed:
        of_several = f"{len(failed)} of {len(files)} pictures not read: " if len(files) > 1 else ""
        raise InputError(f"{of_several}{failed[0].file} {failed[0].error}")
    return written


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
    """Where a checkpoint's pictures go: to its run's plots if it lies in the folder of its run, else to plots/STEM.

    The checkpoint names its run's plots, and is believed where they name the run's folder; else they are plots/RUN.

    Raises:
        InputError: these are those of another run.
    """
    if config.plot_dir:
        return Path(config.plot_dir)
    from training.run_folder import claim, owner_of

    path = Path(config.checkpoint).resolve()
    if path.parent.name != trained.name:
        return Path("plots") / path.stem
    if owner_of(trained.run_plots) == path.parent:
        return trained.run_plots
    folder = Path("plots") / trained.name
    claim(folder, "plot_dir", path.parent)
    return folder


if __name__ == "__main__":
    run_command(main, PlotConfig, prog="plot_glimpses.py")
