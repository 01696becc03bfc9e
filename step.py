"""One step of gradient descent on the hybrid loss: eager, or compiled where that pays, on a GPU as a CUDA graph.

step = TrainingStep(config, model, make_optimizer(config, model))
losses = step(images, labels, first_locations, noise)
"""

from collections.abc import Callable

import torch
from torch import Tensor, optim

from config import Config
from data_loader import DataSpec
from model import Losses, RecurrentAttention, hybrid_loss

COMPILING_PAYS_AFTER = 10_000  # steps


class TrainingStep:
    """Takes a batch with all its random numbers and moves the weights; nothing in it draws or waits for the device.

    In bfloat16 the networks' matrix products alone have fewer digits: weights, sums, probabilities, losses and the
    optimizer stay float32, and so does every evaluation.

    Args:
        config: its batch_size, reinforce_weight, clip_grad_norm and compile count.
        model: whose weights are moved.
        optimizer: of these weights.
    """

    def __init__(self, config: Config, model: RecurrentAttention, optimizer: optim.Optimizer):
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.device = next(model.parameters()).device
        self.bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and has_bfloat16(self.device))
        self.full_batch_losses: Callable[..., Losses] = self.losses

    def __call__(self, images: Tensor, labels: Tensor, first_locations: Tensor, noise: Tensor) -> Losses:
        """The losses before the step.

        Args:
            images: (B, C, H, W), normalised.
            labels: (B,).
            first_locations, noise: (B, 2) and (T - 1, B, 2), see `RecurrentAttention.forward`.
        """
        # An epoch's last, smaller batch is not worth a compilation of its own.
        batch_losses = self.full_batch_losses if len(labels) == self.config.batch_size else self.losses
        losses = batch_losses(images, labels, first_locations, noise)
        self.optimizer.zero_grad()
        losses.total.backward()
        if self.config.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        self.optimizer.step()
        return losses

    def losses(self, images: Tensor, labels: Tensor, first_locations: Tensor, noise: Tensor) -> Losses:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            rollout = self.model(images, first_locations, noise)
        return hybrid_loss(rollout, labels, reinforce_weight=self.config.reinforce_weight)

    def compile(self, spec: DataSpec, steps: int):
        """Compiles `losses` for full batches where config.compile asks for it and a compiler is at hand.

        Args:
            spec: of the images.
            steps: of the whole run, so that a resumed one decides alike and computes the same bits.
        """
        device = self.device
        wanted = self.config.compile == "True"
        if self.config.compile == "auto":
            wanted = device.type != "mps" and steps >= COMPILING_PAYS_AFTER
        if not wanted:
            return
        print("[*] Compiling the training step (--compile=False does without)")
        # On a GPU the kernels are so short that starting them costs more than running them: a CUDA graph starts all at
        # once. It replays what it captured, so every random number comes in as an argument.
        mode = "reduce-overhead" if device.type == "cuda" else None
        compiled = torch.compile(self.losses, dynamic=False, mode=mode)
        count = self.config.batch_size
        images = torch.zeros(count, spec.num_channels, spec.height, spec.width, device=device)
        labels = torch.zeros(count, dtype=torch.long, device=device)
        noise = torch.zeros(self.config.num_glimpses - 1, count, 2, device=device)
        try:
            self.model.train()
            compiled(images, labels, torch.zeros(count, 2, device=device), noise).total.backward()
        except Exception as error:  # a compiler may be missing, or fail in ways of its own
            print(f"[!] Compiling failed ({type(error).__name__}); training goes on without")
            return
        self.full_batch_losses = compiled


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers in hardware, twice as fast as float32 or more."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
