"""Measuring: the stopwatch, memory, peaks of a device, tables of timings.

Times are in seconds, memory in bytes, rates in FLOP/s. B and T are batch size and sequence length.
"""

import contextlib
import csv
import io
import math
import os
import platform
import re
import statistics
import time
from datetime import date
from pathlib import Path

import pandas as pd
import psutil
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import mkldnn

from gpt2_helpers import GPT2_CONFIGS, describe_device, forward_flops, training_memory

# ------------------------------------------------------------------------------- stopwatch


def synchronize(device):
    """Wait until the device has finished all work it was given; the CPU always has."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def measure(function, device, repeats=5, warmup=1):
    """Wall-clock seconds of each of `repeats` calls of `function()`, after `warmup` uncounted ones.

    The clock starts and stops when the device has nothing left to do, so a call's own work is
    measured, all of it, and nothing else. Freeing its result is not.
    """
    for _ in range(warmup):
        function()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        result = function()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        del result
    return seconds


# ---------------------------------------------------------------------------------- memory


def kept_for_backward(function, without=()):
    """Bytes of all tensors that autograd keeps between `function()` and its backward pass.

    Weights are among them, unless they are given as `without`; tensors that share their memory
    count once. Raises ValueError on the meta device, which keeps nothing.
    """
    storages = {}

    def keep(tensor):
        if tensor.is_meta:
            raise ValueError("tensors on the meta device take no memory")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()  # bound to a name, so that nothing is freed before it is counted
    del result
    left_out = {tensor.untyped_storage().data_ptr() for tensor in without}
    return sum(s.nbytes() for address, s in storages.items() if address not in left_out)


MEMBERSHIP = Path("/proc/self/cgroup")  # where Linux says in which control groups a process is,
CGROUP = Path("/sys/fs/cgroup")  # and their limits


def left_in_containers():
    """Bytes that each memory limit on this process still leaves: a container, SLURM, systemd."""
    for line in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # control groups, version 2
            root, limit, used, cache = CGROUP, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):  # version 1
            root, limit, used = CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        folder = root / group.lstrip("/")
        while folder.is_relative_to(root):  # a group inside has the limits of those around it, too
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                stat = folder / "memory.stat"
                freed = (
                    re.search(rf"^{cache} (\d+)", stat.read_text(), re.M) if stat.exists() else None
                )
                yield left + (int(freed[1]) if freed else 0)
            folder = folder.parent


def free_memory(device):
    """Bytes that can still be reserved on a device; where that is unknown, in the machine.

    On a GPU, memory that PyTorch holds in reserve counts as free. In a container with a limit of
    its own (Linux), what is left of that limit counts.
    """
    if torch.device(device).type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([psutil.virtual_memory().available, *left_in_containers()])


SIZES = [(1, 64), (1, 128), (1, 256), (1, 512), (1, 1024), (2, 1024), (4, 1024), (8, 1024)]


def choose_batch(config, device, flops_per_second, seconds=math.inf, passes=1):
    """The largest batch of SIZES that a device can train: (B, T), and the reason for it in words.

    Memory: a training step may take three quarters of what is free; on devices other than CPUs and
    CUDA's, attention is taken to store its scores, [B, H, T, T] twice in each block. Time: `passes`
    forward passes may take `seconds` at `flops_per_second`; the smallest batch is always allowed.
    Raises MemoryError if nothing fits.
    """
    stores_scores = torch.device(device).type not in ("cpu", "cuda")
    allowed, limit = 0.75 * free_memory(device), "the lecture's size"
    sizes = [(B, T) for B, T in SIZES if config.n_positions >= T] or [(1, config.n_positions)]
    for B, T in reversed(sizes):
        memory = sum(training_memory(config, B, T).values())
        memory += stores_scores * 4 * 2 * config.n_layer * B * config.n_head * T * T
        wait = passes * forward_flops(config, B, T) / flops_per_second
        if memory > allowed:
            limit = (
                f"{B} x {T} needs {memory / 1e9:.1f} GB, and {allowed / 1e9:.1f} GB are to spare"
            )
        elif wait > seconds and sizes[0] != (B, T):
            limit = f"{B} x {T} would take about {wait:.0f} s, and {seconds:.0f} s are allowed"
        else:
            return (B, T), limit
    raise MemoryError(f"too little free memory to train even {B} x {T}: {limit}")


# ----------------------------------------------------------------------------------- peaks

A100 = {"float32": 19.5, "tf32": 156, "bfloat16": 312, "float16": 312}
H100 = {"float32": 67, "tf32": 494, "bfloat16": 989, "float16": 989}
DATA_SHEETS = {  # NVIDIA's: dense TFLOP/s in each format, TB/s of memory; keys as PyTorch names it
    "Tesla T4": {"float32": 8.1, "float16": 65, "memory": 0.32},
    "NVIDIA A100-SXM4-40GB": A100 | {"memory": 1.555},
    "NVIDIA A100-SXM4-80GB": A100 | {"memory": 2.039},
    "NVIDIA H100 80GB HBM3": H100 | {"memory": 3.35},
}


def data_sheet(device):
    """Peaks of a device by its maker's data sheet, or None: an unknown device is not guessed.

    {"float32": TFLOP/s, ..., "memory": TB/s}; a format that the chip lacks is missing.
    """
    if torch.device(device).type != "cuda":
        return None
    return DATA_SHEETS.get(torch.cuda.get_device_name(device))


def number_formats(device):
    """The formats that a device has, not those that it would only emulate: ["float32", ...].

    "tf32" is float32 with fewer digits inside the products.
    """
    device = torch.device(device)
    if device.type == "cuda":
        new = torch.cuda.get_device_capability(device) >= (8, 0)  # A100 and later
        return ["float32", "tf32", "bfloat16", "float16"] if new else ["float32", "float16"]
    if device.type != "cpu":
        return ["float32", "float16"]
    # A small product tells: emulation on a CPU is not half as fast, but hundreds of times slower,
    # a few GFLOP/s at most. (A busy machine may show the small float32 product as slow as that.)
    speeds = {
        name: matrix_peak("cpu", getattr(torch, name), size=256)
        for name in ("float32", "bfloat16", "float16")
    }
    native = max(0.1 * speeds["float32"], 2e10)  # FLOP/s
    return [name for name, speed in speeds.items() if name == "float32" or speed > native]


def matrix_peak(device, dtype=torch.float32, size=2048, repeats=8, onednn=True):
    """FLOP/s of the fastest large matrix product seen on a device: what a model can hope for.

    A product of two [size, size] matrices, and larger ones while they take under 20 ms. On a CPU,
    PyTorch's float32 products run in one library (MKL, on x86) though oneDNN, which is there as
    well, may be faster; so both are tried, unless `onednn` is False.
    """
    with torch.inference_mode():
        left, right = torch.randn(2, size, size).to(device, dtype)
        products = [lambda: left @ right]
        second = onednn and left.is_cpu and dtype == torch.float32
        if second and torch.backends.mkldnn.is_available():
            layer = mkldnn.to_mkldnn(nn.Linear(size, size, bias=False))
            left_onednn = left.to_mkldnn()
            products.append(lambda: layer(left_onednn))
        fastest = min(min(measure(product, device, repeats)) for product in products)
    rate = 2 * size**3 / fastest
    if fastest < 0.02 and 2048 <= size < 8192:
        return max(rate, matrix_peak(device, dtype, 2 * size, repeats, onednn))
    return rate


# ------------------------------------------------------------------------ tables of timings

COLUMNS = {  # each column of a table of timings, and what its text must match
    "source": r"measured|reported",
    "device": r"[a-z]+",  # cpu, cuda, mps, ...
    "machine": r".+",  # describe_device()
    "threads": r"[1-9]\d*|",
    "versions": r".*",
    "model": "|".join(GPT2_CONFIGS),
    "dtype": r"float32|tf32|bfloat16|float16",
    "batch_size": r"\d+",  # 0 x 0 where there is no batch
    "seq_len": r"\d+",
    "experiment": r".+",
    "repeats": r"[1-9]\d*",
    "median_s": r"[\d.e+-]+",
    "low_s": r"[\d.e+-]+",
    "high_s": r"[\d.e+-]+",
    "date": r"\d{4}-\d\d-\d\d|",
    "note": r".*",
}
WHOLE_NUMBERS = ["threads", "batch_size", "seq_len", "repeats"]
SECONDS = ["median_s", "low_s", "high_s"]


def timing(experiment, device, seconds, batch_size=0, seq_len=0, dtype="float32", model="gpt2"):
    """One row of a table of timings, a dict: this machine, now; median and range of `seconds`."""
    return {
        "source": "measured",
        "device": torch.device(device).type,
        "machine": describe_device(device),
        "threads": torch.get_num_threads(),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "model": model,
        "dtype": dtype,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "experiment": experiment,
        "repeats": len(seconds),
        "median_s": statistics.median(seconds),
        "low_s": min(seconds),
        "high_s": max(seconds),
        "date": date.today().isoformat(),
        "note": "",
    }


def read_timings(*paths):
    """The rows of one or more files of timings in one DataFrame with the columns of COLUMNS.

    Raises ValueError if there is no file, and with file and line for one that is cut off, foreign
    or makes no sense.
    """
    if not paths:
        raise ValueError("there are no files of timings to read")
    tables = [_parse(Path(path).read_bytes(), Path(path).name) for path in paths]
    return pd.concat(tables, ignore_index=True)


def save_timings(path, rows):
    """Write rows (dicts, a dict or a DataFrame) to a CSV, whole or not at all; times to six digits.

    Other entries than COLUMNS are left out. A file that is there already is replaced if it holds
    timings, or nothing. Raises ValueError if it does not, or if a row makes no sense, and OSError
    as `open` does; the file is then as it was.
    """
    path = Path(path).resolve()
    table = pd.DataFrame([rows] if isinstance(rows, dict) else rows).reindex(columns=COLUMNS)
    if table.empty:
        raise ValueError("there are no timings to save")
    if path.exists() and path.stat().st_size:
        try:
            read_timings(path)
        except ValueError as error:
            raise ValueError(f"{error}. Rename or delete {path.name}: it is in the way") from None
    table[SECONDS] = table[SECONDS].astype(float).map("{:.6g}".format)
    content = table.to_csv(index=False, lineterminator="\n").encode()
    _parse(content, "the rows to be saved")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _parse(content, name):
    """The DataFrame in the bytes of a CSV; ValueError with name and line if a line is wrong."""
    rows = []
    try:
        text = content.decode("utf-8-sig").rstrip("\r\n")
        for values in csv.reader(io.StringIO(text), strict=True):
            if rows:
                _check(values)
            elif values != list(COLUMNS):
                break
            rows.append(values)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{name}, line {len(rows) + 1}: {error}") from None
    if not rows:
        raise ValueError(f"{name}, line 1: a table of timings starts with {','.join(COLUMNS)}")
    table = pd.DataFrame(rows[1:], columns=rows[0])
    table[WHOLE_NUMBERS] = table[WHOLE_NUMBERS].apply(pd.to_numeric).astype("Int64")
    table[SECONDS] = table[SECONDS].astype(float)
    return table


def _check(values):
    """ValueError if the texts of a line are not those of a timing."""
    if len(values) != len(COLUMNS):
        raise ValueError(f"{len(values)} values in place of {len(COLUMNS)}: is the line cut off?")
    row = dict(zip(COLUMNS, values, strict=True))
    for column, pattern in COLUMNS.items():
        if not re.fullmatch(pattern, row[column]):
            raise ValueError(f"{row[column]!r} is no {column}")
    low, middle, high = (float(row[column]) for column in ("low_s", "median_s", "high_s"))
    if not 0 < low <= middle <= high < math.inf:
        raise ValueError("the times must be positive, low_s <= median_s <= high_s")
    if row["source"] == "measured" and not (row["date"] and row["versions"] and row["threads"]):
        raise ValueError("what is measured needs a date, versions and threads")
