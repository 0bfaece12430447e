"""The checks that the exercises of the notebooks call, as `check.name(your_answer)`: the frame.

A check takes what you wrote and tests one mechanism after another, on inputs made so that only
that mechanism can fail. It prints what works, stops at the first thing that does not, and names the
likely cause. It never prints the answer. How the code is written makes no difference to it.

The checks of each notebook are a module of this package, written like this:

    @exercise
    def softmax_of_a_row(softmax):
        yield "numbers that sum to 1"
        expect_result(softmax, [row], F.softmax(row, 0), "Is each number divided by the sum?")

    softmax_of_a_row.mistakes = {
        "The exponentials are missing.": lambda row: row / row.sum(),
    }

The generator yields the name of a mechanism and then tests it. A mistake that students make is
written once, below its check, as a wrong answer with the message for whoever makes it: where an
answer is wrong, the frame runs the known mistakes on the same input, and the first one that has the
same result there, and was right up to there, names the cause. `python -m exercise_checks` prints
which mechanisms each check isolates.
"""

import contextlib
import functools
import linecache
import math
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import gpt2_helpers

NOT_THEIRS = [  # code that no reader wrote: packages, Python's own (in one folder), the series'
    "site-packages",
    "dist-packages",
    os.path.dirname(linecache.__file__) + os.sep,
    gpt2_helpers.__file__,
    os.path.dirname(__file__) + os.sep,
]


class Mistake(Exception):
    """What is wrong with an answer, in words for the reader."""


class NotAttempted(Exception):
    """The answer is still the placeholder."""


class Unexpected(Exception):
    """An answer whose result is not the right one; which mistake makes the same?"""

    def __init__(self, got, comparison, otherwise):
        self.got, self.comparison, self.otherwise = got, comparison, otherwise


@dataclass(frozen=True)
class Comparison:
    """What is looked at in an answer, `observe(answer)`, and what it should be."""

    observe: Callable
    right: object
    tolerance: float

    def is_met_by(self, answer):
        return alike(self.observe(answer), self.right, self.tolerance)


met = []  # the comparisons that the answer has met so far, in the check that is running


class exercise:  # noqa: N801 (used as a decorator)
    """A check, made of a generator that yields the name of each mechanism before it tests it."""

    def __init__(self, mechanisms):
        functools.update_wrapper(self, mechanisms)
        self.mechanisms = mechanisms
        self.mistakes = {}  # a message, and the wrong answer that it is for

    def __call__(self, *answers):
        """Print what works, and what is wrong with the first thing that does not."""
        tried, problem = [], None
        mechanisms = self.mechanisms(*answers)
        met.clear()
        try:
            if any(answer is None or answer is ... for answer in answers):
                raise NotAttempted("replace `None` by your answer")
            # The reader's random numbers stay theirs, and what they switched off is on again.
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                for name in mechanisms:
                    tried.append(name)
        except NotAttempted as reason:
            print(f"{self.__name__}: not attempted yet; {reason}, and run the cell again.")
            return
        except Mistake as mistake:
            problem = str(mistake)
        except Unexpected as unexpected:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                problem = self.cause(unexpected)
        except Exception as error:  # an answer so odd that the check itself trips over it
            problem = (
                f"The check cannot work with what you return ({type(error).__name__}: {error}). "
                "Is it of the kind that the exercise asks for?"
            )
        print(f"{self.__name__}:")
        for name in tried if problem is None else tried[:-1]:
            print(f"  ✓ {name}")
        print("Solved." if problem is None else f"  ✗ {tried[-1]}\n    {problem}")

    def cause(self, unexpected):
        """The message of the known mistake that gives the same result, or what else can be said."""
        got, probe = unexpected.got, unexpected.comparison
        right = probe.right
        for message, wrong_answer in self.mistakes.items():
            with contextlib.suppress(Exception):  # a mistake that fails on this input is another
                if alike(got, probe.observe(wrong_answer), probe.tolerance) and all(
                    earlier.is_met_by(wrong_answer) for earlier in met
                ):
                    return message
        if isinstance(right, torch.Tensor):
            if got.shape != right.shape:
                return f"The result has the shape {list(got.shape)}, not {list(right.shape)}."
            if got.isnan().any():
                return "The result contains nan. Is there a 0 / 0, or a row with nothing to sum?"
            if not unexpected.otherwise:
                place = ((got - right).abs() > probe.tolerance).nonzero()[0].tolist()
                return f"The result differs from the reference, first at the index {place}."
        otherwise = unexpected.otherwise or "The result differs from the reference."
        return otherwise(got) if callable(otherwise) else otherwise


# ------------------------------------------------------------- calling what a reader wrote


def tensors_in(value):
    """All tensors in a value: it may be one, a module, or a list, tuple or dict of them."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return list(value.parameters())
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def described(inputs):
    """The inputs of a call in words: shapes of tensors, plain numbers, the kind of all else."""
    parts = []
    for value in inputs:
        if isinstance(value, torch.Tensor):
            parts.append(f"tensor {list(value.shape)}")
        elif isinstance(value, (int, float, type(None))):
            parts.append(f"{value}")
        else:
            parts.append(type(value).__name__)
    return ", ".join(parts)


def call(function, *inputs, may_change=False):
    """What a reader's function (or class, or module) returns; Mistake if it goes wrong.

    It is a mistake to change a tensor of the inputs, unless `may_change`.
    """
    if not callable(function):
        raise Mistake(
            f"This check takes a function or a class, and got {a_kind(function)}. Pass its name, "
            "without calling it."
        )
    given = [t for t in tensors_in(inputs) if not (t.is_meta or may_change)]
    before = [tensor.detach().clone() for tensor in given]
    try:
        result = function(*inputs)
    except (Exception, SystemExit) as error:
        if isinstance(error, NotImplementedError) and not str(error):
            raise NotAttempted("replace `raise NotImplementedError` by your code") from None
        raise Mistake(what_was_raised(error, inputs)) from None
    for tensor, old in zip(given, before, strict=True):
        if tensor.shape != old.shape or not torch.equal(tensor.nan_to_num(), old.nan_to_num()):
            raise Mistake(
                f"Your code changes its input (of the shape {list(old.shape)}). Whoever calls it "
                "still needs that: work on a copy, or avoid operations in place."
            )
    if result is None:
        raise Mistake("Your code returns None. Is the `return` missing?")
    return result


def call_or_none(function, *inputs):
    """As `call`, where None may be an answer, too."""
    if not callable(function):
        call(function)  # which says so
    return call(lambda *given: [function(*given)], *inputs)[0]


def what_was_raised(error, inputs):
    text = str(error).strip().splitlines() or ["without a message"]
    message = f"Your code raised {type(error).__name__}: {text[0]}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not any(part in f.filename for part in NOT_THEIRS)]
    lines = [linecache.getline(f.filename, f.lineno).strip() for f in theirs]
    if any(lines):
        message += f"\n    in the line `{[line for line in lines if line][-1]}`"
    if isinstance(error, AttributeError) or (not theirs and isinstance(error, TypeError)):
        message += "\n    Does it take the arguments that the exercise names, in their order?"
    if "768" in text[0] and "768" not in described(inputs):
        message += "\n    Is something of the notebook's used, in place of what is passed in?"
    return message + (f"\n    when called with {described(inputs)}." if inputs else "")


def a_kind(value):
    return f"a value of type {type(value).__name__}"


# ------------------------------------------------------------------------ comparing answers


def alike(a, b, tolerance):
    """Are two results equal up to rounding? Tensors relative to the largest entry of b."""
    if isinstance(b, torch.Tensor):
        a, b = a.detach().double(), b.detach().double()
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tolerance * scale)
    if isinstance(b, float):
        return math.isclose(a, b, rel_tol=tolerance)
    return a == b


def expect(observe, answer, right, otherwise=None, tolerance=1e-4):
    """Compare `observe(answer)` with `right`: a tensor, a float, or anything that == compares.

    Where they differ, the frame observes the known mistakes, too, and `otherwise` is the message
    (or makes it of what was observed) if none of them gives this result. Returns what was observed.
    `observe` may be called again when the check has gone on, so it must not use variables that are
    assigned anew later.
    """
    got = observe(answer)
    if isinstance(right, torch.Tensor):
        expect_kind(got, right)
    comparison = Comparison(observe, right, tolerance)
    if not alike(got, right, tolerance):
        raise Unexpected(got, comparison, otherwise)
    met.append(comparison)
    return got


def expect_result(function, inputs, right, otherwise=None, tolerance=1e-4):
    """As `expect`, of what `function(*inputs)` returns."""
    return expect(lambda answer: call(answer, *inputs), function, right, otherwise, tolerance)


def number(value):
    """The float of an int, a float or a tensor or array of one number; Mistake for all else."""
    if isinstance(value, torch.Tensor):
        value = value.detach()  # a float has no gradient, and torch would warn of it
    if not isinstance(value, (str, bool)):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return float(value)
    raise Mistake(f"The answer should be a plain number, and there is {a_kind(value)}.")


def expect_number(answer, right, otherwise, tolerance=0.01, observe=number):
    """As `expect`, of an answer that is a number, or of which `observe` makes one.

    `tolerance` is relative to its size, and the message begins with the number.
    """
    right, not_it = float(right), "{:,.10g} is not it. "
    return expect(observe, answer, right, lambda got: not_it.format(got) + otherwise, tolerance)


def expect_kind(got, like):
    """Mistake unless `got` is a tensor, and of the type and on the device of `like`."""
    if not isinstance(got, torch.Tensor):
        raise Mistake(f"The result should be a tensor, and is {a_kind(got)}.")
    if got.device != like.device:
        raise Mistake(
            f"The result is on the device {got.device}, the inputs are on {like.device}. Make new "
            "tensors where the data is: `device=X.device`."
        )
    if got.dtype != like.dtype:
        raise Mistake(f"The result is of type {got.dtype}; it should be {like.dtype}.")


def number_or_never(function, *inputs, never):
    """The number that a reader's function returns; the message for None says what means never."""
    got = call_or_none(function, *inputs)
    if got is None:
        raise Mistake(
            f"Your code returns None. Is the `return` missing? And what never happens is {never}."
        )
    return number(got)


def noise(*shape, seed=0):
    """Normal random numbers that are the same on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expect_gradient(function, right, X):
    """Mistake unless the gradient that `function` sends back to X is that of `right`."""
    X = X.clone().requires_grad_()
    weights, made = noise(*X.shape, seed=99), function(X)
    if not made.requires_grad:
        raise Mistake(
            "The result has no gradient: no .detach(), no torch.tensor(...), no numpy and no "
            "no_grad on the way, or it cannot learn."
        )
    try:
        gradient = torch.autograd.grad((made * weights).sum(), X, allow_unused=True)[0]
    except RuntimeError:
        raise Mistake(
            "The backward pass fails: an operation in place (`+=`, `[...] =`) has overwritten what "
            "it needs. Make a new tensor instead."
        ) from None
    if gradient is None:
        raise Mistake("No gradient arrives at the input: is it detached at the start?")
    if not alike(gradient, torch.autograd.grad((right(X) * weights).sum(), X)[0], 1e-4):
        raise Mistake("The result is right, its gradient is not: is a part of it detached?")


def drawn(module, seed=0):
    """The module with weights that hide nothing: no bias is 0, no gain is 1."""
    with torch.no_grad():
        for n, parameter in enumerate(module.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed + n) / parameter.shape[-1] ** 0.5)
    return module


from .attention import (
    attention_with_a_cache,
    attention_with_loops,
    mended_attention,
    weights_of_another_query,
)
from .embeddings import (
    mended_embedding,
    merges_of_words,
    numbers_with_a_gradient,
    sinusoidal_positions,
)
from .gpt2_model import (
    mended_growth,
    next_token_loss,
    parameters_of_a_larger_vocabulary,
    row_by_row_step,
)
from .timing_lab import (
    mended_runs,
    speed_of_five_steps,
    stopwatch_with_two_hands,
    where_the_gpu_wins,
)
from .timing_lab_limits import (
    crossing_the_ridge,
    flops_by_hooks,
    mended_mfu,
    tokens_per_second_at_most,
)
from .training import (
    clipped_gradients,
    loss_scaler,
    mended_accumulation,
    rise_of_the_floor,
)
from .transformer_block import (
    mended_block,
    parameters_of_an_xl_block,
    post_norm_block,
    root_mean_square_norm,
)
