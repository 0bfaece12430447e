"""Answers to the exercises of notebook 6."""

import functools
import math
from fractions import Fraction

import numpy as np
import torch
from answers import right, wrong
from torch import nn
from torch.overrides import TorchFunctionMode

import exercise_checks as check
from gpt2_helpers import GPT2Config, forward_flops

# --------------------------------------------------------------- 1: one token at a time

right(check.tokens_per_second_at_most)(3200)
right(check.tokens_per_second_at_most)(1.6e12 / (4 * (124_439_808 - 786_432)))  # without wpe
right(check.tokens_per_second_at_most)(np.int64(3214))
wrong(check.tokens_per_second_at_most, "How many has a float32 number?")(12_900)
wrong(check.tokens_per_second_at_most, "a 16-bit format")(1.6e12 / (2 * 124.4e6))
wrong(check.tokens_per_second_at_most, "not in bits")(402)
wrong(check.tokens_per_second_at_most, "counts the table of tokens twice")(2450)
wrong(check.tokens_per_second_at_most, "That reads the blocks only")(4704)
wrong(check.tokens_per_second_at_most, "That is the limit that arithmetic sets")(
    19.5e12 / forward_flops(GPT2Config(), 1, 1)
)
wrong(check.tokens_per_second_at_most, "arithmetic in bfloat16")(312e12 / (2 * 124e6))
wrong(check.tokens_per_second_at_most, "How many fit into a second?")(0.00031)
wrong(check.tokens_per_second_at_most, "in milliseconds")(0.31)
wrong(check.tokens_per_second_at_most, "not once for 1024")(3.3e6)
wrong(check.tokens_per_second_at_most, "A terabyte")(3.2)
wrong(check.tokens_per_second_at_most, "Write down the bytes")(1000)

# ----------------------------------------------------------------- 2: a counter with hooks


def count_flops(
    model,
    *inputs,
    modules=lambda model: model.modules(),
    kinds=nn.Linear,
    flops=lambda layer, X, Y: 2 * X[..., 0].numel() * layer.weight.numel(),
    once=None,  # count a layer once for each value of this key
    remove=lambda model, handles: [handle.remove() for handle in handles],
    always=True,
    hide=False,
    start=0,
):
    """The solution with switches for the usual mistakes."""
    total, seen = [start], set()

    def hook(layer, given, Y):
        key = once(layer) if once else len(seen)
        if key not in seen:
            seen.add(key)
            total.append(flops(layer, given[0], Y))

    handles = [m.register_forward_hook(hook) for m in modules(model) if isinstance(m, kinds)]
    try:
        model(*inputs)
    except ValueError:
        if always:
            remove(model, handles)
        if not hide:
            raise
    else:
        remove(model, handles)
    return sum(total)


def switched(**switches):
    return functools.partial(count_flops, **switches)


right(check.flops_by_hooks)(lambda model, *inputs: count_flops(model, *inputs))


@right(check.flops_by_hooks)
def by_hooks_before_the_layers(model, *inputs):
    total = torch.zeros((), dtype=torch.int64)

    def hook(layer, given):
        total.add_(2 * math.prod(given[0].shape) * layer.out_features)

    handles = {name: module.register_forward_pre_hook(hook)
               for name, module in model.named_modules() if type(module) is nn.Linear}  # fmt: skip
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles.values():
            handle.remove()
    return total


@right(check.flops_by_hooks)
def without_hooks(model, *inputs):
    class Counter(TorchFunctionMode):
        total = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is nn.functional.linear:
                Counter.total += 2 * args[0].numel() * args[1].shape[0]
            return function(*args, **(kwargs or {}))

    with Counter():
        model(*inputs)
    return float(Counter.total)


wrong(check.flops_by_hooks, "A multiply-add counts as two")(
    switched(flops=lambda layer, X, Y: X.numel() * layer.out_features)
)
wrong(check.flops_by_hooks, "The bias is in it")(
    switched(flops=lambda layer, X, Y: 2 * X.numel() * layer.out_features + Y.numel())
)
wrong(check.flops_by_hooks, "That is the number of parameters")(
    lambda model, *inputs: sum(p.numel() for p in model.parameters())
)
wrong(check.flops_by_hooks, "the number of tokens is missing")(
    switched(flops=lambda layer, X, Y: 2 * layer.weight.numel())
)
wrong(check.flops_by_hooks, "counts the first axis only")(
    switched(flops=lambda layer, X, Y: 2 * len(X) * layer.weight.numel())
)
wrong(check.flops_by_hooks, "counts the last axis of tokens only")(
    switched(flops=lambda layer, X, Y: 2 * X.shape[-2] * layer.weight.numel())
)
wrong(check.flops_by_hooks, "is a token")(
    switched(flops=lambda layer, X, Y: 2 * math.prod(X.shape[:-1][:2]) * layer.weight.numel())
)
wrong(check.flops_by_hooks, "Is the model itself")(
    switched(modules=lambda model: [m for child in model.children() for m in child.modules()])
)
wrong(check.flops_by_hooks, "Which method of a module")(
    switched(modules=lambda model: [model, *model.children()])
)
wrong(check.flops_by_hooks, "you count it once")(switched(once=id))
wrong(check.flops_by_hooks, "A shared weight saves memory")(
    switched(once=lambda layer: id(layer.weight) if layer.bias is None else object())
)


@wrong(check.flops_by_hooks, "never runs, and you count it")
def from_the_structure(model, *inputs):
    X = inputs[0]
    tokens = X[..., 0].numel() if X.is_floating_point() else X.numel()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(2 * tokens * layer.in_features * layer.out_features for layer in layers)


wrong(check.flops_by_hooks, "The embedding is counted. It looks up rows")(
    switched(
        kinds=(nn.Linear, nn.Embedding),
        flops=lambda layer, X, Y: 2 * Y[..., 0].numel() * layer.weight.numel(),
    )
)
wrong(check.flops_by_hooks, "every run counts twice")(
    switched(modules=lambda model: [m for _, m in model.named_modules(remove_duplicate=False)])
)
wrong(check.flops_by_hooks, "Every number of the input is counted as a token")(
    switched(flops=lambda layer, X, Y: 2 * X.numel() * layer.weight.numel())
)
wrong(check.flops_by_hooks, "in no Linear layer")(
    lambda model, *inputs: (
        count_flops(model, *inputs)
        + sum(490 * 2 for m in model.modules() if isinstance(m, check.Scores))
    )
)
wrong(check.flops_by_hooks, "does the model run twice, or")(
    lambda model, *inputs: 2 * count_flops(model, *inputs)
)


@wrong(check.flops_by_hooks, "The model runs 2 times in one call")
def warms_up(model, *inputs):
    if isinstance(model, check.Kept):
        model(*inputs)
    return count_flops(model, *inputs)


@wrong(check.flops_by_hooks, "let yours return nothing")
def a_hook_that_returns(model, *inputs):
    layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
    hook = layer.register_forward_hook(lambda module, given, made: 0 * made)
    try:
        return count_flops(model, *inputs)
    finally:
        hook.remove()


@wrong(check.flops_by_hooks, "or raises another in its")
def another_error(model, *inputs):
    try:
        return count_flops(model, *inputs)
    except ValueError:
        raise RuntimeError("the model failed") from None


wrong(check.flops_by_hooks, "takes 2 positional arguments but 3 were given")(
    lambda model, X: count_flops(model, X)
)
wrong(check.flops_by_hooks, "Your hooks stay on the model")(
    switched(remove=lambda model, handles: None)
)
wrong(check.flops_by_hooks, "Remove your own hooks only")(
    switched(remove=lambda model, handles: [m._forward_hooks.clear() for m in model.modules()])
)
wrong(check.flops_by_hooks, "your hooks stay on it")(switched(always=False))
wrong(check.flops_by_hooks, "your function hides it")(switched(hide=True))
wrong(check.flops_by_hooks, "Attention's own two products")(
    lambda model, *inputs: (
        forward_flops(model.config, *inputs[0].shape)
        if hasattr(model, "config")
        else count_flops(model, *inputs)
    )
)


@wrong(check.flops_by_hooks, "Begin at 0 each time")
def never_begins_again(model, *inputs, before={}):  # noqa: B006
    before[model] = count_flops(model, *inputs, start=before.get(model, 0))
    return before[model]


# ------------------------------------------------------------- 3: more than the chip can do


def mfu(config, B, T, seconds, peak, work=forward_flops, times=1, without=None):
    """The solution with switches for the usual mistakes."""
    return times * work(config, B, T) / seconds / peak if peak else without


@right(check.mended_mfu)
def from_the_sizes(config, B, T, seconds, peak):
    if peak is None:
        return None
    weights = 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd
    pairs = config.n_layer * T * config.n_embd
    return torch.tensor((2 * weights + 4 * pairs) * B * T / (seconds * peak), dtype=torch.float64)


@right(check.mended_mfu)
def text_by_text(config, B, T, seconds, peak):
    return peak and sum(forward_flops(config, 1, T) for _ in range(B)) / (seconds * peak)


def working(work, **switches):
    return functools.partial(mfu, work=work, **switches)


def without_attention(config, B, T):
    return B * forward_flops(config, 1, T) - 4 * config.n_layer * B * T * T * config.n_embd


wrong(check.mended_mfu, "The masked half of attention is left out")(
    working(
        lambda config, B, T: (
            forward_flops(config, B, T) - 2 * config.n_layer * B * T * T * config.n_embd
        )
    )
)
wrong(check.mended_mfu, "It is rounded")(
    lambda *given: given[-1] and round(forward_flops(*given[:3]) / given[3] / given[4], 2)
)
wrong(check.mended_mfu, "That divides by 312e12")(
    lambda *given: given[-1] and forward_flops(*given[:3]) / given[3] / 312e12
)
wrong(check.mended_mfu, "Use the T that is given")(
    working(lambda config, B, T: forward_flops(config, B, 1024))
)
wrong(check.mended_mfu, "As the suspect")(
    working(lambda config, B, T: forward_flops(config, 1, B * T))
)
wrong(check.mended_mfu, "in percent")(functools.partial(mfu, times=100))
wrong(check.mended_mfu, "the work of a training step")(functools.partial(mfu, times=3))
wrong(check.mended_mfu, "The two products of attention are missing")(working(without_attention))
wrong(check.mended_mfu, "Now no token meets any other")(
    working(lambda *sizes: without_attention(*sizes) if sizes[1] > 1 else forward_flops(*sizes))
)
wrong(check.mended_mfu, "Each token meets itself only")(
    working(
        lambda config, B, T: (
            B * T * forward_flops(config, 1, 1) if B > 1 else forward_flops(config, 1, T)
        )
    )
)
wrong(check.mended_mfu, "B and T are swapped")(
    working(
        lambda config, B, T: forward_flops(config, T, B) if B > 1 else forward_flops(config, B, T)
    )
)
wrong(check.mended_mfu, "one of the eight texts")(
    working(lambda config, B, T: forward_flops(config, 1, T))
)
wrong(check.mended_mfu, "counted twice")(
    working(lambda config, B, T: B * forward_flops(config, B, T))
)
wrong(check.mended_mfu, "Use the config that is given")(
    working(lambda config, B, T: forward_flops(GPT2Config(), B, T))
)
wrong(check.mended_mfu, "Without a peak there is no MFU")(functools.partial(mfu, without=0.0))
wrong(check.mended_mfu, "Your code raised TypeError")(
    lambda config, B, T, seconds, peak: forward_flops(config, B, T) / seconds / peak
)

# ------------------------------------------------------------------ 4: crossing the ridge


def crossing(n_in, n_out, ridge, size, factor=2, moved=None, bits=None, limit=True):
    """The solution with switches for the usual mistakes."""
    size = bits or size
    each = n_in + n_out if moved is None else moved(n_in, n_out)
    left = factor * n_in * n_out - ridge * size * each
    return ridge * size * n_in * n_out / left if left > 0 or not limit else math.inf


@right(check.crossing_the_ridge)
def by_fractions(n_in, n_out, ridge, size):
    weights = n_in * n_out
    slope = Fraction(2, size) - Fraction(ridge) * Fraction(n_in + n_out, weights)
    return Fraction(ridge) / slope if slope > 0 else float("inf")


@right(check.crossing_the_ridge)
def by_looking_for_it(n_in, n_out, ridge, size):
    N = 1
    while 2 * n_in * n_out * N / size / (n_in * n_out + N * (n_in + n_out)) < ridge:
        N += 1
        if N > 100_000:
            return np.inf
    return N


right(check.crossing_the_ridge)(crossing)


def switched_crossing(**switches):
    return functools.partial(crossing, **switches)


wrong(check.crossing_the_ridge, "must be moved, too")(
    switched_crossing(moved=lambda n_in, n_out: 0)
)
wrong(check.crossing_the_ridge, "counts as two FLOPs")(switched_crossing(factor=1))
wrong(check.crossing_the_ridge, "only one is counted")(
    switched_crossing(moved=lambda n_in, n_out: n_out)
)
wrong(check.crossing_the_ridge, "one byte for each number")(switched_crossing(bits=1))
wrong(check.crossing_the_ridge, "As in float32")(switched_crossing(bits=4))
wrong(check.crossing_the_ridge, "(n_in = 768, n_out = 3072, ridge = 200, bytes_per_number = 4)")(
    switched_crossing(moved=lambda n_in, n_out: 2 * n_in)
)


@wrong(check.crossing_the_ridge, "The bias is counted")
def with_the_bias(n_in, n_out, ridge, size):
    left = 2 * n_in * n_out - ridge * size * (n_in + n_out)
    return ridge * size * (n_in * n_out + n_out) / left if left > 0 else math.inf


def guarded(guard):
    """The right formula with a limit of its own."""
    return lambda n_in, n_out, ridge, size: (
        math.inf if ridge >= guard(n_in, n_out, size) else crossing(n_in, n_out, ridge, size)
    )


wrong(check.crossing_the_ridge, "You return infinity, and this layer does reach")(
    guarded(lambda n_in, n_out, size: 256)
)
wrong(check.crossing_the_ridge, "You return infinity, and this layer does reach")(
    guarded(lambda n_in, n_out, size: 2 * n_in * n_out / (n_in + n_out) / 4)
)
wrong(check.crossing_the_ridge, "You return infinity, and this layer does reach")(
    lambda n_in, n_out, ridge, size: crossing(n_in, n_out, ridge, 8 * size)  # bits
)
for limit in (lambda a, b, size: (a + b) / 2 / size, lambda a, b, size: max(a, b) / size):
    wrong(check.crossing_the_ridge, "stays under 320")(
        lambda *given, limit=limit: (
            math.inf
            if given[2] >= limit(*given[:2], given[3])
            else abs(crossing(*given, limit=False))
        )
    )
wrong(check.crossing_the_ridge, "what never happens is infinity")(
    lambda *given: crossing(*given) if crossing(*given) < math.inf else None
)
wrong(check.crossing_the_ridge, "cannot be negative")(switched_crossing(limit=False))
wrong(check.crossing_the_ridge, "stays under 600, however many")(
    lambda *given: crossing(*given) if crossing(*given) < math.inf else 10**6
)
wrong(check.crossing_the_ridge, "when called with 1024, 1024, 256, 4")(
    lambda *given: crossing(*given, limit=False) if given[2] < 300 else crossing(*given)
)
wrong(check.crossing_the_ridge, "stays under 256, however many")(
    lambda *given: crossing(*given) if given[2] != 256 else 0.0
)
wrong(check.crossing_the_ridge, "At 4,096.00 tokens the layer has")(
    lambda *given: min(crossing(*given), 4096) if crossing(*given) < math.inf else math.inf
)
