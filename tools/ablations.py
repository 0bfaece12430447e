"""Train every variant of notebook 7 at full length, with three seeds each, into data/ablations.csv.

    python tools/ablations.py [--steps 2000] [--out data/ablations.csv]

The variants are the notebook's own: its cells tagged "ablations" are executed. Each run is a
process of its own with one thread, as many at once as the machine has cores.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from gpt2_helpers import describe_device  # noqa: E402

SEEDS = range(3)


def definitions():
    """What the tagged cells of the notebook define, a dict."""
    notebook = json.loads((ROOT / "notebooks" / "07_training.ipynb").read_text(encoding="utf-8"))
    names = {}
    for cell in notebook["cells"]:
        if "ablations" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
    return names


def one_run(name, seed, steps):
    """A variant's row, trained in a process of its own."""
    command = [sys.executable, __file__, "--run", name, "--seed", str(seed), "--steps", str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "ablations.csv")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = definitions()
    if options.run:
        print(json.dumps(names["try_out"](options.run, options.seed, options.steps)))
        return
    runs = [(name, seed, options.steps) for name in names["VARIANTS"] for seed in SEEDS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(tqdm(pool.map(one_run, *zip(*runs, strict=True)), total=len(runs)))
    table = pd.DataFrame(rows)
    table["steps"] = options.steps
    table["machine"] = describe_device("cpu").split(",")[0] + ", 1 thread"
    table["versions"] = f"torch {torch.__version__}"
    table["date"] = date.today().isoformat()
    table.round(5).to_csv(options.out, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
