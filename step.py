"""One step of gradient descent on the hybrid loss: eager, or compiled where that pays, on a GPU as a CUDA graph.

step = TrainingStep(config, model, make_optimizer(config, model))
losses = step(images, labels, first_locations, noise)
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn, optim

from config import Config
from data_loader import DataSpec
from distributed import ALONE, World
from model import Losses, RecurrentAttention, draw_first_locations, hybrid_loss
from policies import given_locations
from utils import multiplies_in

COMPILING_PAYS_AFTER = 10_000  # steps


class Objective(nn.Module):
    """The loss of a batch in one forward, which is compiled as a whole and whose gradients processes average.

    In bfloat16 the networks' matrix products have fewer digits, and so have what is made of them, hidden states and
    baselines; weights, locations, probabilities, losses and the optimizer stay float32, and so does every evaluation.
    """

    def __init__(self, config: Config, model: RecurrentAttention):
        super().__init__()
        self.config = config
        self.model = model
        self.device = next(model.parameters()).device
        self.bfloat16 = multiplies_in(config.precision, self.device) is torch.bfloat16
        self.full_batch_losses: Callable[..., Losses] = self.losses

    def forward(self, images: Tensor, labels: Tensor, first_locations: Tensor, noise: Tensor) -> Losses:
        """Arguments as of `TrainingStep`."""
        # An epoch's last, smaller batch is not worth a compilation of its own.
        losses = self.full_batch_losses if len(labels) == self.config.batch_size else self.losses
        return losses(images, labels, first_locations, noise)

    def losses(self, images: Tensor, labels: Tensor, first_locations: Tensor, noise: Tensor) -> Losses:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            rollout = self.model(images, first_locations, noise)
        config = self.config
        return hybrid_loss(rollout, labels, reinforce_weight=config.reinforce_weight, reward=config.reward)


class TrainingStep:
    """Takes a batch with all its random numbers and moves the weights; nothing in it draws or waits for the device.

    Args:
        config: its policy, core, batch_size, num_glimpses, reinforce_weight, reward, clip_grad_norm and compile count.
        model: whose weights are moved.
        optimizer: of these weights.
        world: the processes that average their gradients.
    """

    def __init__(self, config: Config, model: RecurrentAttention, optimizer: optim.Optimizer, world: World = ALONE):
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.objective = Objective(config, model)
        # What no rollout of this run uses has no gradient, and the optimizer no state of it.
        model.locator.requires_grad_(config.policy == "learned" and model.num_choices > 0)
        if config.core == "relu":
            model.rnn.from_hidden.requires_grad_(config.num_glimpses > 1)
        self.shared_objective = world.parallel(self.objective)

    def __call__(
        self, images: Tensor, labels: Tensor, first_locations: Tensor, noise: Tensor, weight: float = 1.0
    ) -> Losses:
        """The losses of these images, before the step.

        Args:
            images: (B, C, H, W), uint8, or normalised.
            labels: (B,).
            first_locations, noise: (B, 2) or (B, K, 2), and (S, B, 2), see `RecurrentAttention.forward`.
            weight: of this process's gradient in the mean over the processes.
        """
        losses = self.shared_objective(images, labels, first_locations, noise)
        self.optimizer.zero_grad()
        (losses.total if weight == 1 else losses.total * weight).backward()
        if self.config.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        self.optimizer.step()
        return losses

    def compile(self, spec: DataSpec, steps: int):
        """Compiles the losses of full batches where config.compile asks for it and a compiler is at hand.

        Args:
            spec: of the images.
            steps: of the whole run, so that a resumed one decides alike and computes the same bits.
        """
        device = self.objective.device
        wanted = self.config.compile == "True"
        if self.config.compile == "auto":
            wanted = device.type != "mps" and steps >= COMPILING_PAYS_AFTER
        if not wanted:
            return
        print("[*] Compiling the training step (--compile=False does without)")
        count = self.config.batch_size
        shape = count, spec.num_channels, spec.height, spec.width
        images = torch.zeros(shape, dtype=torch.uint8, device=device)
        labels = torch.zeros(count, dtype=torch.long, device=device)
        starts = draw_first_locations(self.config.first_location, count, device)
        locations = given_locations(self.config, starts, centres=starts)
        noise = torch.zeros(self.model.num_choices, count, 2, device=device)
        try:
            compiled = torch.compile(self.objective.losses, dynamic=False, **compiler_arguments(device))
            self.model.train()
            compiled(images, labels, locations, noise).total.backward()
        except Exception as error:  # a compiler may be missing, or fail in ways of its own
            print(f"[!] Compiling failed ({type(error).__name__}); training goes on without")
            return
        self.objective.full_batch_losses = compiled


def compiler_arguments(device: torch.device) -> dict:
    """How to compile for a device, so that starting a step's many short kernels costs little."""
    if device.type == "cuda":
        # A CUDA graph starts all at once. It replays what it captured, so every random number comes in as an argument.
        return {"mode": "reduce-overhead"}
    if device.type == "cpu":
        from products import FewerProducts  # imports the compiler

        return {"options": {"post_grad_custom_pre_pass": FewerProducts(), "cpp_wrapper": True}}
    return {}
