"""One notebook, opened alone: on Colab, on a machine that has the series, on one that has not.

Colab is a module `google.colab` that is there from the start; GitHub is a repository in a
temporary folder, to which git's `insteadOf` turns the address. `make test-colab` sets
COLAB_PYTHON, a Python with the library versions of Colab, and runs every notebook whole in it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig

import nbformat
import pytest
from nbclient import NotebookClient
from set_repository import replace_address
from test_notebooks import IGNORED, NOTEBOOKS, ROOT, code_cells, git, tags

REPOSITORY, REVISION = "teacher/a-series", "v1.0"
COLAB_PYTHON = os.environ.get("COLAB_PYTHON")


@pytest.fixture(scope="session")
def origin(tmp_path_factory):
    """The series in a repository, tagged; on its branch `main` a later, different helper."""
    folder = tmp_path_factory.mktemp("origin")
    for path in [ROOT / "pyproject.toml", *ROOT.glob("*.py")]:
        shutil.copy(path, folder)
    for name in ("exercise_checks", "data"):
        shutil.copytree(ROOT / name, folder / name)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "released")
    git(folder, "tag", REVISION)
    (folder / "gpt2_helpers.py").write_text("raise SystemExit('the wrong revision')\n")
    git(folder, "commit", "-qam", "later")
    return folder


class Machine:
    """An empty folder, and a Python that has all packages but the series."""

    def __init__(self, folder):
        self.content = folder / "content"
        self.content.mkdir()
        environment = folder / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        self.python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
        vars = {"base": environment, "platbase": environment}
        self.packages = sysconfig.get_path("purelib", vars=vars)
        with open(f"{self.packages}/all_packages.pth", "w") as file:  # but what editable ones add
            file.write(sysconfig.get_path("purelib") + "\n")
        # With 0 (sic) pip builds the series with what is here: the test needs no network.
        self.variables = {"IPYTHONDIR": str(folder / "ipython"), "PIP_NO_BUILD_ISOLATION": "0"}

    def run(self, code):
        """What IPython, which knows magics, makes of a cell."""
        return subprocess.run(
            [self.python, "-m", "IPython", "--colors=NoColor", "-c", code],
            cwd=self.content,
            env=os.environ | self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )

    def prints(self, code):
        done = self.run(code)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def fails(self, code):
        """All that is printed; the last line must be one sentence that says what to do."""
        done = self.run(code)
        assert done.returncode != 0, done.stdout
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).strip()
        assert text.splitlines()[-1] == (
            "ModuleNotFoundError: This kernel's Python does not have the series: on Colab pip says "
            "above why, and elsewhere `make lab`, in a copy of the whole series, installs it and "
            "opens JupyterLab."
        )
        return text


class Colab(Machine):
    """A machine that looks like Colab, with `github` in place of GitHub."""

    def __init__(self, folder, github):
        super().__init__(folder)
        stand_in = folder / "stand_in" / "google" / "colab"
        stand_in.mkdir(parents=True)
        (stand_in / "__init__.py").touch()
        (folder / "stand_in" / "sitecustomize.py").write_text("import google.colab\n")
        self.git_config = folder / "gitconfig"
        self.variables |= {
            "PYTHONPATH": str(folder / "stand_in"),
            "GIT_CONFIG_GLOBAL": str(self.git_config),
        }
        self.connect(github)

    def connect(self, address):
        """Turn all of GitHub to another address; one that nobody listens on is no network."""
        url = f'[url "{address}"]\n    insteadOf = https://github.com/{REPOSITORY}\n'
        self.git_config.write_text(url, encoding="utf-8")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def colab(tmp_path, origin):
    return Colab(tmp_path, origin.as_uri())


def sources(path, repository=REPOSITORY, revision=REVISION):
    """The code cells of a notebook that was published under an address."""
    notebook = nbformat.read(path, as_version=4)
    return [replace_address(cell.source, repository, revision) for cell in code_cells(notebook)]


SETUP = sources(NOTEBOOKS[0])[0]
FOUND = "\nimport gpt2_helpers; print(gpt2_helpers.__file__, len(gpt2_helpers.get_batch()[0]))"


def test_installs_its_own_revision_once(colab):
    before = set(os.listdir(colab.packages))
    first = colab.prints(SETUP + FOUND).split()
    assert first[-2:] == [os.path.join(colab.packages, "gpt2_helpers.py"), "8"]
    added = {name for name in os.listdir(colab.packages) if "gpt2_notebooks" in name} | {
        "exercise_checks",
        "figure_helpers.py",
        "gpt2_helpers.py",
        "telegraph.py",
        "timing_helpers.py",
        "train_gpt2.py",
    }
    assert set(os.listdir(colab.packages)) - before - {"__pycache__"} == added
    colab.connect("http://127.0.0.1:9")  # what is there needs no network
    assert colab.prints(SETUP + "\n" + SETUP + FOUND).split() == first[-2:]


def test_every_notebook_finds_helpers_checks_and_data(colab):
    """Setup and imports of all notebooks; whole notebooks are run by `make test-colab`."""
    colab.prints(SETUP)
    imports = [sources(path)[1] for path in NOTEBOOKS]
    assert all("gpt2_helpers" in code for code in imports)
    colab.prints("\n".join(f"exec({code!r}, {{}})" for code in imports) + FOUND)


def test_without_a_network_pip_says_so_and_then_the_cell(colab):
    colab.connect("http://127.0.0.1:9")
    assert "unable to access" in colab.fails(SETUP)


def test_a_revision_that_is_not_there(colab):
    assert "v9" in colab.fails(sources(NOTEBOOKS[0], revision="v9")[0]).partition("Error")[0]


def test_elsewhere_nothing_is_installed(machine):
    """A wrong kernel must not be filled with gigabytes unasked."""
    before = set(os.listdir(machine.packages))
    text = machine.fails(SETUP)
    assert "pip" not in text.replace("on Colab pip says", "").replace("%pip", "")
    assert set(os.listdir(machine.packages)) == before


def test_where_the_series_is_installed_the_cell_is_silent(machine):
    machine.python = sys.executable
    assert machine.prints(SETUP + "\n" + SETUP) == ""


# -------------------------------------------------- whole notebooks, in Colab's own versions


@pytest.mark.skipif(COLAB_PYTHON is None, reason="slow: `make test-colab` runs it")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_alone_in_colabs_versions(path, colab, monkeypatch):
    """From an empty folder to the last cell, with the results that are stored."""
    added = {f"gpt2-notebooks @ git+https://github.com/{REPOSITORY}", "torchinfo==1.8.0"}
    pip = [COLAB_PYTHON, "-m", "pip"]
    subprocess.run([*pip, "uninstall", "-qy", "gpt2-notebooks", "torchinfo"], check=True)
    before = set(subprocess.check_output([*pip, "freeze", "--all"], text=True).splitlines())
    kernel = colab.content.parent / "share" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    launch = [COLAB_PYTHON, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    del colab.variables["PIP_NO_BUILD_ISOLATION"]  # as on Colab, pip fetches hatchling
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
    setup, *compared = zip(code_cells(fresh), code_cells(stored), strict=True)
    for ran, cell in compared:
        if IGNORED not in tags(cell):
            assert text_of(ran) == text_of(cell), cell.id
    after = set(subprocess.check_output([*pip, "freeze", "--all"], text=True).splitlines())
    assert {line.rpartition("@")[0] or line for line in after - before} == added
    assert before <= after


def text_of(cell):
    """What a cell shows, but for stderr: there PyTorch's CUDA build misses the GPU."""
    shown = [output for output in cell.outputs if output.get("name") != "stderr"]
    return [o.get("text") or o.get("data", {}).get("text/plain") for o in shown]
