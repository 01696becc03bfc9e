"""The Recurrent Attention Model: a whole rollout of glimpses in one `forward`, and the loss that trains it.

Mnih et al. 2014, section 3. This file and modules.py need torch alone.

    model = RecurrentAttention.load("ckpt/ram_6_8x8_1/best.pt")
    rollout = model(images)  # (B, C, H, W), uint8
    [model.classes[k] for k in rollout.log_probs.argmax(-1)], rollout.locations
"""

import math
import warnings
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules import (
    ActionNetwork,
    BaselineNetwork,
    CoreNetwork,
    GlimpseNetwork,
    LocationNetwork,
    LSTMCore,
    Retina,
    Scene,
)


class Rollout(NamedTuple):
    """T glimpses of each image, S of them at locations that the policy chose, and the prediction."""

    log_probs: Tensor  # (B, num_classes), log-probabilities of the classes after the last glimpse
    locations: Tensor  # (B, T, 2), (x, y) looked at, in [-1, 1]
    log_pis: Tensor  # (B, S), log pi of the last S locations; without gradient if they were fixed
    baselines: Tensor  # (B, S), reward expected when each of them was chosen
    hiddens: Tensor  # (B, T, hidden_size), h_t, no gradient; model.classifier reads an early prediction out of it


class Losses(NamedTuple):
    """The terms of the hybrid loss, means over the batch."""

    total: Tensor  # (), what is minimised
    action: Tensor  # (), cross-entropy of the class
    baseline: Tensor  # (), squared error of the expected reward
    reinforce: Tensor  # (), minus log pi times advantage; its gradient counts, its value means nothing
    accuracy: Tensor  # (), fraction of the images whose class is predicted right


class Gaze(NamedTuple):
    """T glimpses of a scene, and what the core made of them."""

    hiddens: list[Tensor]  # h_0 to h_T, (B, hidden_size) each
    locations: Tensor  # (B, T, 2), as in `Rollout`
    log_pis: Tensor  # (B, S), as in `Rollout`


class Environment(Protocol):
    """What a rollout looks at; see `Still`, and games/player.py."""

    def show(self) -> Scene:
        """What is to be seen at the next glimpse."""

    def answer(self, hidden: Tensor):
        """Hears of h_t (B, hidden_size), and may change."""


class Still:
    """Images, the environment that never changes."""

    def __init__(self, scene: Scene):
        self.scene = scene

    def show(self) -> Scene:
        return self.scene

    def answer(self, hidden: Tensor):
        """Takes no notice."""


class RecurrentAttention(nn.Module):
    """Looks at an image through a few glimpses and predicts its class.

    In training mode locations are drawn from the policy; in evaluation mode they are its mean.

    Args:
        patch_size, num_patches, glimpse_scale: of the retina, in pixels, patches, and widths of the patch before.
        num_channels: C of the images.
        loc_hidden, glimpse_hidden: units that encode where and what; see `GlimpseNetwork`.
        hidden_size: units of the core's hidden state.
        std: standard deviation of the policy, in units of location.
        num_classes: number of classes.
        locator_hidden: units of the location network's hidden layer; 0 is the paper's linear one.
        num_glimpses: T, glimpses per rollout.
        scan_radius: of the circle on which the policy starts to look around; 0 is the paper's start, at the centre.
        core: "relu", the paper's, or "lstm".
        core_init: "uniform", as torch draws it, or "identity", which keeps what was seen; see `CoreNetwork`.
        first_location: where a rollout begins: at a "random" place, as the paper's does, at the "centre", or where the
            policy has "learned" to. Only then the policy chooses S = T locations, else S = T - 1.
        reinforce_core: REINFORCE trains the glimpse and core networks, too, not the location network alone.
    """

    def __init__(
        self,
        *,
        patch_size: int,
        num_patches: int,
        glimpse_scale: int,
        num_channels: int,
        loc_hidden: int,
        glimpse_hidden: int,
        hidden_size: int,
        std: float,
        num_classes: int,
        locator_hidden: int = 128,
        num_glimpses: int = 6,
        scan_radius: float = 0.0,
        core: str = "relu",
        core_init: str = "uniform",
        first_location: str = "random",
        reinforce_core: bool = False,
    ):
        super().__init__()
        self.classes = [str(label) for label in range(num_classes)]  # names; those of a checkpoint are its data's
        self.first_location = first_location
        self.reinforce_core = reinforce_core
        self.hidden_size = hidden_size
        self.register_buffer("std", torch.tensor(std), persistent=False)  # a schedule may fill in another value
        self.num_glimpses = num_glimpses
        self.retina = Retina(patch_size, num_patches, glimpse_scale)
        # The original project's names: f_g, f_h, f_l, f_a and b_t of the paper.
        self.sensor = GlimpseNetwork(
            glimpse_size=num_patches * num_channels * patch_size**2,
            glimpse_hidden=glimpse_hidden,
            loc_hidden=loc_hidden,
            hidden_size=hidden_size,
        )
        core_network = {"relu": CoreNetwork, "lstm": LSTMCore}[core]
        self.rnn = core_network(hidden_size=hidden_size, keep=core_init == "identity")
        self.locator = LocationNetwork(
            hidden_size=hidden_size,
            locator_hidden=locator_hidden,
            num_steps=self.num_choices,
            scan_radius=scan_radius,
        )
        self.classifier = ActionNetwork(hidden_size=hidden_size, num_classes=num_classes)
        self.baseliner = BaselineNetwork(hidden_size=hidden_size)
        # Of the training images as numbers from 0 to 1; a checkpoint keeps them with its data, not among its weights.
        self.register_buffer("image_mean", torch.zeros(num_channels, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.ones(num_channels, 1, 1), persistent=False)

    @property
    def num_choices(self) -> int:
        """S, glimpses of a rollout where the policy chooses to look."""
        return self.num_glimpses if self.first_location == "learned" else self.num_glimpses - 1

    def normalize_by(self, mean: list[float], std: list[float]) -> "RecurrentAttention":
        """Sets mean and standard deviation of each channel of the training images, as numbers from 0 to 1."""
        for buffer, values in ((self.image_mean, mean), (self.image_std, std)):
            buffer.copy_(torch.tensor(values).view_as(buffer))
        return self

    def normalize(self, images: Tensor) -> Tensor:
        """Images (..., C, H, W), from 0 to 1, normalised by the training images; uint8 images need it not."""
        return (images - self.image_mean) / self.image_std

    def denormalize(self, images: Tensor) -> Tensor:
        """Normalised images, or patches, (..., C, h, w) as numbers from 0 to 1."""
        return (images * self.image_std + self.image_mean).clamp(0, 1)

    def forward(
        self,
        images: Tensor,
        first_locations: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Looks num_glimpses times.

        Args:
            images: (B, C, H, W), bytes (uint8) as they are, or floats that `normalize` returned; of any precision.
            first_locations: (B, 2) in [-1, 1], or (B, K, 2) to fix the first K locations; the policy chooses the rest.
                None begins as the model's first_location says.
            noise: (S, B, 2), standard normal, of the policy; None draws it in training mode, and is no noise in
                evaluation mode.
            generator: source of what is drawn, on the images' device.
        Raises:
            TypeError, ValueError: the images, or first_locations, are something else. Floats that seem not to be
                normalised are warned of, in evaluation mode: to look at them waits for the device.
        """
        images = self.checked(images)
        batch = images.shape[0]  # len() would fix it in an export
        if first_locations is None:
            first_locations = draw_first_locations(self.first_location, batch, images.device, generator)
        elif not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            shape, most = tuple(first_locations.shape), self.num_glimpses
            if shape != (batch, 2) and shape not in [(batch, k, 2) for k in range(most + 1)]:
                raise ValueError(
                    f"first_locations must be ({batch}, 2) or ({batch}, K, 2) with K <= {most}, not {shape}"
                )
        if noise is None and self.training:
            noise = self.draw_noise(batch, images.device, generator)
        dtype = self.std.dtype  # of a model in double or half precision; else all of these have it already
        noise = None if noise is None else noise.to(dtype)
        scene = self.retina.prepare(images, self.num_glimpses, self.image_mean, self.image_std)
        gaze = self.look_around(Still(scene), first_locations.to(dtype), noise)
        # The squared error trains the baseline alone, so h_t is detached.
        hiddens = torch.stack(gaze.hiddens).detach()  # (1 + T, B, hidden_size)
        return Rollout(
            log_probs=self.classifier(gaze.hiddens[-1]),
            locations=gaze.locations,
            log_pis=gaze.log_pis,
            baselines=self.baseliner(hiddens[self.num_glimpses - self.num_choices : -1]).T,
            hiddens=hiddens[1:].transpose(0, 1),
        )

    def look_around(self, environment: Environment, first_locations: Tensor, noise: Tensor | None) -> Gaze:
        """The loop of glimpses: looks num_glimpses times around an environment, which may answer each time.

        Args:
            environment: of B images or games.
            first_locations: (B, 2), or (B, K, 2), as `forward`.
            noise: (S, B, 2), of the policy; None: it looks at its means.
        """
        fixed = (first_locations[:, None] if first_locations.dim() == 2 else first_locations).unbind(1)  # K of (B, 2)
        unchosen = self.num_glimpses - self.num_choices  # locations that the policy never chooses, 0 or 1
        hidden, state = first_locations.new_zeros(first_locations.shape[0], self.hidden_size), None  # h_0 = 0
        # The policy's means, and the samples around them before the clamp; a fixed location counts as both.
        means, samples, hiddens = [], [], [hidden]
        for t in range(self.num_glimpses):
            if t < len(fixed):
                mean = sample = fixed[t]
            else:
                # Where REINFORCE trains the location network alone, h_t is detached. The sample always is: the
                # cross-entropy must not train the policy through the places of the glimpses.
                mean = self.locator(hidden if self.reinforce_core else hidden.detach(), t - unchosen)
                sample = mean.detach() if noise is None else mean.detach() + self.std * noise[t - unchosen]
            location = sample.clamp(-1, 1)
            glimpse = self.sensor(self.retina.look(environment.show(), location).to(self.std.dtype), location)  # g_t
            hidden, state = self.rnn(glimpse, state)  # h_t
            environment.answer(hidden)
            means.append(mean)
            samples.append(sample)
            hiddens.append(hidden)
        samples = torch.stack(samples)  # (T, B, 2)
        log_pis = log_normal(samples[unchosen:], torch.stack(means)[unchosen:], self.std).T
        return Gaze(hiddens, samples.clamp(-1, 1).transpose(0, 1), log_pis)

    def checked(self, images: Tensor) -> Tensor:
        """The images that `forward` is given, floats in the model's precision; raises what `forward` raises."""
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images must be a tensor, not {type(images).__name__}: torch.from_numpy makes one of an array"
            )
        channels, shape = len(self.image_mean), tuple(images.shape)
        if len(shape) != 4 or shape[1] != channels or 0 in shape:
            remedy = ""  # for what people have instead
            if len(shape) == 3:
                one = "images[None] makes a batch of one"
                remedy = f"; {one}" if shape[0] == channels else "; images[:, None] gives grey images their channel"
            elif len(shape) == 4 and shape[3] == channels:
                remedy = "; images.permute(0, 3, 1, 2) puts the channels first"
            raise ValueError(f"images must be (B, C, H, W) with C = {channels}, not {shape}{remedy}")
        if images.dtype == torch.uint8:
            return images
        if not images.is_floating_point():
            raise TypeError(
                f"images must be bytes (uint8) or normalised floats, not {images.dtype}: images.to(torch.uint8)"
            )
        if not (self.training or images.is_meta or torch.compiler.is_compiling() or torch.jit.is_tracing()):
            low, high = (bound.item() for bound in images.detach().aminmax()) if images.numel() else (0, 0)
            if 0 <= low < high <= 1 or high > 100:
                warnings.warn(
                    f"images from {low:g} to {high:g} seem not to be normalised: give bytes (uint8) as they are, or "
                    f"numbers from 0 to 1 through model.normalize",
                    stacklevel=5,  # where the model is called
                )
        return images.to(self.std.dtype)

    def draw_noise(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """The policy's standard normal noise for one rollout, (S, B, 2)."""
        return torch.randn(self.num_choices, batch, 2, device=device, generator=generator)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "RecurrentAttention":
        """The model of a checkpoint, in evaluation mode. Nothing in the file is run.

        Warns if no policy was learned: the model was trained on paths that are not in it.

        Raises:
            OSError, pickle.UnpicklingError, KeyError, ValueError, or another error: the file is no checkpoint, whole.
        """
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        policy = checkpoint["config"].get("policy", "learned")
        if policy != "learned":
            warnings.warn(
                f"{path} was trained with --policy={policy}: give its paths (B, T, 2) as locations, or it looks where "
                f"an untrained location network says",
                stacklevel=2,
            )
        return cls.of(checkpoint).to(device).eval()

    @classmethod
    def of(cls, checkpoint: dict) -> "RecurrentAttention":
        """The model of a checkpoint that was read, on the CPU.

        Raises:
            ValueError, or another error: its sizes and weights contradict each other.
        """
        sizes, weights = checkpoint["model_args"], checkpoint["model_state"]
        # A small file may name the sizes of a model larger than any machine: nothing is made before they fit.
        held = sum(weight.numel() for weight in weights.values() if weight.is_contiguous())
        others = ("glimpse_scale", "num_glimpses")  # no weight has their size
        fits = all(size <= held for name, size in sizes.items() if isinstance(size, int) and name not in others)
        if fits:
            with torch.device("meta"):  # where nothing takes memory
                shapes = {name: weight.shape for name, weight in cls(**sizes).state_dict().items()}
            fits = shapes == {name: weight.shape for name, weight in weights.items() if weight.is_contiguous()}
        if not fits:
            raise ValueError("its sizes are not those of its weights")
        model = cls(**sizes)
        model.load_state_dict(weights)
        model.classes = list(checkpoint["data"]["classes"])
        return model.normalize_by(checkpoint["data"]["mean"], checkpoint["data"]["std"])


def draw_first_locations(
    first_location: str, batch: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Where rollouts begin: (B, 2), uniform in [-1, 1] if "random", or at the "centre"; if "learned", no location is
    fixed, (B, 0, 2)."""
    if first_location == "centre":
        return torch.zeros(batch, 2, device=device)
    if first_location == "learned":
        return torch.zeros(batch, 0, 2, device=device)
    return torch.rand(batch, 2, device=device, generator=generator) * 2 - 1


def log_normal(values: Tensor, means: Tensor, std: Tensor) -> Tensor:
    """Log density of a Gaussian with independent components of equal std: (..., n), (..., n), () -> (...)."""
    squares = ((values - means) / std).square().sum(-1)
    return -squares / 2 - values.shape[-1] * (std.log() + math.log(2 * math.pi) / 2)


def hybrid_loss(rollout: Rollout, labels: Tensor, *, reinforce_weight: float, reward: str = "correct") -> Losses:
    """Cross-entropy for what, REINFORCE for where, squared error for the baseline (section 3.2).

    Args:
        rollout: of B images.
        labels: (B,), the classes.
        reinforce_weight: weight of the REINFORCE term.
        reward: "correct", 1 or 0, the paper's, or "probability", its mean over predictions drawn from the class
            probabilities.
    """
    correct = (rollout.log_probs.argmax(-1) == labels).float()  # (B,)
    rewards = correct if reward == "correct" else rollout.log_probs.detach().exp().gather(1, labels[:, None])[:, 0]  # R
    # The advantage R - b_t weights log pi; a gradient through b_t would pull the baseline away from E[R].
    advantage = rewards[:, None] - rollout.baselines.detach()  # (B, S)
    action = F.nll_loss(rollout.log_probs, labels)
    errors = (rollout.baselines - rewards[:, None]).square()
    baseline = errors.sum() / max(errors.numel(), 1)  # a single glimpse has no baselines
    reinforce = (-rollout.log_pis * advantage).sum(dim=1).mean()
    total = action + baseline + reinforce_weight * reinforce
    return Losses(total, action, baseline, reinforce, correct.mean())
