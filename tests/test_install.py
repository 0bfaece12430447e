"""What the reader is told before the gigabytes come, and what the package brings."""

import json
import shutil
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import install_torch
import pytest
from test_notebooks import ROOT


def plan(*names):
    """What pip's dry run would print for packages of these names."""
    return json.dumps({"install": [{"metadata": {"name": name}} for name in names]})


@pytest.mark.parametrize(
    ("packages", "gpu", "said", "from_pytorch"),
    [
        (["torch"], False, "", False),  # a CPU build is at hand
        ([], True, "", False),  # it is installed already
        (["torch", "nvidia-cublas"], True, "for this machine's NVIDIA GPU: several GB", False),
        (["torch", "cuda-toolkit"], False, "No NVIDIA GPU here: PyTorch's CPU build", True),
    ],
)
def test_the_build_of_torch_fits_the_machine_and_is_named_first(
    packages, gpu, said, from_pytorch, monkeypatch, capsys
):
    commands = []

    def run(command, **options):
        commands.append(command)
        out = capsys.readouterr().out
        assert said in out or "--dry-run" in command, "the sentence comes before the download"
        return SimpleNamespace(returncode=0, stdout=plan(*packages))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: name if gpu else None)
    with pytest.raises(SystemExit, match="0"):
        install_torch.main()
    assert ("--index-url" in commands[-1]) == from_pytorch
    assert "--dry-run" not in commands[-1] and install_torch.pinned() in commands[-1]


def test_the_floors_of_the_package_allow_the_pins_and_colab():
    """Every dependency's floor is met by requirements.txt, and by what is known of Colab."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {}
    for name in ("requirements.txt", "tests/colab.txt"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        pins[name] = dict(line.split("==") for line in lines if "==" in line)
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(pins["requirements.txt"][requirement.name])
        if requirement.name in pins["tests/colab.txt"]:
            assert requirement.specifier.contains(pins["tests/colab.txt"][requirement.name])


def test_the_helper_alone_has_the_model_and_says_which_file_it_lacks(tmp_path):
    """Somebody copies this one file beside a notebook of their own."""
    shutil.copy(ROOT / "gpt2_helpers.py", tmp_path)
    code = "import gpt2_helpers as g; g.GPT2(g.GPT2Config(9, 4, 6, 1, 2)); g.get_tokenizer()"
    python = [sys.executable, "-c", code]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stderr.splitlines()[-1].startswith("FileNotFoundError: ")
    assert "vocab.bpe" in done.stderr.splitlines()[-1]
