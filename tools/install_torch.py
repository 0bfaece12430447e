"""Install the pinned PyTorch in the build that fits this machine, and say so before it comes.

On Linux, PyPI's PyTorch brings CUDA: several GB, of use only beside an NVIDIA GPU. Where there is
none, the CPU build of PyTorch's own index takes its place.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
PIP = [sys.executable, "-m", "pip", "install"]


def pinned():
    """The line of requirements.txt that pins torch."""
    lines = (Path(__file__).parent.parent / "requirements.txt").read_text(encoding="utf-8")
    return next(line for line in lines.splitlines() if line.startswith("torch=="))


def brings_cuda(pin):
    """Would pip install packages of CUDA? It is asked, without fetching them."""
    dry_run = [*PIP, "--dry-run", "--quiet", "--report", "-", pin]
    done = subprocess.run(dry_run, stdout=subprocess.PIPE, text=True)
    packages = json.loads(done.stdout)["install"] if done.returncode == 0 else []
    names = [package["metadata"]["name"] for package in packages]
    return any(name.startswith(("nvidia", "cuda")) for name in names)


def main():
    pin = pinned()
    print(f"Looking for a build of {pin} that fits this machine ...", flush=True)
    command, cuda = [*PIP, pin], brings_cuda(pin)
    if cuda and shutil.which("nvidia-smi"):
        print("PyTorch comes with CUDA for this machine's NVIDIA GPU: several GB.", flush=True)
    elif cuda:
        print(f"No NVIDIA GPU here: PyTorch's CPU build, 200 MB, from {CPU_BUILDS}.", flush=True)
        print(f"(With CUDA, several GB: `{' '.join(command)}`, then make again.)", flush=True)
        command += ["--index-url", CPU_BUILDS]
    sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
