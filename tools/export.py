"""Writes a run's best model without what only its training needs, to be shipped: about a megabyte.

    python -m tools.export --run_dir=./ckpt/ram_6_8x8_1                   # writes models/mnist.pt
    python main.py --is_train=False --checkpoint=models/mnist.pt

The settings are in the file, but for those of the call and the machine: these have their defaults in it.

It also writes a model for those who have no PyTorch, or want no pickle (docs/without_pytorch.md shows how to run it):

    python -m tools.export --checkpoint=models/mnist.pt --onnx=mnist.onnx --safetensors=mnist.safetensors
"""

import contextlib
import io
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from config import FREE, config_of, make_config, names_marked
from training.cli import InputError, PathText, Settings, run_command, say

if TYPE_CHECKING:
    from model import RecurrentAttention


@dataclass(frozen=True)
class Export(Settings):
    """Writes a run's best model without what only its training needs."""

    run_dir: PathText = "./ckpt/ram_6_8x8_1"
    """Folder of the run's checkpoints."""
    models_dir: PathText = "./models"
    """Folder to write to, over what is there; the file is named after the run's task."""
    half: bool = False
    """Write the weights in half precision, in half the space: rounded to 11 bits; a model reads them as float32."""
    checkpoint: PathText = ""
    """Export the model of this file instead of a run's best; for --onnx= and --safetensors=."""
    onnx: PathText = ""
    """Write the model as this ONNX file instead, for any number of images at once."""
    safetensors: PathText = ""
    """Write the weights, and what the model is built with, as this safetensors file instead."""

    def __post_init__(self):
        super().__post_init__()
        others = self.onnx or self.safetensors
        if others and (self.half or self.models_dir != Export.models_dir):
            raise InputError("half and models_dir are for models/TASK.pt: leave them out with --onnx=, --safetensors=")
        if self.checkpoint and not others:
            raise InputError("checkpoint is a model already: say what to make of it with --onnx= or --safetensors=")
        if self.checkpoint and self.run_dir != Export.run_dir:
            raise InputError("checkpoint and run_dir both name a model: leave one out")


def main(args: Export) -> list[Path]:
    """Writes the model and returns the paths.

    Raises:
        InputError: there is no such model, a package is missing, or the folder cannot be written.
    """
    # Imported here, not above: --help and a typo's message need not wait for torch.
    from training.checkpoint import load_checkpoint, model_of, write_whole

    source = Path(args.checkpoint or Path(args.run_dir) / "best.pt")
    checkpoint = load_checkpoint(source)
    if not (args.onnx or args.safetensors):
        return [write_model(checkpoint, source, args)]
    written, config = [], config_of(checkpoint["config"], source)
    if config.training.policy != "learned":
        raise InputError(
            f"{source} was trained with --policy={config.training.policy}, which is in none of these files, and would "
            "look elsewhere: leave --onnx= and --safetensors= out"
        )
    if args.safetensors:
        written.append((Path(args.safetensors), safetensors_of(checkpoint)))
    if args.onnx and config.data.dataset == "catch":
        raise InputError(f"{source} plays a game, which ONNX has no frames of: leave --onnx= out")
    if args.onnx:
        written.append((Path(args.onnx), onnx_of(model_of(checkpoint, source), checkpoint["data"])))
    for path, content in written:
        write_whole(path, content)
        say(f"[*] Model in {path}, epoch {checkpoint['epoch']}, {len(content) / 1e6:.2f} MB")
    return [path for path, _ in written]


def write_model(checkpoint: dict, source: Path, args: Export) -> Path:
    """Writes models_dir/TASK.pt."""
    from training.checkpoint import MODEL_KEYS, save_checkpoint

    config, defaults = config_of(checkpoint["config"], source), make_config().flat()
    config = config.replace(**{name: defaults[name] for name in names_marked(FREE)})
    model = {**{key: checkpoint[key] for key in MODEL_KEYS}, "config": config.flat()}
    if args.half:
        model["model_state"] = {name: weight.half() for name, weight in model["model_state"].items()}
    path = Path(args.models_dir) / f"{config.data.task}.pt"
    save_checkpoint(model, path)
    say(f"[*] Model in {path}, epoch {checkpoint['epoch']}, {path.stat().st_size / 1e6:.2f} MB")
    return path


@contextlib.contextmanager
def needed_packages():
    """Says what to install where a package is missing."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install -r requirements-onnx.txt") from error


def safetensors_of(checkpoint: dict) -> bytes:
    """The weights of a checkpoint, with what builds the model as the file's metadata.

    Raises:
        InputError: a package is missing.
    """
    with needed_packages():
        from safetensors.torch import save
    # What is no tensor is text in this format.
    return save(checkpoint["model_state"], {name: json.dumps(checkpoint[name]) for name in ("model_args", "data")})


def onnx_of(model: "RecurrentAttention", data: dict) -> bytes:
    """A model as ONNX: as a test looks, at the policy's mean.

    Inputs are images (B, C, H, W), uint8, and, unless the policy chooses where to begin, first_locations (B, 2).
    Outputs are log_probs (B, num_classes) after the last glimpse, locations (B, T, 2), and probabilities
    (B, T, num_classes) after each glimpse. The file's metadata holds the names of the classes, as JSON.

    Args:
        model: in evaluation mode or not.
        data: the checkpoint's; see `images.batches.DataSpec`.
    Raises:
        InputError: a package is missing.
    """
    import torch

    class Prediction(torch.nn.Module):
        """The rollout's outputs for who only predicts."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images, first_locations=None):
            if first_locations is None:
                first_locations = torch.zeros(images.shape[0], 0, 2)
            rollout = self.model(images, first_locations)
            return rollout.log_probs, rollout.locations, self.model.classifier(rollout.hiddens).exp()

    with needed_packages():
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    batch = torch.export.Dim("batch")
    example = {"images": torch.zeros(2, data["num_channels"], data["height"], data["width"], dtype=torch.uint8)}
    if model.first_location != "learned":
        example["first_locations"] = torch.zeros(2, 2)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Prediction().eval(),
            kwargs=example,
            dynamo=True,
            output_names=["log_probs", "locations", "probabilities"],
            dynamic_shapes={name: {0: batch} for name in example},
        )
    program.model.metadata_props["classes"] = json.dumps(data["classes"])
    return program.model_proto.SerializeToString()


if __name__ == "__main__":
    run_command(main, Export, prog="tools.export")
