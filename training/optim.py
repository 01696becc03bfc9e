"""Optimizers, the average of the weights, and the schedules of the learning rate and the policy's std.

optimizer = make_optimizer(config.training, model)
average_weights(average, model, config.training.ema_decay, steps)
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import ReduceLROnPlateau

from config import TrainingConfig
from model import RecurrentAttention

BLOCK = 64  # rows of a weight that Muon orthogonalises together


class Muon(optim.Muon):
    """Orthogonalises the running mean of a weight's gradients (Jordan et al. 2024, "Muon: an optimizer for hidden
    layers in neural networks"), BLOCK rows at a time: a quarter of the work for a weight of 256 x 256.

    torch's Muon multiplies whole weights, and in bfloat16, which takes a CPU without it in hardware up to 70 times as
    long; here products are float32.

    Args:
        weights: (n, m) each; one whose n is no multiple of BLOCK is orthogonalised whole.
        settings: lr, momentum and weight_decay.
    """

    def __init__(self, weights: list[nn.Parameter], **settings: float):
        # Three Newton-Schulz iterations do as well here as the usual five. adjust_lr_fn describes, in checkpoints, the
        # last line of step.
        super().__init__(weights, ns_steps=3, adjust_lr_fn="match_rms_adamw", **settings)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            # Frozen weights have no gradient: a single glimpse uses no recurrent ones.
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights]
            means = [self.state[weight]["momentum_buffer"] for weight in weights]
            torch._foreach_lerp_(means, gradients, 1 - momentum)
            ahead = torch._foreach_lerp(gradients, means, momentum)  # Nesterov's
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
            same_side = defaultdict(list)
            for weight, direction in zip(weights, ahead, strict=True):
                height = BLOCK if len(weight) % BLOCK == 0 else len(weight)
                blocks = direction.reshape(-1, height, weight.shape[1])
                same_side[min(blocks.shape[1:])].append((weight, blocks))
            for pairs in same_side.values():
                directions = orthogonalize([blocks for _, blocks in pairs], group["ns_steps"], group["ns_coefficients"])
                for (weight, blocks), direction in zip(pairs, directions, strict=True):
                    length = 0.2 * math.sqrt(max(blocks.shape[1:]))  # as long as Adam's usually are
                    weight.add_(direction.reshape(weight.shape), alpha=-lr * length)


def orthogonalize(batches: list[Tensor], iterations: int, coefficients: tuple[float, float, float]) -> list[Tensor]:
    """Approximates U V', where U S V' is the singular value decomposition of a matrix X, by Newton-Schulz steps
    X <- (a I + b X X' + c (X X')^2) X, which take the singular values towards 1.

    All steps together are one matrix times X: the product of their polynomials in X X', which is smaller than X if X is
    wide; a tall one is transposed.

    Args:
        batches: (k, n, m) each, k matrices by themselves; the shorter of n and m is the same in all.
        coefficients: a, b, c.
    """
    a, b, c = coefficients
    wide = [x.mT if x.shape[1] > x.shape[2] else x for x in batches]
    gram = torch.cat([x @ x.mT for x in wide])
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-14).sqrt()[:, None, None]
    gram /= norm.square()  # no singular value is above 1
    polynomials = []
    for _ in range(iterations):
        if polynomials:
            gram = polynomials[-1] @ gram @ polynomials[-1]  # they commute
        polynomials.append(torch.baddbmm(gram, gram, gram, beta=b, alpha=c))
        polynomials[-1].diagonal(dim1=1, dim2=2).add_(a)
    product = reduce(torch.bmm, polynomials) / norm
    factors = [part @ x for part, x in zip(product.split([len(x) for x in wide]), wide, strict=True)]
    return [factor if factor.shape == x.shape else factor.mT for factor, x in zip(factors, batches, strict=True)]


class MuonAdam(optim.Optimizer):
    """Muon for weights between hidden layers and Adam for all others, stepped and saved as one optimizer.

    Args:
        hidden: weights, (n, m) each.
        others: parameters of any shape.
        lr: of both.
        momentum: of both.
        weight_decay: of both.
    """

    def __init__(
        self,
        hidden: list[nn.Parameter],
        others: list[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ):
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.parts = Muon(hidden, **settings), make_adam(others, **settings)
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


def make_optimizer(training: TrainingConfig, model: RecurrentAttention) -> optim.Optimizer:
    """Adam, Muon with Adam, or the paper's stochastic gradient descent with momentum."""
    settings = {"lr": training.init_lr, "momentum": training.momentum, "weight_decay": training.weight_decay}
    if training.optimizer == "sgd":
        return optim.SGD(model.parameters(), **settings, fused=True)
    if training.optimizer == "muon":
        hidden = [model.sensor.what.weight, model.sensor.joined.weight]
        hidden += [weight for weight in model.rnn.parameters() if weight.ndim == 2]
        others = [p for p in model.parameters() if all(p is not weight for weight in hidden)]
        return MuonAdam(hidden, others, **settings)
    return make_adam(model.parameters(), **settings)


def make_adam(parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> optim.Adam:
    """Adam, or with weight decay AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization")."""
    adam = optim.AdamW if weight_decay else optim.Adam  # the same without decay, but not in a checkpoint
    parameters = list(parameters)
    settings = {"lr": lr, "betas": (momentum, 0.999), "weight_decay": weight_decay, "fused": True}
    # A CUDA graph may hold its steps; torch warns once where they are taken without one.
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
    return adam(parameters, capturable=parameters[0].is_cuda, **settings)


def average_weights(average: nn.Module, model: nn.Module, decay: float, steps: int | Tensor):
    """Updates the exponential average of a model's weights (Polyak and Juditsky 1992, "Acceleration of stochastic
    approximation by averaging").

    Args:
        average: becomes decay * average + (1 - decay) * model, in place; buffers become the model's.
        decay: at most; lower at first, so that the average spans about a tenth of the steps taken.
        steps: taken so far, at least 1; a tensor on the weights' device where a graph repeats this.
    """
    means, weights = list(average.parameters()), list(model.parameters())
    with torch.no_grad():
        for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):  # statistics are not averaged
            mine.copy_(theirs)
        if isinstance(steps, Tensor):
            rate = 1 - ((1 + steps) / (10 + steps)).clamp(max=decay)
            ways = torch._foreach_sub(weights, means)
            torch._foreach_mul_(ways, rate)
            torch._foreach_add_(means, ways)
        else:
            torch._foreach_lerp_(means, weights, 1 - min(decay, (1 + steps) / (10 + steps)))


def learning_rate(training: TrainingConfig, epoch: int) -> float:
    """The learning rate in an epoch, counted from 0: a half cosine from init_lr to 0 over the epochs."""
    return training.init_lr * ((1 + math.cos(math.pi * min(epoch / training.epochs, 1))) / 2)


def make_plateau(training: TrainingConfig, optimizer: optim.Optimizer) -> ReduceLROnPlateau | None:
    """The original project's schedule, in place of the cosine: a tenfold cut if the accuracy stays on a plateau."""
    if training.lr_patience is None:
        return None
    return ReduceLROnPlateau(optimizer, mode="max", patience=training.lr_patience)


def policy_std(training: TrainingConfig, std: float, epoch: int) -> float:
    """The policy's standard deviation in an epoch, counted from 0; it falls from std_start to std."""
    if not training.std_start:
        return std
    done = min(epoch / (training.std_share * training.epochs), 1)
    return training.std_start + done * (std - training.std_start)


def load_optimizer(optimizer: optim.Optimizer, state: dict):
    """Restores an optimizer. Entries that only one of the two versions of torch has are left alone.

    Raises:
        ValueError: the state is of another optimizer, or of other weights.
    """
    own = [dict(group) for group in optimizer.param_groups]
    groups = [{**mine, **group} for mine, group in zip(own, state["param_groups"], strict=True)]
    for mine, group in zip(own, groups, strict=True):  # what the device asks for
        group.update({name: mine[name] for name in ("capturable", "fused", "foreach") if name in mine})
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, before in zip(optimizer.param_groups, own, strict=True):
        changed = [name for name in before if name not in ("lr", "params") and group[name] != before[name]]
        if changed:
            raise ValueError(f"its optimizer was made with another {changed[0]}")
        if not isinstance(group["lr"], float) or not math.isfinite(group["lr"]):
            raise ValueError(f"its learning rate is {group['lr']}")
        names = ["step", "exp_avg", "exp_avg_sq"] if "betas" in group else ["momentum_buffer"] * (group["momentum"] > 0)
        for parameter in group["params"]:
            for name in names if parameter.requires_grad else ():
                value = optimizer.state[parameter][name]
                if value.shape != (() if name == "step" else parameter.shape):
                    raise ValueError(f"its optimizer's {name} has shape {tuple(value.shape)}")


def load_plateau(plateau: ReduceLROnPlateau, state: dict):
    """Restores the schedule. Entries that only one of the two versions of torch has are left alone.

    Raises:
        ValueError: an entry is of another type.
    """
    own = plateau.state_dict()
    for name in own.keys() & state.keys():
        if type(state[name]) is not type(own[name]) and {type(state[name]), type(own[name])} != {int, float}:
            raise ValueError(f"its schedule's {name} is {state[name]}")
    plateau.load_state_dict({name: state[name] for name in own.keys() & state.keys()})
