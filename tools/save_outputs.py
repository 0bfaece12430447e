"""Execute notebooks in fresh kernels and save them with their outputs, in one canonical form.

    python tools/save_outputs.py [notebook ...]        all of the series by default

Running it on committed notebooks changes nothing: where the compared outputs come out as they are
stored, the times stay those that were printed when the notebook was last saved. So after a change:
first this, then commit. The figure that the README shows is written to data/ from the cell tagged
"readme". The setup cell of every notebook is the one in setup_cell.ipy.
"""

import base64
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK_METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": [], "toc_visible": True},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_METADATA = {"tags", "cellView", "jupyter", "slideshow"}
IGNORED = "nbval-ignore-output"
SETUP_CELL = Path(__file__).with_name("setup_cell.ipy").read_text(encoding="utf-8").rstrip("\n")


def series():
    """The paths of all notebooks, in their order."""
    folder = ROOT / "notebooks"
    return sorted(folder.glob("*.ipynb")) + sorted(folder.glob("solutions/*.ipynb"))


def is_progress_bar(output):
    """Whether an output is nothing but the lines of tqdm's bars."""
    lines = output.get("text", "").splitlines()
    return bool(lines) and all("%|" in line or not line.strip() for line in lines)


def canonical(notebook):
    """Metadata and setup cell as every notebook of the series has them."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in CELL_METADATA & set(cell.metadata)}
        cell.metadata = nbformat.from_dict(kept)
        if cell.id == "setup":
            cell.source = SETUP_CELL
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not is_progress_bar(output)]
    return notebook


def execute(notebook, folder):
    """A copy of `notebook` with fresh outputs; raises CellExecutionError if a cell fails."""
    fresh = canonical(nbformat.from_dict(notebook))
    client = NotebookClient(
        fresh,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )
    return canonical(client.execute())


def is_committed(path):
    """Does git know the file, unchanged? False where there is no git."""
    if shutil.which("git") is None:
        return False
    unchanged = ["git", "diff", "--quiet", "HEAD", "--", str(path)]
    known = ["git", "ls-files", "--error-unmatch", str(path)]
    return all(
        subprocess.run(command, cwd=path.parent, capture_output=True).returncode == 0
        for command in (known, unchanged)
    )


def ignored(cell):
    return IGNORED in cell.metadata.get("tags", [])


def same_results(fresh, stored):
    """Do all compared cells show what they showed before?"""
    pairs = zip(fresh.cells, stored.cells, strict=True)
    return all(a.get("outputs") == b.get("outputs") for a, b in pairs if not ignored(a))


def keep_times(fresh, stored):
    """Put the stored outputs of ignored cells back into `fresh`."""
    for cell, old in zip(fresh.cells, stored.cells, strict=True):
        if ignored(cell):
            cell.outputs = old.outputs


def save_readme_figures(notebook, path):
    for cell in notebook.cells:
        if "readme" in cell.metadata.get("tags", []):
            images = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
            (ROOT / "data" / f"{path.stem}.png").write_bytes(base64.b64decode(images[0]))


def save(path):
    stored = nbformat.read(path, as_version=4)
    fresh = execute(stored, path.parent)
    if is_committed(path) and same_results(fresh, stored):
        keep_times(fresh, stored)
    nbformat.write(fresh, path)
    save_readme_figures(fresh, path)


if __name__ == "__main__":
    for path in [Path(name).resolve() for name in sys.argv[1:]] or series():
        start = time.perf_counter()
        save(path)
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s", flush=True)
