"""The checks of notebook 5, the timing lab, and the mistakes they know."""

import math
import statistics
import time
from functools import partial
from operator import add, sub

import torch
from torch import nn

from gpt2_helpers import GPT2Config, forward_flops

from . import Mistake, call, exercise, expect, expect_number, number, number_or_never

# ------------------------------------------------------------------- 1: was it five steps?


@exercise
def speed_of_five_steps(teraflops):
    """TFLOP/s, if the lecture's 1.6 s are the time of five training steps."""
    yield "TFLOP/s of five training steps in 1.6 s"
    expect_number(
        teraflops,
        5 * 3 * forward_flops(GPT2Config(), 8, 1024) / 1e12 / 1.6,
        "Write down three numbers: the TFLOP of one training step, the number of steps, and the "
        "seconds for all of them.",
        tolerance=0.03,
    )


speed_of_five_steps.mistakes = {  # 14.6 is 5 * 2 * 2.33 / 1.6, and 29.1 has a 4 for the 2
    "That is one training step in 1.6 s. Here all five are done in that time.": 3 * 2.33 / 1.6,
    "That is five forward passes. A training step has the backward pass too, and the notebook says "
    "how much the two make together.": 5 * 2.33 / 1.6,
    "That is one forward pass in 1.6 s, and there are five training steps.": 2.33 / 1.6,
    "That is the work of the backward passes alone. A step begins with a forward pass.": 14.6,
    "That counts the forward pass twice: the factor of the notebook has it in it.": 29.1,
    "That is the number of TFLOP, the work. The speed is work per second.": 5 * 3 * 2.33,
    "Upside down: TFLOP/s are the work divided by the seconds.": 1.6 / (5 * 3 * 2.33),
    "The work is divided by five in place of multiplied.": 3 * 2.33 / 5 / 1.6,
    "Work times seconds is no speed: divide.": 5 * 3 * 2.33 * 1.6,
    "That is in FLOP/s. Give it in TFLOP/s, millions of millions of them.": 5 * 3 * 2.33e12 / 1.6,
}

# -------------------------------------------------------- 2: a stopwatch with two hands


class Queue:
    """A device that exists for the check only: orders go into a queue and are done in turn.

    `run` writes the next order, which takes `writing` seconds, and goes on; the n-th order then
    keeps the device busy for `work[n]` seconds, those behind the last of `work` for as long as it.
    `wait` returns when nothing is left to do.
    """

    def __init__(self, *work, writing=0.0):
        self.work, self.writing = work, writing
        self.orders, self.ready = 0, time.perf_counter()

    def run(self):
        time.sleep(self.writing)
        seconds = self.work[min(self.orders, len(self.work) - 1)]
        self.ready = max(self.ready, time.perf_counter()) + seconds
        self.orders += 1

    def wait(self):
        time.sleep(max(0.0, self.ready - time.perf_counter()))


@exercise
def stopwatch_with_two_hands(stopwatch):
    """stopwatch(run, wait, repeats=5, warmup=1) -> [(ordered, done), ...] in seconds."""
    # A sleep is never too short, and may be too long on a busy machine. So where a time must not
    # be too long, a wrong one is longer by some tenths of a second. And as a sleep takes its time,
    # no wrong answers are run here: each mistake is told by the times that it gives.

    def hands(device, *counts):
        result = call(stopwatch, device.run, device.wait, *counts)
        try:
            pairs = [[number(hand) for hand in pair] for pair in result]
        except TypeError:
            pairs = [[]]
        if any(len(pair) != 2 for pair in pairs):
            raise Mistake("Return a list with a pair (ordered, done) for each repeat.")
        return pairs

    yield "a pair for each repeat, none for a warm-up, and no call too many"
    for counts, repeats, warmup in [((4, 2), 4, 2), ((), 5, 1)]:
        asked = f"repeats={repeats}, warmup={warmup}" + ("" if counts else " (the defaults)")
        device = Queue(0.0)
        pairs = hands(device, *counts)
        if len(pairs) == repeats + warmup:
            raise Mistake("The warm-up calls are in the list. They are not to be counted.")
        if len(pairs) != repeats:
            raise Mistake(f"With {asked} there are {len(pairs)} pairs in the list.")
        if device.orders == repeats:
            raise Mistake(f"With {asked} only the repeats call `run`: the warm-up is missing.")
        if device.orders != repeats + warmup:
            raise Mistake(
                f"With {asked} `run` is called {device.orders} times, not {repeats + warmup}."
            )

    yield "wall-clock seconds, for both hands from the same moment"
    [(ordered, done)] = hands(Queue(0.0, writing=0.4), 1, 0)  # nothing but overhead
    if max(ordered, done) > 10:
        raise Mistake(
            "The numbers are too large by far. Are they in seconds, and is the start subtracted?"
        )
    if max(ordered, done) > 0.7:
        raise Mistake("Here `run` itself takes 0.4 s and all else nothing. What counts twice?")
    if ordered < 0.36 and done < 0.36:
        raise Mistake(
            "Here `run` itself sleeps for 0.4 s, and neither hand sees it. Does the clock start "
            "before `run`? And is it one that goes on while the program sleeps? "
            "`time.process_time` does not."
        )
    if ordered < 0.36:
        raise Mistake(
            "Here `run` itself takes 0.4 s, and the first hand does not see it: it stops when "
            "`run` has returned."
        )
    if done < 0.36:
        raise Mistake(
            "Here `run` itself takes 0.4 s, and the second hand does not see it: both hands "
            "start together, before `run`."
        )

    yield "the second hand stops when the work is done"
    pairs = hands(Queue(0.1), 2, 0)  # an order is written at once, and takes 0.1 s
    if min(ordered for ordered, _ in pairs) > 0.09 > max(done for _, done in pairs):
        raise Mistake("The first number is the larger one: is the pair the wrong way round?")
    if min(done for _, done in pairs) < 0.09:
        raise Mistake(
            "The work takes 0.1 s, and the second hand stops before it is done. `run` only writes "
            "the order: is there a `wait` between it and the reading of the clock?"
        )

    yield "the first hand does not wait for the work"
    if min(ordered for ordered, _ in pairs) > 0.09:
        raise Mistake(
            "The first hand waits for the work. It should stop when the order is written: read "
            "the clock between `run` and `wait`."
        )

    yield "work that was ordered before does not count"
    device = Queue(0.02)
    device.ready += 0.4  # somebody else's, still to be done
    [(_, done)] = hands(device, 1, 0)
    if done > 0.3:
        raise Mistake(
            "The device was still busy with earlier work, and yours counts that too. What must "
            "have happened before the clock starts?"
        )

    yield "nor does the work of the warm-up"
    pairs = hands(Queue(0.4, 0.02), 2, 1)  # the first order is a slow one
    if pairs[0][1] > 0.3:
        raise Mistake(
            "The first repeat counts the work of the warm-up, which was still going on. When do "
            "you wait for it?"
        )

    yield "each repeat by itself, in their order"
    pairs = hands(Queue(0.1, 0.4, 0.005), 3, 0)
    if any(ordered > done for ordered, done in pairs):
        raise Mistake("A repeat is ordered after it is done: are its two hands of the same repeat?")
    first, second, third = (done for _, done in pairs)
    if third > 0.5:
        raise Mistake(
            "The numbers add up from repeat to repeat: is the clock started anew for each?"
        )
    if max(first, second, third) - min(first, second, third) < 0.05:
        raise Mistake(
            "Three repeats of very different lengths come out alike. Do you return the mean? Then "
            "nobody can see the spread."
        )
    if second < 0.36 or first < 0.09 or third > 0.3 or first > 0.36:
        raise Mistake("The times do not stand in the order in which the repeats were made.")


# ------------------------------------------------------------------ 3: runs that are all alike


class Recorder(nn.Module):
    """In place of a model: it keeps the ids that it is given, and makes numbers of them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, ids):
        self.seen.append(ids.detach().clone())
        return ids[..., None].float()  # [B, T, 1]


def made_runs(make_runs, ids, lengths):
    """A new model, and its runs."""
    model = Recorder()
    runs = call(make_runs, model, ids, lengths)
    if not isinstance(runs, dict) or set(runs) != set(lengths):
        raise Mistake("Return a dictionary with a run for each length, {T: run}.")
    if model.seen:
        raise Mistake(
            "The model ran while the runs were made. Then a clock around a run measures "
            "nothing: the work must wait until the run is called."
        )
    return model, runs


def last_run(make_runs, ids, lengths, order):
    """After the runs in `order`: the ids that the last hands to the model, and what it returns."""
    model, runs = made_runs(make_runs, ids, lengths)
    for T in order:
        model.seen.clear()
        try:
            result = call(runs[T])
        except Mistake as mistake:
            if "positional argument" not in str(mistake):
                raise
            raise Mistake(
                "A run is called without arguments, `run()`; yours asks for some."
            ) from None
        if len(model.seen) != 1:
            raise Mistake(
                f"A run calls the model that was passed in {len(model.seen)} times, not once. Does "
                "each call compute anew, with that model, and with nothing else?"
            )
    return model.seen[0], result


@exercise
def mended_runs(make_runs):
    """make_runs(model, ids, lengths) -> {T: a function that runs the model on T tokens a text}."""

    def expect_tokens(ids, lengths, order):
        T, (seen, result) = order[-1], last_run(make_runs, ids, lengths, order)
        expect(
            lambda answer: last_run(answer, ids, lengths, order)[0].tolist(),
            make_runs,
            ids[:, :T].tolist(),
            f"There are ids {list(ids.shape)}, and the run for T = {T} hands {list(seen.shape)} "
            "to the model. It should be the first tokens of each text.",
        )
        if not (isinstance(result, torch.Tensor) and torch.equal(result, Recorder()(seen))):
            raise Mistake("A run does not return what the model returns, its logits.")

    ids, lengths = torch.arange(96).view(8, 12), [3, 6, 7]  # ids [B=8, 12]
    yield "a run for each length, and nothing computed yet"
    made_runs(make_runs, ids, lengths)

    yield "the last length, which the suspect does too"
    expect_tokens(ids, lengths, [7])

    yield "every other length sees its own first tokens"
    for T in lengths[:2]:
        expect_tokens(ids, lengths, [7, T])

    yield "other lengths, run twice and backwards"
    ids, lengths = torch.arange(40).view(4, 10), [7, 2, 10, 1]  # ids [B=4, 10]
    order = 2 * lengths[::-1]
    for n in range(len(order)):
        expect_tokens(ids, lengths, order[: n + 1])


def cut_by(cut):
    """Runs on the ids that cut(ids, T, lengths) returns."""
    return lambda model, ids, lengths: {T: lambda T=T: model(cut(ids, T, lengths)) for T in lengths}


def the_suspect(model, ids, lengths):
    runs = {}
    for T in lengths:
        runs[T] = lambda: model(ids[:, :T])  # noqa: B023
    return runs


mended_runs.mistakes = {
    "A run hands the whole texts to the model. Cut the ids, not what comes out: a clock around the "
    "run measures what goes in.": lambda model, ids, lengths: {
        T: lambda T=T: model(ids)[:, :T] for T in lengths
    },
    "All runs see as many tokens as the first one.": cut_by(lambda ids, T, all: ids[:, : all[0]]),
    "All runs see as many tokens as the last one. When does each of them look up the name that the "
    "loop changes?": the_suspect,
    "A run sees the last tokens of each text; it should see the first.": cut_by(
        lambda ids, T, lengths: ids[:, -T:]
    ),
    "A run cuts along the axis of the texts; the tokens are the second axis, [B, T].": cut_by(
        lambda ids, T, lengths: ids[:T]
    ),
    "A run sees the first text only.": cut_by(lambda ids, T, lengths: ids[:1, :T]),
}

# --------------------------------------------------------------------- 4: where the GPU wins


def least_squares(points, **how):
    """Overhead and cost per token of the line with the least squares."""
    cost, overhead = statistics.linear_regression(*zip(*points, strict=True), **how)
    return overhead, cost


def ahead(cpu, gpu, fit=least_squares, overheads=sub, costs=sub, least=0.0, parallel=0.0):
    """Tokens from which on the GPU is ahead, with switches for the usual mistakes."""
    (cpu_overhead, cpu_cost), (gpu_overhead, gpu_cost) = fit(cpu), fit(gpu)
    if gpu_cost == cpu_cost:
        return parallel if gpu_overhead < cpu_overhead else math.inf
    if gpu_cost > cpu_cost:
        return math.inf
    return max(least, overheads(gpu_overhead, cpu_overhead) / costs(cpu_cost, gpu_cost))


def straight(overhead, each, tokens=(1, 64, 256, 1024), jitter=None):
    """Points (tokens, seconds) on a line, from milliseconds; `jitter` has a factor for each."""
    jitter = jitter or [1] * len(tokens)
    return [(N, (overhead + each * N) / 1e3 * j) for N, j in zip(tokens, jitter, strict=True)]


@exercise
def where_the_gpu_wins(crossover):
    """crossover(cpu, gpu), each [(tokens, seconds), ...]: from how many tokens on is it ahead?"""

    def crossing(cpu, gpu, answer=crossover):
        return number_or_never(answer, cpu, gpu, never="`math.inf`")

    def expect_crossing(cpu, gpu, right, otherwise, tolerance=0.01):
        expect_number(
            crossover,
            right,
            otherwise,
            tolerance,
            observe=lambda answer: crossing(cpu, gpu, answer),
        )

    yield "two exact lines"
    cpu, gpu = straight(1, 0.02), straight(9, 0.004)  # they meet where 8 = 0.016 N
    expect_crossing(
        cpu,
        gpu,
        500.0,
        "Set the two lines equal, overhead + cost times tokens, and solve for the tokens. And "
        "print the fits: here they are 1 ms and 0.02 ms a token, 9 ms and 0.004 ms a token.",
    )

    yield "points in any order, more for one device than for the other"
    expect_crossing(
        cpu[::-1] + straight(1, 0.02, (16, 2)),
        [gpu[2], gpu[0], gpu[1]],
        500.0,
        "The points lie on the same lines as before, only their order and number changed.",
    )

    yield "points off the line: least squares"
    tokens, jitter = (1, 64, 64, 256, 1024), [1.0, 1.6, 0.7, 1.15, 0.97]
    cpu = straight(1, 0.02, (*tokens, 512), [*jitter, 1.3])
    gpu = straight(9, 0.004, tokens, jitter[::-1])
    expect_crossing(
        cpu,
        gpu,
        ahead(cpu, gpu),
        "With points on a line yours is right, with points beside it the fit is another than that "
        "of least squares, in which all points count alike, two with the same tokens too.",
        tolerance=2e-3,
    )

    yield "a GPU that is ahead from the first token on"
    got = crossing(straight(5, 0.02), straight(1, 0.004))
    if got < 0:
        raise Mistake(
            "A number of tokens cannot be negative. The GPU has less overhead here, and the lower "
            "cost per token: what does the exercise ask for then?"
        )
    if abs(got) > 1e-6:
        raise Mistake("The GPU has less overhead and the lower cost per token: always faster.")

    yield "a GPU that is never ahead"
    if crossing(straight(1, 0.004), straight(9, 0.02)) != math.inf:
        raise Mistake(
            "Here the GPU has more overhead and the higher cost per token. It never gets ahead."
        )

    yield "a GPU that is ahead at first, and overtaken"
    if crossing(straight(9, 0.004), straight(1, 0.02)) != math.inf:
        raise Mistake(
            "Here the GPU has less overhead and the higher cost per token: it is ahead with few "
            "tokens, and falls behind. From which number on does it stay ahead?"
        )

    yield "two parallel lines"
    costs = 2**-6  # a number that a fit gives back without rounding
    some, more = (straight(1000 * k, 1000 * costs, (0, 64, 128)) for k in (1, 2))
    if abs(crossing(more, some)) > 1e-6 or min(crossing(some, more), crossing(some, some)) < 1e9:
        raise Mistake(
            "With equal costs per token the device with less overhead is ahead at any number of "
            "tokens: always, if that is the GPU, and never, if it is the CPU or both are alike."
        )


where_the_gpu_wins.mistakes = {
    "Each device has its own overhead and its own cost per token: where the two lines meet, both "
    "differences count, that of the overheads and that of the costs.": partial(
        ahead, overheads=add
    ),
    "Compare the costs per token by their difference, not by their sum.": partial(ahead, costs=add),
    "Negative: one of the two differences has the wrong sign.": partial(
        ahead, overheads=lambda gpu, cpu: cpu - gpu, least=-math.inf
    ),
    "That is the time at which the lines meet. How many tokens is it?": lambda cpu, gpu: (
        least_squares(cpu)[0] + least_squares(cpu)[1] * ahead(cpu, gpu)
    ),
    "With few tokens the CPU is ahead here: its overhead is smaller. Is the overhead in your fit, "
    "and has each difference its right sign?": partial(
        ahead, fit=partial(least_squares, proportional=True)
    ),
    "With many tokens the GPU is ahead here: it needs less time per token. Are the devices "
    "swapped, or overhead and cost (what does your fit return "
    "first)?": lambda cpu, gpu: ahead(gpu, cpu),
    "The line goes through the first and the last point, and the others are not heard.": partial(
        ahead, fit=lambda points: least_squares([points[0], points[-1]])
    ),
    "The points that one device has more than the other are lost.": lambda cpu, gpu: ahead(
        cpu[: len(gpu)], gpu[: len(cpu)]
    ),
    "The line goes through the first two points only.": lambda cpu, gpu: ahead(cpu[:2], gpu[:2]),
}
