"""One notebook, opened alone: on Colab, on a machine that has the series, on one that has not.

Colab is a module `google.colab` that is there from the start; GitHub is a repository in a
temporary folder, to which git's `insteadOf` turns the address. `make test-colab` sets
COLAB_PYTHON, a Python with the library versions of Colab, and runs every notebook whole in it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbclient import NotebookClient
from set_repository import replace_address
from test_notebooks import IGNORED, NOTEBOOKS, ROOT, code_cells, git, tags

REPOSITORY, REVISION = "teacher/a-series", "v1.0"
FETCHED = "teacher-a-series-v1.0"
COLAB_PYTHON = os.environ.get("COLAB_PYTHON")


@pytest.fixture(scope="session")
def origin(tmp_path_factory):
    """The series in a repository, tagged; on its branch `main` a later, different helper."""
    folder = tmp_path_factory.mktemp("origin")
    for module in ("gpt2_helpers.py", "exercise_checks.py"):
        shutil.copy(ROOT / module, folder)
    shutil.copytree(ROOT / "data", folder / "data")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "released")
    git(folder, "tag", REVISION)
    (folder / "gpt2_helpers.py").write_text("raise SystemExit('the wrong revision')\n")
    git(folder, "commit", "-qam", "later")
    return folder


def run(code, folder, variables=None):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | (variables or {}),
        capture_output=True,
        text=True,
        timeout=120,
    )


class Colab:
    """An empty folder on a machine that looks like Colab, with `github` in place of GitHub."""

    def __init__(self, folder, github):
        self.content = folder / "content"
        self.content.mkdir()
        stand_in = folder / "stand_in" / "google" / "colab"
        stand_in.mkdir(parents=True)
        (stand_in / "__init__.py").touch()
        (folder / "stand_in" / "sitecustomize.py").write_text("import google.colab\n")
        self.git_config = folder / "gitconfig"
        self.variables = {
            "PYTHONPATH": str(folder / "stand_in"),
            "GIT_CONFIG_GLOBAL": str(self.git_config),
        }
        self.connect(github)

    def connect(self, address):
        """Turn all of GitHub to another address; one that nobody listens on is no network."""
        url = f'[url "{address}"]\n    insteadOf = https://github.com/{REPOSITORY}.git\n'
        self.git_config.write_text(url, encoding="utf-8")

    def run(self, code):
        return run(code, self.content, self.variables)

    def fails(self, code):
        """The sentence in which the setup cell says what is wrong; it must be one, on one line."""
        done = self.run(code)
        assert done.returncode != 0, done.stdout
        sentence = done.stderr.strip().splitlines()[-1]
        assert "Error: " in sentence and sentence.endswith("."), done.stderr
        return sentence


@pytest.fixture
def colab(tmp_path, origin):
    return Colab(tmp_path, origin.as_uri())


def sources(path, repository=REPOSITORY, revision=REVISION):
    """The code cells of a notebook that was published under an address."""
    notebook = nbformat.read(path, as_version=4)
    return [replace_address(cell.source, repository, revision) for cell in code_cells(notebook)]


SETUP = sources(NOTEBOOKS[0])[0]
FOUND = "\nprint(find_series())"
CHECK = "\nimport gpt2_helpers; print(gpt2_helpers.__file__, len(gpt2_helpers.get_batch()[0]))"


def test_fetches_its_own_revision_once(colab):
    first = colab.run(SETUP + "\n" + SETUP + CHECK)
    assert first.returncode == 0, first.stderr
    assert first.stdout.split() == [str(colab.content / FETCHED / "gpt2_helpers.py"), "8"]
    colab.connect("http://127.0.0.1:9")  # what is there needs no network
    again = colab.run(SETUP + FOUND)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == str(colab.content / FETCHED)


def test_every_notebook_finds_helper_and_data_alone(colab):
    """Setup and imports of all notebooks; whole notebooks are run by `make test-colab`."""
    code = ""
    for path in NOTEBOOKS:
        setup, imports = sources(path)[:2]
        assert "gpt2_helpers" in imports
        code += f"cells = {{}}; exec({setup!r}, cells); exec({imports!r}, cells)\n"
    done = colab.run(code + CHECK)
    assert done.returncode == 0, done.stderr


def test_without_a_network_it_says_so(colab):
    colab.connect("http://127.0.0.1:9")
    sentence = colab.fails(SETUP)
    assert "unable to access" in sentence and "Check the network" in sentence
    assert list(colab.content.iterdir()) == []


def test_a_revision_that_is_not_there(colab):
    sentence = colab.fails(sources(NOTEBOOKS[0], revision="v9")[0])
    assert "branch v9 not found" in sentence


def test_without_an_address_it_says_so(colab):
    sentence = colab.fails(sources(NOTEBOOKS[0], "OWNER/REPOSITORY")[0])
    assert "make publish" in sentence


def test_a_folder_in_the_way_is_left_alone(colab):
    mine = colab.content / FETCHED / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    assert "is in the way: rename it" in colab.fails(SETUP)
    assert mine.read_text() == "years of work"


@pytest.mark.skipif(sys.platform == "win32", reason="kills a group of processes")
def test_half_a_clone_is_repaired(colab):
    """A runtime that dies in the middle of `git clone`: here while files are written."""
    config = colab.git_config.read_text(encoding="utf-8")
    attributes = colab.content.parent / "attributes"
    attributes.write_text("harrow_pass.txt filter=slow\n")
    colab.git_config.write_text(
        f'{config}[core]\n    attributesFile = {attributes}\n[filter "slow"]\n'
        '    smudge = "sleep 60; cat"\n',
        encoding="utf-8",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", SETUP],
        cwd=colab.content,
        env=os.environ | colab.variables,
        start_new_session=True,
    )
    waited = time.monotonic() + 60
    while not list(colab.content.glob("*/data/README.md")) and time.monotonic() < waited:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    half = colab.content / FETCHED
    assert (half / ".git").is_dir() and not (half / "gpt2_helpers.py").exists()

    colab.git_config.write_text(config, encoding="utf-8")
    done = colab.run(SETUP + FOUND)
    assert done.returncode == 0, done.stderr
    assert (half / "gpt2_helpers.py").exists()


@pytest.mark.parametrize("lost", ["gpt2_helpers.py", ".git/index"])
def test_a_clone_that_lost_a_part_is_repaired(colab, lost):
    assert colab.run(SETUP).returncode == 0
    (colab.content / FETCHED / lost).unlink()
    done = colab.run(SETUP + FOUND)
    assert done.returncode == 0, done.stderr
    assert (colab.content / FETCHED / lost).is_file()


RECORD = """
import importlib.util, json, subprocess
commands, really_find, really_run = [], importlib.util.find_spec, subprocess.run
def recorded(command, **options):
    if command[0] == "git":
        return really_run(command, **options)
    commands.append([str(part) for part in command])
    return really_run(["git", "--version"], **options)
subprocess.run = recorded
def find_spec(name):
    return really_find(name) if commands or name != "torchinfo" else None
importlib.util.find_spec = find_spec
"""


def test_installs_torchinfo_and_nothing_else(colab):
    done = colab.run(f"{RECORD}\n{SETUP}\n{SETUP}\nprint(json.dumps(commands))")
    assert done.returncode == 0, done.stderr
    (command,) = json.loads(done.stdout)
    pin = "torchinfo==1.8.0"
    assert command == [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", pin]
    assert pin in (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    there = colab.run(f"{RECORD}\ncommands.append(0)\n{SETUP}\nprint(len(commands))")
    assert there.stdout == "1\n", there.stderr  # torchinfo is there: nothing is installed


# ------------------------------------------------------------------------- not on Colab


@pytest.mark.parametrize("folder", [ROOT, ROOT / "notebooks"], ids=["beside", "above"])
def test_finds_the_series_without_a_word(folder):
    done = run(SETUP + "\n" + SETUP, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_the_series_it_says_what_to_do(tmp_path):
    done = run(SETUP, tmp_path)
    assert done.returncode != 0
    assert "open the notebook inside a copy of the whole series" in done.stderr


def test_a_kernel_without_the_packages_is_told():
    hidden = (
        "import importlib.util as u; u.find_spec = lambda name: None if name == 'torch' else 1\n"
    )
    done = run(hidden + SETUP, ROOT)
    assert done.returncode != 0
    assert "This kernel's Python has no torch: install" in done.stderr


# -------------------------------------------------- whole notebooks, in Colab's own versions


@pytest.mark.skipif(COLAB_PYTHON is None, reason="slow: `make test-colab` runs it")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_alone_in_colabs_versions(path, colab, monkeypatch):
    """From an empty folder to the last cell, with the results that are stored."""
    freeze = [COLAB_PYTHON, "-m", "pip", "freeze", "--all"]
    before = set(subprocess.check_output(freeze, text=True).split())
    kernel = colab.content.parent / "share" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    launch = [COLAB_PYTHON, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": launch, "display_name": "Colab", "language": "python", "env": colab.variables}
    (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(kernel.parent.parent))

    stored = nbformat.read(path, as_version=4)
    for cell in stored.cells:
        cell.source = replace_address(cell.source, REPOSITORY, REVISION)
    fresh = nbformat.from_dict(stored)
    NotebookClient(
        fresh,
        timeout=600,
        kernel_name="colab",
        coalesce_streams=True,
        resources={"metadata": {"path": str(colab.content)}},
    ).execute()
    for ran, cell in zip(code_cells(fresh), code_cells(stored), strict=True):
        if IGNORED not in tags(cell):
            assert text_of(ran) == text_of(cell), cell.id
    after = set(subprocess.check_output(freeze, text=True).split())
    assert after - before <= {"torchinfo==1.8.0"} and before <= after


def text_of(cell):
    """What a cell shows, but for stderr: there PyTorch's CUDA build misses the GPU."""
    shown = [output for output in cell.outputs if output.get("name") != "stderr"]
    return [o.get("text") or o.get("data", {}).get("text/plain") for o in shown]
