"""TensorBoard's log of a training.

log = TensorBoardLog(config, epoch=0)
log.add_epoch(result)

tensorboard --logdir=./logs
"""

import contextlib
from collections.abc import Iterator

import numpy as np

from config import FREE, Config, names_marked
from training.checkpoint import write_whole
from training.cli import InputError
from training.progress import EpochResult
from training.run_folder import valid_accs
from viz.record import NUM_SAVED, Glimpses


@contextlib.contextmanager
def open_wandb(config: Config) -> Iterator[None]:
    """Sends all that is logged to TensorBoard to Weights & Biases, too, into its project of this name.

    A run that is resumed continues its line there.

    Raises:
        InputError: the package is missing, or does not begin.
    """
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise InputError("--wandb= needs a package that is not installed: pip install wandb") from error
    saved = config.run_dir / "wandb_id"
    known = saved.read_text() if config.call.resume and saved.exists() else None
    try:
        run = wandb.init(project=config.machine.wandb, name=config.name, id=known, resume="allow", dir=config.run_dir,
                         config=config.flat(), sync_tensorboard=True)  # fmt: skip
    except wandb.errors.Error as error:  # no account, or no network
        raise InputError(f"Weights & Biases does not begin ({error}): wandb login, or WANDB_MODE=offline") from error
    write_whole(saved, run.id.encode())
    try:
        yield
    finally:
        run.finish()


class TensorBoardLog:
    """TensorBoard's writer, which drops what an earlier process logged after this epoch.

    Args:
        config: of the run.
        epoch: epochs finished.
    """

    def __init__(self, config: Config, epoch: int):
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self.config = config
        self.folder = config.run_logs
        self.writer = SummaryWriter(str(self.folder), purge_step=epoch + 1)
        self.close = self.writer.close

    def add_epoch(self, result: EpochResult):
        """Every loss term, accuracy, learning rate and pace of an epoch."""
        for name in ("lr", "images_per_second", "seconds"):
            self.writer.add_scalar(name, getattr(result, name), result.epoch)
        for part in ("train", "valid") if result.valid else ("train",):
            for name, value in getattr(result, part)._asdict().items():
                self.writer.add_scalar(f"{name}/{part}", value, result.epoch)

    def add_glimpses(self, glimpses: Glimpses, epoch: int):
        """A picture of the first paths, and for each glimpse how the locations are spread."""
        from viz.figures import path_figure
        from viz.files import to_image

        picture = np.asarray(to_image(path_figure(glimpses.take(slice(NUM_SAVED)))))
        self.writer.add_image("glimpses", picture, epoch, dataformats="HWC")
        for step in range(glimpses.locations.shape[1]):
            for axis, name in enumerate("xy"):
                values = glimpses.locations[:, step, axis]
                self.writer.add_histogram(f"location_{name}/glimpse_{step + 1}", values, epoch)

    def add_result(self, metrics: list[dict]):
        """The settings and what they led to, for the tab HPARAMS.

        TensorBoard shows the first of these that a run logged. They go into a file of their own, which a resumed run
        replaces, so that it shows the latest.

        Args:
            metrics: the lines of the run's metrics.jsonl.
        """
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        settings = {name: value if isinstance(value, bool | int | float) else str(value)
                    for name, value in self.config.flat().items() if name not in names_marked(FREE)}  # fmt: skip
        last = metrics[-1]
        result = {
            "final/train_acc": last["train"]["acc"],
            "final/epochs_done": last["epoch"],
        }
        if last["valid"]:
            result["final/best_valid_acc"] = max(valid_accs(metrics))
            result["final/valid_acc"], result["final/valid_loss"] = last["valid"]["acc"], last["valid"]["loss"]
        self.writer.flush()
        for earlier in self.folder.glob("*.hparams"):
            earlier.unlink()
        with SummaryWriter(str(self.folder), filename_suffix=".hparams") as writer:
            for summary in hparams(settings, result):
                writer.file_writer.add_summary(summary)
            for name, value in result.items():
                writer.add_scalar(name, value, last["epoch"])
