"""How the weights are stepped and averaged, and the learning rate and the policy's std from epoch to epoch."""

import copy
import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from config import Config
from model import RecurrentAttention
from utils import multiplies_in

Scheduler = lr_scheduler.LambdaLR | lr_scheduler.ReduceLROnPlateau


class Muon(optim.Muon):
    """Orthogonalises the running mean of a weight's gradients (Jordan et al. 2024, "Muon: an optimizer for hidden
    layers in neural networks").

    torch's Muon multiplies in bfloat16 everywhere, which takes a CPU without it in hardware up to 70 times as long.

    Args:
        weights: (n, m) each.
        dtype: of the products.
        settings: lr, momentum and weight_decay.
    """

    def __init__(self, weights: list[nn.Parameter], dtype: torch.dtype, **settings: float):
        # Three Newton-Schulz iterations do as well here as the usual five. adjust_lr_fn names, in checkpoints, what the
        # last line of step does.
        super().__init__(weights, ns_steps=3, adjust_lr_fn="match_rms_adamw", **settings)
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:  # a single glimpse uses no recurrent weights
                    continue
                if not self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
                mean = self.state[weight]["momentum_buffer"]
                mean.lerp_(weight.grad, 1 - momentum)
                ahead = weight.grad.lerp(mean, momentum)  # Nesterov's
                direction = orthogonalize(ahead.to(self.dtype), group["ns_steps"], group["ns_coefficients"])
                weight.mul_(1 - lr * group["weight_decay"])
                weight.add_(direction, alpha=-lr * 0.2 * math.sqrt(max(weight.shape)))  # as long as Adam's usually are


def orthogonalize(matrix: Tensor, iterations: int, coefficients: tuple[float, float, float]) -> Tensor:
    """About U V', where U S V' is the singular value decomposition of a matrix (n, m), by Newton-Schulz iterations.

    Args:
        coefficients: a, b, c of X <- a X + b (X X') X + c (X X')^2 X, which takes the singular values of X towards 1.
    """
    if matrix.shape[0] > matrix.shape[1]:  # X X' of the shorter side costs less
        return orthogonalize(matrix.T, iterations, coefficients).T
    a, b, c = coefficients
    x = matrix / matrix.norm().clamp(min=1e-7)  # no singular value is above 1
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class MuonAdam(optim.Optimizer):
    """Muon for weights between hidden layers and Adam for all others, stepped and saved as one optimizer.

    Args:
        hidden: weights, (n, m) each.
        others: parameters of any shape.
        dtype: of Muon's products.
        lr: of both.
        momentum: of both.
        weight_decay: of both.
    """

    def __init__(
        self,
        hidden: list[nn.Parameter],
        others: list[nn.Parameter],
        dtype: torch.dtype,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ):
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.parts = Muon(hidden, dtype, **settings), make_adam(others, **settings)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self):
        """Makes the two parts work on this optimizer's groups and states."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def step(self):
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict):
        super().load_state_dict(state_dict)
        self._share()


def make_optimizer(config: Config, model: RecurrentAttention) -> optim.Optimizer:
    """Adam, Muon beside Adam, or the paper's stochastic gradient descent with momentum."""
    settings = {"lr": config.init_lr, "momentum": config.momentum, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return optim.SGD(model.parameters(), **settings, fused=True)
    if config.optimizer == "muon":
        hidden = [model.sensor.what.weight, model.sensor.joined.weight]
        hidden += [weight for weight in model.rnn.parameters() if weight.ndim == 2]
        others = [p for p in model.parameters() if all(p is not weight for weight in hidden)]
        dtype = multiplies_in(config.precision, hidden[0].device)
        return MuonAdam(hidden, others, dtype, **settings)
    return make_adam(model.parameters(), **settings)


def make_adam(parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> optim.Adam:
    """Adam, or with weight decay AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization")."""
    adam = optim.AdamW if weight_decay else optim.Adam  # the same without decay, but checkpoints tell them apart
    return adam(parameters, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True)


def average_weights(average: nn.Module, model: nn.Module, decay: float, steps: int):
    """Takes a model's weights into their exponential average (Polyak and Juditsky 1992, "Acceleration of stochastic
    approximation by averaging").

    Args:
        average: in place: decay * average + (1 - decay) * model.
        decay: at most; lower at first, so that the average spans about a tenth of the steps done.
        steps: done, at least 1.
    """
    decay = min(decay, (1 + steps) / (10 + steps))
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(model.parameters()), None)


def make_scheduler(config: Config, optimizer: optim.Optimizer) -> Scheduler:
    """A half cosine over config.epochs, or a tenfold cut where the validation accuracy stays on a plateau."""
    if config.lr_patience is not None:
        return lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=config.lr_patience)
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: (1 + math.cos(math.pi * min(epoch / config.epochs, 1))) / 2)


def step_scheduler(scheduler: Scheduler, valid_acc: float):
    """Ends an epoch, whose validation accuracy a plateau is told by."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(valid_acc)
        return
    with warnings.catch_warnings():
        # A run that is resumed between an epoch's last step and its validation has no step before this.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        scheduler.step()


def policy_std(config: Config, epoch: int) -> float:
    """The policy's standard deviation in an epoch, counted from 0; see `Config.std_start`."""
    if not config.std_start:
        return config.std
    done = min(epoch / (config.std_share * config.epochs), 1)
    return config.std_start + done * (config.std - config.std_start)


def load_states(config: Config, model: nn.Module, optimizer: optim.Optimizer, scheduler: Scheduler, checkpoint: dict):
    """Takes optimizer and scheduler to where a checkpoint left them.

    Raises:
        ValueError: it does not hold the states of these.
    """
    # What the states must look like is seen on a model of the same sizes after a step of its own.
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    reference = make_optimizer(config, twin)
    schedule = make_scheduler(config, reference).state_dict()
    reference.step()
    check_form(checkpoint["optim_state"], reference.state_dict(), "optim_state")
    check_form(checkpoint["scheduler_state"], schedule, "scheduler_state")
    for group, own in zip(checkpoint["optim_state"]["param_groups"], reference.param_groups, strict=True):
        changed = [name for name in group if name not in ("lr", "params") and group[name] != own[name]]
        if changed:
            raise ValueError(f"its optimizer was made with another {changed[0]}")
    optimizer.load_state_dict(checkpoint["optim_state"])
    scheduler.load_state_dict(checkpoint["scheduler_state"])
    if isinstance(scheduler, lr_scheduler.LambdaLR):  # the rate saved is that of as many epochs as were wanted then
        for group, lr, share in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = lr * share(scheduler.last_epoch)


def check_form(value, like, name: str):
    """Raises ValueError unless two nested values agree in types, keys, lengths and shapes; 1 is as good as 1.0."""
    whole_number = type(value) is int and type(like) is float  # 0 for 0.0, as runs before a setting's flag have it
    if type(value) is not type(like) and not whole_number:
        raise ValueError(f"its {name} is of type {type(value).__name__}, not {type(like).__name__}")
    if isinstance(like, dict):
        if value.keys() != like.keys():
            raise ValueError(f"its {name} has the entries {sorted(value, key=str)}, not {sorted(like, key=str)}")
        for key in like:
            check_form(value[key], like[key], f"{name}.{key}")
    elif isinstance(like, list | tuple):
        if len(value) != len(like):
            raise ValueError(f"its {name} has {len(value)} entries, not {len(like)}")
        for i, pair in enumerate(zip(value, like, strict=True)):
            check_form(*pair, f"{name}.{i}")
    elif isinstance(like, Tensor) and value.shape != like.shape:
        raise ValueError(f"its {name} has shape {tuple(value.shape)}, not {tuple(like.shape)}")
