"""Every setting of a run: flags in, one frozen `Config` out.

    python main.py --help
    python main.py --task=digits --epochs=10 --std=0.1

A field's doc is its `--help`. `--task` names an experiment and sets the defaults that the other flags then override.
Nothing heavy is imported here, so that `--help` answers at once.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from flags import InputError, parse_flags

# What the recorded runs of these tasks have; Muon was tried on canvases, but not in all of their rows.
ADAM = {"optimizer": "adam", "init_lr": 1e-3, "reinforce_weight": 0.01}
CANVAS = {"patch_size": 12, "num_patches": 3, "glimpse_scale": 2, "num_glimpses": 8, "epochs": 100, "std_start": 0.3,
          "std_share": 0.25, "core_init": "identity", "ema_decay": 0.999, "weight_decay": 0.1, **ADAM}  # fmt: skip
TASKS: dict[str, dict] = {
    "mnist": {},
    "fashion": {"dataset": "fashion", "epochs": 120, "std": 0.05, "reward": "correct", **ADAM},
    "digits": {"dataset": "digits", "batch_size": 64, "epochs": 120, "plot_freq": 10},
    "translated60": {**CANVAS, "canvas_size": 60},
    "cluttered60": {**CANVAS, "canvas_size": 60, "num_clutter": 4},
    "cluttered100": {**CANVAS, "canvas_size": 100, "num_clutter": 8, "num_patches": 4},
    "folder": {"dataset": "folder"},
}


@dataclass(frozen=True)
class Config:
    """The Recurrent Attention Model (Mnih et al. 2014): train it, continue, test it."""

    task: Literal["mnist", "fashion", "digits", "translated60", "cluttered60", "cluttered100", "folder"] = "mnist"
    """The experiment, which sets the defaults of the other flags: the paper's MNIST, 28x28; Fashion-MNIST; the digits
    that scikit-learn brings, which need no download; MNIST somewhere on a canvas of 60x60, the same among clutter, and
    on 100x100; or your own images."""
    dataset: Literal["mnist", "fashion", "digits", "folder"] = "mnist"
    """The images: mnist, fashion, digits, or a folder: data_dir/train/CLASS/*.png and data_dir/test/CLASS/*.png."""
    canvas_size: int = 0
    """Width and height of the empty canvas on which each image is placed at random; 0: no canvas."""
    num_clutter: int = 0
    """Pieces of 8x8 pixels, cut from other images, that are strewn over the canvas."""
    image_height: int = 0
    """Resize the images to this height, in pixels; 0: leave them as they are."""
    image_width: int = 0
    """Resize the images to this width, in pixels; 0: leave them as they are."""

    # Glimpse network
    patch_size: int = 8
    """Width g, in pixels, of the finest patch of a glimpse; every patch reaches the network as g x g."""
    glimpse_scale: int = 1
    """How many times as wide each patch is as the one before it; the paper's retina has 2."""
    num_patches: int = 1
    """Patches, or scales, per glimpse."""
    loc_hidden: int = 128
    """Units of the layer that encodes a glimpse's location (where)."""
    glimpse_hidden: int = 128
    """Units of the layer that encodes a glimpse's pixels (what)."""

    # Core and location network
    num_glimpses: int = 6
    """Glimpses T that the model takes of an image before it answers."""
    hidden_size: int = 256
    """Units of the core network's hidden state and of a glimpse's encoding."""
    core: Literal["relu", "lstm"] = "relu"
    """The core network: rectified linear units, the paper's for images, or an LSTM, the paper's for its game."""
    core_init: Literal["uniform", "identity"] = "uniform"
    """How the core's recurrent weights begin: drawn as torch draws them, or as the identity (of an LSTM: with a
    forget gate of bias 1), which keeps what earlier glimpses saw."""
    locator_hidden: int = 128
    """Units of the location network's hidden layer; 0 is the paper's linear location network."""
    scan_radius: float = 0.4
    """The policy starts by looking around on a circle of this radius, with a learned bias per glimpse; 0 starts every
    glimpse at the centre, as the paper's location network does."""
    first_location: Literal["random", "centre", "learned"] = "random"
    """Where to look first: anywhere, as the paper's model does; at the centre of the image; or as the location network
    learns to, from h_0 = 0."""
    policy: Literal["learned", "random", "scan", "oracle"] = "learned"
    """Where to look after the first glimpse: as the location network learns to; anywhere; along the circle of
    scan_radius, which stays as it is; or at the image that was placed on a canvas, as only an oracle can."""
    std: float = 0.1
    """Standard deviation of the policy's Gaussian; a location spans -1 to 1 across the image."""
    std_start: float = 0.0
    """Standard deviation of the policy in the first epoch, from which it falls to std in equal steps: first look
    around, then aim. 0: std throughout."""
    std_share: float = 0.7
    """Share of the epochs in which it falls."""
    M: int = 1
    """Rollouts per image in validation and test, whose class probabilities are averaged; they differ by their random
    locations."""

    # Data
    valid_size: float = 0.1
    """Share of the training images kept for validation."""
    batch_size: int = 128
    """Images per batch; with several processes (torchrun), of each."""
    num_workers: int = 4
    """Processes that decode the images of a folder; the other data sets are read whole and need none."""
    shuffle: bool = True
    """Split at random by seed and visit the images in a new order each epoch; False keeps the file's order."""
    show_sample: bool = False
    """Save a grid of training images as plot_dir/RUN/samples.png."""

    # Training
    is_train: bool = True
    """Train; False tests a trained model on the test set."""
    epochs: int = 30
    """Passes over the training images."""
    optimizer: Literal["muon", "adam", "sgd"] = "muon"
    """Muon, whose steps are equally long in all directions, for glimpse network and core, with Adam for the rest;
    Adam for all; or the paper's stochastic gradient descent with momentum."""
    init_lr: float = 2e-3
    """Learning rate of the first epoch."""
    momentum: float = 0.9
    """Momentum of sgd and muon; decay of the running mean of gradients (beta 1) of adam."""
    lr_patience: int | None = None
    """None: the learning rate falls to 0 along a half cosine over the epochs. N: it falls tenfold once the validation
    accuracy has not improved for more than N epochs."""
    train_patience: int = 50
    """Stop once the validation accuracy has not improved for more than this many epochs."""
    ema_decay: float = 0.998
    """Decay of the exponential average of the weights over the steps, which is what is validated, kept and tested; it
    is lower in the first steps. 0: the weights as they are."""
    weight_decay: float = 0.0
    """Share of the weights that a step takes off them, times the learning rate; sgd adds it to its gradient instead."""
    clip_grad_norm: float = 0.0
    """Largest norm of the gradient, to which a larger one is scaled down; 0: any."""
    reinforce_weight: float = 0.3
    """Weight of the REINFORCE term in the hybrid loss."""
    reward: Literal["probability", "correct"] = "probability"
    """What a rollout earns: the probability that it gives to the right class; or 1 for a right answer and else 0, the
    paper's, which on average is the same if answers are drawn, and noisier."""

    # The run
    compile: Literal["auto", "True", "False"] = "auto"
    """Compile the training step, on a CUDA GPU into a CUDA graph; it takes up to half a minute and then saves a fifth
    of each step on a CPU, or more. auto: where the run is long enough for that to pay."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the training step's matrix products and hidden states; auto: bfloat16 where the processor has
    it, which is faster and as accurate. Weights, losses and every evaluation are float32."""
    use_gpu: bool = True
    """Use a CUDA or Apple GPU if there is one; False stays on the CPU."""
    best: bool = True
    """Test the best validation model; False tests the latest."""
    random_seed: int = 1
    """Seed of the split, the weights, the images' order, places and clutter, the first locations and policy's noise."""
    data_dir: str = "./data"
    """Folder of the data sets, in torchvision's layout (MNIST/raw/train-images-idx3-ubyte and so on)."""
    ckpt_dir: str = "./ckpt"
    """Folder of the runs' checkpoints, settings and metrics."""
    logs_dir: str = "./logs"
    """Folder of the runs' TensorBoard logs."""
    plot_dir: str = "./plots"
    """Folder of the runs' glimpses, pictures and animations."""
    run_name: str = ""
    """Name of the run, and of its folder in each of the above; empty: made from task, glimpses, patch and scale."""
    use_tensorboard: bool = False
    """Log to TensorBoard."""
    resume: bool = False
    """Go on with the run's latest checkpoint."""
    overwrite: bool = False
    """Throw away what the run's folders hold and start anew."""
    stop_after_epoch: int = 0
    """Stop after this epoch, to go on later with resume, as queues with a time limit need; 0: go on to the last."""
    save_every_steps: int = 0
    """Steps between two savings within an epoch; 0: save after each epoch, and when interrupted."""
    print_freq: int = 10
    """Steps between two updates of the progress bar, and two checks that the loss is finite."""
    plot_freq: int = 1
    """Epochs between two savings of where the model looks, for plot_glimpses.py and TensorBoard; the last counts."""

    def __post_init__(self):
        for name, kind in get_type_hints(Config).items():  # a run's saved settings may hold anything
            self._require(name, _fits(getattr(self, name), kind), f"of {kind}".replace("of typing.Literal", "one of "))
        for name in ("patch_size", "glimpse_scale", "num_patches", "loc_hidden", "glimpse_hidden", "num_glimpses",
                     "hidden_size", "M", "batch_size", "epochs", "print_freq", "plot_freq"):  # fmt: skip
            self._require(name, 1 <= getattr(self, name) < 2**31, "a whole number from 1 to 2**31 - 1")
        for name in ("locator_hidden", "train_patience", "canvas_size", "num_clutter", "image_height", "image_width",
                     "num_workers", "stop_after_epoch", "save_every_steps"):  # fmt: skip
            self._require(name, 0 <= getattr(self, name) < 2**31, "a whole number from 0 to 2**31 - 1")
        widest = self.patch_size * self.glimpse_scale ** min(self.num_patches - 1, 31)
        self._require("num_patches", widest < 2**16, "fewer: the widest patch is to be under 65536 pixels wide")
        self._require("lr_patience", self.lr_patience is None or self.lr_patience >= 0, "None or at least 0")
        for name in ("std", "init_lr"):
            self._require(name, 0 < getattr(self, name) < math.inf, "a finite number above 0")
        self._require("std_share", 0 < self.std_share <= 1, "above 0 and at most 1")
        self._require("valid_size", 0 < self.valid_size < 1, "above 0 and below 1")
        self._require("scan_radius", 0 <= self.scan_radius < 1, "at least 0 and below 1")
        self._require("policy", self.policy != "scan" or self.scan_radius, "another where --scan_radius= is 0")
        self._require("policy", self.policy != "oracle" or self.canvas_size, "another without a --canvas_size=")
        agreed = self.policy == "learned" or self.first_location != "learned"
        self._require("policy", agreed, "learned with --first_location=learned")
        alike = "random" not in (self.first_location, self.policy)
        self._require("M", self.M == 1 or not alike, "1 where --first_location= is not random: all would be the same")
        for name in ("momentum", "ema_decay"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("reinforce_weight", "weight_decay", "clip_grad_norm", "std_start"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a finite number of at least 0")
        self._require("num_clutter", self.canvas_size or not self.num_clutter, "0 without a --canvas_size=")
        self._require("image_height", bool(self.image_height) == bool(self.image_width), "given with image_width")
        self._require("random_seed", 0 <= self.random_seed < 2**32, "from 0 to 2**32 - 1")
        plain = Path(self.run_name).name == self.run_name and self.run_name != ".."
        self._require("run_name", plain, "one folder name, without slashes")

    def _require(self, name: str, fulfilled: bool, allowed: str):
        if not fulfilled:
            raise InputError(f"{name}={getattr(self, name)} is not allowed: it must be {allowed}")

    def model_args(self, num_channels: int, num_classes: int) -> dict:
        """What `RecurrentAttention` is built with, for data of so many channels and classes; a checkpoint keeps it."""
        own = ("patch_size", "num_patches", "glimpse_scale", "loc_hidden", "glimpse_hidden", "hidden_size", "std",
               "locator_hidden", "num_glimpses", "scan_radius", "core", "core_init", "first_location")  # fmt: skip
        return {"num_channels": num_channels, "num_classes": num_classes, **{name: getattr(self, name) for name in own}}

    @property
    def name(self) -> str:
        """The run's name: the original project's, with the task before it where that is not mnist."""
        prefix = "" if self.task == "mnist" else f"{self.task}_"
        sizes = f"{self.num_glimpses}_{self.patch_size}x{self.patch_size}_{self.glimpse_scale}"
        return self.run_name or f"{prefix}ram_{sizes}"

    @property
    def run_dir(self) -> Path:
        return Path(self.ckpt_dir) / self.name

    @property
    def run_logs(self) -> Path:
        return Path(self.logs_dir) / self.name

    @property
    def run_plots(self) -> Path:
        return Path(self.plot_dir) / self.name

    @property
    def is_shipped(self) -> bool:
        """Whether a test is of a model that export.py put by itself into ckpt_dir, and of no run."""
        path = Path(self.ckpt_dir) / f"{self.task}.pt"
        return not (self.is_train or self.run_name or self.run_dir.exists()) and path.exists()

    @property
    def checkpoint_path(self) -> Path:
        """What a test loads, or a resumed training."""
        if self.is_shipped:
            return Path(self.ckpt_dir) / f"{self.task}.pt"
        return self.run_dir / ("best.pt" if self.best and not self.is_train else "last.pt")

    @property
    def params_path(self) -> Path:
        """The settings that go with it."""
        return self.checkpoint_path.with_suffix(".json") if self.is_shipped else self.run_dir / "params.json"


def _fits(value, kind) -> bool:
    """Whether a value is of a field's type: a plain one, `int | None`, or a Literal."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    kinds = get_args(kind) or (kind,)
    if isinstance(value, bool):  # which Python counts as an int
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


# What one call says about itself; a run's saved settings never stand in for it.
PER_CALL = ("is_train", "resume", "overwrite", "best", "show_sample", "ckpt_dir", "logs_dir", "plot_dir", "run_name",
            "stop_after_epoch")  # fmt: skip
# What may differ from the run that is resumed or tested.
FREE = (*PER_CALL, "M", "num_workers", "data_dir", "use_gpu", "use_tensorboard", "print_freq", "plot_freq")
FREE_ON_RESUME = (*FREE, "epochs", "train_patience", "clip_grad_norm", "save_every_steps")
FREE_ON_TEST = (*FREE, "batch_size")
# What runs did before there was a choice: their saved settings lack these.
BEFORE = {"core": "relu", "core_init": "uniform", "reward": "correct", "std_share": 0.7, "ema_decay": 0.0,
          "weight_decay": 0.0, "first_location": "random"}  # fmt: skip


def get_config(argv: list[str] | None = None) -> Config:
    """Parses the command line.

    A run that is resumed or tested keeps the settings it was begun with (its params.json), so that nobody repeats
    them; flags given now override those that may still change.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        InputError: a value that is not allowed, or that contradicts the run that is resumed or tested.
        SystemExit: after --help, or a flag that does not exist or does not parse (tyro prints why).
    """
    task_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    task_parser.add_argument("--task", nargs="?", default="mnist", const="mnist")
    task = task_parser.parse_known_args(argv)[0].task
    config = parse_flags(Config, argv, Config(task=task, **TASKS.get(task, {})), prog="main.py")
    if config.is_train and not config.resume:
        return config

    saved = _read_params(config.params_path)
    if saved is None:  # the checkpoint's absence, if that is the matter, is reported where it is read
        return config
    begun = replace(saved, **{name: getattr(config, name) for name in PER_CALL})
    config = parse_flags(Config, argv, begun, prog="main.py")
    free = FREE_ON_RESUME if config.is_train else FREE_ON_TEST
    for name in (field.name for field in fields(Config)):
        value, before = getattr(config, name), getattr(begun, name)
        if value != before and name not in free:
            raise InputError(
                f"{name}={value} contradicts the run in {begun.params_path.parent}, which has {name}={before}: "
                f"leave the flag out, or train another run with --run_name="
            )
    return config


def _read_params(path: Path) -> Config | None:
    if not path.exists():
        return None
    try:
        return config_of(json.loads(path.read_text()), path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} does not hold a run's settings ({error}): restore it, or train anew") from error


def config_of(settings: dict, path: str | Path) -> Config:
    """The Config of settings that were read from path, which may be older than some of the choices.

    Raises:
        InputError: they are not a run's.
    """
    try:
        return Config(**{**BEFORE, **settings})
    except TypeError as error:  # no dict, or fields that do not exist
        raise InputError(f"{path} does not hold a run's settings ({error}): restore it, or train anew") from error


def params_json(config: Config) -> str:
    """The text of a run's params.json, which `get_config` reads back."""
    return json.dumps(asdict(config), indent=2) + "\n"
