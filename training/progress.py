"""Where a run stands, and what an epoch came to.

progress = Progress()
is_best = progress.finish_epoch(valid_acc=98.5)
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from model import Losses
from training.evaluation import Metrics
from utils import AverageMeter


@dataclass
class Progress:
    """Where a run stands; saved and restored as one."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps finished of the current epoch
    meter: AverageMeter = field(default_factory=AverageMeter)  # training metrics of those steps
    seconds: float = 0.0  # that they took
    best_valid_acc: float = 0.0  # %
    epochs_since_best: int = 0

    def finish_epoch(self, valid_acc: float | None) -> bool:
        """Begins the next epoch; returns whether the finished one is the best: without validation, the latest is."""
        is_best = self.epoch == 0 or valid_acc is None or valid_acc > self.best_valid_acc
        self.best_valid_acc = (valid_acc or 0.0) if is_best else self.best_valid_acc
        self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
        self.epoch, self.step, self.meter, self.seconds = self.epoch + 1, 0, AverageMeter(), 0.0
        return is_best

    def state_dict(self) -> dict:
        return {**vars(self), "meter": self.meter.state_dict()}

    def load_state_dict(self, state: dict, device: torch.device):
        """Raises ValueError, KeyError or TypeError if the state is not of a run."""
        for name in vars(self).keys() - {"meter"}:
            setattr(self, name, state[name])
            if not state[name] >= 0:
                raise ValueError(f"its {name} is {state[name]}")
        self.meter.load_state_dict(state["meter"], len(Losses._fields), device)


class EpochResult(NamedTuple):
    """What an epoch came to, as the functions receive it that main.py hands to `Trainer.train`."""

    epoch: int  # counted from 1
    epochs: int  # of the whole run
    train: Metrics
    valid: Metrics | None  # None: no images are kept for it
    lr: float
    images_per_second: float  # of the training
    seconds: float  # with validation
    best_valid_acc: float  # %, so far; 0 without validation
    is_best: bool
