"""Writes a run's best model without what only its training needs, to be shipped: about a megabyte.

    python -m tools.export --run_dir=./ckpt/ram_6_8x8_1                   # writes models/mnist.pt
    python main.py --is_train=False --checkpoint=models/mnist.pt

The settings are in the file, but for those of the call and the machine: these have their defaults in it.
"""

from dataclasses import dataclass
from pathlib import Path

from config import FREE, config_of, make_config, names_marked
from training.cli import PathText, Settings, run_command, say


@dataclass(frozen=True)
class Export(Settings):
    """Writes a run's best model without what only its training needs."""

    run_dir: PathText = "./ckpt/ram_6_8x8_1"
    """Folder of the run's checkpoints."""
    models_dir: PathText = "./models"
    """Folder to write to, over what is there; the file is named after the run's task."""
    half: bool = False
    """Write the weights in half precision, in half the space: rounded to 11 bits; a model reads them as float32."""


def main(args: Export) -> Path:
    """Writes the model and returns its path.

    Raises:
        InputError: there is no such model, or the folder cannot be written.
    """
    # Imported here, not above: --help and a typo's message need not wait for torch.
    from training.checkpoint import MODEL_KEYS, load_checkpoint, save_checkpoint

    source = Path(args.run_dir) / "best.pt"
    checkpoint = load_checkpoint(source)
    config, defaults = config_of(checkpoint["config"], source), make_config().flat()
    config = config.replace(**{name: defaults[name] for name in names_marked(FREE)})
    model = {**{key: checkpoint[key] for key in MODEL_KEYS}, "config": config.flat()}
    if args.half:
        model["model_state"] = {name: weight.half() for name, weight in model["model_state"].items()}
    path = Path(args.models_dir) / f"{config.data.task}.pt"
    save_checkpoint(model, path)
    say(f"[*] Model in {path}, epoch {checkpoint['epoch']}, {path.stat().st_size / 1e6:.2f} MB")
    return path


if __name__ == "__main__":
    run_command(main, Export, prog="tools.export")
