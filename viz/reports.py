"""What a training shows of itself: the functions that main.py hands to `Trainer.train`.

    with open_reports(config, trainer) as reports:
        trainer.train(on_epoch=reports)

To show something else after each epoch, write a function of an `EpochResult` and add it to the list.
"""

import contextlib
from collections.abc import Callable, Iterator

from config import Config
from images.catch import Games
from trainer import Trainer
from training.checkpoint import write_whole
from training.cli import InputError
from training.evaluation import evaluation_locations
from training.progress import EpochResult
from training.run_folder import read_metrics
from viz.record import NUM_SAVED, look, save_glimpses
from viz.tensorboard import TensorBoardLog


@contextlib.contextmanager
def open_reports(config: Config, trainer: Trainer) -> Iterator[list[Callable[[EpochResult], None]]]:
    """What to call after each epoch: prints a line, logs, saves glimpses. However a training ends, draws its curves.

    Of several processes, only the main one reports.
    """
    if not trainer.world.is_main:
        yield []
        return
    log = TensorBoardLog(config, trainer.progress.epoch) if config.machine.use_tensorboard else None
    try:
        yield [print_epoch, *([log.add_epoch] if log else []), GlimpseRecorder(config, trainer, log)]
    finally:
        save_curves(config, log)


def print_epoch(result: EpochResult):
    """The original project's line."""
    train, valid = result.train, result.valid
    print(
        f"Epoch {result.epoch}/{result.epochs} - "
        f"train loss: {train.loss:.3f} - train acc: {train.acc:.3f} - val loss: {valid.loss:.3f} - "
        f"val acc: {valid.acc:.3f} - val err: {100 - valid.acc:.3f}{' [*]' if result.is_best else ''}",
        flush=True,
    )


class GlimpseRecorder:
    """Saves where the model looks in the first validation images, for plot_glimpses.py, and logs it.

    Args:
        config: of the run.
        trainer: whose average of the weights is shown.
        log: TensorBoard's, or None.
    """

    def __init__(self, config: Config, trainer: Trainer, log: TensorBoardLog | None):
        self.config = config
        self.model, self.loader = trainer.average, trainer.valid_loader
        self.log = log

    def __call__(self, result: EpochResult):
        if result.epoch % self.config.machine.plot_freq and result.epoch != result.epochs:
            return
        self.model.eval()
        batch = next(iter(self.loader))
        locations = evaluation_locations(self.config, self.loader)[0, : len(batch.labels)]
        if isinstance(batch.images, Games):
            from viz.games import save_games, watch  # draws, too: imports matplotlib

            first_games = batch.images.take(slice(NUM_SAVED)), locations[:NUM_SAVED]
            save_games(self.config.run_plots / f"glimpses_{result.epoch}.npz", watch(self.model, *first_games))
            return
        glimpses = look(self.model, batch, locations, self.loader.spec)
        path = self.config.run_plots / f"glimpses_{result.epoch}.npz"
        save_glimpses(path, glimpses.take(slice(NUM_SAVED)))
        if self.log:
            self.log.add_glimpses(glimpses, result.epoch)


def save_curves(config: Config, log: TensorBoardLog | None):
    """Draws and logs what the training led to, and closes the log; an error is printed, and stops nothing."""
    try:
        metrics = read_metrics(config.run_dir / "metrics.jsonl")
        if metrics:
            from viz.figures import curves_figure
            from viz.files import png

            write_whole(config.run_plots / "curves.png", png(curves_figure(metrics)))
            if log:
                log.add_result(metrics)
    except (InputError, OSError) as error:
        print(f"[!] {error}")
    finally:
        if log:
            log.close()
