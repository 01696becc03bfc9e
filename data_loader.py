"""The loaders of training, validation and test images: split, shuffled, placed on canvases, described.

train_loader, valid_loader = get_train_valid_loader(make_config(task="digits").data, 1, torch.device("cpu"))
for batch in train_loader:
    batch.images, batch.labels
"""

import io
from pathlib import Path

import torch
from torch import Tensor

from config import DataConfig
from games.batches import GameLoader, draw_examples, rules_of
from games.catch import ACTIONS, Games
from images.batches import Canvas, DataSpec, Loader, spec_of
from images.datasets import Examples, ImageRecord, check_classes, list_halves, read_examples
from images.folder import ImageFiles, read_headers
from images.listing import MOST_NAMED
from images.split import begun_with, check_unchanged, recorded, split
from training.checkpoint import write_whole
from training.cli import InputError, say
from training.distributed import ALONE, World

# Seeds, also of games; those of runs are below the latter. A run with seed 0 shares its first batch's places with the
# test's canvases, whose images are others.
TEST_CANVASES, VALIDATION_CANVASES = 0, 2**32
TEST_GAMES = 10_000
GPU_BATCH = 2000  # images, or games, of an evaluation's batch there, at least: few take as long as many
SAMPLE = 10_000  # images or canvases from which mean and standard deviation are taken, if they are not in memory


def get_train_valid_loader(
    data: DataConfig,
    seed: int,
    device: torch.device,
    world: World = ALONE,
    checkpoint: dict | None = None,
    accept_changes: bool = False,
) -> tuple[Loader, Loader | None]:
    """The training images, shuffled and placed anew each epoch, and the validation images, split off them by seed, if
    data.valid_size leaves any.

    Args:
        data: which images, and the size of a batch.
        seed: of the split, the order, and the training's canvases.
        device: where the batches are to be.
        world: whose processes share each batch.
        checkpoint: of the training that is resumed, which keeps its validation images.
        accept_changes: of a folder's images since then; what did not validate before is trained on.
    Raises:
        InputError: the data set is missing or damaged, does not fit the settings, or is not that of the checkpoint.
    """
    if data.dataset == "catch":
        return get_game_loaders(data, seed, device, world)
    begun = begun_with(checkpoint) if checkpoint else None
    trained = spec_of(checkpoint, "the checkpoint") if begun else None

    def check(now: ImageRecord):
        check_unchanged(begun, now, data, accept_changes)

    kind = {"classes": trained.classes, "channels": trained.num_channels} if trained else {}
    data_set = read_examples(data, seed, train=True, check=check, hide_bars=world.hide_bars, **kind)
    examples = data_set.examples
    train, valid = split(data_set, data, seed, begun, is_new=checkpoint is None)
    train_loader = Loader(
        examples.take(train),
        batch_size=data.batch_size * world.size,
        device=device,
        shuffle_seed=seed if data.shuffle else None,
        canvas=make_canvas(data, examples),
        canvas_seed=seed,
    )
    train_loader.record = recorded(data_set, valid)
    spec = describe(train_loader, data_set.classes)
    if trained and spec[:4] == trained[:4]:
        spec = trained  # the model keeps the mean and std it began with, whatever was added since
    if data.dataset == "folder":
        report_folder(data, spec, examples.labels[valid])
    train_loader = train_loader.described_by(spec).shard_with(world)
    if not data.valid_size:
        return train_loader, None
    valid_loader = make_evaluation_loader(data, examples.take(valid), device, world, VALIDATION_CANVASES)
    return train_loader, valid_loader.described_by(spec)


def report_folder(data: DataConfig, spec: DataSpec, valid_labels: Tensor):
    """Prints which classes validation lacks, and what a test would stumble over after the training."""
    present = set(valid_labels.tolist())
    lacking = [name for label, name in enumerate(spec.classes) if label not in present]
    if lacking and data.valid_size:
        more = f" and {len(lacking) - MOST_NAMED} more" if len(lacking) > MOST_NAMED else ""
        say(
            f"[!] Validation has no image of {', '.join(lacking[:MOST_NAMED])}{more}: its accuracy says nothing of them"
        )
    try:
        [listing] = list_halves(Path(data.data_dir), train=False)
        check_classes(listing, spec.classes)
        firsts = [listing.paths[listing.labels.index(label)] for label in sorted(set(listing.labels))]
        resized = bool(data.image_height or data.canvas_size)
        headers = read_headers(firsts, resized, hide_bars=True)
        if not resized:
            check_shape((spec.num_channels, *headers.size), spec)
    except (InputError, OSError) as error:
        say(f"[!] A test would fail: {error}")


def check_shape(shape: tuple[int, int, int], spec: DataSpec):
    """Raises InputError if test images are of another shape (C, H, W) than those that a model was trained on."""
    channels, height, width = shape
    if channels != spec.num_channels:
        raise InputError(
            f"the test images have {channels} channels, those the model was trained on {spec.num_channels}"
        )
    if (height, width) != (spec.height, spec.width):
        raise InputError(
            f"the test images are {width} x {height} pixels, those the model was trained on {spec.width} x "
            f"{spec.height}: --is_train=False --image_width={spec.width} --image_height={spec.height} resizes them"
        )


def get_test_loader(data: DataConfig, seed: int, spec: DataSpec, device: torch.device, world: World = ALONE) -> Loader:
    """The test images, described by what the model was trained on.

    Raises:
        InputError: the data set is missing or damaged, or is not of the kind the model was trained on.
    """
    if data.dataset == "catch":
        games = draw_examples(TEST_GAMES, rules_of(data), TEST_CANVASES)
        return make_evaluation_loader(data, games, device, world, 0).described_by(spec)
    kind = {"classes": spec.classes, "channels": spec.num_channels}
    examples = read_examples(data, seed, train=False, hide_bars=world.hide_bars, **kind).examples
    loader = make_evaluation_loader(data, examples, device, world, TEST_CANVASES).described_by(spec)
    check_shape(tuple(next(loader.raw()).images.shape[1:]), spec)
    if int(examples.labels.max()) >= len(spec.classes):
        raise InputError(f"the test images have classes that the model, trained on {len(spec.classes)}, does not know")
    return loader


def get_game_loaders(data: DataConfig, seed: int, device: torch.device, world: World) -> tuple[Loader, Loader]:
    """As `get_train_valid_loader`, for games; those of the validation are the same in every run."""
    rules = rules_of(data)
    num_valid = int(data.valid_size * data.games_per_epoch)
    train_loader = GameLoader(
        rules, data.games_per_epoch, batch_size=data.batch_size * world.size, device=device, seed=seed
    )
    valid_loader = make_evaluation_loader(data, draw_examples(num_valid, rules, VALIDATION_CANVASES), device, world, 0)
    lit = (1 + data.paddle_size) / data.grid_size**2  # fraction of the pixels that are white: the ball, and the paddle
    spec = DataSpec(ACTIONS, 1, data.grid_size, data.grid_size, [lit], [(lit * (1 - lit)) ** 0.5])
    return train_loader.described_by(spec).shard_with(world), valid_loader.described_by(spec)


def make_evaluation_loader(
    data: DataConfig, examples: Examples | ImageFiles, device: torch.device, world: World, canvas_seed: int
) -> Loader:
    """Images in order. Canvases are drawn once, on the CPU, with places and clutter of canvas_seed alone."""
    canvas = make_canvas(data, examples)
    if canvas:
        cpu = torch.device("cpu")
        fixed = Loader(examples, batch_size=1000, device=cpu, canvas=canvas, canvas_seed=canvas_seed)
        examples = Examples(*(torch.cat(parts) for parts in zip(*fixed.raw(), strict=True)))
    batch_size = data.batch_size * world.size
    if device.type == "cuda" and isinstance(examples, Examples):
        batch_size = max(batch_size, GPU_BATCH)
    return Loader(examples, batch_size=batch_size, device=device).shard_with(world)


def make_canvas(data: DataConfig, examples: Examples | ImageFiles) -> Canvas | None:
    if not data.canvas_size:
        return None
    if isinstance(examples, ImageFiles):
        raise InputError(f"canvas_size={data.canvas_size} needs images that fit into memory: make them smaller")
    height, width = examples.images.shape[2:]
    if max(height, width) > data.canvas_size:
        raise InputError(f"canvas_size={data.canvas_size} is smaller than the images, {width} x {height}")
    return Canvas(data.canvas_size, data.num_clutter)


def describe(loader: Loader, classes: list[str]) -> DataSpec:
    """Sizes, and each channel's mean and standard deviation; a constant channel counts as of standard deviation 1.

    Exact for images in memory, from the first SAMPLE images of a pass if they are streamed or placed on canvases.
    """
    images = loader.examples.images if isinstance(loader.examples, Examples) and not loader.canvas else sample(loader)
    _, channels, height, width = images.shape
    values = torch.arange(256, dtype=torch.float64) / 255
    if len(images) > 1 and torch.equal(images[0], images[-1]) and bool((images == images[:1]).all()):
        print(f"[!] All {len(images)} training images are alike, pixel by pixel: there is nothing to learn from them")
    means, stds = [], []
    for channel in images.unbind(1):
        frequency = torch.bincount(channel.flatten(), minlength=256).cpu().double() / channel.numel()
        mean = (frequency * values).sum()
        means.append(mean.item())
        stds.append((frequency * (values - mean).square()).sum().sqrt().item() or 1.0)
    return DataSpec(classes, channels, height, width, means, stds)


def sample(loader: Loader) -> Tensor:
    """The first images of a pass, about SAMPLE of them."""
    parts: list[Tensor] = []
    for batch in loader.raw():
        parts.append(batch.images)
        if sum(map(len, parts)) >= SAMPLE:
            break
    return torch.cat(parts)


def save_samples(loader: Loader, path: Path):
    """Saves the first 64 images of a pass as a grid, a PNG."""
    from torchvision.utils import save_image

    images = next(iter(loader)).images
    images = (images.frames() if isinstance(images, Games) else images)[:64]
    buffer = io.BytesIO()
    save_image(images / 255, buffer, format="png", nrow=8)
    write_whole(path, buffer.getvalue())
    say(f"[*] Samples in {path}")
