"""Execute a notebook, or a file of tests, cell by cell as plain Python, for tools/measure_gpu.py.

Neither Jupyter nor pytest is needed. Setup cells, magics and exercises are left out; a file of
tests has a cell for each test. Where a cell fails, the next goes on.
"""

import ast
import base64
import io
import json
import re
import signal
import sys
import time
import traceback
import unittest
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from linecache import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

ABOUT = """import datetime, platform, subprocess
import matplotlib, numpy, pandas, torch
from gpt2_helpers import describe_device, pick_device
print(f"{datetime.datetime.now():%Y-%m-%d %H:%M}, {platform.platform()}")
print(f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
print(*(f"{m.__name__} {m.__version__}" for m in (numpy, matplotlib, pandas)), sep=", ")
print("CPU:", describe_device("cpu"))
print("device:", describe_device(pick_device()))
if torch.cuda.is_available():
    asked = "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    print(subprocess.getoutput(f"nvidia-smi {asked} --format=csv"))
"""


def cells_of(path):
    """[(name, source)] of a notebook's code cells, or of a file of tests and each of its tests."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
        names = [node.name for node in functions if re.match("setup_module|test_", node.name)]
        return [(path.name, text)] + [(name, f"{name}()") for name in names]
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    left_out = re.compile("setup$|exercise-")
    return [(c["id"], "".join(c["source"])) for c in cells if not left_out.match(c["id"])]


def parsed(source):
    """The statements of a cell; magics, which are no Python, are dropped."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.MULTILINE))


class Missing(ModuleType):
    """Stands in for a package that is not installed, so that only the cells that use it fail."""

    def __getattr__(self, name):
        def absent(*args, **kwargs):
            raise ModuleNotFoundError(f"{self.__name__} is not installed on this machine")

        if name.startswith("__"):
            raise AttributeError(name)
        return absent


def replace_missing(cells):
    """Let the imports of the cells succeed; returns the names of the packages that are missing."""
    missing = set()
    if not find_spec("psutil"):  # Linux itself says what the series asks of it
        available = re.compile(r"MemAvailable:\s*(\d+) kB")
        memory = lambda: int(available.search(Path("/proc/meminfo").read_text())[1])  # noqa: E731
        sys.modules["psutil"] = psutil = ModuleType("psutil")
        psutil.virtual_memory = lambda: SimpleNamespace(available=1024 * memory())
        import timing_helpers  # noqa: F401

        del sys.modules["psutil"]  # others would ask it for more
        missing.add("psutil")
    for _, source in cells:
        for node in parsed(source).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                package = name.split(".")[0]
                if package in missing or not find_spec(package):
                    sys.modules[name] = sys.modules[package] = Missing(package)
                    missing.add(package)
    return sorted(missing)


def full_size():
    """Is there a GPU, and a CPU that does notebook 5 at the lecture's size in a minute?"""
    from gpt2_helpers import GPT2Config, forward_flops, pick_device
    from timing_helpers import matrix_peak

    work = 30 * forward_flops(GPT2Config(), 8, 1024)
    return pick_device().type != "cpu" and work / (0.5 * matrix_peak("cpu")) < 60


def run(name, source, namespace):
    """Execute a cell; returns all that came of it, with printed texts and figures in order."""
    import matplotlib.pyplot as plt

    printed, outputs, error, skipped = io.StringIO(), [], "", ""

    def show(*args, **kwargs):
        text = re.sub(r"[^\n]*\r(?!\n)", "", printed.getvalue())  # of a progress bar, its end
        outputs.extend([{"text": text}] if text else [])
        printed.seek(0), printed.truncate()
        for number in plt.get_fignums():
            png = io.BytesIO()
            plt.figure(number).savefig(png, format="png", bbox_inches="tight")
            outputs.append({"png": base64.b64encode(png.getvalue()).decode()})
        plt.close("all")

    plt.show = show
    cache[name] = len(source), None, source.splitlines(keepends=True), name  # for tracebacks
    start = time.perf_counter()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            tree, last = parsed(source), None
            if tree.body and isinstance(tree.body[-1], ast.Expr):
                last = ast.Expression(tree.body.pop().value)
            exec(compile(tree, name, "exec"), namespace)
            value = eval(compile(last, name, "eval"), namespace) if last else None
            if value is not None:
                print(value)  # a notebook shows it
        except unittest.SkipTest as reason:
            skipped = str(reason)
        except (Exception, SystemExit):
            error = traceback.format_exc()
        seconds = time.perf_counter() - start
        show()
    results = {"seconds": seconds, "error": error, "skipped": skipped, "outputs": outputs}
    return {"name": name, "source": source} | results


def run_file(path, results, size, pretend, seconds):
    """Execute the cells of a file; of each, a line of JSON is added to the file `results`."""
    cells = cells_of(Path(path))
    missing = replace_missing(cells)
    if pretend:
        import pretend_gpu

        pretend_gpu.install()
    asked = any("FULL_SIZE" in source for _, source in cells)
    full = size == "full" or size is None and asked and full_size()
    told = f"print('FULL_SIZE:', {full}); print('missing packages:', *{missing or ['none']})"
    sys.modules["__main__"] = kernel = ModuleType("__main__")

    def interrupt(*args):
        raise TimeoutError("the time for this file is nearly over: the next cell goes on")

    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, interrupt)
        signal.alarm(max(1, int(0.85 * seconds)))
    with open(results, "w", encoding="utf-8") as file:
        print(json.dumps(run("this machine", ABOUT + told, {})), file=file, flush=True)
        for name, source in cells:
            source = re.sub(r"^FULL_SIZE = \w+", f"FULL_SIZE = {full}", source, flags=re.MULTILINE)
            result = run(name, source, kernel.__dict__)
            print(json.dumps(result), file=file, flush=True)
            print(f"{time.strftime('%H:%M:%S')} {Path(path).name}: {name}", flush=True)
            if result["skipped"]:
                break  # and with it, the file


if __name__ == "__main__":
    run_file(*json.loads(sys.argv[1]))
