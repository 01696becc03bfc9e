"""Every setting of a run, in five groups: flags in, one frozen `Config` out.

    python main.py --help
    python main.py --task=digits --epochs=10 --std=0.1

A field's doc is its `--help`; its type holds its bounds and what may change. `--task` and `--recipe` set defaults that
the other flags override. Imports nothing heavy, so that `--help` answers at once.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Flag, auto
from pathlib import Path
from typing import Annotated, Literal, get_args

from training.cli import (
    BelowOne,
    Bounds,
    Count,
    InputError,
    NonNegative,
    PathText,
    Positive,
    PositiveFloat,
    Settings,
    hints_of,
    parse_flags,
    read_toml,
    require,
)

RECIPES = Path(__file__).parent / "recipes"
OTHER_VERSION = "use the version of this project that wrote it"
# The settings of the recorded runs on these tasks.
CANVAS = {"patch_size": 12, "num_patches": 3, "glimpse_scale": 2, "num_glimpses": 8, "epochs": 300,
          "train_patience": 300, "batch_size": 512, "init_lr": 4e-3, "reinforce_weight": 0.01, "std_start": 0.3,
          "std_share": 0.25, "core_init": "identity", "ema_decay": 0.999, "weight_decay": 0.1}  # fmt: skip
FASHION = {"dataset": "fashion", "epochs": 120, "batch_size": 512, "init_lr": 4e-3, "weight_decay": 0.1}
CATCH = {"dataset": "catch", "patch_size": 6, "num_patches": 3, "glimpse_scale": 2, "num_glimpses": 23, "core": "lstm",
         "core_init": "identity", "locator_hidden": 0, "scan_radius": 0.0, "first_location": "centre",
         "valid_size": 0.125, "epochs": 26, "batch_size": 128, "optimizer": "adam", "init_lr": 1e-3,
         "clip_grad_norm": 1.0, "reinforce_weight": 1.0}  # fmt: skip
TASKS: dict[str, dict] = {
    "mnist": {},
    "fashion": FASHION,
    "digits": {"dataset": "digits", "batch_size": 64, "epochs": 120, "plot_freq": 10},
    "translated60": {**CANVAS, "canvas_size": 60},
    "cluttered60": {**CANVAS, "canvas_size": 60, "num_clutter": 4},
    "cluttered100": {**CANVAS, "canvas_size": 100, "num_clutter": 8, "num_patches": 4},
    "folder": {"dataset": "folder"},
    "catch": CATCH,
}


class Mark(Flag):
    """What may change about a field once a run has begun; all of the groups `call` and `machine` may."""

    RESUME = auto()  # may differ when the run is resumed
    TEST = auto()  # may differ when the run is tested
    SHARED = auto()  # the same in all trials of a search, so that their errors compare


FREE = Mark.RESUME | Mark.TEST | Mark.SHARED


@dataclass(frozen=True)
class DataConfig(Settings):
    """The images: all that the loaders read, but for the seed."""

    task: Annotated[
        Literal["mnist", "fashion", "digits", "translated60", "cluttered60", "cluttered100", "folder", "catch"],
        Mark.SHARED,
    ] = "mnist"
    """The experiment, which sets the defaults of the other flags: mnist, the paper's, 28x28; fashion, Fashion-MNIST;
    digits, those that scikit-learn brings, which need no download; translated60, MNIST somewhere on a canvas of 60x60;
    cluttered60, the same among clutter; cluttered100, the same on 100x100; folder, your own images; catch, the paper's
    game."""
    dataset: Annotated[Literal["mnist", "fashion", "digits", "folder", "catch"], Mark.SHARED] = "mnist"
    """The images: mnist, fashion, digits, or a folder: data_dir/train/CLASS/*.png and data_dir/test/CLASS/*.png,
    with data_dir/val/CLASS/*.png if you like; or catch, the screens of a game."""
    data_dir: Annotated[PathText, FREE] = "./data"
    """Folder of the data sets, in torchvision's layout (MNIST/raw/train-images-idx3-ubyte and so on)."""
    canvas_size: Annotated[Count, Mark.SHARED] = 0
    """Width and height of the empty canvas on which each image is placed at random, in pixels; 0: no canvas."""
    num_clutter: Annotated[Count, Mark.SHARED] = 0
    """Pieces of 8x8 pixels, cut from other images, that are placed at random on the canvas."""
    image_height: Annotated[Count, Mark.TEST | Mark.SHARED] = 0
    """Resize the images to this height, in pixels; 0: leave them as they are."""
    image_width: Annotated[Count, Mark.TEST | Mark.SHARED] = 0
    """Resize the images to this width, in pixels; 0: leave them as they are."""
    grid_size: Annotated[int, Bounds("from 2 to 1024", lambda value: 2 <= value <= 1024), Mark.SHARED] = 24
    """catch: width and height of the screen, in pixels; a game lasts one frame less."""
    ball_speed: Annotated[NonNegative, Mark.SHARED] = 1.0
    """catch: the ball's largest speed sideways, in pixels a frame; it falls one pixel a frame."""
    paddle_size: Annotated[Positive, Mark.SHARED] = 2
    """catch: width of the paddle, in pixels."""
    paddle_start: Annotated[Literal["random", "middle"], Mark.SHARED] = "random"
    """catch: where the paddle is when a game begins."""
    games_per_epoch: Annotated[Positive, Mark.SHARED] = 32768
    """catch: games of an epoch, which are new ones in each; the fraction valid_size of this number is validated on."""
    valid_size: Annotated[float, Bounds("at least 0 and below 1", lambda value: 0 <= value < 1), Mark.SHARED] = 0.1
    """Fraction of the training images kept for validation; of a folder, of each class, unless it has a folder val. 0:
    train on all of them, and test the last epoch."""
    batch_size: Annotated[Positive, Mark.TEST] = 128
    """Images per batch; with several processes (torchrun), of each."""
    shuffle: Annotated[bool, Mark.SHARED] = True
    """Split at random by seed, and visit the images in a new order each epoch; False keeps the file's order."""
    num_workers: Annotated[Count, FREE] = 4
    """Processes that decode the images of a folder; the other data sets are read whole and need none."""


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The networks: what RecurrentAttention is built with."""

    patch_size: Positive = 8
    """Width g, in pixels, of the finest patch of a glimpse; every patch reaches the network as g x g."""
    glimpse_scale: Positive = 1
    """How many times as wide each patch is as the one before it; the paper's retina has 2."""
    num_patches: Positive = 1
    """Patches, or scales, per glimpse."""
    loc_hidden: Positive = 128
    """Units of the glimpse network's layer that encodes a location (where)."""
    glimpse_hidden: Positive = 128
    """Units of the glimpse network's layer that encodes pixels (what)."""
    num_glimpses: Positive = 6
    """Glimpses T that the model takes of an image before it predicts the class."""
    hidden_size: Positive = 256
    """Units of the core network's hidden state, and of a glimpse's encoding."""
    core: Literal["relu", "lstm"] = "relu"
    """The core network: rectified linear units, the paper's for images, or an LSTM, the paper's for its game."""
    core_init: Literal["uniform", "identity"] = "uniform"
    """How the core's recurrent weights start: drawn as torch draws them, or as the identity (an LSTM: with a forget
    gate of bias 1), which keeps what earlier glimpses saw."""
    locator_hidden: Count = 128
    """Units of the location network's hidden layer; 0 is the paper's linear location network."""
    scan_radius: BelowOne = 0.4
    """The policy starts by looking around on a circle of this radius, with a learned bias per glimpse; 0 starts every
    glimpse at the centre, as the paper's location network does."""
    first_location: Literal["random", "centre", "learned"] = "random"
    """Where to look first: anywhere, as the paper's model does; at the centre of the image; or where the location
    network learns to, from h_0 = 0."""
    reinforce_core: bool = False
    """REINFORCE trains the glimpse and core networks, too, so that they keep what the location network needs (on
    canvases with --reinforce_weight=1); False: that network alone, as in the original project."""
    std: PositiveFloat = 0.1
    """Standard deviation of the policy's Gaussian; a location spans -1 to 1 across the image."""


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How the networks are trained, validated and tested."""

    epochs: Annotated[Positive, Mark.RESUME] = 30
    """Passes over the training images."""
    optimizer: Literal["muon", "adam", "sgd"] = "muon"
    """Muon, whose steps are equally long in all directions, for glimpse network and core, with Adam for the rest;
    Adam for all; or the paper's stochastic gradient descent with momentum."""
    init_lr: PositiveFloat = 2e-3
    """Learning rate of the first epoch."""
    momentum: BelowOne = 0.9
    """Momentum of sgd and muon; decay of the running mean of gradients (beta 1) of adam."""
    lr_patience: Annotated[int | None, Bounds("None or at least 0", lambda value: value is None or value >= 0)] = None
    """None: the learning rate falls to 0 along a half cosine over the epochs. N: it falls tenfold once the validation
    accuracy has not improved for more than N epochs."""
    train_patience: Annotated[Count, Mark.RESUME] = 50
    """Stop once the validation accuracy has not improved for more than this many epochs."""
    ema_decay: BelowOne = 0.998
    """Decay of the exponential average of the weights over the steps, which is validated, saved and tested; it is lower
    in the first steps. 0: the weights as they are."""
    weight_decay: NonNegative = 0.0
    """Fraction of the weights that a step takes off them, times the learning rate; sgd adds it to its gradient
    instead."""
    clip_grad_norm: Annotated[NonNegative, Mark.RESUME] = 0.0
    """Largest norm of the gradient; a larger one is scaled down to it. 0: any."""
    reinforce_weight: NonNegative = 0.3
    """Weight of the REINFORCE term in the hybrid loss."""
    reward: Literal["probability", "correct"] = "probability"
    """Reward of a rollout: the probability that it gives to the right class; or 1 for a right prediction and else 0,
    the paper's, which is the same on average if predictions are drawn, and noisier."""
    policy: Literal["learned", "random", "scan", "oracle", "still"] = "learned"
    """Where to look after the first glimpse: where the location network learns to; anywhere; along the circle of
    scan_radius, which stays fixed; at the image that was placed on a canvas, as only an oracle can; or still at the
    same place."""
    gae_lambda: Annotated[float, Bounds("from 0 to 1", lambda value: 0 <= value <= 1)] = 0.9
    """catch: how far an action's advantage looks ahead: 0, to the reward expected in the next frame; 1, to the reward
    itself; between, to all of these, with weights that fall by this factor a frame."""
    entropy_weight: NonNegative = 0.05
    """catch: weight of the entropy of the actions, which keeps the model trying."""
    std_start: NonNegative = 0.0
    """Standard deviation of the policy in the first epoch, from which it falls to std in equal steps: first explore,
    then refine. 0: std throughout."""
    std_share: Annotated[float, Bounds("above 0 and at most 1", lambda value: 0 < value <= 1)] = 0.7
    """Fraction of the epochs in which it falls."""
    compile: Literal["auto", "True", "False"] = "auto"
    """Compile the training step; that takes 10 to 70 seconds and then saves a fifth of each step, or more. auto:
    where the run is long enough for that to pay. Unless this is False, a CUDA GPU repeats the step as a CUDA graph."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the training step's matrix products and hidden states; auto: bfloat16 where the processor has
    it, which is faster and as accurate. Weights, losses and every evaluation are float32."""
    M: Annotated[Positive, FREE] = 1
    """Rollouts per image in validation and test, whose class probabilities are averaged; they differ by their random
    first locations."""
    random_seed: Annotated[int, Bounds("from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32), Mark.SHARED] = 1
    """Seed of the split, the weights, the images' order, places and clutter, the first locations and the policy's
    noise."""

    @property
    def game_weights(self) -> dict:
        """What `games.player.game_loss` weighs by."""
        return {
            "reinforce_weight": self.reinforce_weight,
            "gae_lambda": self.gae_lambda,
            "entropy_weight": self.entropy_weight,
        }


@dataclass(frozen=True)
class CallConfig(Settings):
    """This call: what to do, and in which folders. A run's saved settings never stand in for these."""

    is_train: bool = True
    """Train; False tests a trained model on the test set."""
    resume: Literal[True, False, "auto"] = False
    """Resume from the run's latest checkpoint; auto: if there is one, and else begin, so that a queue or a script may
    repeat one command."""
    accept_changes: bool = False
    """Resume although the images of a folder have changed: those that validated the run still do, and all others train
    it."""
    overwrite: bool = False
    """Delete what the run's folders hold and start again."""
    best: bool = True
    """Test the best validation model; False tests the latest."""
    checkpoint: PathText = ""
    """Test the model of this file, with --is_train=False, instead of a run's."""
    recipe: PathText = ""
    """Take the defaults of the other flags from recipes/NAME.toml, or from the path of your own TOML file; the run is
    named after it."""
    run_name: str = ""
    """Name of the run, and of its folder in ckpt_dir, logs_dir and plot_dir; empty: made from the recipe, or from task,
    glimpses, patch and scale."""
    ckpt_dir: PathText = "./ckpt"
    """Folder of the runs' checkpoints, settings and metrics."""
    logs_dir: PathText = "./logs"
    """Folder of the runs' TensorBoard logs."""
    plot_dir: PathText = "./plots"
    """Folder of the runs' glimpses, pictures and animations."""
    show_sample: bool = False
    """Save a grid of training images as plot_dir/RUN/samples.png."""
    stop_after_epoch: Count = 0
    """Stop after this epoch, to resume later, as queues with a time limit need; 0: continue to the last."""


@dataclass(frozen=True)
class MachineConfig(Settings):
    """This machine, and what it shows: changes no result."""

    use_gpu: bool = True
    """Use a CUDA or Apple GPU if there is one; False stays on the CPU."""
    use_tensorboard: bool = False
    """Log to TensorBoard."""
    wandb: str = ""
    """Log to TensorBoard and to this project of Weights & Biases (pip install wandb)."""
    print_freq: Positive = 10
    """Steps between two updates of the progress bar, and two checks that the loss is finite."""
    plot_freq: Positive = 1
    """Epochs between two savings of where the model looks, for plot_glimpses.py and TensorBoard; the last counts."""
    save_every_steps: Count = 0
    """Steps between two checkpoints within an epoch; 0: save after each epoch, and when interrupted."""


@dataclass(frozen=True)
class Config:
    """The Recurrent Attention Model (Mnih et al. 2014): train it, resume, test it."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    call: CallConfig = field(default_factory=CallConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    def __post_init__(self):
        data, model, training, call = self.data, self.model, self.training, self.call
        widest = model.patch_size * model.glimpse_scale ** min(model.num_patches - 1, 31)
        require(model, "num_patches", widest < 2**16, "fewer: the widest patch must be under 65536 pixels wide")
        own = TASKS[data.task]  # of a Config that was not made by make_config
        agreed = data.dataset == own.get("dataset", data.dataset)
        require(
            data, "task", agreed, f"another with --dataset={data.dataset}; in Python, make_config sets what a task does"
        )
        agreed = data.canvas_size or "canvas_size" not in own
        require(data, "task", agreed, "another without a --canvas_size=; in Python, make_config sets what a task does")
        require(data, "num_clutter", data.canvas_size or not data.num_clutter, "0 without a --canvas_size=")
        needed = data.dataset == "catch" or training.lr_patience is not None
        require(data, "valid_size", data.valid_size or not needed, "above 0 with --lr_patience= or --task=catch")
        require(data, "image_height", bool(data.image_height) == bool(data.image_width), "given with image_width")
        require(training, "policy", training.policy != "scan" or model.scan_radius, "another if --scan_radius= is 0")
        require(training, "policy", training.policy != "oracle" or data.canvas_size, "another without a --canvas_size=")
        if data.dataset == "catch":
            num_valid = int(data.valid_size * data.games_per_epoch)
            require(data, "games_per_epoch", num_valid, f"more: valid_size={data.valid_size} of them leaves no game")
            require(data, "ball_speed", data.ball_speed <= data.grid_size, "at most grid_size")
            require(data, "paddle_size", data.paddle_size <= data.grid_size, "at most grid_size")
            require(data, "canvas_size", not data.canvas_size, "0 with --task=catch")
            require(data, "image_height", not data.image_height, "0 with --task=catch: --grid_size= is the screen's")
            frames = data.grid_size - 1
            require(
                model,
                "num_glimpses",
                model.num_glimpses == frames,
                f"grid_size - 1, a glimpse for each frame of a game: {frames}",
            )
            require(training, "M", training.M == 1, "1 with --task=catch")
            fixed = model.first_location != "learned"
            require(model, "first_location", fixed, "random or centre with --task=catch")
        agreed = training.policy == "learned" or model.first_location != "learned"
        require(training, "policy", agreed, "learned with --first_location=learned")
        alike = "random" not in (model.first_location, training.policy)
        require(training, "M", training.M == 1 or not alike, "1 if --first_location= is not random: all would be alike")
        require(call, "checkpoint", not (call.checkpoint and call.is_train), "given with --is_train=False")
        require(call, "accept_changes", call.resume or not call.accept_changes, "given with --resume=True")
        require(call, "best", call.best or not call.checkpoint, "left out with --checkpoint=")
        plain = Path(call.run_name).name == call.run_name and call.run_name != ".."
        require(call, "run_name", plain, "one folder name, without slashes")

    def flat(self) -> dict:
        """All settings by name, as checkpoints, params.json and records hold them."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}

    def replace(self, **settings) -> "Config":
        """The same with other values of these settings; raises InputError as `make_config`."""
        return _grouped({**self.flat(), **settings})

    def of_this_machine(self, here: "Config") -> "Config":
        """The same with the machine, data_dir and num_workers of other settings: a file from elsewhere sets none."""
        data = replace(self.data, data_dir=here.data.data_dir, num_workers=here.data.num_workers)
        return replace(self, data=data, machine=here.machine)

    def model_args(self, num_channels: int, num_classes: int) -> dict:
        """What `RecurrentAttention` is built with, for data of so many channels and classes; a checkpoint holds it."""
        return {"num_channels": num_channels, "num_classes": num_classes, **asdict(self.model)}

    @property
    def name(self) -> str:
        """The run's name: the original project's, with the task before it if that is not mnist."""
        prefix = "" if self.data.task == "mnist" else f"{self.data.task}_"
        model = self.model
        return self.call.run_name or (
            f"{prefix}ram_{model.num_glimpses}_{model.patch_size}x{model.patch_size}_{model.glimpse_scale}"
        )

    @property
    def run_dir(self) -> Path:
        return Path(self.call.ckpt_dir) / self.name

    @property
    def run_logs(self) -> Path:
        return Path(self.call.logs_dir) / self.name

    @property
    def run_plots(self) -> Path:
        return Path(self.call.plot_dir) / self.name

    @property
    def has_begun(self) -> bool:
        """Whether a run is resumed, or a model tested: its settings are known."""
        return bool(self.call.resume) or not self.call.is_train

    @property
    def checkpoint_path(self) -> Path:
        """What a test loads, or a resumed training."""
        if self.call.checkpoint:
            return Path(self.call.checkpoint)
        best, last = self.run_dir / "best.pt", self.run_dir / "last.pt"
        if self.call.is_train:  # a kill in the first epoch may leave best.pt alone, which holds the same
            return best if best.exists() and not last.exists() else last
        return best if self.call.best else last

    @property
    def holds_run(self) -> bool:
        """Whether the run's folder holds a checkpoint."""
        return any((self.run_dir / name).exists() for name in ("last.pt", "best.pt"))

    @property
    def params_path(self) -> Path:
        """The run's settings, which `get_config` reads back."""
        return self.run_dir / "params.json"


# Besides the settings of the call, those that say in which folder a run is, and what they must agree with.
NAMING = ("task", "num_glimpses", "patch_size", "glimpse_scale", "grid_size")
GROUPS: dict[str, type[Settings]] = {part.name: part.default_factory for part in fields(Config)}
HINTS = {name: hint for group in GROUPS.values() for name, hint in hints_of(group).items()}


def names_of(*groups: type[Settings]) -> tuple[str, ...]:
    """The names of all settings of these groups."""
    return tuple(each.name for group in groups for each in fields(group))


def names_marked(mark: Mark) -> tuple[str, ...]:
    """The names of the settings with this mark, or with all of several, and of every `call` and `machine` setting."""
    marked = [name for name, hint in HINTS.items()
              if any(isinstance(extra, Mark) and mark in extra for extra in get_args(hint))]  # fmt: skip
    return (*names_of(CallConfig, MachineConfig), *marked)


def make_config(**settings) -> Config:
    """The settings of a task (mnist if none is named) with these values.

    Raises:
        InputError: there is no such setting, or the value is not allowed.
    """
    return _grouped({**TASKS.get(settings.get("task", "mnist"), {}), **settings})


def _grouped(settings: dict) -> Config:
    """Sorts settings into their groups."""
    unknown = sorted(settings.keys() - HINTS.keys())
    if unknown:
        raise InputError(f"there is no setting {unknown[0]}: python main.py --help lists them all")
    return Config(**{part: group(**{name: settings[name] for name in names_of(group) if name in settings})
                     for part, group in GROUPS.items()})  # fmt: skip


def config_of(settings: dict, path: str | Path, remedy: str = f"restore it, or {OTHER_VERSION}") -> Config:
    """The Config of a run's settings, which were read from path. One that came after the run has its field's default,
    which does as before, and not its task's.

    Raises:
        InputError: they are not a run's.
    """
    try:
        return Config().replace(**settings)
    except (InputError, TypeError, OverflowError) as error:  # no dict, say
        raise InputError(f"{path} does not hold a run's settings ({error}): {remedy}") from error


def get_config(argv: list[str] | None = None, saved: Config | None = None) -> Config:
    """Parses the command line.

    A run that is resumed or tested keeps the settings it was begun with, so that nobody repeats them; flags given now
    override those that may still change.

    Args:
        argv: flags; None takes those of the process.
        saved: the settings of the run that is resumed or tested; None reads them from its params.json. Those of a
            --checkpoint=, and of a run without params.json, are in the checkpoint, which the caller reads.
    Raises:
        InputError: a value that is not allowed, or that contradicts the run that is resumed or tested.
        SystemExit: after --help, or a flag that does not exist or does not parse (tyro prints why).
    """
    asked = asked_for(argv)
    if saved is None and asked.has_begun and not asked.call.checkpoint:
        saved = _read_params(asked.params_path)
    if saved is None or not asked.has_begun:  # that there is no checkpoint is reported where it is read
        return _parse(_defaults(argv), argv)
    begun = replace(saved, call=asked.call)
    task = _named_in(argv).task
    if task and task != begun.data.task:  # told first: it may not go with the other settings
        raise _contradiction(begun, "task", task)
    if asked.call.checkpoint:
        begun = begun.of_this_machine(asked)
    config = _parse(begun, argv)
    free = names_marked(Mark.RESUME if config.call.is_train else Mark.TEST)
    before = begun.flat()
    for name, value in config.flat().items():
        if value != before[name] and name not in free:
            raise _contradiction(begun, name, value)
    return config


def _contradiction(begun: Config, name: str, value) -> InputError:
    """Of a flag and the run that is resumed or tested."""
    other = ", or train another run with --run_name=" if begun.call.is_train else ""
    return InputError(
        f"{name}={value} contradicts {begun.checkpoint_path}, which has {name}={begun.flat()[name]}: leave the flag "
        f"out{other}"
    )


def asked_for(argv: list[str] | None = None) -> Config:
    """The call, and the names of its run and folders. The other flags are left out: what they must agree with may be
    the settings of a run, which are not read yet.

    Args:
        argv: as of `get_config`, and so are the errors.
    """
    kept, words = False, []
    for word in sys.argv[1:] if argv is None else argv:
        if word.startswith("--"):
            kept = word[2:].partition("=")[0].replace("-", "_") in (*names_of(CallConfig), *NAMING)
        words += [word] * kept
    return _parse(_defaults(argv), words)


def _parse(defaults: Config, argv: list[str] | None) -> Config:
    """The settings that flags make of these; --resume=auto is decided."""
    config = parse_flags(defaults, argv, prog="main.py")
    return config.replace(resume=config.holds_run) if config.call.resume == "auto" else config


def _defaults(argv: list[str] | None) -> Config:
    """What the flags override: the defaults of the task and the recipe that they name."""
    named = _named_in(argv)
    settings = read_recipe(named.recipe) if named.recipe else {}
    return make_config(**{**settings, **({"task": named.task} if named.task else {})})


def _named_in(argv: list[str] | None) -> argparse.Namespace:
    """The task and the recipe that flags name, None each if they do not."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", nargs="?")
    parser.add_argument("--recipe", nargs="?")
    return parser.parse_known_args(argv)[0]


def read_recipe(recipe: str) -> dict:
    """The settings of a recipe, and the name of its runs.

    Args:
        recipe: a name, for recipes/NAME.toml, or the path of a TOML file.
    Raises:
        InputError: there is none, or it sets what only a call can.
    """
    path = Path(recipe).expanduser() if recipe.endswith(".toml") else RECIPES / f"{recipe}.toml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in RECIPES.glob("*.toml")))
        raise InputError(f"recipe={recipe} is not a file: name one by its path, or choose among {known}")
    settings = read_toml(path)
    wrong = sorted(settings.keys() & set(names_of(CallConfig)))
    if wrong:
        raise InputError(f"{path} sets {wrong[0]}, which belongs to a single call: give it as a flag")
    try:
        make_config(**settings)
    except (InputError, TypeError, OverflowError) as error:
        raise InputError(f"{path} is no recipe ({error}): correct it") from error
    return {**settings, "recipe": recipe, "run_name": path.stem}


def _read_params(path: Path) -> Config | None:
    remedy = f"remove it, and those in the run's checkpoint are used, or {OTHER_VERSION}"
    if not path.exists():
        return None
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} does not hold a run's settings ({error}): {remedy}") from error
    return config_of(settings, path, remedy)


def params_json(config: Config) -> str:
    """The text of a run's params.json."""
    return json.dumps(config.flat(), indent=2) + "\n"
