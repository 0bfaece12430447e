"""tools/measure_gpu.py from end to end, on a made-up notebook and on tests that fail."""

import json
import re
import subprocess
import sys

import pytest
from save_outputs import ROOT

from gpt2_helpers import DATA
from timing_helpers import read_timings

DEVICE = """
import torch
from gpt2_helpers import GPT2, GPT2Config, pick_device
from timing_helpers import measure, save_timings, timing
device = pick_device()
model, ids = GPT2(GPT2Config()).to(device), torch.zeros(1, 8, dtype=torch.int64, device=device)
seconds = measure(lambda: model(ids), device)
save_timings("my_timings.csv", [timing("forward", device, seconds, 1, 8)])
"""
CELLS = {
    "setup": "%pip install everything\nraise SystemExit",
    "import": "import no_such_package\nfrom no_such_package.part import thing\nprint('imported')",
    "full-size": "%matplotlib inline\nFULL_SIZE = False\nprint('full size:', FULL_SIZE)",
    "missing": "print('before it'); thing(1)",
    "fails": "x = 1\nx / 0",
    "figure": "import matplotlib.pyplot as plt\nplt.plot([x, 2])\nplt.show()\nx + 41",
    "device": DEVICE,
    "exit": "import os\nos._exit(3)",
    "last": "print('too late')",
    "exercise-1-answer": "raise NotImplementedError",
}
TESTS = "def test_right():\n    pass\n\n\ndef test_wrong():\n    assert 1 + 1 == 3\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the tool printed, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp("gpu")
    cells = [{"cell_type": "code", "id": k, "source": [text]} for k, text in CELLS.items()]
    cells.insert(3, {"cell_type": "markdown", "source": ["# Text"]})
    (folder / "lesson.ipynb").write_text(json.dumps({"cells": cells}))
    (folder / "test_made_up.py").write_text(TESTS)
    command = [sys.executable, ROOT / "tools" / "measure_gpu.py", "--out", folder / "report"]
    command += ["--size", "full", "--pretend", folder / "lesson.ipynb", folder / "test_made_up.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout, folder / "report"


def test_where_something_fails_the_rest_runs(made):
    printed, _ = made
    assert re.search(r"lesson.ipynb: \d+ s, 6 cells run; failed: missing, fails; ", printed)
    assert "the process ended with 3, see log.txt; not reached: exit, last\n" in printed
    assert re.search(r"test_made_up.py: \d+ s, 3 cells run; failed: test_wrong\n", printed)


def test_the_report_holds_what_was_printed_drawn_and_raised(made):
    page = (made[1] / "report.html").read_text()
    for text in ("imported", "full size: True", "before it", "42"):
        assert f"{text}\n</pre>" in page
    assert "ZeroDivisionError: division by zero" in page
    assert "no_such_package is not installed on this machine" in page
    assert "missing packages: no_such_package" in page
    assert page.count("data:image/png;base64,") == 1
    assert "pip install" not in page and "NotImplementedError" not in page


def test_rows_are_those_of_the_device_and_fit_the_recorded_ones(made):
    rows = read_timings(made[1] / "reference_timings_rows.csv", DATA / "reference_timings.csv")
    assert (rows.device[0], rows.experiment[0], rows.seq_len[0]) == ("cuda", "forward", 8)
    assert "pretends" in rows.machine[0]


def test_what_comes_back_from_a_lent_machine_is_few_files(made):
    names = sorted(path.name for path in made[1].rglob("*"))
    assert names == ["log.txt", "reference_timings_rows.csv", "report.html"]
