"""Our GPT-2 beside transformers' GPT2LMHeadModel: same weights, same ids, one run.

    python benchmarks/compare.py [--rounds 15] [--save benchmarks/README.md]

Two sizes: GPT-2 small on the story of the notebooks, and the telegraph's small model on a batch of
telegrams. Before anything is timed, all must compute the same from the same weights: the logits,
or the loss and the gradient of every parameter, but for the rounding of float32.

Times: all models take turns in one process, in a new random order every round, and a ratio is
taken within a round, so a slow minute of the machine meets all of them. Given are the median and
the middle half of the ratios. A turn is one pass, one training step of GPT-2 small, or twenty
steps in a row of the telegraph's model. Tokens are positions, B x T: those that fill up the row of
a short telegram are counted, because they are computed. The products of two square matrices take
their turns as well: a model's FLOP/s (attention counted in full) are given as a share of the
faster one's, round by round.

Memory: the most that a process of its own held while it worked, over what it held before the
model was made (Linux only).

Everything is float32 on the CPU, nothing is compiled: evaluation under inference mode, or a
training step with the loss and AdamW in its fused form. transformers is set to compute the same:
no dropout, no cache of keys and values, no mask but the causal one, the loss taken from the logits
as it is from ours. It comes as it is by default ("sdpa"), with a GELU of one kernel, as ours has,
and with attention written out ("eager"). Ours comes as the notebooks build it, and with its
nn.Linear layers handed to oneDNN by torch.utils.mkldnn, which has no counterpart for transformers'
own Conv1D layers.
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
from typing import NamedTuple

import psutil
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.utils import mkldnn
from transformers import GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import telegraph  # noqa: E402
from gpt2_helpers import (  # noqa: E402
    GPT2,
    describe_device,
    forward_flops,
    get_batch,
    load_openai_weights,
    training_memory,
)
from timing_helpers import free_memory  # noqa: E402
from train_gpt2 import MODELS  # noqa: E402

SIZES = {"GPT-2 small": MODELS["gpt2"], "telegraph": MODELS["telegraph"]}


class Row(NamedTuple):
    """The work that all contenders do: one of SIZES, "forward" or "training step", a batch."""

    size: str
    kind: str
    batch_size: int
    seq_len: int
    per_turn: int = 1  # how often in a row, so that a short one can be timed well

    def __str__(self):
        return f"{self.size}: {self.kind}, {self.batch_size} × {self.seq_len}"

    @property
    def config(self):
        return SIZES[self.size]

    def batch(self):
        """ids and targets, each [B, T]"""
        if self.size == "telegraph":
            return telegraph.batch(self.batch_size, seed=0)
        return get_batch(self.batch_size, self.seq_len)


ROWS = [
    Row("GPT-2 small", "forward", 1, 256),
    Row("GPT-2 small", "forward", 1, 1024),
    Row("GPT-2 small", "training step", 1, 512),
    Row("telegraph", "training step", 16, telegraph.LENGTH, per_turn=20),
]
OURS, ONEDNN = "ours", "ours, oneDNN layers"
THEIRS = {  # name: what is set
    "transformers, sdpa": {},
    "transformers, sdpa, fused GELU": {"activation_function": "gelu_pytorch_tanh"},
    "transformers, eager": {"attn_implementation": "eager"},
}
PRODUCTS = ["product", "product, oneDNN"]
MATRIX = 2048


def contenders(kind):
    """The models that can do this row: oneDNN layers cannot be trained, nor exist everywhere."""
    with_onednn = kind == "forward" and torch.backends.mkldnn.is_available()
    return [OURS, *([ONEDNN] if with_onednn else []), *THEIRS]


def make_theirs(config, **settings):
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    settings |= {name: getattr(config, name) for name in sizes}
    settings |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    settings |= {"bos_token_id": None, "eos_token_id": None}  # 50256 is no id of the telegraph's
    return GPT2LMHeadModel(transformers.GPT2Config(**settings))


def make(name, row, weights=None):
    """The model as a function, ids [B, T] -> logits [B, T, V], and its parameters by their names.

    `weights`, a `GPT2LMHeadModel.state_dict()`, replaces the random ones.
    """
    training = row.kind != "forward"
    if name in THEIRS:
        theirs = make_theirs(row.config, **THEIRS[name]).train(training)
        if weights:
            theirs.load_state_dict(weights)
        return lambda ids: theirs(ids).logits, dict(theirs.named_parameters())
    ours = GPT2(row.config).train(training)
    if weights:
        load_openai_weights(ours, weights)
    if name == ONEDNN:
        ours = mkldnn.to_mkldnn(ours)
    return ours, dict(ours.named_parameters())


def work(kind, batch, model, parameters):
    """A function that does the row's work once, and returns logits or the loss."""
    ids, targets = batch  # [B, T], [B, T]
    if kind == "forward":
        return torch.inference_mode()(lambda: model(ids))
    optimizer = torch.optim.AdamW(parameters.values(), lr=3e-5, fused=True)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def gradients(parameters):
    """Those that are there, a list, in one layout: transformers stores its Conv1D as [in, out]."""
    found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    return [grad.t() if ".c_" in name else grad for name, grad in found.items()]


def products():
    """Square matrix products: as nn.Linear has it done, and by oneDNN where it is there."""
    layer, X = nn.Linear(MATRIX, MATRIX, bias=False), torch.randn(MATRIX, MATRIX)
    jobs = [lambda: layer(X)]
    if torch.backends.mkldnn.is_available():
        onednn, X_onednn = mkldnn.to_mkldnn(layer), X.to_mkldnn()
        jobs.append(lambda: onednn(X_onednn))
    return {name: torch.inference_mode()(job) for name, job in zip(PRODUCTS, jobs, strict=False)}


def check_equal(results):
    """Raise AssertionError where a contender's tensors are not ours, {name: list of tensors}."""
    for name, tensors in results.items():
        for its, ours in zip(tensors, results[OURS], strict=True):
            atol = 1e-5 * ours.abs().max().item()  # float32 rounds to 6e-8 of a number
            torch.testing.assert_close(
                its, ours, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )


def seconds_of(job, times):
    """Of one call, on average over `times` in a row."""
    start = time.perf_counter()
    for _ in range(times):
        result = job()
    seconds = (time.perf_counter() - start) / times
    del result
    return seconds


def compare(row, rounds):
    """{contender: its seconds, round by round}; all must compute the same first."""
    batch = row.batch()
    weights = make_theirs(row.config).state_dict()
    jobs, results = {}, {}
    for name in contenders(row.kind):
        model, parameters = make(name, row, weights)
        jobs[name] = work(row.kind, batch, model, parameters)
        results[name] = [jobs[name](), *gradients(parameters)]  # a warm-up as well
    check_equal(results)
    del weights, results
    times = dict.fromkeys(jobs, row.per_turn)
    jobs |= products()
    for job in jobs.values():
        job()
    seconds = {name: [] for name in jobs}
    for _ in range(rounds):
        for name in random.sample(list(jobs), len(jobs)):
            seconds[name].append(seconds_of(jobs[name], times.get(name, 1)))
    return seconds


def peak_memory(row, name):
    """The most bytes this process held while it did the work, less what it held at first. Linux.

    For a process that does nothing else. What making the model took for a moment is left out.
    """
    batch = row.batch()
    before = psutil.Process().memory_info().rss
    job = work(row.kind, batch, *make(name, row))
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
    for _ in range(2):
        job()
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak.group(1)) * 1024 - before


def peak_memory_elsewhere(row, name):
    """The same in a process of its own; None where it cannot be had."""
    if sys.platform != "linux":
        return None
    command = [sys.executable, __file__, "--peak", str(ROWS.index(row)), name]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return int(child.stdout.split()[-1]) if child.returncode == 0 else None


def quartiles(values):
    return statistics.quantiles(values, n=4, method="inclusive")


def table(results, memory):
    """The results as Markdown, one line per row and contender."""
    lines = [
        "| work | model | seconds | tokens/s | time of ours ÷ its time | memory "
        "| of the product's FLOP/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, seconds in results.items():
        B, T = row.batch_size, row.seq_len
        flops = forward_flops(row.config, B, T) * (1 if row.kind == "forward" else 3)
        fastest = map(min, zip(*(seconds[p] for p in PRODUCTS if p in seconds), strict=True))
        limits = [2 * MATRIX**3 / s for s in fastest]  # FLOP/s, round by round
        for name in contenders(row.kind):
            ratios = [a / b for a, b in zip(seconds[OURS], seconds[name], strict=True)]
            low, middle, high = quartiles(ratios)
            ratio = "" if name == OURS else f"{middle:.2f} ({low:.2f} to {high:.2f})"
            peak = memory.get((row, name))
            held = f"{peak / 1e9:.2f} GB" if peak else "not measured"
            share = [flops / s / limit for s, limit in zip(seconds[name], limits, strict=True)]
            median = statistics.median(seconds[name])
            lines.append(
                f"| {row} | {name} | {median:.3g} | {B * T / median:,.0f} "
                f"| {ratio} | {held} | {statistics.median(share):.0%} |"
            )
    return "\n".join(lines)


def caption(results, rounds):
    speeds = {
        name: 2 * MATRIX**3 / statistics.median(s for row in results.values() for s in row[name])
        for name in PRODUCTS
        if all(name in row for row in results.values())
    }
    named = ", ".join(f"{name} {speed / 1e12:.2f} TFLOP/s" for name, speed in speeds.items())
    return (
        f"{describe_device('cpu')}, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {date.today()}; float32, {rounds} rounds, "
        f"medians, in brackets the middle half. {MATRIX} × {MATRIX}: {named}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="how often each takes its turn")
    parser.add_argument("--save", type=Path, help="the page whose table is replaced")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)  # a child process
    options = parser.parse_args()
    if options.peak:
        place, name = options.peak
        print(peak_memory(ROWS[int(place)], name))
        return
    if options.rounds < 5:
        parser.error("a spread needs at least 5 rounds")
    if options.save and not options.save.is_file():
        parser.error(f"there is no page {options.save}")

    random.seed(0)
    results, memory = {}, {}
    for row in ROWS:
        each = sum(training_memory(row.config, row.batch_size, row.seq_len).values())
        needed = len(contenders(row.kind)) * each
        if row.kind != "forward" and needed > free_memory("cpu"):
            print(f"{row}: left out, it needs {needed / 1e9:.0f} GB", file=sys.stderr)
            continue
        print(f"{row} ...", file=sys.stderr, flush=True)
        for name in contenders(row.kind):
            memory[row, name] = peak_memory_elsewhere(row, name)
        results[row] = compare(row, options.rounds)
    text = f"{table(results, memory)}\n\n{caption(results, options.rounds)}\n"
    if options.save:  # the table and its caption are the end of the page
        words = options.save.read_text(encoding="utf-8").partition("| work |")[0]
        options.save.write_text(words + text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
