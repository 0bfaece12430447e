"""Everything that is measured on a GPU, in one go, without Jupyter: the tests, the notebooks.

    python tools/measure_gpu.py --out DIR [--size full|small] [--seconds 540] [--pretend] [file ...]

Writes DIR/report.html, with what every cell printed and drew and what failed;
DIR/reference_timings_rows.csv, rows for data/reference_timings.csv; and DIR/log.txt. PyTorch,
matplotlib, pandas and tiktoken suffice: where another package is missing, the report says so.

Each file runs in a process of its own, cell by cell (run_cells.py), in an empty folder. When its
share of --seconds is nearly over, the cell that runs is interrupted, and the next goes on.

--size full sets FULL_SIZE, which has the CPU beside the GPU timed at the lecture's size too. By
default it is set where there is a GPU, and a CPU that needs less than a minute for it.
--pretend tries all this on a machine without a GPU, with a CPU that pretends to be one.
"""

import argparse
import html
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from run_cells import cells_of

ROOT = Path(__file__).resolve().parent.parent
SHARES = {  # what runs, in this order, and its share of the time; what one leaves, the next may use
    "tests/test_gpu.py": 3,
    "notebooks/05_timing_lab.ipynb": 6,
    "notebooks/06_timing_lab_limits.ipynb": 6,
    "notebooks/07_training.ipynb": 3,
    "notebooks/02_attention.ipynb": 1,
    "notebooks/04_gpt2_model.ipynb": 2,
}
STYLE = """body { font: 16px sans-serif; max-width: 70em; margin: 2em auto }
pre { background: #f3f3f3; padding: .5em; overflow-x: auto } pre.failed { background: #fbe3d6 }
img { max-width: 100% }"""


def measure(path, seconds, size, pretend, log):
    """What came of a file: {"name", "seconds", "ended", "cells", "unreached", "rows"}."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.jsonl")
        places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "MPLBACKEND": "Agg"}
        given = json.dumps([str(path), str(results), size, pretend, seconds])
        command = [sys.executable, str(ROOT / "tools" / "run_cells.py"), given]
        try:
            ended = subprocess.run(
                command, cwd=folder, env=environment, stdout=log, stderr=log, timeout=seconds
            ).returncode
            ended = f"the process ended with {ended}, see log.txt" if ended else ""
        except subprocess.TimeoutExpired:
            ended = f"its {seconds:.0f} s were over"
        lines = results.read_text(encoding="utf-8").splitlines(True) if results.exists() else []
        cells = [json.loads(line) for line in lines if line.endswith("\n")]
        rows = [p.read_text(encoding="utf-8") for p in sorted(Path(folder).glob("my_timings*.csv"))]
    return {
        "name": path.name,
        "seconds": time.perf_counter() - start,
        "ended": ended,
        "cells": cells,
        "unreached": [name for name, _ in cells_of(path)][max(0, len(cells) - 1) :],
        "rows": rows,
    }


def in_words(file):
    parts = [f"{file['name']}: {file['seconds']:.0f} s, {len(file['cells'][1:])} cells run"]
    if skipped := [cell["skipped"] for cell in file["cells"] if cell["skipped"]]:
        return f"{file['name']}: left out, {skipped[0]}"
    if failed := [cell["name"] for cell in file["cells"] if cell["error"]]:
        parts.append(f"failed: {', '.join(failed)}")
    if file["ended"]:
        parts.append(file["ended"])
    if file["unreached"]:
        parts.append(f"not reached: {', '.join(file['unreached'])}")
    return "; ".join(parts)


def cell_in_html(cell):
    shown = f"<details><summary>{cell['name']}, {cell['seconds']:.1f} s</summary>"
    shown += f"<pre>{html.escape(cell['source'])}</pre></details>"
    for output in cell["outputs"]:
        if "png" in output:
            shown += f'<img alt="" src="data:image/png;base64,{output["png"]}">'
        else:
            shown += f"<pre>{html.escape(output['text'])}</pre>"
    return shown + (f'<pre class="failed">{html.escape(cell["error"])}</pre>' * bool(cell["error"]))


def write(out, files):
    """The report and the rows, of what has run so far."""
    tables = [table.splitlines() for file in files for table in file["rows"]]
    rows = (
        "\n".join([*tables[0][:1], *(row for table in tables for row in table[1:]), ""])
        if tables
        else ""
    )
    (out / "reference_timings_rows.csv").write_text(rows, encoding="utf-8")
    page = [f"<!doctype html><meta charset=utf-8><title>GPU report</title><style>{STYLE}</style>"]
    page += ["<h1>What was measured</h1>", *map(cell_in_html, files[0]["cells"][:1]), "<ul>"]
    page += [f"<li>{html.escape(in_words(file))}</li>" for file in files]
    page += ["</ul><h2>What failed</h2>"]
    for file in files:
        failed = [cell for cell in file["cells"] if cell["error"]]
        page += [f"<h3>{file['name']}</h3>" * bool(failed), *map(cell_in_html, failed)]
    page += [f"<h2>Rows for data/reference_timings.csv</h2><pre>{html.escape(rows)}</pre>"]
    for file in files:
        page += [f"<h2>{file['name']}</h2>", *map(cell_in_html, file["cells"][1:])]
    (out / "report.html").write_text("\n".join(page), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--size", choices=["full", "small"], help="FULL_SIZE or not")
    parser.add_argument("--seconds", type=float, default=540, help="for all files together")
    parser.add_argument("--pretend", action="store_true", help="a CPU pretends to be a GPU")
    parser.add_argument("file", type=Path, nargs="*", help="notebooks, files of tests")
    given = parser.parse_args()
    end, files = time.monotonic() + given.seconds, []
    shares = {path.resolve(): 1 for path in given.file}
    shares = shares or {ROOT / name: share for name, share in SHARES.items()}
    given.out.mkdir(parents=True, exist_ok=True)
    with open(given.out / "log.txt", "w", encoding="utf-8") as log:
        while shares:
            left = end - time.monotonic()
            seconds = max(1, left * next(iter(shares.values())) / sum(shares.values()))
            path = next(iter(shares))
            del shares[path]
            files.append(measure(path, seconds, given.size, given.pretend, log))
            print(in_words(files[-1]), flush=True)
            write(given.out, files)
    print(f"The report is in {given.out / 'report.html'}.")


if __name__ == "__main__":
    main()
