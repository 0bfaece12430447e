"""Answers to the exercises of notebook 5."""

import functools
import math
import statistics
import time
from datetime import datetime

import numpy as np
import torch
from answers import right, wrong

import exercise_checks as check

# ------------------------------------------------------------------- 1: was it five steps?

right(check.speed_of_five_steps)(22)
right(check.speed_of_five_steps)(np.float64(5 * 3 * 2.33 / 1.6))
wrong(check.speed_of_five_steps, "That is one training step")(3 * 2.33 / 1.6)
wrong(check.speed_of_five_steps, "That is five forward passes")(7.3)
wrong(check.speed_of_five_steps, "That is one forward pass")(2.33 / 1.6)
wrong(check.speed_of_five_steps, "the backward passes alone")(14.6)
wrong(check.speed_of_five_steps, "counts the forward pass twice")(5 * 4 * 2.33 / 1.6)
wrong(check.speed_of_five_steps, "the number of TFLOP")(35)
wrong(check.speed_of_five_steps, "Upside down")(1.6 / 35)
wrong(check.speed_of_five_steps, "The work is divided by five")(3 * 2.33 / 5 / 1.6)
wrong(check.speed_of_five_steps, "Work times seconds")(35 * 1.6)
wrong(check.speed_of_five_steps, "Give it in TFLOP/s")(21.9e12)
wrong(check.speed_of_five_steps, "Write down three numbers")(19.5)
wrong(check.speed_of_five_steps, "a plain number")("22 TFLOP/s")

# -------------------------------------------------------- 2: a stopwatch with two hands


def hands(
    run,
    wait,
    repeats=5,
    warmup=1,
    clock=time.perf_counter,
    each=True,  # wait before each repeat, or before the first only
    before=True,
    first_waits=False,
    at_the_end=True,
    one_start=False,
    from_order=False,
    keep=lambda pairs: pairs,
):
    """The solution with switches for the usual mistakes."""
    if before and not each:
        wait()
    for _ in range(warmup):
        run()
    pairs, start = [], clock()
    for _ in range(repeats):
        if before and each:
            wait()
        if not one_start:
            start = clock()
        run()
        if first_waits:
            wait()
        ordered = clock()
        if at_the_end:
            wait()
        done = clock()
        pairs.append((ordered - start, done - (ordered if from_order else start)))
    return keep(pairs)


def switched(**switches):
    return lambda *given: hands(*given, **switches)


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

    return [once() for _ in range(repeats + warmup) if True][warmup:]


right(check.stopwatch_with_two_hands)(hands)
wrong(check.stopwatch_with_two_hands, "warm-up calls are in the list")(
    lambda run, wait, repeats=5, warmup=1: hands(run, wait, repeats + warmup, 0)
)
wrong(check.stopwatch_with_two_hands, "the warm-up is missing")(
    lambda run, wait, repeats=5, warmup=1: hands(run, wait, repeats, 0)
)
wrong(check.stopwatch_with_two_hands, "(the defaults) there are 3 pairs")(
    lambda run, wait, repeats=3, warmup=1: hands(run, wait, repeats, warmup)
)
wrong(check.stopwatch_with_two_hands, "`run` is called 5 times, not 6")(
    lambda run, wait, repeats=5, warmup=1: hands(run, wait, repeats, min(warmup, 1))
)
wrong(check.stopwatch_with_two_hands, "a pair (ordered, done)")(
    switched(keep=lambda pairs: [done for _, done in pairs])
)
wrong(check.stopwatch_with_two_hands, "a pair (ordered, done)")(
    switched(keep=lambda pairs: list(zip(*pairs, strict=True)))
)
wrong(check.stopwatch_with_two_hands, "`time.process_time` does not")(
    switched(clock=time.process_time)
)
wrong(check.stopwatch_with_two_hands, "Are they in seconds, and is the start")(
    switched(clock=lambda: 1e3 * time.perf_counter())
)
wrong(check.stopwatch_with_two_hands, "both hands start together")(switched(from_order=True))
wrong(check.stopwatch_with_two_hands, "second hand stops before it is done")(
    switched(at_the_end=False)
)
wrong(check.stopwatch_with_two_hands, "The first hand waits")(switched(first_waits=True))
wrong(check.stopwatch_with_two_hands, "still busy with earlier work")(switched(before=False))
wrong(check.stopwatch_with_two_hands, "counts the work of the warm-up")(switched(each=False))
wrong(check.stopwatch_with_two_hands, "Do you return the mean?")(
    switched(keep=lambda p: [tuple(map(statistics.mean, zip(*p, strict=True)))] * len(p))
)
wrong(check.stopwatch_with_two_hands, "in the order in which")(
    switched(keep=lambda pairs: sorted(pairs, key=lambda pair: pair[1]))
)


wrong(check.stopwatch_with_two_hands, "the wrong way round")(
    switched(keep=lambda pairs: [pair[::-1] for pair in pairs])
)
wrong(check.stopwatch_with_two_hands, "What counts twice?")(
    switched(keep=lambda pairs: [(ordered, ordered + done) for ordered, done in pairs])
)
wrong(check.stopwatch_with_two_hands, "With repeats=4, warmup=2 there are 5 pairs")(
    lambda run, wait, repeats=5, warmup=1: hands(run, wait, 5, warmup)
)
wrong(check.stopwatch_with_two_hands, "of the same repeat?")(
    switched(keep=lambda pairs: [(a, done) for (a, _), done in zip(
        [(sum(d for _, d in pairs[:k]) + o, 0) for k, (o, _) in enumerate(pairs)],
        [done for _, done in pairs], strict=True)])
)  # fmt: skip


@wrong(check.stopwatch_with_two_hands, "add up from repeat to repeat")
def one_start_for_all(run, wait, repeats=5, warmup=1):
    for _ in range(warmup):
        run()
    wait()
    return hands(run, wait, repeats, 0, one_start=True)


@wrong(check.stopwatch_with_two_hands, "it stops when `run` has returned")
def first_hand_before_run(run, wait, repeats=5, warmup=1):
    return [(0.0, done) for _, done in hands(run, wait, repeats, warmup)]


# ------------------------------------------------------------------ 3: runs that are all alike


@right(check.mended_runs)
def by_default_argument(model, ids, lengths):
    runs = {}
    for T in lengths:
        runs[T] = lambda T=T: model(ids[:, :T])
    return runs


@right(check.mended_runs)
def by_partial(model, ids, lengths):
    return {T: functools.partial(model, ids.narrow(1, 0, T)) for T in sorted(lengths)}


@right(check.mended_runs)
def by_a_class(model, ids, lengths):
    class Run:
        def __init__(self, T):
            self.T = T

        @torch.inference_mode()
        def __call__(self):
            return model(ids[..., : self.T])

    return {T: Run(T) for T in lengths}


def cut_by(cut):
    return lambda model, ids, lengths: {T: lambda T=T: model(cut(ids, T, lengths)) for T in lengths}


@wrong(check.mended_runs, "look up the name that the loop changes")
def the_suspect(model, ids, lengths):
    runs = {}
    for T in lengths:
        runs[T] = lambda: model(ids[:, :T])  # noqa: B023
    return runs


@wrong(check.mended_runs, "look up the name that the loop changes")
def cut_early_but_named_late(model, ids, lengths):
    runs = {}
    for T in lengths:
        piece = ids[:, :T]
        runs[T] = lambda: model(piece)  # noqa: B023
    return runs


@wrong(check.mended_runs, "look up the name that the loop changes")
def by_comprehension(model, ids, lengths):
    return {T: lambda: model(ids[:, :T]) for T in lengths}  # noqa: B023


wrong(check.mended_runs, "The model ran while the runs were made")(
    lambda model, ids, lengths: {T: model(ids[:, :T]) for T in lengths}
)
wrong(check.mended_runs, "The model ran while the runs were made")(
    lambda model, ids, lengths: {T: functools.partial(id, model(ids[:, :T])) for T in lengths}
)
wrong(check.mended_runs, "A run is called without arguments")(
    lambda model, ids, lengths: {T: lambda T: model(ids[:, :T]) for T in lengths}
)
wrong(check.mended_runs, "{T: run}")(
    lambda model, ids, lengths: [functools.partial(model, ids[:, :T]) for T in lengths]
)
wrong(check.mended_runs, "sees the last tokens")(cut_by(lambda ids, T, lengths: ids[:, -T:]))
wrong(check.mended_runs, "hands [7, 6] to the model")(
    cut_by(lambda ids, T, lengths: ids[:T, : T - 1])
)
wrong(check.mended_runs, "as many tokens as the first one")(
    cut_by(lambda ids, T, lengths: ids[:, : lengths[0]])
)
wrong(check.mended_runs, "along the axis of the texts")(cut_by(lambda ids, T, lengths: ids[:T]))
wrong(check.mended_runs, "the first text only")(
    cut_by(lambda ids, T, lengths: ids[: 8 if T == 12 else 1, :T])
)
wrong(check.mended_runs, "Is the `return` missing?")(
    lambda model, ids, lengths: {T: lambda T=T: [model(ids[:, :T])].clear() for T in lengths}
)


@wrong(check.mended_runs, "0 times, not once. Does each call compute anew")
def a_model_of_the_notebook(model, ids, lengths):
    another = torch.nn.Identity()
    return {T: functools.partial(another, ids[:, :T]) for T in lengths}


wrong(check.mended_runs, "Cut the ids, not what comes out")(
    lambda model, ids, lengths: {T: lambda T=T: model(ids)[:, :T] for T in lengths}
)
wrong(check.mended_runs, "does not return what the model returns")(
    lambda model, ids, lengths: {T: lambda T=T: model(ids[:, :T])[:, -1] for T in lengths}
)


@wrong(check.mended_runs, "the run for T = 1 hands [4, 10]")
def lengths_in_order(model, ids, lengths):
    cuts = [ids[:, :T] for T in sorted(lengths)]
    return {T: functools.partial(model, cut) for T, cut in zip(lengths, cuts, strict=True)}


# --------------------------------------------------------------------- 4: where the GPU wins


def fitted(points):
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    return intercept, slope


def crossover(
    cpu, gpu, fit=fitted, least=0.0, overtaken=math.inf, never=math.inf, sign=1, parallel=0.0
):
    """The solution with switches for the usual mistakes."""
    (cpu_overhead, cpu_each), (gpu_overhead, gpu_each) = fit(cpu), fit(gpu)
    if gpu_each == cpu_each:
        return parallel if gpu_overhead < cpu_overhead else math.inf
    if gpu_each > cpu_each:
        return never if gpu_overhead > cpu_overhead else overtaken
    return max(least, sign * (gpu_overhead - cpu_overhead) / (cpu_each - gpu_each))


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


right(check.where_the_gpu_wins)(crossover)


def through_the_origin(points):
    return 0.0, sum(x * y for x, y in points) / sum(x * x for x, _ in points)


def through_two(points, i, j):
    (x, y), (u, v) = points[i], points[j]
    slope = (v - y) / (u - x)
    return y - slope * x, slope


def unsorted_ends(points):
    return through_two(points, 0, -1)


wrong(check.where_the_gpu_wins, "Is the overhead in your fit")(
    functools.partial(crossover, fit=through_the_origin)
)
wrong(check.where_the_gpu_wins, "Are the devices swapped")(lambda cpu, gpu: crossover(gpu, cpu))
wrong(check.where_the_gpu_wins, "With equal costs per token")(
    functools.partial(crossover, parallel=math.inf)
)
wrong(check.where_the_gpu_wins, "both are alike")(
    lambda cpu, gpu: 0.0 if cpu == gpu else crossover(cpu, gpu)
)
wrong(check.where_the_gpu_wins, "more than the other are lost")(
    lambda cpu, gpu: crossover(cpu[: len(gpu)], gpu[: len(cpu)])
)
wrong(check.where_the_gpu_wins, "what does your fit return first")(
    functools.partial(crossover, fit=lambda points: fitted(points)[::-1])
)
wrong(check.where_the_gpu_wins, "two with the same tokens too")(
    lambda cpu, gpu: crossover(list(dict(cpu).items()), list(dict(gpu).items()))
)
wrong(check.where_the_gpu_wins, "what never happens is `math.inf`")(
    functools.partial(crossover, never=None)
)
right(check.where_the_gpu_wins)(
    lambda *given: math.ceil(n) if (n := crossover(*given)) < math.inf else n
)
wrong(check.where_the_gpu_wins, "has the wrong sign")(
    functools.partial(crossover, sign=-1, least=-math.inf)
)
wrong(check.where_the_gpu_wins, "first and the last point")(
    functools.partial(crossover, fit=unsorted_ends)
)
wrong(check.where_the_gpu_wins, "the first two points only")(
    functools.partial(crossover, fit=lambda points: through_two(points, 0, 1))
)
wrong(check.where_the_gpu_wins, "than that of least squares")(
    functools.partial(crossover, fit=lambda points: through_two(sorted(points), 1, -1))
)
wrong(check.where_the_gpu_wins, "only their order and number changed")(
    lambda cpu, gpu: crossover([(x, y) for (x, _), (_, y) in zip(gpu, cpu, strict=False)], gpu)
)
wrong(check.where_the_gpu_wins, "A number of tokens cannot be negative")(
    functools.partial(crossover, least=-math.inf)
)
wrong(check.where_the_gpu_wins, "It never gets ahead")(functools.partial(crossover, never=0.0))
wrong(check.where_the_gpu_wins, "From which number on does it stay ahead")(
    functools.partial(crossover, overtaken=500.0)
)
wrong(check.where_the_gpu_wins, "That is the time at which the lines meet")(
    lambda cpu, gpu: fitted(cpu)[0] + fitted(cpu)[1] * crossover(cpu, gpu)
)
wrong(check.where_the_gpu_wins, "not by their sum")(
    lambda cpu, gpu: (fitted(gpu)[0] - fitted(cpu)[0]) / (fitted(cpu)[1] + fitted(gpu)[1])
)
wrong(check.where_the_gpu_wins, "both differences count")(
    lambda cpu, gpu: (fitted(gpu)[0] + fitted(cpu)[0]) / (fitted(cpu)[1] - fitted(gpu)[1])
)
wrong(check.where_the_gpu_wins, "always faster")(
    lambda cpu, gpu: abs(fitted(gpu)[0] - fitted(cpu)[0]) / abs(fitted(cpu)[1] - fitted(gpu)[1])
)
