"""The checks of notebook 6, the timing lab, continued, and the mistakes they know."""

import copy
import math
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpt2_helpers import GPT2, GPT2Config, forward_flops, parameter_counts

from . import (
    Mistake,
    a_kind,
    call,
    call_or_none,
    exercise,
    expect,
    expect_number,
    noise,
    number,
    number_or_never,
)

# --------------------------------------------------------------- 1: one token at a time

COUNTS = parameter_counts(GPT2Config())
ALL_WEIGHTS = sum(COUNTS.values())


def passes(each=4, weights=ALL_WEIGHTS, per_second=1.6e12):
    """How often per second all weights can be read, of `each` bytes (or used, at `each` FLOPs)."""
    return per_second / (each * weights)


@exercise
def tokens_per_second_at_most(tokens):
    """GPT-2 small, one token at a time, float32, weights from memory at 1.6 TB/s."""
    yield "tokens per second, at most"
    expect_number(
        tokens,
        passes(),
        "Write down the bytes of all weights, and how often they can be read in one second.",
        tolerance=0.025,
    )


tokens_per_second_at_most.mistakes = {
    "One byte for each weight? How many has a float32 number?": passes(each=1),
    "Two bytes for each weight are those of a 16-bit format.": passes(each=2),
    "The speed of memory is given in bytes, not in bits.": passes(each=32),
    "That counts the table of tokens twice. The unembedding is the same table, and it lies in "
    "memory once.": passes(weights=ALL_WEIGHTS + COUNTS["wte"]),
    "That reads the blocks only. To score the next token takes the unembedding, too, which is the "
    "table of tokens.": passes(weights=COUNTS["blocks"]),
    "That is the limit that arithmetic sets. With one token at a time another one is lower: see "
    "the roofline, at N = 1.": passes(each=2, per_second=19.5e12),
    "That is the limit of arithmetic in bfloat16. How often can the weights be read?": passes(
        each=2, per_second=312e12
    ),
    "That is the time for one token, in seconds. How many fit into a second?": 1 / passes(),
    "That is the time for one token, in milliseconds.": 1e3 / passes(),
    "One token at a time: the weights are read again for each, not once for 1024.": 1024 * passes(),
    "A terabyte is 10 to the power of 12 bytes.": passes() / 1e3,
    "A terabyte is 10 to the power of 12 bytes, not 2 to the power of 40.": passes() * 2**40 / 1e12,
}

# ----------------------------------------------------------------- 2: a counter with hooks


class Model(nn.Module):
    """A model that computes `run(layers, *inputs)`."""

    def __init__(self, run, *layers):
        super().__init__()
        self.run, self.layers = run, nn.ModuleList(layers)

    def forward(self, *inputs):
        return self.run(self.layers, *inputs)


def fail(layers, X):
    raise ValueError("this model fails on purpose")


def hooks_on(model):
    """The number of forward hooks on all modules of a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@exercise
def flops_by_hooks(count):
    """count(model, *inputs): FLOPs of all Linear layers that run, 2 for a multiply-add."""

    def expect_flops(model, inputs, right, otherwise):
        expect_number(
            count,
            right,
            otherwise,
            tolerance=1e-9,
            observe=lambda answer: number(call(answer, copy.deepcopy(model), *inputs)),
        )

    yield "one layer, one token"
    otherwise = (
        "The input is [1, 30], the layer has 30 inputs and 7 outputs: one multiply-add for each of "
        "its weights and each token."
    )
    expect_flops(nn.Linear(30, 7), [noise(1, 30)], 2 * 30 * 7, otherwise)

    yield "the model runs once, and its results stay as they are"
    layer, X, made = nn.Linear(4, 6), noise(3, 4), []
    keeping = Model(lambda layers, X: made.append(layers[0](X)) or made[-1], layer)
    first = number(call(count, keeping, X))
    if made and not (isinstance(made[0], torch.Tensor) and torch.equal(made[0], layer(X))):
        raise Mistake(
            "While your hooks are there the model computes something else. What a hook returns "
            "takes the place of the layer's output: let yours return nothing."
        )
    if len(made) > 1:
        raise Mistake(f"The model runs {len(made)} times in one call; it should run once.")
    if number(call(count, keeping, X)) != first:
        raise Mistake(
            "A second count of the same model gives another number. Begin at 0 each time."
        )

    yield "any number of tokens, in any shape"
    for shape, tokens in [((2, 5, 30), 10), ((30,), 1), ((2, 3, 4, 30), 24)]:
        otherwise = f"The input has the shape {list(shape)}: every row of 30 numbers is a token."
        expect_flops(nn.Linear(30, 7), [noise(*shape)], 2 * 30 * 7 * tokens, otherwise)

    yield "layers inside layers, and others that cost nothing"
    scores = Model(lambda layers, X: X @ X.mT)  # a product that no Linear layer makes
    inner = nn.Sequential(nn.Linear(8, 3), nn.GELU(), nn.Sequential(nn.Linear(3, 5), scores))
    model = nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8), inner)
    ids = torch.arange(14).view(2, 7) % 10  # [B=2, T=7]
    otherwise = "Count the Linear layers, however deep they sit, and nothing else."
    expect_flops(model, [ids], 2 * 14 * (24 + 15), otherwise)

    yield "a layer that does not run costs nothing"
    model = Model(lambda layers, X: layers[0](X), nn.Linear(4, 6), nn.Linear(6, 50))
    expect_flops(model, [noise(3, 4)], 2 * 3 * 24, "Only the first of the two layers runs.")

    yield "a layer that runs three times costs three times as much"
    X = noise(2, 6)
    model = Model(lambda layers, X: layers[0](layers[0](layers[0](X))), nn.Linear(6, 6))
    expect_flops(model, [X], 3 * 2 * 2 * 36, "The only layer of this model runs three times.")

    yield "a layer that sits in two places gets one hook"
    layer = nn.Linear(6, 6)
    model = nn.Sequential(nn.Sequential(layer), nn.Sequential(layer))
    otherwise = "One layer sits in two places of this model, and runs twice."
    expect_flops(model, [X], 2 * 2 * 2 * 36, otherwise)

    yield "two layers with one weight both count"
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[1].weight = model[0].weight
    expect_flops(model, [X], 2 * 2 * 2 * 36, "Two layers run, with the same weight.")

    yield "a model with two inputs"
    layers = [nn.Linear(3, 5), nn.Linear(7, 5)]
    model = Model(lambda layers, X, Y: layers[0](X) + layers[1](Y), *layers)
    expect_flops(model, [noise(4, 3), noise(4, 7)], 2 * 4 * (15 + 35), "Both layers run.")

    yield "the hooks are gone afterwards, and those of others are still there"
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[0].register_forward_hook(lambda module, inputs, output: None)
    call(count, model, X)
    if hooks_on(model) > 1:
        raise Mistake(
            "Your hooks stay on the model, and will count in every later pass. Keep what "
            "`register_forward_hook` returns, and call its `remove`."
        )
    if hooks_on(model) < 1:
        raise Mistake("The model had a hook already, and it is gone. Remove your own hooks only.")

    yield "also if the model fails"
    model, raised = nn.Sequential(nn.Linear(6, 6), Model(fail)), ""
    try:
        call(count, model, X)
    except Mistake as mistake:
        raised = str(mistake)
    if "fails on purpose" not in raised:
        raise Mistake(
            "The model raised an error, and your function hides it, or raises another in its "
            "place. Let it pass as it is."
        )
    if hooks_on(model):
        raise Mistake(
            "When the model raises an error, your hooks stay on it. `try: … finally: …` removes "
            "them in any case."
        )

    yield "a GPT-2 in small, against the formula of section 1"
    sizes = GPT2Config(vocab_size=50, n_positions=16, n_embd=12, n_layer=2, n_head=3)
    B, T, attention = 2, 9, 2 * 9 * 4 * 2 * 9 * 12  # B T times 4 L T E, not in Linear layers
    right = forward_flops(sizes, B, T) - attention
    ids = torch.arange(B * T).view(B, T)
    expect_flops(GPT2(sizes), [ids], right, "Eight layers in two blocks, and the unembedding.")


def count_flops(
    model,
    *inputs,
    modules=nn.Module.modules,
    kinds=nn.Linear,
    tokens=lambda X: X[..., 0].numel(),
    each=2,  # FLOPs of each weight for a token
    bias=0,
    once=lambda layer: object(),  # a layer counts once for each value of this key
):
    """The FLOPs of all Linear layers that run, with switches for the usual mistakes."""
    counted = {}

    def hook(layer, given, made):
        flops = each * layer.weight.numel() + bias * layer.weight.shape[0]
        counted.setdefault(once(layer), tokens(given[0]) * flops)

    handles = [m.register_forward_hook(hook) for m in modules(model) if isinstance(m, kinds)]
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return sum(counted.values())


def counting(**mistake):
    """`count_flops` with a mistake."""
    return partial(count_flops, **mistake)


def tokens_or_ids(X):
    """The number of tokens in a layer's input: rows of numbers, or ids."""
    return X[..., 0].numel() if X.is_floating_point() else X.numel()


def from_the_structure(model, X, *others):
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(2 * tokens_or_ids(X) * layer.weight.numel() for layer in layers)


def all_products(model, *inputs):
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


flops_by_hooks.mistakes = {
    "A multiply-add counts as two.": counting(each=1),
    "The bias is in it. Here it does not count.": counting(bias=1),
    "That is the number of parameters.": lambda model, *inputs: sum(
        p.numel() for p in model.parameters()
    ),
    "Nothing was counted. Is the model itself, a single layer here, among the modules that you "
    "look at? And is it called, `model(...)`? Its `forward` calls no "
    "hooks.": counting(modules=lambda model: list(model.modules())[1:]),
    "Every number of the input is counted as a token. The input is [1, 30] here, one row of n_in "
    "numbers; how many axes stand in front varies.": counting(tokens=torch.numel),
    "Exactly twice as many: does the model run twice, or is the 2 there twice?": counting(each=4),
    "Every token uses all weights again: the number of tokens is missing.": counting(
        tokens=lambda X: 1
    ),
    "That counts the first axis only. Which axes of the input are tokens?": counting(tokens=len),
    "That counts the last axis of tokens only. All but the very last axis are tokens.": counting(
        tokens=lambda X: X.shape[-2]
    ),
    "The embedding is counted. It looks up rows, which is no arithmetic.": counting(
        kinds=(nn.Linear, nn.Embedding), tokens=tokens_or_ids
    ),
    "The embedding or the LayerNorm is counted, with each number that goes through.": counting(
        kinds=(nn.Linear, nn.LayerNorm)
    ),
    "Nothing was counted: the layers sit deeper in the model. Which method of a module gives all "
    "modules inside it?": counting(modules=lambda model: [model, *model.children()]),
    "Containers are counted as well as what is in them.": counting(
        modules=lambda model: [m for outer in model.modules() for m in (outer, *outer.children())]
    ),
    "Each layer has an input of its own. That takes the tokens from the model's "
    "input.": lambda model, X: count_flops(model, X, tokens=lambda _: X[..., 0].numel()),
    "A product that is in no Linear layer is counted as well.": all_products,
    "The second layer of this model never runs, and you count it.": from_the_structure,
    "The layer ran three times, and you count it once. What does a hook see?": counting(once=id),
    "One layer sits in two places of this model, and runs twice. With a hook for each place every "
    "run counts twice.": counting(
        modules=lambda model: dict(model.named_modules(remove_duplicate=False)).values()
    ),
    "A shared weight saves memory, not arithmetic: both layers compute.": counting(
        once=lambda layer: id(layer.weight) if layer.bias is None else object()
    ),
    "Attention's own two products are no Linear layers.": lambda model, *inputs: (
        forward_flops(model.config, *inputs[0].shape)
        if isinstance(model, GPT2)
        else count_flops(model, *inputs)
    ),
}

# ------------------------------------------------------------- 3: more than the chip can do


def share(config, B, T, seconds, peak, meets=lambda B, T: T, times=1, finish=float):
    """The MFU, where each token meets `meets(B, T)` in attention, with switches for mistakes."""
    E, L, V = config.n_embd, config.n_layer, config.vocab_size
    work = 2 * B * T * (12 * L * E**2 + V * E + 2 * L * meets(B, T) * E)
    return finish(times * work / seconds / peak) if peak else None


@exercise
def mended_mfu(mfu):
    """mfu(config, B, T, seconds, peak): a share of the peak, None if there is no peak."""

    def expect_share(config, B, T, otherwise, peak=1e12):
        expect_number(
            mfu,
            share(config, B, T, 0.5, peak),
            otherwise,
            tolerance=1e-6,
            observe=lambda answer: number(call(answer, config, B, T, 0.5, peak)),
        )

    yield "one text, where the suspect is right"
    otherwise = "With one text the suspect is right, and yours is not: what else did you change?"
    expect_share(GPT2Config(), 1, 1024, otherwise)

    yield "eight texts"
    otherwise = "Count the tokens, and for each the tokens that it meets in attention."
    expect_share(GPT2Config(), 8, 100, otherwise)

    yield "another model"
    other = GPT2Config(vocab_size=1000, n_embd=96, n_layer=3)
    otherwise = (
        "With other sizes the number is wrong. Does anything come from the notebook's variables?"
    )
    expect_share(other, 3, 64, otherwise, peak=1e7)

    yield "no peak, no MFU"
    if (got := call_or_none(mfu, GPT2Config(), 8, 100, 0.5, None)) is not None:
        raise Mistake(f"Without a peak there is no MFU, None; you return {a_kind(got)}.")


mended_mfu.mistakes = {
    "That is in percent. Return the share, between 0 and 1.": partial(share, times=100),
    "The two products of attention are missing.": partial(share, meets=lambda B, T: 0),
    "That is the work of a training step; this is a forward pass.": partial(share, times=3),
    "The masked half of attention is left out. By convention it counts, as in section 3; the "
    "suspect's mistake is another.": partial(share, meets=lambda B, T: T / 2),
    "A multiply-add counts as two FLOPs.": partial(share, times=1 / 2),
    "The peak is missing.": lambda *given: share(*given[:4], 1),
    "That divides by 312e12, whatever the peak is. Use the one that is given.": lambda *given: (
        share(*given[:4], 312e12)
    ),
    "As the suspect: each token meets those of all texts in attention. How many tokens does it "
    "really meet?": partial(share, meets=lambda B, T: B * T),
    "Now no token meets any other: the two products of attention are missing.": partial(
        share, meets=lambda B, T: 0 if B > 1 else T
    ),
    "Each token meets itself only. How long is the text that it stands in?": partial(
        share, meets=lambda B, T: 1 if B > 1 else T
    ),
    "B and T are swapped: each token meets as many others as there are texts.": partial(
        share, meets=lambda B, T: B if B > 1 else T
    ),
    "That is the work of one of the eight texts.": lambda config, B, *given: share(
        config, 1, *given
    ),
    "The number of texts is counted twice.": lambda config, B, *given: share(
        config, B, *given, times=B
    ),
    "That takes every text for 1,024 tokens. Use the T that is "
    "given.": lambda config, B, T, *given: share(config, B, 1024, *given),
    "In attention that takes every text for 1,024 tokens. Use the T that is given.": partial(
        share, meets=lambda B, T: 1024
    ),
    "Those are the FLOPs of GPT-2 small. Use the config that is given.": lambda config, *given: (
        share(GPT2Config(), *given)
    ),
    "It is rounded; return it as it is.": partial(share, finish=lambda x: round(x, 2)),
    "More than 1 is cut off. Who would then see that something is wrong?": partial(
        share, finish=lambda x: min(x, 1.0)
    ),
}

# ------------------------------------------------------------------ 4: crossing the ridge


def tokens_at_ridge(n_in, n_out, ridge, size, factor=2, inputs=1, outputs=1, bias=0, limit=True):
    """The number of tokens at which a layer reaches the ridge, with switches for mistakes."""
    left = factor * n_in * n_out - ridge * size * (inputs * n_in + outputs * n_out)
    return ridge * size * (n_in + bias) * n_out / left if left > 0 or not limit else math.inf


@exercise
def crossing_the_ridge(crossing):
    """crossing(n_in, n_out, ridge, bytes_per_number): tokens at which a layer reaches the ridge."""

    def reached(answer, *layer):
        got = number_or_never(answer, *layer, never='infinity, `float("inf")`')
        if got < 0:
            raise Mistake(
                "A number of tokens cannot be negative. With ever more tokens the intensity comes "
                "close to a highest value; what if the ridge lies above that?"
            )
        return got

    def expect_ridge(*layer):
        (n_in, n_out, ridge, size), right = layer, tokens_at_ridge(*layer)
        shown = f"(n_in = {n_in}, n_out = {n_out}, ridge = {ridge}, bytes_per_number = {size})"

        def intensity(N):
            return 2 * n_in * n_out * N / (size * (n_in * n_out + N * (n_in + n_out)))

        def tokens(answer):
            """The answer's number; `right` if it meets the ridge up to 0.2 %, so if rounded up."""
            if math.isinf(N := reached(answer, *layer)):
                raise Mistake(
                    f"You return infinity, and this layer does reach its ridge. {shown} When there "
                    "are so many tokens that the weights no longer count, what is the intensity "
                    "then?"
                )
            return right if math.isclose(intensity(N), ridge, rel_tol=2e-3) else N

        def otherwise(N):
            return (
                f"At {N:,.2f} tokens the layer has {intensity(N):.2f} FLOP per byte, and the ridge "
                f"lies at {ridge}. {shown} Count FLOPs and bytes as in section 4: the weights "
                "once, each token's input and output once."
            )

        expect(tokens, crossing, right, otherwise, tolerance=2e-3)

    def expect_never(*layer):
        n_in, n_out, ridge, size = layer
        otherwise = (
            f"With {n_in} inputs, {n_out} outputs and {size} bytes a number the intensity stays "
            f"under {ridge}, however many tokens there are. Where is your limit?"
        )
        expect(lambda answer: reached(answer, *layer), crossing, math.inf, otherwise)

    yield "a square layer in float32"
    expect_ridge(1024, 1024, 100, 4)

    yield "a layer that is not square"
    expect_ridge(768, 3072, 200, 4)
    expect_ridge(3072, 768, 200, 4)

    yield "a small layer"
    expect_ridge(12, 20, 1.5, 4)

    yield "another number format"
    expect_ridge(1024, 1024, 200, 2)
    expect_ridge(1024, 1024, 300, 2)

    yield "a ridge just under the highest intensity"
    expect_ridge(1024, 1024, 250, 4)

    yield "a ridge that no number of tokens reaches"
    expect_never(1024, 1024, 600, 4)
    expect_never(768, 3072, 320, 4)
    expect_never(1024, 1024, 600, 2)

    yield "a ridge at the highest intensity, which is never quite reached"
    expect_never(1024, 1024, 256, 4)


crossing_the_ridge.mistakes = {
    "The inputs and outputs are left out. They must be moved, too.": partial(
        tokens_at_ridge, inputs=0, outputs=0
    ),
    "A multiply-add counts as two FLOPs.": partial(tokens_at_ridge, factor=1),
    "Of inputs and outputs, only one is counted.": partial(tokens_at_ridge, inputs=0),
    "That moves one byte for each number.": lambda *layer: tokens_at_ridge(*layer[:3], 1),
    "The bias is counted. Leave it out.": partial(tokens_at_ridge, bias=1),
    "As in float32. Here a number has two bytes.": lambda *layer: tokens_at_ridge(*layer[:3], 4),
}
