"""Answers to the exercises of notebook 5."""

import math
import statistics
import time
from datetime import datetime
from functools import partial

import numpy as np
import torch
from answers import right, wrong

import exercise_checks as check
from exercise_checks.timing_lab import ahead, least_squares

# ------------------------------------------------------------------- 1: was it five steps?

right(check.speed_of_five_steps)(22)
right(check.speed_of_five_steps)(np.float64(5 * 3 * 2.33 / 1.6))
wrong(check.speed_of_five_steps, "Write down three numbers")(19.5)
wrong(check.speed_of_five_steps, "a plain number")("22 TFLOP/s")

# -------------------------------------------------------- 2: a stopwatch with two hands


TURN = "wait start run ordered wait done"  # what a repeat does, and when it reads the clock


@right(check.stopwatch_with_two_hands)
def hands(run, wait, repeats=5, warmup=1, turn=TURN, clock=time.perf_counter, keep=list):
    """The solution with switches for the usual mistakes."""
    for _ in range(warmup):
        run()
    pairs, read = [], {}
    for _ in range(repeats):
        for word in turn.split():
            if word in ("run", "wait"):
                run() if word == "run" else wait()
            else:
                read[word] = clock()
        pairs.append((read["ordered"] - read["start"], read["done"] - read["start"]))
    return keep(pairs)


@right(check.stopwatch_with_two_hands)
def as_an_array_by_dates(run, wait, repeats=5, warmup=1):
    for _ in range(warmup):
        run()
        wait()
    table = np.zeros((repeats, 2))
    for row in table:
        wait()
        start = datetime.now()
        run()
        row[0] = (datetime.now() - start).total_seconds()
        wait()
        row[1] = (datetime.now() - start).total_seconds()
    return table


@right(check.stopwatch_with_two_hands)
def in_whole_nanoseconds(run, wait, repeats=5, warmup=1):
    def once():
        wait()
        moments = [time.monotonic_ns()]
        for act in (run, wait):
            act()
            moments.append(time.monotonic_ns())
        return [(moment - moments[0]) / 1e9 for moment in moments[1:]]

    return [once() for _ in range(repeats + warmup)][warmup:]


def waiting_before_the_warmup(run, wait, *counts):
    wait()
    return hands(run, wait, *counts, turn="start run ordered wait done")


def mean(pairs):
    return [tuple(map(statistics.mean, zip(*pairs, strict=True)))] * len(pairs)


def from_the_first_start(pairs, second=True):
    """As if the clock was started once, for both hands or for the first only."""
    before = [sum(done for _, done in pairs[:k]) for k in range(len(pairs))]
    return [(b + o, b * second + d) for b, (o, d) in zip(before, pairs, strict=True)]


for words, answer in {
    "warm-up calls are in the list": lambda run, wait, n=5, warm=1: hands(run, wait, n + warm, 0),
    "the warm-up is missing": lambda run, wait, n=5, warm=1: hands(run, wait, n, 0),
    "(the defaults) there are 3 pairs": lambda run, wait, n=3, warm=1: hands(run, wait, n, warm),
    "warmup=2 there are 5 pairs": lambda run, wait, n=5, warm=1: hands(run, wait, 5, warm),
    "`run` is called 5 times, not 6": lambda run, wait, n=5, warm=1: hands(run, wait, n, 1),
    "a pair (ordered, done)": partial(hands, keep=lambda p: [done for _, done in p]),
    "with a pair (ordered, done)": partial(hands, keep=lambda p: list(zip(*p, strict=True))),
    "`time.process_time` does not": partial(hands, clock=time.process_time),
    "Are they in seconds, and": partial(hands, clock=lambda: 1e3 * time.perf_counter()),
    "What counts twice?": partial(hands, keep=lambda p: [(o, o + d) for o, d in p]),
    "it stops when `run` has returned": partial(hands, turn="wait start ordered run wait done"),
    "both hands start together": partial(hands, keep=lambda p: [(o, d - o) for o, d in p]),
    "the wrong way round": partial(hands, keep=lambda p: [(d, o) for o, d in p]),
    "stops before it is done": partial(hands, turn="wait start run ordered done"),
    "The first hand waits": partial(hands, turn="wait start run wait ordered done"),
    "still busy with earlier work": partial(hands, turn="start run ordered wait done"),
    "counts the work of the warm-up": waiting_before_the_warmup,
    "of the same repeat?": partial(hands, keep=partial(from_the_first_start, second=False)),
    "add up from repeat to repeat": partial(hands, keep=from_the_first_start),
    "Do you return the mean?": partial(hands, keep=mean),
    "in the order in which": partial(hands, keep=partial(sorted, key=lambda pair: pair[1])),
}.items():
    wrong(check.stopwatch_with_two_hands, words)(answer)

# ------------------------------------------------------------------ 3: runs that are all alike


@right(check.mended_runs)
def by_default_argument(model, ids, lengths):
    runs = {}
    for T in lengths:
        runs[T] = lambda T=T: model(ids[:, :T])
    return runs


@right(check.mended_runs)
def by_partial(model, ids, lengths):
    return {T: partial(model, ids.narrow(1, 0, T)) for T in sorted(lengths)}


@right(check.mended_runs)
def by_a_class(model, ids, lengths):
    class Run:
        def __init__(self, T):
            self.T = T

        @torch.inference_mode()
        def __call__(self):
            return model(ids[..., : self.T])

    return {T: Run(T) for T in lengths}


@wrong(check.mended_runs, "sees its own first tokens\n    All runs see as many tokens as the last")
def cut_early_but_named_late(model, ids, lengths):
    runs = {}
    for T in lengths:
        piece = ids[:, :T]
        runs[T] = lambda: model(piece)  # noqa: B023
    return runs


@wrong(check.mended_runs, "look up the name that the loop changes")
def by_comprehension(model, ids, lengths):
    return {T: lambda: model(ids[:, :T]) for T in lengths}  # noqa: B023


@wrong(check.mended_runs, "the run for T = 1 hands [4, 10]")
def lengths_in_order(model, ids, lengths):
    cuts = [ids[:, :T] for T in sorted(lengths)]
    return {T: partial(model, cut) for T, cut in zip(lengths, cuts, strict=True)}


for words, run in {
    "nothing computed yet\n    The model ran": lambda model, ids, T: model(ids[:, :T]),
    "The model ran while the runs": lambda model, ids, T: partial(id, model(ids[:, :T])),
    "A run is called without arguments": lambda model, ids, T: lambda T: model(ids[:, :T]),
    "Is the `return` missing?": lambda model, ids, T: lambda: [model(ids[:, :T])].clear(),
    "0 times, not once. Does": lambda _, ids, T: lambda: torch.nn.Identity()(ids[:, :T]),
    "does not return what the model": lambda model, ids, T: lambda: model(ids[:, :T])[:, -1],
    "hands [7, 6] to the model": lambda model, ids, T: lambda: model(ids[:T, : T - 1]),
}.items():
    wrong(check.mended_runs, words)(
        lambda model, ids, lengths, run=run: {T: run(model, ids, T) for T in lengths}
    )
wrong(check.mended_runs, "{T: run}")(
    lambda model, ids, lengths: [partial(model, ids[:, :T]) for T in lengths]
)

# --------------------------------------------------------------------- 4: where the GPU wins

right(check.where_the_gpu_wins)(ahead)
right(check.where_the_gpu_wins)(
    lambda *given: math.ceil(n) if (n := ahead(*given)) < math.inf else n
)


@right(check.where_the_gpu_wins)
def by_polyfit(cpu, gpu):
    (b, a), (d, c) = (np.polyfit(*np.array(points).T, 1) for points in (cpu, gpu))
    if np.isclose(b, d, rtol=1e-6, atol=0):
        return 0 if c < a else np.inf
    return np.inf if d > b else np.maximum(0, (c - a) / (b - d))


@right(check.where_the_gpu_wins)
def by_sums_in_whole_tokens(cpu, gpu):
    fits = []
    for points in (cpu, gpu):
        n, sx, sy = len(points), sum(x for x, _ in points), sum(y for _, y in points)
        sxx, sxy = sum(x * x for x, _ in points), sum(x * y for x, y in points)
        slope = (n * sxy - sx * sy) / (n * sxx - sx * sx)
        fits.append(((sy - slope * sx) / n, slope))
    (a, b), (c, d) = fits
    if b == d:
        return int(c >= a) and float("inf")
    return torch.tensor((c - a) / (b - d)).clamp(min=0) if b > d else float("inf")


for words, answer in {
    "what does your fit return first": partial(ahead, fit=lambda p: least_squares(p)[::-1]),
    "only their order and number changed": lambda cpu, gpu: ahead(
        [(x, y) for (x, _), (_, y) in zip(gpu, cpu, strict=False)], gpu
    ),
    "than that of least": partial(ahead, fit=lambda p: least_squares([sorted(p)[1], max(p)])),
    "two with the same tokens": lambda *given: ahead(*(list(dict(p).items()) for p in given)),
    "A number of tokens cannot be negative": partial(ahead, least=-math.inf),
    "always faster": partial(ahead, overheads=lambda gpu, cpu: abs(gpu - cpu)),
    "never happens is `math.inf`": lambda *given: n if (n := ahead(*given)) < math.inf else None,
    "It never gets ahead": lambda *given: n if (n := ahead(*given)) < math.inf else 0.0,
    "From which number on does it stay ahead": lambda cpu, gpu: (  # where the CPU overtakes it
        min(ahead(cpu, gpu), ahead(gpu, cpu) or math.inf)
    ),
    "With equal costs per token": partial(ahead, parallel=math.inf),
    "both are alike": lambda cpu, gpu: 0.0 if cpu == gpu else ahead(cpu, gpu),
}.items():
    wrong(check.where_the_gpu_wins, words)(answer)
