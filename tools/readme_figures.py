"""Draws every picture of the README and docs, from the shipped models or from those that you trained.

    make figures
    python -m tools.readme_figures --data_dir=./data

A task's model is models/TASK.pt, or else the best checkpoint of its run: ckpt/ram_6_8x8_1/best.pt for mnist.
"""

from dataclasses import dataclass
from pathlib import Path

from config import TASKS, make_config
from data_loader import get_train_valid_loader
from model import RecurrentAttention
from training.cli import InputError, run_command
from training.distributed import pick_device
from viz.figures import glimpse_frames, patches_figure
from viz.files import animation, png, save_picture
from viz.games import game_frames, gaze_figure, play_all
from viz.record import Glimpses, look, look_at_chosen, open_checkpoint
from viz.test_set import accuracy_figure, heat_map_figure, summarise

PICTURED = tuple(task for task in TASKS if task not in ("folder", "catch"))
ANIMATED = ("mnist", "translated60", "cluttered60")
SUMMARISED = ("mnist", "cluttered60")
PLAYED = ("catch",)


@dataclass(frozen=True)
class ReadmeFigures:
    """Draws every picture of the README and docs."""

    data_dir: str = "./data"
    """Folder of the data sets."""
    models_dir: str = "./models"
    """Folder of the shipped models, TASK.pt."""
    ckpt_dir: str = "./ckpt"
    """Folder of the runs' checkpoints, for tasks without a shipped model."""
    out_dir: str = "./assets"
    """Folder to write to."""


def main(args: ReadmeFigures):
    """Draws the pictures of all tasks that have a model.

    Raises:
        InputError: data are missing, or a task has no model.
    """
    out, missing = Path(args.out_dir), []
    examples = {task: first_glimpse(task, args.data_dir) for task in PICTURED}
    save_picture(out / "tasks.png", png(patches_figure(examples)))
    for task in dict.fromkeys(ANIMATED + SUMMARISED + PLAYED):
        path = find_model(task, args)
        if path is None:
            missing.append(task)
            continue
        source = open_checkpoint(path, args.data_dir)
        print(f"[*] {task}: {path}")
        if task in ANIMATED:
            chosen = look_at_chosen(source, indices=[], label="", errors=False, count=6)
            save_picture(out / f"{task}.gif", animation(glimpse_frames(chosen), ".gif", fps=1.5))
        if task in SUMMARISED:
            summary = summarise(source)
            save_picture(out / f"{task}_heat_maps.png", png(heat_map_figure(summary)))
            save_picture(out / f"{task}_accuracy.png", png(accuracy_figure(summary)))
        if task in PLAYED:
            played = play_all(source)
            first = played.take(slice(6))
            save_picture(out / f"{task}.gif", animation(game_frames(first), ".gif", fps=4))
            save_picture(out / f"{task}_gaze.png", png(gaze_figure(played)))
    if missing:
        raise InputError(
            f"no model for {', '.join(missing)}, whose pictures stay as they were: put TASK.pt into "
            f"{args.models_dir}, or train: python main.py --task={missing[0]}"
        )


def find_model(task: str, args: ReadmeFigures) -> Path | None:
    """The shipped model of a task, else that of its run, else None."""
    run = make_config(task=task, ckpt_dir=args.ckpt_dir).run_dir
    return next((path for path in (Path(args.models_dir) / f"{task}.pt", run / "best.pt") if path.exists()), None)


def first_glimpse(task: str, data_dir: str) -> Glimpses:
    """What an untrained model receives that looks at the middle of what is bright in a task's validation image."""
    config = make_config(task=task, data_dir=data_dir, num_glimpses=1)
    loader = get_train_valid_loader(config.data, config.training.random_seed, pick_device(use_gpu=False))[1]
    batch, spec = next(iter(loader)), loader.spec
    batch = batch._replace(images=batch.images[:1], labels=batch.labels[:1])
    bright = batch.images[0, 0].nonzero().float().mean(dim=0)  # row and column: on the digit, or among the clutter
    location = 2 * (bright.flip(0) + 0.5) / bright.new_tensor([spec.width, spec.height]) - 1
    model = RecurrentAttention(**config.model_args(spec.num_channels, len(spec.classes)))
    return look(model.normalize_by(spec.mean, spec.std).eval(), batch, location[None], spec)


if __name__ == "__main__":
    run_command(main, ReadmeFigures, prog="tools.readme_figures")
