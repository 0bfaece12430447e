"""Answers to the exercises of notebook 6."""

import contextlib
import math
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from answers import right, wrong
from torch import nn
from torch.overrides import TorchFunctionMode

import exercise_checks as check
from exercise_checks.timing_lab_limits import count_flops, share, tokens_at_ridge
from gpt2_helpers import forward_flops

# --------------------------------------------------------------- 1: one token at a time

right(check.tokens_per_second_at_most)(3200)
right(check.tokens_per_second_at_most)(1.6e12 / (4 * (124_439_808 - 786_432)))  # without wpe
right(check.tokens_per_second_at_most)(np.int64(3214))
wrong(check.tokens_per_second_at_most, "Write down the bytes")(1000)

# ----------------------------------------------------------------- 2: a counter with hooks

right(check.flops_by_hooks)(count_flops)


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


wrong(check.flops_by_hooks, "is a token")(
    partial(count_flops, tokens=lambda X: math.prod(X.shape[:-1][:2]))
)
wrong(check.flops_by_hooks, "takes 2 positional arguments but 3 were given")(
    lambda model, X: count_flops(model, X)
)


@wrong(check.flops_by_hooks, "The model runs 2 times in one call")
def warms_up(model, *inputs):
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


@wrong(check.flops_by_hooks, "Begin at 0 each time")
def never_begins_again(model, *inputs, before={}):  # noqa: B006
    before[model] = before.get(model, 0) + count_flops(model, *inputs)
    return before[model]


@wrong(check.flops_by_hooks, "Your hooks stay on the model")
def leaves_a_hook(model, *inputs):
    model.register_forward_hook(lambda *given: None)
    return count_flops(model, *inputs)


@wrong(check.flops_by_hooks, "Remove your own hooks only")
def removes_all(model, *inputs):
    total = count_flops(model, *inputs)
    for module in model.modules():
        module._forward_hooks.clear()
    return total


@wrong(check.flops_by_hooks, "your hooks stay on it")
def removes_at_the_end(model, *inputs):
    hook = model.register_forward_hook(lambda *given: None)
    total = count_flops(model, *inputs)
    hook.remove()
    return total


@wrong(check.flops_by_hooks, "your function hides it")
def no_error(model, *inputs):
    with contextlib.suppress(ValueError):
        return count_flops(model, *inputs)
    return 0


@wrong(check.flops_by_hooks, "or raises another in its")
def another_error(model, *inputs):
    try:
        return count_flops(model, *inputs)
    except ValueError:
        raise RuntimeError("the model failed") from None


# ------------------------------------------------------------- 3: more than the chip can do


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


@wrong(check.mended_mfu, "Your code raised TypeError")
def divides_by_none(config, B, T, seconds, peak):
    return forward_flops(config, B, T) / seconds / peak


wrong(check.mended_mfu, "Without a peak there is no MFU")(lambda *given: share(*given) or 0.0)

# ------------------------------------------------------------------ 4: crossing the ridge

right(check.crossing_the_ridge)(tokens_at_ridge)


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


def never(at_or_over, then=tokens_at_ridge):
    """Infinity from a ridge of `at_or_over(n_in, n_out, size)` on."""
    return lambda n_in, n_out, ridge, size: (
        math.inf if ridge >= at_or_over(n_in, n_out, size) else then(n_in, n_out, ridge, size)
    )


def in_place_of_infinity(instead):
    """`instead(n_in, n_out, ridge, size)` where the ridge is never reached."""
    return lambda *layer: instead(*layer) if math.isinf(N := tokens_at_ridge(*layer)) else N


without_limit = partial(tokens_at_ridge, limit=False)
for answer, message in [
    (
        partial(tokens_at_ridge, inputs=2, outputs=0),
        "(n_in = 768, n_out = 3072, ridge = 200, bytes_per_number = 4)",
    ),
    (never(lambda a, b, size: 256), "You return infinity, and this layer does reach"),
    (never(lambda a, b, size: a * b / (a + b) / 2), "You return infinity, and this layer does"),
    (lambda *layer: tokens_at_ridge(*layer[:3], 8 * layer[3]), "You return infinity"),  # bits
    (never(lambda a, b, size: (a + b) / 2 / size, lambda *g: abs(without_limit(*g))), "under 320"),
    (never(lambda a, b, size: max(a, b) / size, lambda *g: abs(without_limit(*g))), "under 320"),
    (in_place_of_infinity(lambda *layer: None), "what never happens is infinity"),
    (without_limit, "cannot be negative"),
    (in_place_of_infinity(lambda *layer: 10**6), "stays under 600, however many"),
    (lambda *g: (without_limit if g[2] == 256 else tokens_at_ridge)(*g), "1024, 1024, 256, 4"),
    (lambda *g: 0.0 if g[2] == 256 else tokens_at_ridge(*g), "stays under 256, however many"),
    (
        lambda *g: min(tokens_at_ridge(*g), 4096) if g[2] < 256 else tokens_at_ridge(*g),
        "At 4,096.00",
    ),
]:
    wrong(check.crossing_the_ridge, message)(answer)
