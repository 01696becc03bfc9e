"""What a training shows of itself: the functions that main.py hands to `Trainer.train`.

    with open_reports(config, trainer) as reports:
        trainer.train(on_epoch=reports)

To show something else after each epoch, write a function of an `EpochResult` and add it to the list.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator

from config import Config
from games.catch import Games
from trainer import Trainer
from training.checkpoint import write_whole
from training.cli import InputError, say
from training.evaluation import evaluation_locations
from training.progress import EpochResult
from training.run_folder import read_metrics
from viz.record import NUM_SAVED, look, save_glimpses
from viz.tensorboard import TensorBoardLog, open_wandb


@contextlib.contextmanager
def open_reports(config: Config, trainer: Trainer) -> Iterator[list[Callable[[EpochResult], None]]]:
    """What to call after each epoch: prints a line, logs, saves glimpses. However a training ends, draws its curves.

    Of several processes, only the main one reports. An error in one of these stops no training.
    """
    if not trainer.world.is_main:
        yield []
        return
    machine = config.machine
    with open_wandb(config) if machine.wandb else contextlib.nullcontext():
        log = TensorBoardLog(config, trainer.progress.epoch) if machine.use_tensorboard or machine.wandb else None
        reports = [print_epoch, *([log.add_epoch] if log else []), GlimpseRecorder(config, trainer, log)]
        try:
            yield [harmless(report) for report in reports]
        finally:
            harmless(save_curves)(config, log)
            if log:
                harmless(log.close)()


def harmless(report: Callable[..., None]) -> Callable[..., None]:
    """The report, whose errors stop nothing; the first is printed."""
    failed = []

    def call(*arguments):
        try:
            report(*arguments)
        except Exception as error:  # whatever it is, it must not cost the training
            name = getattr(report, "__qualname__", type(report).__name__)
            frame = traceback.extract_tb(error.__traceback__)[:2][-1]  # in the report itself
            reason = f"{name} fails at {frame.filename}:{frame.lineno} ({type(error).__name__}: {error})"
            if isinstance(error, InputError):  # without its remedy: nothing is to be repeated
                reason = str(error).rpartition(": ")[0] or str(error)
            if not failed:
                failed.append(error)
                say(f"[!] {reason}: left out, nothing else is affected")

    return call


def print_epoch(result: EpochResult):
    """The original project's line."""
    train, valid = result.train, result.valid
    line = f"Epoch {result.epoch}/{result.epochs} - train loss: {train.loss:.3f} - train acc: {train.acc:.3f}"
    if valid:
        line += f" - val loss: {valid.loss:.3f} - val acc: {valid.acc:.3f} - val err: {100 - valid.acc:.3f}"
        line += " [*]" if result.is_best else ""
    print(line, flush=True)


class GlimpseRecorder:
    """Saves where the model looks in the first validation images, if there are any, for plot_glimpses.py, and logs it.

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
        if not self.loader or (result.epoch % self.config.machine.plot_freq and result.epoch != result.epochs):
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
    """Draws and logs what the training led to."""
    metrics = read_metrics(config.run_dir / "metrics.jsonl")
    if metrics:
        from viz.figures import curves_figure
        from viz.files import png

        write_whole(config.run_plots / "curves.png", png(curves_figure(metrics)))
        if log:
            log.add_result(metrics)
