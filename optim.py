"""How the weights are stepped: the optimizer, and the learning rate from epoch to epoch."""

import math

from torch import nn, optim
from torch.optim import lr_scheduler

from config import Config

Scheduler = lr_scheduler.LambdaLR | lr_scheduler.ReduceLROnPlateau


def make_optimizer(config: Config, model: nn.Module) -> optim.Optimizer:
    """Adam, or the paper's stochastic gradient descent with momentum."""
    if config.optimizer == "sgd":
        return optim.SGD(model.parameters(), lr=config.init_lr, momentum=config.momentum, fused=True)
    return optim.Adam(model.parameters(), lr=config.init_lr, betas=(config.momentum, 0.999), fused=True)


def make_scheduler(config: Config, optimizer: optim.Optimizer) -> Scheduler:
    """A half cosine over config.epochs, or a tenfold cut where the validation accuracy stays on a plateau."""
    if config.lr_patience is not None:
        return lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=config.lr_patience)
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: (1 + math.cos(math.pi * min(epoch / config.epochs, 1))) / 2)


def step_scheduler(scheduler: Scheduler, valid_acc: float):
    """Ends an epoch, whose validation accuracy a plateau is told by."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(valid_acc)
    else:
        scheduler.step()
