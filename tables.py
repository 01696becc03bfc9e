"""Writes the README's table of results from the recorded runs in results/.

cp ckpt/ram_6_8x8_1/test.json results/mnist_seed1.json    # what a test left beside its checkpoints
python tables.py
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent
BEGIN, END = "<!-- results: written by tables.py -->\n", "<!-- end of results -->"


def results_table(folder: Path) -> str:
    """A Markdown row for each command, mean and standard deviation over its seeds.

    Args:
        folder: of records that `Trainer.test` wrote.
    """
    runs = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        words = record["trained_with"]["command"].split()
        kept = [word for word in words if not word.startswith(("--random_seed", "--data_dir", "--run_name"))]
        runs[" ".join(kept)].append(record)
    lines = [
        "| command | seeds | epochs | validation error, % | test error, %, M = 1 | minutes a run |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for command, records in runs.items():
        valid = spread([100 - record["best_valid_acc"] for record in records])
        test = spread([100 - record["test"]["acc"] for record in records])
        minutes = statistics.mean(record["seconds"] for record in records) / 60
        epochs = len(records[0]["valid_acc_per_epoch"])
        lines.append(f"| `{command}` | {len(records)} | {epochs} | {valid} | {test} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Mean and, of several, standard deviation."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def with_table(readme: str, table: str) -> str:
    """The README with this table in its place."""
    head, _, rest = readme.partition(BEGIN)
    return head + BEGIN + table + END + rest.partition(END)[2]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(), results_table(ROOT / "results")))
