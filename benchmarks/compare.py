"""Our GPT-2 small beside transformers' GPT2LMHeadModel: same weights, same ids, one run.

    python benchmarks/compare.py [--rounds 15] [--save benchmarks/results.md]

Times: all models take turns in one process, in a new random order every round, and a ratio is
taken within a round, so a slow minute of the machine meets all of them. Given are the median and
the middle half of the ratios. Products of two matrices take their turns as well: the fastest says
what this machine can do in float32. Memory: the most that a process of its own held during the
work, over what it held before the model was made (Linux only). Everything is float32 on the CPU:
under inference mode (forward), or with the loss and AdamW in its fused form (training step).
"""

import argparse
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.utils import mkldnn
from transformers import GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gpt2_helpers import (  # noqa: E402
    GPT2,
    GPT2Config,
    describe_device,
    forward_flops,
    get_batch,
    load_openai_weights,
)

CONFIG = GPT2Config()
ROWS = [("forward", 1, 256), ("forward", 1, 1024), ("training step", 1, 512)]
OURS, ONEDNN = "ours", "ours, oneDNN layers"
SDPA, EAGER = "transformers, sdpa", "transformers, eager"
PRODUCT = "matrix product"
MATRIX = 2048


def make(name, weights=None):
    """The model as a function, ids [B, T] -> logits [B, T, V], and its parameters.

    `weights`, a `GPT2LMHeadModel.state_dict()`, replaces the random ones.
    """
    if name in (SDPA, EAGER):
        sizes = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
        attention = "eager" if name == EAGER else "sdpa"
        theirs = GPT2LMHeadModel(transformers.GPT2Config(attn_implementation=attention, **sizes))
        if weights:
            theirs.load_state_dict(weights)
        return lambda ids: theirs(ids).logits, list(theirs.parameters())
    ours = GPT2(CONFIG)
    if weights:
        load_openai_weights(ours, weights)
    if name == ONEDNN:
        ours = mkldnn.to_mkldnn(ours.eval())
    return ours, list(ours.parameters())


def contenders(kind):
    """The models that can do this row: oneDNN layers cannot be trained, nor exist everywhere."""
    with_onednn = kind == "forward" and torch.backends.mkldnn.is_available()
    return [OURS, *([ONEDNN] if with_onednn else []), SDPA, EAGER]


def products():
    """Square matrix products: as nn.Linear has it done, and by oneDNN where it is there."""
    layer, X = nn.Linear(MATRIX, MATRIX, bias=False), torch.randn(MATRIX, MATRIX)
    jobs = {PRODUCT: torch.inference_mode()(lambda: layer(X))}
    if torch.backends.mkldnn.is_available():
        onednn, X_onednn = mkldnn.to_mkldnn(layer), X.to_mkldnn()
        jobs[f"{PRODUCT}, oneDNN"] = torch.inference_mode()(lambda: onednn(X_onednn))
    return jobs


def work(kind, batch_size, seq_len, model, parameters):
    """A function that does the row's work once."""
    ids, targets = get_batch(batch_size, seq_len)  # [B, T], [B, T]
    if kind == "forward":
        return torch.inference_mode()(lambda: model(ids))
    optimizer = torch.optim.AdamW(parameters, lr=3e-5, fused=True)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()

    return step


def seconds_of(function):
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    del result
    return seconds


def compare(kind, batch_size, seq_len, rounds):
    """{contender: its seconds, round by round}"""
    weights = GPT2LMHeadModel(transformers.GPT2Config()).state_dict()
    jobs = {n: work(kind, batch_size, seq_len, *make(n, weights)) for n in contenders(kind)}
    jobs |= products()
    if kind == "forward":
        logits = [jobs[n]() for n in contenders(kind)]
        for other in logits[1:]:
            torch.testing.assert_close(other, logits[0], atol=1e-4, rtol=0)
        del logits, other
    for job in jobs.values():
        job()  # warm-up
    seconds = {name: [] for name in jobs}
    for _ in range(rounds):
        for name in random.sample(list(jobs), len(jobs)):
            seconds[name].append(seconds_of(jobs[name]))
    return seconds


def peak_memory(kind, batch_size, seq_len, name):
    """The most bytes this process held while it did the work, less what it held at first. Linux.

    For a process that does nothing else. What making the model took for a moment is left out.
    """
    before = psutil.Process().memory_info().rss
    job = work(kind, batch_size, seq_len, *make(name))
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
    for _ in range(2):
        job()
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak.group(1)) * 1024 - before


def peak_memory_elsewhere(*row):
    command = [sys.executable, __file__, "--peak", *map(str, row)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(results, memory):
    """The results as Markdown, one line per row and contender."""
    lines = [
        "| work | model | seconds | ours takes | peak memory | of the fastest matrix product |",
        "|---|---|---|---|---|---|",
    ]
    fastest = max(speed for _, speed in product_speeds(results))
    for (kind, B, T), seconds in results.items():
        flops = forward_flops(CONFIG, B, T) * (1 if kind == "forward" else 3)
        for name in contenders(kind):
            median = statistics.median(seconds[name])
            ratios = [a / b for a, b in zip(seconds[OURS], seconds[name], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            ratio = "" if name == OURS else f"{middle:.2f} × ({low:.2f} to {high:.2f})"
            peak = f"{memory[kind, B, T, name] / 1e9:.2f} GB" if memory else "not measured"
            lines.append(
                f"| {kind}, {B} × {T} | {name} | {median:.2f} | {ratio} | {peak} "
                f"| {flops / median / fastest:.0%} |"
            )
    return "\n".join(lines)


def product_speeds(results):
    """(name, FLOP/s) of each matrix product, by its median over all rounds of all rows."""
    for name in products():
        seconds = [s for row in results.values() for s in row[name]]
        yield name, 2 * MATRIX**3 / statistics.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="how often each takes its turn")
    parser.add_argument("--save", type=Path, help="a Markdown file for the table")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)  # a child process
    options = parser.parse_args()
    if options.peak:
        kind, B, T, name = options.peak
        print(peak_memory(kind, int(B), int(T), name))
        return
    if options.rounds < 2:
        parser.error("a spread needs at least 2 rounds")

    rows = [(*row, name) for row in ROWS for name in contenders(row[0])]
    memory = {row: peak_memory_elsewhere(*row) for row in rows} if sys.platform == "linux" else {}
    results = {}
    for row in ROWS:
        print(f"{row[0]}, {row[1]} x {row[2]} ...", file=sys.stderr, flush=True)
        results[row] = compare(*row, options.rounds)
    speeds = ", ".join(f"{name} {v / 1e12:.2f} TFLOP/s" for name, v in product_speeds(results))
    caption = (
        f"{describe_device('cpu')}, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {options.rounds} rounds; {date.today()}. "
        f"{MATRIX} × {MATRIX}, float32: {speeds}."
    )
    text = f"{table(results, memory)}\n\n{caption}\n"
    print(text)
    if options.save:
        options.save.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
