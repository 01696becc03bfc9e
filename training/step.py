"""The loss of a batch: eager, or compiled if that pays, on a GPU as a CUDA graph.

objective = Objective(model, config.training, batch_size=128)
losses = objective(images, labels, first_locations, noise)
"""

import logging
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from config import TrainingConfig
from games.player import Games, draw_noise, game_loss, play
from model import Losses, RecurrentAttention, hybrid_loss
from training.distributed import World
from utils import matmul_dtype

# Steps. On a GPU half a minute of compiling saves 0.9 ms a step, which is captured without it, too.
COMPILING_PAYS_AFTER = {"cpu": 6_000, "cuda": 30_000}


class Objective(nn.Module):
    """The hybrid loss in one forward, which is compiled as a whole and whose gradients processes average.

    In bfloat16 the networks' matrix products have fewer digits, and so have hidden states and baselines; weights,
    locations, probabilities, losses and the optimizer stay float32, and so does every evaluation.

    Args:
        model: whose loss it is.
        training: read for precision, reinforce_weight and reward.
        batch_size: images of a full batch, which alone is compiled.
    """

    def __init__(self, model: RecurrentAttention, training: TrainingConfig, batch_size: int):
        super().__init__()
        self.model = model
        self.training_config = training
        self.batch_size = batch_size
        self.device = next(model.parameters()).device
        self.bfloat16 = matmul_dtype(training.precision, self.device) is torch.bfloat16
        self.full_batch_losses: Callable[..., Losses] = self.losses

    def forward(self, images: Tensor, labels: Tensor, locations: Tensor, noise: Tensor) -> Losses:
        """The losses of a batch; nothing here draws random numbers or waits for the device.

        Args:
            images: (B, C, H, W), uint8, or normalised.
            labels: (B,).
            locations, noise: (B, 2) or (B, K, 2), and (S, B, 2), see `RecurrentAttention.forward`.
        """
        batch = images, labels, locations, noise
        # An epoch's last, smaller batch is not worth a compilation of its own.
        if len(labels) == self.batch_size and self.full_batch_losses != self.losses:
            try:
                return self.full_batch_losses(*batch)
            except torch._dynamo.exc.TorchDynamoException as error:  # it had to be compiled anew, and could not be
                self.give_up(error)
        return self.losses(*batch)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """What `forward` takes as noise, drawn on the model's device for a whole batch: (S, B, 2)."""
        return self.model.draw_noise(batch, self.device, generator)

    def losses(self, images: Tensor, labels: Tensor, locations: Tensor, noise: Tensor) -> Losses:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            rollout = self.model(images, locations, noise)
        weighting = self.training_config
        return hybrid_loss(rollout, labels, reinforce_weight=weighting.reinforce_weight, reward=weighting.reward)

    def compile(self, *example: Tensor, captured: bool = False):
        """Compiles the losses of full batches, if a compiler is at hand.

        Args:
            example: the arguments of `forward`, of a full batch.
            captured: whether the whole step is to be captured as a CUDA graph.
        """
        print("[*] Compiling the training step (--compile=False does without)")
        # A process may train many models, as a search does. Without this, torch leaves the ninth and later ones eager.
        limits = torch._dynamo.config
        limits.recompile_limit = limits.accumulated_recompile_limit = 2**16
        try:
            compiled = torch.compile(self.losses, dynamic=False, **compiler_arguments(self.device, captured))
            self.model.train()
            loss, plain = compiled(*example).total, self.losses(*example).total.item()
            loss.backward()
            if not math.isclose(loss.item(), plain, rel_tol=0.05, abs_tol=0.05):
                raise ArithmeticError(f"the compiled loss is {loss.item():.4g}, the plain one {plain:.4g}")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler may be missing, or fail in ways of its own
            self.give_up(error)
            return
        self.full_batch_losses = compiled

    def give_up(self, error: BaseException):
        """Does without the compiler from now on, and prints why."""
        from training.fuse_matmuls import FusionError  # imports the compiler

        self.full_batch_losses = self.losses
        errors = list(causes(error))
        first = f"{type(errors[-1]).__name__}: {str(errors[-1]).strip().partition(chr(10))[0]}"
        if any(isinstance(each, FusionError) for each in errors):
            print(f"[!] Compiling failed by a bug in training/fuse_matmuls.py ({first}): please report it; training "
                  "continues without")  # fmt: skip
        else:
            print(f"[!] Compiling failed ({first}); training continues without, as with --compile=False")


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what led to it, what led to that, and so on."""
    while error:
        yield error
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__


class GameObjective(Objective):
    """The loss of a batch of games.

    Args:
        model, training, batch_size: as of an `Objective`.
        world: whose processes share each batch.
    """

    def __init__(self, model: RecurrentAttention, training: TrainingConfig, batch_size: int, world: World):
        super().__init__(model, training, batch_size)
        self.world = world

    def draw_noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """(T, B, 2 + num_actions); see `games.player.draw_noise`."""
        return draw_noise(self.model, batch, self.device, generator)

    def compile(self, *example, captured: bool = False):
        """Does without: a compiler takes minutes over the frames of a whole game. A CUDA graph needs none."""

    def losses(self, games: Games, labels: Tensor, locations: Tensor, noise: Tensor) -> Losses:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            played = play(self.model, games, locations, noise)
        return game_loss(played, **self.training_config.game_weights, total=self.world.sum)


def first_not_finite(losses: Tensor) -> tuple[int, str, float] | None:
    """The first step with a term that is infinite or not a number, as (step, term, value); None if all are finite.

    Args:
        losses: (steps, terms), `Losses` of successive steps; read from the device at once.
    """
    for step, terms in enumerate(losses.tolist()):
        for name, value in zip(Losses._fields[1:], terms[1:], strict=True):  # the total is finite if they are
            if not math.isfinite(value):
                return step, name, value
    return None


def should_compile(choice: str, device: torch.device, steps: int) -> bool:
    """Whether to compile the step of a run.

    Args:
        choice: see `TrainingConfig.compile`.
        steps: of the whole run, so that a resumed one decides alike and computes the same bits.
    """
    return choice == "True" or (choice == "auto" and steps >= COMPILING_PAYS_AFTER.get(device.type, math.inf))


def compiler_arguments(device: torch.device, captured: bool) -> dict:
    """How to compile for a device, so that starting a step's many short kernels costs little."""
    if device.type == "cuda":
        # A CUDA graph starts all at once. It replays what it captured, so every random number comes in as an argument.
        return {} if captured else {"mode": "reduce-overhead"}
    if device.type == "cpu":
        from training.fuse_matmuls import FuseMatmuls  # imports the compiler

        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it would miss CUDA, needlessly
        # What is read twice is computed once, or every pixel of a glimpse would find its corner anew.
        once = {"realize_reads_threshold": 2}
        return {"options": {"post_grad_custom_pre_pass": FuseMatmuls(), "cpp_wrapper": True, **once}}
    return {}
