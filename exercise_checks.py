"""The checks that the exercises of the notebooks call, as `check.name(your_answer)`.

A check takes what you wrote and tests one mechanism after another, on inputs made so that only
that mechanism can fail, against an independent reference. It prints what works, stops at the
first thing that does not, and names the likely cause. It never prints the answer. How the code
is written makes no difference to it: loops, einsum, a class or a function of your own.

| check | what it isolates, in this order |
|---|---|
| **1 · Embeddings** | |
| numbers_with_a_gradient | the count of rows in both tables |
| merges_of_words | one merge, occurrences, borders, gluing, *aaa*, tokens, space, story |
| mended_embedding | one text, the second text, full length, a text too long |
| sinusoidal_positions | one pair (E = 2), position 0, the frequencies, all positions |
| **2 · Attention** | |
| weights_of_another_query | softmax, normalisation, scale |
| attention_with_loops | value path (one token), mask, normalisation (zero query), scale, heads |
| mended_attention | one head (no split), causality, who owns which columns, two texts |
| attention_with_a_cache | first token, what is kept, second token, growth, five, two texts |
| **3 · The transformer block** | |
| parameters_of_an_xl_block | weights, biases, LayerNorms |
| root_mean_square_norm | size (mean 0), mean, token by token, gain, eps, width |
| mended_block | its parts, no MLP, no attention, both, gradient |
| post_norm_block | the two norms alone, no MLP, no attention, both, gradient |
| **4 · The whole model** | |
| parameters_of_a_larger_vocabulary | one count, its parts told apart |
| next_token_loss | ln V, target, shift, two texts, large logits (three ways), gradient |
| mended_growth | sizes, one Parameter, old rows, new rows, gradient of both uses, a move |
| row_by_row_step | loss, gradients (one text, three, tied), one pass, memory, adding up |
| **5 · The timing lab** | |
| speed_of_five_steps | factor three, five steps, work over time |
| stopwatch_with_two_hands | counts, clock and unit, waits at the end, before the start, spread |
| mended_runs | nothing computed early, last length, the others, any order |
| where_the_gpu_wins | exact lines, order, least squares, always, never, overtaken, parallel |
| **6 · The timing lab, continued** | |
| tokens_per_second_at_most | bytes, which weights, memory in place of arithmetic |
| flops_by_hooks | one token, one run, shapes, what counts, hooks removed, GPT-2 in small |
| mended_mfu | one text, eight texts (who attends to whom), another model, no peak |
| crossing_the_ridge | square layer, widths, bytes, the highest intensity |

Each check is a generator: it yields the name of a mechanism and then tests it. What goes wrong
before the next name is the problem of that mechanism. See `exercise`.
"""

import contextlib
import copy
import functools
import linecache
import math
import os
import re
import signal
import threading
import time
import traceback
import weakref
from _thread import interrupt_main
from collections import Counter
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

import gpt2_helpers
from gpt2_helpers import (
    GPT2,
    GPT2Config,
    MultiHeadAttention,
    TransformerBlock,
    forward_flops,
    get_text,
    parameter_counts,
)

SECONDS = 20  # that one call of a reader's function may take
NOT_THEIRS = [  # code that no reader wrote: packages, Python's own (in one folder), the series'
    "site-packages",
    "dist-packages",
    os.path.dirname(linecache.__file__) + os.sep,
    gpt2_helpers.__file__,
    __file__,
]


class Mistake(Exception):
    """What is wrong with an answer, in words for the reader."""


class NotAttempted(Exception):
    """The answer is still the placeholder."""


class OutOfTime(BaseException):
    """Not an Exception: an `except Exception` in the reader's loop must not swallow it."""


def exercise(mechanisms):
    """Make a check of a generator that yields the name of each mechanism before it tests it."""

    @functools.wraps(mechanisms)
    def check(*answers):
        tried, problem = [], None
        try:
            if any(answer is None or answer is ... for answer in answers):
                raise NotAttempted("replace `None` by your answer")
            # The reader's random numbers stay theirs, and what they switched off is on again.
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                for name in mechanisms(*answers):
                    tried.append(name)
        except NotAttempted as reason:
            print(f"{mechanisms.__name__}: not attempted yet; {reason}, and run the cell again.")
            return
        except Mistake as mistake:
            problem = str(mistake)
        except Exception as error:  # an answer so odd that the check itself trips over it
            problem = (
                f"The check cannot work with what you return ({type(error).__name__}: {error}). "
                "Is it of the kind that the exercise asks for?"
            )
        print(f"{mechanisms.__name__}:")
        for name in tried if problem is None else tried[:-1]:
            print(f"  ✓ {name}")
        print("Solved." if problem is None else f"  ✗ {tried[-1]}\n    {problem}")

    return check


# ------------------------------------------------------------- calling what a reader wrote


@contextlib.contextmanager
def time_limit(seconds):
    """Raise OutOfTime inside the block after so many seconds, on every operating system.

    The only way is the one in which a kernel is interrupted by hand, so it needs the main thread;
    elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    running, late = True, False
    before = signal.getsignal(signal.SIGINT)

    def ring():
        nonlocal late
        late = True
        interrupt_main()

    def on_interrupt(signum, frame):
        if running and late:
            raise OutOfTime
        if running and callable(before):  # by hand, or by the limit of a call around this one
            before(signum, frame)

    signal.signal(signal.SIGINT, on_interrupt)
    timer = threading.Timer(seconds, ring)
    timer.start()
    try:
        yield
    finally:
        running = False
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGINT, before)


def tensors_in(value):
    """All tensors in a value: it may be one, a module, or a list, tuple or dict of them."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return list(value.parameters())
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, (list, tuple, type({}.values()))):
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
        with time_limit(SECONDS):
            result = function(*inputs)
    except OutOfTime:
        raise Mistake(
            f"Your code was stopped after {SECONDS} seconds, on an input that needs a fraction of "
            "one. Does a loop never end?"
        ) from None
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


def same(a, b, tolerance=1e-4):
    """Equal up to rounding, and of equal shape? Differences count relative to the size of b."""
    scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tolerance * scale)


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


def expect_shape(got, like):
    if got.shape != like.shape:
        raise Mistake(f"The result has the shape {list(got.shape)}, not {list(like.shape)}.")


def expect(got, right, mistakes=None, otherwise=None, tolerance=1e-4):
    """Mistake unless `got` is the tensor `right`.

    `mistakes` maps a message to the wrong tensor by which it is recognised; `otherwise` is the
    message if none fits.
    """
    expect_kind(got, right)
    plain, right = got.detach().double(), right.detach().double()
    if same(plain, right, tolerance):
        return
    for message, wrong in (mistakes or {}).items():
        if same(plain, wrong.detach().double(), tolerance):
            raise Mistake(message)
    expect_shape(got, right)
    if plain.isnan().any():
        raise Mistake("The result contains nan. Is there a 0 / 0, or a row with nothing to sum?")
    if otherwise is None:
        place = ((plain - right).abs() > tolerance).nonzero()[0].tolist()
        where = f", first at the index {place}" if place else ""
        otherwise = f"The result differs from the reference{where}."
    raise Mistake(otherwise)


def number(value):
    """The float of an int, a float or a tensor or array of one number; Mistake for all else."""
    if isinstance(value, torch.Tensor):
        value = value.detach()  # a float has no gradient, and torch would warn of it
    if not isinstance(value, (str, bool)):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return float(value)
    raise Mistake(f"The answer should be a plain number, and there is {a_kind(value)}.")


def number_or_never(function, *inputs, never):
    """The number that a reader's function returns; the message for None says what means never."""
    got = call_or_none(function, *inputs)
    if got is None:
        raise Mistake(
            f"Your code returns None. Is the `return` missing? And what never happens is {never}."
        )
    return number(got)


def expect_number(got, right, mistakes, otherwise, tolerance=0.01):
    """Mistake unless `got` is `right`, relative to its size; the rest as in `expect`."""
    got = number(got)
    if math.isclose(got, right, rel_tol=tolerance):
        return
    for message, wrong in mistakes.items():
        if math.isclose(got, wrong, rel_tol=tolerance):
            raise Mistake(message)
    raise Mistake(f"{got:,.10g} is not it. {otherwise}")


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
    expect(
        gradient,
        torch.autograd.grad((right(X) * weights).sum(), X)[0],
        otherwise="The result is right, its gradient is not: is a part of it detached?",
    )


def drawn(module, seed=0):
    """The module with weights that hide nothing: no bias is 0, no gain is 1."""
    with torch.no_grad():
        for n, parameter in enumerate(module.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed + n) / parameter.shape[-1] ** 0.5)
    return module


# --------------------------------------------------------------------------- 1 · Embeddings


@exercise
def numbers_with_a_gradient(count):
    """Of wte and wpe together, after a loss on the seven tokens of section 4; E = 768."""
    E, V, n_positions = 768, 50257, 1024
    yield "the rows that take part, in both tables"
    expect_number(
        count,
        (6 + 7) * E,
        {
            "These are rows. Each row has E numbers.": 6 + 7,
            "Every lookup is counted, but a token that occurs twice has one row in `wte`, in which "
            "its gradients add up.": (7 + 7) * E,
            "The two places of the repeated token count once, but they are two positions: each has "
            "its own row in `wpe`.": (6 + 6) * E,
            "This is one table. The other one takes part in the sum too.": 6 * E,
            "This is one table, or one row for each token: two tables take part in the sum.": 7 * E,
            "`wpe` has rows for all positions, but only those that occur in the text are used.": (
                6 + n_positions
            )
            * E,
            "These are all numbers of a table. Most rows are not looked up.": V * E,
            "These are all numbers of both tables. Most rows are not looked up.": (V + n_positions)
            * E,
        },
        "Count the different rows that are looked up, first in `wte`, then in `wpe`. How many "
        "numbers is a row?",
        tolerance=1e-6,
    )


def expect_merges(learn_merges, words, right, mistakes=None, otherwise=None):
    """Mistake unless learn_merges(words, n) gives the n tokens `right`.

    `mistakes` maps a message to the last tokens by which it is recognised.
    """
    given = list(words)
    got = call(learn_merges, given, len(right))
    if not isinstance(got, (list, tuple)) or not all(isinstance(token, str) for token in got):
        raise Mistake("Return a list of strings: each new token, glued from its two parts.")
    if given != words:
        raise Mistake("Your code changes the list of words. Whoever calls it still needs that.")
    if len(got) != len(right):
        raise Mistake(
            f"n was {len(right)}, and the list has {len(got)}. Is the `return` in its place, "
            "behind the loop?"
        )
    if list(got) != right:
        for message, tokens in (mistakes or {}).items():
            if got[-1] in tokens:
                raise Mistake(message)
        raise Mistake(otherwise or f"With the words {sorted(set(words))} another token is made.")


def merges_by_replacing(words, n):
    """The first n merges, by search and replace in one string, each token between ‹ and ›."""
    text = "\n".join("".join(f"‹{letter}›" for letter in word) for word in words)
    merges = []
    for _ in range(n):
        pairs = Counter(re.findall("(?=(‹[^›]+›‹[^›]+›))", text))
        best = max(pairs, key=pairs.get)
        merges.append(best.replace("›‹", "")[1:-1])
        text = text.replace(best, f"‹{merges[-1]}›")
    return merges


@exercise
def merges_of_words(learn_merges):
    """learn_merges(words, n) returns the first n tokens that byte-pair encoding makes."""
    yield "one merge: the most frequent pair"
    expect_merges(
        learn_merges,
        ["cd", "ab", "xab"],
        ["ab"],
        {
            "This is the rarest pair, or the first one that comes along.": ["cd"],
            "This is a letter. Count pairs of neighbours.": ["a", "b", "c", "d", "x"],
            "The parts are glued in the wrong order.": ["ba", "dc"],
        },
        "Count how often every two neighbours stand together, and glue the pair with most.",
    )

    yield "every occurrence counts"
    expect_merges(
        learn_merges,
        ["xy"] * 5 + ["cab", "abe"],
        ["xy"],
        {"Every word counts once here. One that occurs five times counts five times.": ["ab"]},
    )
    expect_merges(
        learn_merges,
        ["abab", "abab", "xyz", "xyw", "xyv"],
        ["ab"],
        {"A pair that stands in a word twice counts twice.": ["xy"]},
    )

    yield "no pair reaches across the border of two words"
    expect_merges(
        learn_merges,
        ["a", "b"] * 4 + ["cd"] * 2,
        ["cd"],
        {
            "The end of one word and the beginning of the next are counted as neighbours. Keep "
            "each word by itself.": ["ab", "ba", "a ", " a", "b ", " b", "a\n", "b\n"]
        },
    )

    yield "the second merge meets the token of the first"
    expect_merges(
        learn_merges,
        ["abab"] * 3 + ["aba"],
        ["ab", "abab"],
        {
            "The second merge comes from the old counts. Glue the first pair, then count anew.": [
                "ba"
            ],
            "The pair that was just glued wins again. Is it really glued, in every word, and are "
            "the old counts gone?": ["ab"],
            "In a word that has the pair twice, only one of the two is glued.": ["aba", "bab"],
            "After gluing, the right part of the pair is still there too.": ["abb"],
        },
        "After the first merge the most frequent pair is made of two glued tokens.",
    )

    yield "gluing loses no letter"
    expect_merges(
        learn_merges,
        ["abc"] * 3 + ["abd"] * 2 + ["xyz"] * 2,
        ["ab", "abc"],
        {
            "After gluing, the last letter of a word is lost.": ["xy", "yz"],
        },
        "In abc and abd, a and b are glued first; then ab stands in front of c most often.",
    )

    yield "aaa is aa and a"
    expect_merges(
        learn_merges,
        ["aaa"] * 4 + ["xy"],
        ["aa", "aaa"],
        {
            "A letter is used twice: in aaa the middle a cannot belong to two tokens.": ["aaaa"],
            "In aaa nothing is glued.": ["aa"],
        },
    )
    expect_merges(
        learn_merges,
        ["aaa"] * 2 + ["xy"] * 3,
        ["aa"],
        {"In aaa the pair a, a stands twice, at both places: count it twice.": ["xy"]},
    )
    expect_merges(
        learn_merges,
        ["aaab"] * 4 + ["cab"] * 2,
        ["aa", "ab"],
        {"Gluing begins at the left: aaab is aa, a, b.": ["aab", "aaa"]},
    )

    yield "only whole tokens are glued"
    expect_merges(
        learn_merges,
        ["ca"] * 5 + ["ab"] * 4 + ["cab"] * 2 + ["xy"],
        ["ca", "ab", "cab"],
        {
            "The tokens ca and b were glued when it was the turn of a and b. Compare whole tokens, "
            "not the letters at their ends.": ["xy"]
        },
        "After ca and ab it is the turn of ca with b.",
    )

    yield "a space is a letter like the others"
    expect_merges(
        learn_merges,
        [" ab", " ac", " ad", " ae", "xab", "xab"],
        [" a"],
        {"The space in front of a word is lost. It is a letter like the others.": ["ab"]},
    )

    yield "the story"
    words = [" " + word for word in get_text().split()]
    expect_merges(
        learn_merges,
        words,
        merges_by_replacing(words, 12),
        otherwise="On small examples your merges are right, on the story's words they are not.",
    )


def embeddings(V=11, n_positions=8, E=6):
    """Two small tables, wte and wpe."""
    return drawn(nn.Embedding(V, E)), drawn(nn.Embedding(n_positions, E), seed=1)


@exercise
def mended_embedding(embed):
    """embed(ids, wte, wpe): [B, T] -> [B, T, E], the notebook's suspect without its fault."""
    wte, wpe = embeddings()
    ids = torch.tensor([[3, 10, 3, 7, 1], [4, 1, 9, 9, 5], [2, 8, 6, 3, 4]])  # [B=3, T=5]

    def right(ids):
        tokens = F.one_hot(ids, 11).to(wte.weight) @ wte.weight  # [B, T, E]
        return tokens + torch.eye(8).to(wpe.weight)[: ids.shape[1]] @ wpe.weight  # [B, T, E]

    yield "one text, and a `wpe` of 8 rows"
    tokens = wte(ids[:1])  # [1, T, E]
    expect(
        call(embed, ids[:1], wte, wpe),
        right(ids[:1]),
        {
            "The positions are missing.": tokens,
            "The tokens are missing.": wpe.weight[None, :5],
            "The first token stands at position 0, not 1.": tokens + wpe.weight[1:6],
            "Every token gets the same position.": tokens + wpe.weight[0],
        },
        "With a single text the suspect is right, and yours is not: what else did you change?",
    )

    yield "the second text begins at position 0"
    two = ids[:2]
    numbered = torch.arange(2)[:, None]  # [B, 1]
    expect(
        call(embed, two, wte, wpe),
        right(two),
        {
            "The second text still begins where the first one ends.": wte(two)
            + wpe(torch.arange(10).view(2, 5) % 8),
            "Each text gets the row of its place in the batch. The position is the place in the "
            "text.": wte(two) + wpe(numbered),
            "The positions alternate between the texts.": wte(two)
            + wpe(torch.arange(10).view(5, 2).T % 8),
        },
        "The first text is right by itself, the batch is not.",
    )

    yield "texts as long as the table"
    full = torch.cat([ids, ids], dim=1)[:, :8]  # [B=3, T=8]
    expect(call(embed, full, wte, wpe), right(full))

    yield "a text that is too long fails"
    for n_positions in (8, 1024):
        wte, wpe = embeddings(n_positions=n_positions)
        too_long = ids.repeat(1, n_positions)[:, : n_positions + 1]  # [B=3, T=n_positions + 1]
        try:
            call(embed, too_long, wte, wpe)
        except NotAttempted:  # raised on purpose, for a text that is too long
            continue
        except Mistake as refusal:
            if "Your code raised" in str(refusal):
                continue
            raise
        raise Mistake(
            "A text with one token more than `wpe` has rows should fail. In yours it passes, so "
            "some token has a position that is not its own: is there still a `%`, or a limit of "
            "that kind?"
        )


def waves(n_positions, E, frequency=None, first=0):
    """Sine and cosine in turn, [n_positions, E], as the parts of a complex number.

    `frequency` takes the number of each pair, [E / 2].
    """
    frequency = frequency or (lambda pair: 1e4 ** (-2 * pair / E))
    pair = torch.arange(E // 2, dtype=torch.float64)
    position = torch.arange(n_positions, dtype=torch.float64) + first
    angle = math.pi / 2 - position[:, None] * frequency(pair)  # [n_positions, E / 2]
    return torch.view_as_real(torch.polar(torch.ones_like(angle), angle)).flatten(1).float()


def by_column(n_positions, E, exponent):
    """Both columns of a pair with a frequency of their own; `exponent` takes the column."""
    column = torch.arange(E)
    angle = torch.arange(n_positions)[:, None] * 1e4 ** -exponent(column)  # [n_positions, E]
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


@exercise
def sinusoidal_positions(sinusoidal):
    """sinusoidal(n_positions, E) returns the table of the original transformer."""
    by_columns = (
        "The two columns of a pair have different frequencies: i counts pairs, not columns."
    )
    by_double_columns = (
        "The exponent counts columns, and twice: 2 i is a pair's first column already."
    )
    yield "one pair (E = 2): sine and cosine of the position"
    right, got = waves(5, 2), call(sinusoidal, 5, 2)  # [5, 2]
    if isinstance(got, torch.Tensor) and got.isnan().any():
        raise Mistake(
            "The result contains nan at E = 2, so there is a 0 / 0. Is there a division by E - 2, "
            "or are brackets missing in the exponent?"
        )
    expect(
        got,
        right,
        {
            by_columns: by_column(5, 2, lambda column: column / 2),
            by_double_columns: by_column(5, 2, lambda column: 2 * column / 2),
            "The sine comes first, then the cosine.": right.flip(-1),
            "Positions count from 0.": waves(5, 2, first=1),
            "The angles are in radians, without a conversion.": waves(
                5, 2, lambda pair: torch.pi / 180
            ),
            "The rows are the positions: the table is [n_positions, E].": right.T,
            "These are the angles. Their sine and cosine are missing.": torch.arange(5.0)[
                :, None
            ].expand(5, 2),
        },
        "With a single pair the frequency is 10000 to the power of 0: row p is sin(p), cos(p). "
        "Both columns, no sign, no factor.",
    )

    yield "position 0: sine and cosine alternate"
    one = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]])  # [1, 8]
    expect(
        call(sinusoidal, 1, 8),
        waves(1, 8),
        {
            "All sines come first, then all cosines. They should alternate, column by column.": 1
            - one,
            "All cosines come first, then all sines. They should alternate, column by column.": one,
        },
        "At position 0 every angle is 0, so the row is 0, 1, 0, 1 and so on.",
    )

    yield "the frequency of each pair"

    expect(
        call(sinusoidal, 7, 6),
        waves(7, 6),
        {
            "The exponent is i / E; it should be 2 i / E.": waves(7, 6, lambda i: 1e4 ** (-i / 6)),
            "The exponent is 4 i / E: is the factor 2 there twice?": waves(
                7, 6, lambda i: 1e4 ** (-4 * i / 6)
            ),
            "The position is multiplied by the power of 10000; divide by it.": by_column(
                7, 6, lambda column: -2 * (column // 2) / 6
            ),
            "The base of the power is e; it should be 10000.": waves(
                7, 6, lambda i: (-2 * i / 6).exp()
            ),
            "The exponent reaches 1 at the last pair; it should end at (E - 2) / E.": waves(
                7, 6, lambda i: 1e4 ** (-2 * i / 4)
            ),
            "All pairs have the same frequency.": waves(7, 6, torch.ones_like),
        },
        "The first pair and the order of the columns are right; look at the power of 10000: its "
        "base, its sign, and what the exponent counts.",
    )

    yield "1,500 positions"
    expect(call(sinusoidal, 1500, 64), waves(1500, 64), tolerance=2e-3)


# ---------------------------------------------------------------------------- 2 · Attention


@exercise
def weights_of_another_query(weights):
    """Four weights, in the order mule, bridge, was, tired, for the query (0, 2, 0, 0)."""
    scores = torch.tensor([0.0, 4, 0, 0])  # only the bridge is built: 2 times 2
    right = F.softmax(scores / 2, dim=0)  # D = 4
    yield "four numbers"
    if not hasattr(weights, "__len__") or len(weights) != 4 or isinstance(weights, (str, dict)):
        raise Mistake("Give a list of four weights, in the order mule, bridge, was, tired.")
    got = torch.tensor([number(weight) for weight in weights])
    yield "they are weights"
    if same(got, scores, 0.02) or same(got, scores / 2, 0.02):
        raise Mistake("These are scores. The softmax, which makes weights of them, is missing.")
    if same(got, scores / scores.sum(), 0.02):
        raise Mistake(
            "A score of 0 does not give a weight of 0: the softmax takes e to the power of each."
        )
    if (got < 0).any() or not math.isclose(got.sum(), 1, abs_tol=0.02):
        raise Mistake(f"They sum to {got.sum():.2f}: weights are positive and sum to 1.")
    yield "the right query and the right scale"
    expect(
        got,
        right,
        {
            "Too sharp: divide the scores by the square root of D before the softmax.": F.softmax(
                scores, dim=0
            ),
            "Too even. Is a score the query's number times the label's, and is it divided by the "
            "square root of D, not by D?": F.softmax(scores / 4, dim=0),
            "The words stand in another order: mule, bridge, was, tired.": right[[1, 0, 2, 3]],
            "The words stand in another order: mule first, then bridge.": right[[0, 2, 1, 3]],
            "The words stand in another order: mule first, tired last.": right[[0, 2, 3, 1]],
        },
        "Multiply the new query with the label (key) of each word, place by place, and add up: "
        "who is built? Words with equal scores get equal weights.",
        tolerance=0.012,
    )


def masked_softmax(scores):
    """Softmax over the keys, each query with itself and earlier ones only: [..., T, T]."""
    visible = torch.ones_like(scores, dtype=torch.bool).tril()
    return F.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)


def expect_causal(attend, *inputs):
    """Mistake if an output moves when the tensors in `inputs`, [..., T, width], change later on."""

    def outputs(change):
        given = [change(part) if isinstance(part, torch.Tensor) else part for part in inputs]
        result = call(attend, *given)
        expect_kind(result, inputs[0])
        expect_shape(result, inputs[0])
        return result.detach()

    def changed_at(t):
        here = torch.arange(inputs[0].shape[-2])[:, None] == t  # [T, 1]
        return lambda part: torch.where(here, 3 - part, part)

    before = outputs(torch.clone)
    for t in range(1, inputs[0].shape[-2]):
        moved = (outputs(changed_at(t)) - before).abs()[..., :t, :] > 1e-5  # [..., t, width]
        if moved.any():
            early = moved.nonzero()[0, -2].item()
            raise Mistake(
                f"Position {early} listens to position {t}, a later one: is the mask there, does "
                "it point the right way, and does it come before the softmax, which runs over the "
                "keys?"
            )


@exercise
def attention_with_loops(attend):
    """attend(q, k, v), each [H, T, D], returns causal attention [H, T, D]."""
    yield "one token alone takes its own value"
    q, k, v = noise(3, 1, 1, 4)  # [H=1, T=1, D=4]
    try:
        got = call(attend, q, k, v)
    except Mistake as mistake:
        if "non-empty" in str(mistake):
            raise Mistake(f"{mistake}\n    Does the token hear itself, too?") from None
        raise
    expect(
        got,
        v,
        {
            "You return the key; what is handed over is the value.": k,
            "You return the query; what is handed over is the value.": q,
            "The result is 0: a token may listen to itself too. Is the range off by one?": 0 * v,
            "The result is a sum that is not divided by the sum of the exponentials.": (
                (q * k).sum(-1, keepdim=True) / 2
            ).exp()
            * v,
        },
        "With a single token its weight is 1, whatever its score: the output is its value.",
    )

    yield "no position listens to a later one"
    q, k, v = noise(3, 1, 5, 4, seed=1)  # [H=1, T=5, D=4]
    expect_causal(attend, q, k, v)

    yield "a query of zeros hears itself and all before it equally"
    even = v.cumsum(1) / torch.arange(1, 6)[:, None]  # [1, T, D] running means
    without_self = torch.cat([v[:, :1], even[:, :-1]], dim=1)
    expect(
        call(attend, 0 * q, k, v),
        even,
        {
            "A position listens to those before it, but not to itself: the range ends one too "
            "early.": without_self,
            "The weights are shares of all T tokens, the hidden ones too. Divide by the sum over "
            "the visible keys.": v.cumsum(1) / 5,
            "The weights do not sum to 1: divide by the sum of the exponentials.": v.cumsum(1),
            "Only the last key's share is left: add the shares up (`+=`).": v
            / torch.arange(1, 6)[:, None],
            "Each query hears its own value only. The values belong to the keys.": v,
        },
        "All scores are 0 here, so each output is the mean of the values up to its position. "
        "Is the sum in the softmax taken over the keys, do all visible keys take part, and is each "
        "weight times its own value added up? (The axes are [H, T, D].)",
    )

    yield "the scale of the scores"
    q, k, v = noise(3, 1, 6, 9, seed=2)  # [H=1, T=6, D=9]
    scores = q @ k.transpose(-2, -1)
    expect(
        call(attend, q, k, v),
        masked_softmax(scores / 3) @ v,
        {
            "The scores are not divided by the square root of D.": masked_softmax(scores) @ v,
            "The scores are divided by D; it should be its square root.": masked_softmax(scores / 9)
            @ v,
            "The scores are divided by the square root of T, not of D.": masked_softmax(
                scores / 6**0.5
            )
            @ v,
            "The scores are multiplied by the square root of D.": masked_softmax(scores * 3) @ v,
            "The scores are divided by 8, the square root of the notebook's D; here D is another: "
            "`q.shape[-1]`.": masked_softmax(scores / 8) @ v,
            "The scores are divided by 2, as in the example by hand; here D is another: "
            "`q.shape[-1]`.": masked_softmax(scores / 2) @ v,
            "Query and key are swapped: the token that asks brings the query.": masked_softmax(
                scores.transpose(-2, -1) / 3
            )
            @ v,
        },
        "The weights follow the scores in another way than softmax(q k / sqrt(D)).",
    )

    yield "each head by itself"
    q, k, v = noise(3, 3, 4, 4, seed=3)  # [H=3, T=4, D=4]
    alone = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    scale = 12**0.5
    expect(
        call(attend, q, k, v),
        alone,
        {
            "The scale comes from the width of all heads together, E, not from D.": masked_softmax(
                q @ k.transpose(-2, -1) / scale
            )
            @ v,
            "Every head gives the result of the last one: is it written to its own place?": alone[
                -1:
            ].expand(3, -1, -1),
            "Only the first head is computed.": torch.cat([alone[:1], 0 * alone[1:]]),
        },
        "With several heads the numbers change: a head must use its own q, k and v only.",
    )


def attention_layer(E=12, H=3, seed=0):
    """The helper's MultiHeadAttention with weights that hide nothing."""
    return drawn(MultiHeadAttention(GPT2Config(n_embd=E, n_head=H)), seed)


@exercise
def mended_attention(attend):
    """attend(X, qkv, proj, H): [B, T, E] -> [B, T, E], the notebook's suspect without its fault."""

    def heads_of(layer, X, causal=True, cut_wrong=""):
        """The heads' outputs [B, H, T, D] of a layer whose `proj` is yet to come."""
        parts = dict(zip("qkv", layer.qkv(X).chunk(3, -1), strict=True))  # [B, T, E] each
        cut = {
            name: M.reshape(len(M), layer.n_head, M.shape[1], -1)
            if name in cut_wrong
            else M.unflatten(-1, (layer.n_head, -1)).transpose(1, 2)
            for name, M in parts.items()
        }  # [B, H, T, D] each
        return F.scaled_dot_product_attention(*cut.values(), is_causal=causal)

    yield "one head: nothing to cut"
    one, X = attention_layer(E=8, H=1), noise(2, 5, 8, seed=1)  # [B=2, T=5, E=8]
    expect(
        call(attend, X, one.qkv, one.proj, 1),
        one(X),
        {
            "The mask is gone, and it was not the culprit.": one.proj(
                heads_of(one, X, causal=False)[:, 0]
            ),
            "The last layer, `proj`, is missing.": heads_of(one, X)[:, 0],
            "Each position hears only itself. The product of q and k goes over the last two axes, "
            "so they must be [T, D]; are the heads still behind the tokens, [B, T, H, D]?": (
                one.proj(one.qkv(X).chunk(3, -1)[2])
            ),
            "T and E are exchanged before the cut. Cut the last axis first.": one.proj(
                F.scaled_dot_product_attention(
                    *(M.mT.reshape(2, 5, 8) for M in one.qkv(X).chunk(3, -1)), is_causal=True
                )
            ),
        },
        "With one head the suspect is right, and yours is not: what else did you change?",
    )

    yield "no position listens to a later one"
    layer, X = attention_layer(), noise(1, 5, 12, seed=2)  # [B=1, T=5, E=12], H=3
    got = call(attend, X, layer.qkv, layer.proj, 3)
    expect_kind(got, X)
    if same(got, layer.proj(heads_of(layer, X).reshape(1, 5, 12))):
        raise Mistake(
            "The heads are merged without a transpose: [B, H, T, D] must become [B, T, H, D] "
            "before its last two axes can become E."
        )
    for cut_wrong in ["q", "k", "v", "qk", "qv", "kv", "qkv"]:
        heads = heads_of(layer, X, cut_wrong=cut_wrong)
        merges = [heads.transpose(1, 2).flatten(2), heads.reshape(1, 5, 12)]  # [B, T, E] each
        if any(same(got, layer.proj(merged)) for merged in merges):
            raise Mistake(
                f"Still cut in the suspect's way: {', '.join(cut_wrong)}. `reshape` (or `view`) "
                "keeps all numbers in their order; which of them land in head 0 that way?"
            )
    expect_causal(attend, X, layer.qkv, layer.proj, 3)

    yield "head h owns the columns from h D to (h + 1) D - 1"
    expect(
        got,
        layer(X),
        otherwise="No later position is heard, yet the numbers differ from the helper's layer. "
        "Head 0 owns the first D columns of q, of k and of v, head 1 the next D. Are all three "
        "cut that way, and merged in the same order? Is the scale that of D, not of E?",
    )

    yield "two texts at once"
    X = noise(2, 4, 12, seed=3)
    expect(
        call(attend, X, layer.qkv, layer.proj, 3),
        layer(X),
        otherwise="With B = 2 the numbers change: does one text hear the other?",
    )


@exercise
def attention_with_a_cache(attend_next):
    """attend_next(x, cache, attention) -> (output [B, 1, E], (k, v)); see notebook 2."""
    layer, X = attention_layer(E=18), noise(2, 5, 18, seed=4)  # [B=2, T=5, E=18], H=3, D=6
    right = layer(X).detach()
    queries, keys, values = (
        M.unflatten(-1, (3, 6)).transpose(1, 2).detach() for M in layer.qkv(X).chunk(3, dim=-1)
    )  # [B, H, T, D]

    def step(t, cache, X=X):
        tokens = []
        hook = layer.qkv.register_forward_hook(
            lambda module, given, made: tokens.append(given[0].numel() // (2 * 18))
        )
        try:
            result = call(attend_next, X[:, t : t + 1], cache, layer)
        except Mistake as mistake:
            if t > 0 and "RuntimeError" in str(mistake):
                raise Mistake(
                    f"{mistake}\n    Are old and new joined along the axis of the tokens?"
                ) from None
            raise
        finally:
            hook.remove()
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise Mistake("Return two things: the output, and the new cache.")
        output, cache = result
        if not isinstance(cache, (tuple, list)) or len(cache) != 2:
            raise Mistake("The new cache should be a pair, (k, v).")
        if max(tokens, default=1) > 1:
            raise Mistake(
                "The layer `qkv` was given more than the one new token. The cache is there so that "
                "no key and no value is computed twice."
            )
        return output, tuple(cache)

    yield "the first token, with None for a cache"
    output, cache = step(0, None)
    expect(
        output,
        right[:, :1],
        {"The last layer, `proj`, is missing.": values[:, :, 0].reshape(2, 1, 18)},
        "The first token can hear only itself: its value, through `proj`. Is `qkv`'s result split "
        "into q, k and v in this order?",
    )

    yield "the cache holds keys and values, [B, H, 1, D]"
    for what, now, old, other in [("k", cache[0], keys, values), ("v", cache[1], values, keys)]:
        expect(
            now,
            old[:, :, :1],
            {
                f"The place of {what} in the cache holds the other one of k and v.": other[
                    :, :, :1
                ],
                f"The place of {what} in the cache holds the query.": queries[:, :, :1],
                f"Keep {what} with its heads in front, [B, H, t, D].": old[:, :, :1].transpose(
                    1, 2
                ),
            },
            f"The {what} in the cache is another than that of the token. Its shape should be "
            "[B, H, 1, D], with H = `attention.n_head`.",
        )

    yield "the second token hears the first and itself"
    output, grown = step(1, cache)

    def hears(keys, values, scale=6**-0.5):
        """The second token's output [B, 1, E], from [B, H, tokens, D]."""
        heads = F.scaled_dot_product_attention(queries[:, :, 1:2], keys, values, scale=scale)
        return layer.proj(heads.transpose(1, 2).flatten(2))

    k, v = keys[:, :, :2], values[:, :, :2]
    no_scale = "The scores are not divided by the square root of D."
    expect(
        output,
        right[:, 1:2],
        {
            "It hears the first token only. Are the new key and value joined before you attend? "
            "And is a single query at the end in need of a mask (`is_causal=True` lines up the "
            "first query with the first key)?": hears(k[:, :, :1], v[:, :, :1]),
            "It hears itself only: the keys and values of the cache take no part.": hears(
                k[:, :, 1:], v[:, :, 1:]
            ),
            "The values that are joined are not those of the cache: its second part is v.": hears(
                k, torch.cat([k[:, :, :1], v[:, :, 1:]], dim=2)
            ),
            "Keys and values are joined in different orders: each key needs its own value.": hears(
                k, v.flip(2)
            ),
            no_scale: hears(k, v, 1.0),
            "The scores are divided by D; it should be its square root.": hears(k, v, 1 / 6),
            "The scores are divided by the square root of E; a head is D wide.": hears(
                k, v, 18**-0.5
            ),
            "The scores are divided by 8, the square root of the notebook's D; here D is "
            "E / H of the layer that is given.": hears(k, v, 1 / 8),
        },
        "The new query should meet the old keys and its own, each with its value. Are k and v "
        "joined alike, along dim=2, and does the softmax run over the keys?",
    )

    yield "the cache grows by one"
    for now, old in zip(grown, (keys, values), strict=True):
        expect(
            now,
            old[:, :, :2],
            {
                "The new cache holds the new token only.": old[:, :, 1:2],
                "The new cache is the old one: the new token is missing.": old[:, :, :1],
                "The new token stands in front of the old ones; it should come last.": old[
                    :, :, :2
                ].flip(2),
            },
            "The new cache should be the old keys and values and behind them the new ones, joined "
            "along the axis of the tokens, dim=2.",
        )

    yield "five tokens, one after the other, equal all five at once"
    outputs, cache = [], None
    for t in range(5):
        output, cache = step(t, cache)
        outputs.append(output.detach())
    expect(
        torch.cat(outputs, dim=1),
        right,
        otherwise="The first two tokens are right, a later one is not: what is lost on the way?",
    )

    yield "two texts in turn, each with its own cache"
    other = noise(2, 3, 18, seed=5)  # [B=2, T=3, E=18]
    caches, outputs = {0: None, 1: None}, []
    for t in range(3):
        for n, text in enumerate((X, other)):
            output, caches[n] = step(t, caches[n], text)
        outputs.append(output.detach())
    expect(
        torch.cat(outputs, dim=1),
        layer(other),
        otherwise="The output does not follow from the cache that is passed in. Is one kept "
        "somewhere else, outside the function?",
    )


# ------------------------------------------------------------------ 3 · The transformer block


@exercise
def parameters_of_an_xl_block(count):
    """One block of GPT-2 XL, E = 1600."""
    E, small = 1600, 7_087_872
    yield "weights, biases and LayerNorms"
    if 0 < number(count) < 1000:
        raise Mistake("Give the number itself, to the last one: not in millions.")
    mistakes = {
        "These are the weight matrices. The biases and the LayerNorms are missing.": 12 * E**2,
        "The LayerNorms are missing.": 12 * E**2 + 9 * E,
        "The biases of the four linear layers are missing.": 12 * E**2 + 4 * E,
        "A little is missing. Has each of the two LayerNorms a gain and a bias, and is the bias of "
        "`qkv` 3 E long?": 12 * E**2 + 11 * E,
        "Rounded. The question is about the last one.": 30_740_000,
        "Rounded; the question is about the last one.": 30_700_000,
        "A bias has one number for each output: `qkv` has 3 E of them, `fc` has 4 E.": 12 * E**2
        + 8 * E,
        "This is the block of GPT-2 small.": small,
        "The block of GPT-2 small grows with E here. Its matrices grow with E times E.": small
        * E
        / 768,
        "Close, but not everything grows with the square of E: the biases and LayerNorms grow "
        "with E.": small * (E / 768) ** 2,
    }
    mistakes |= {message + " And it is all 48 blocks.": 48 * n for message, n in mistakes.items()}
    mistakes["This is all 48 blocks; the question is about one."] = 48 * (12 * E**2 + 13 * E)
    expect_number(
        count,
        12 * E**2 + 13 * E,
        mistakes,
        "Take the table of section 4 and put in E = 1600, row by row. The number of heads plays no "
        "part.",
        tolerance=2e-8,
    )


@exercise
def root_mean_square_norm(rms_norm):
    """rms_norm(X [B, T, E], gain [E], eps) returns [B, T, E]."""

    def right(X, gain, eps=1e-5):
        return F.rms_norm(X, X.shape[-1:], gain, eps)

    E = 6
    ones = torch.ones(E)
    yield "a vector of mean 0 gets the typical size 1"
    X = 3 * F.layer_norm(noise(1, 1, E), (E,))  # [B=1, T=1, E] mean 0, mean square 9
    expect(
        call(rms_norm, X, ones, 1e-5),
        right(X, ones),
        {
            "The squares are added up, but not divided by E, the length of a vector.": X
            / (3 * E**0.5),
            "The sum is divided by 768, the E of the notebook. Here the vectors are shorter: take "
            "`X.shape[-1]`, or a mean.": X / (3 * (E / 768) ** 0.5),
            "Every number is divided by itself. Does the mean run along the last axis?": X.sign(),
            "Twice too large. Is the gain 1 + gain? Here it is the number itself.": 2 * X / 3,
            "The gain, which is 1 here, is added; multiply by it.": X / 3 + 1,
            "The squares are divided by E - 1; divide by E.": X / (3 * (E / (E - 1)) ** 0.5),
            "The square root is missing: you divide by the mean of the squares.": X / 9,
            "You multiply by the root; divide by it.": X * 3,
            "You divide by the mean of the sizes. Square first, then mean, then root.": X
            / X.abs().mean(),
            "The input comes back as it is.": X,
        },
        "Divide by the root of the mean of the squares: square, mean, plus eps, root.",
    )

    yield "the mean stays"
    X = noise(1, 1, E) + 2
    centred = X - X.mean()
    expect(
        call(rms_norm, X, ones, 1e-5),
        right(X, ones),
        {
            "The mean is subtracted: this is LayerNorm.": F.layer_norm(X, (E,)),
            "The mean is subtracted before the root is taken, as in a standard deviation. Take the "
            "squares of the numbers themselves.": X / centred.square().mean().sqrt(),
            "The mean is subtracted above the line.": right(X, ones) * centred / X,
        },
        "With a mean of 0 yours is right, with another mean it is not.",
    )

    yield "every token by itself"
    X = noise(2, 3, E, seed=1) * torch.arange(1.0, 7).view(2, 3, 1)  # [B=2, T=3, E]

    def over(dim):
        return X / X.square().mean(dim, keepdim=True).sqrt()

    expect(
        call(rms_norm, X, ones, 1e-5),
        right(X, ones),
        {
            "The mean runs over all tokens of all texts. Use the last axis, `dim=-1`.": over(
                (0, 1, 2)
            ),
            "The mean runs over the tokens of a text. Use the last axis, `dim=-1`.": over(1),
            "The mean runs over a whole text. Use the last axis alone, `dim=-1`.": over((1, 2)),
            "The mean runs over the texts. Use the last axis, `dim=-1`.": over(0),
        },
        "With one token yours is right, with several it is not: which axis does the mean run over?",
    )

    yield "the gain, one number for each place"
    gain = noise(E, seed=2)
    expect(
        call(rms_norm, X, gain, 1e-5),
        right(X, gain),
        {
            "The gain is missing.": right(X, ones),
            "The gain comes too early: normalise first, then multiply.": right(X * gain, ones),
            "You divide by the gain; multiply by it.": right(X, 1 / gain),
        },
        "With a gain of 1 yours is right: where does the gain go?",
    )

    yield "eps, inside the root"
    square = X.square().mean(-1, keepdim=True)  # [B, T, 1]
    expect(
        call(rms_norm, X, ones, 100.0),
        right(X, ones, 100.0),
        {
            "eps is not used, or a number stands in its place.": X / (square + 1e-5).sqrt(),
            "eps stands outside the root: add it to the mean of the squares.": X
            / (square.sqrt() + 100),
            "eps is squared.": X / (square + 1e4).sqrt(),
            "eps is added to X.": (X + 100) / (X + 100).square().mean(-1, keepdim=True).sqrt(),
            "eps is divided by E too: add it behind the mean.": X / (square + 100 / E).sqrt(),
            "eps takes part as a lower limit; add it.": X / square.clamp(min=100).sqrt(),
        },
        "With an eps that hardly counts yours is right, with eps = 100 it is not.",
    )

    yield "another width"
    wide, gain = noise(1, 2, 9, seed=3), noise(9, seed=4)  # [B=1, T=2, E=9]
    expect(call(rms_norm, wide, gain, 1e-5), right(wide, gain))


def drawn_block(seed=0):
    """The helper's TransformerBlock, E = 12 and H = 3, with weights that hide nothing."""
    return drawn(TransformerBlock(GPT2Config(n_embd=12, n_head=3)), seed)


def silenced(block, *parts):
    """A copy of the block in which these parts add nothing: their last layer gives 0."""
    block = copy.deepcopy(block)
    with torch.no_grad():
        for part in parts:
            for parameter in block.get_submodule(part).proj.parameters():
                parameter.zero_()
    return block


@exercise
def mended_block(block_class):
    """A TransformerBlock with a forward of its own, the notebook's suspect without its fault."""
    yield "the parts of a TransformerBlock"
    given, X = drawn_block(), noise(2, 5, 12, seed=20)  # [B=2, T=5, E=12]
    if isinstance(block_class, nn.Module):
        raise Mistake("Pass the class itself, its name without brackets; the check builds a block.")
    block = call(block_class, GPT2Config(n_embd=12, n_head=3))
    if getattr(block_class, "forward", None) is TransformerBlock.forward:
        raise Mistake("This is the helper's own `forward`. Write one, in a class that inherits.")
    names = set(block.state_dict()) if isinstance(block, nn.Module) else set()
    if names != set(given.state_dict()):
        raise Mistake(
            "The parts should be those of the helper's block, ln_1, attn, ln_2 and mlp. Inherit "
            "from TransformerBlock and change `forward` alone."
        )
    block.load_state_dict(given.state_dict())
    ln_1, attn, ln_2, mlp = given.ln_1, given.attn, given.ln_2, given.mlp

    yield "with the MLP silenced, what the attention wrote comes out"
    X_at = X + attn(ln_1(X))  # [B, T, E]
    expect(
        call(silenced(block, "mlp"), X),
        X_at,
        {
            "The input comes back: what the attention wrote is lost, as in the suspect.": X,
            "Nothing comes out: the second plus adds what the MLP wrote to itself or to nothing.": (
                0 * X
            ),
            "The norms stand behind the plus; here they belong in front of each part.": ln_2(
                ln_1(X + attn(X))
            ),
            "The first residual is missing.": attn(ln_1(X)),
            "The input is added twice.": X + X_at,
            "The attention reads X without `ln_1`.": X + attn(X),
            "`ln_2` stands in front of the attention; that is the place of `ln_1`.": X
            + attn(ln_2(X)),
            "The result is what the second norm made. Add the MLP to the stream itself.": ln_2(
                X_at
            ),
            "What the first norm made is added; add the input as it came.": ln_1(X) + attn(ln_1(X)),
        },
        "The block should return its input plus what the attention wrote, and nothing else.",
    )

    yield "with the attention silenced, the MLP adds to the input"
    expect(
        call(silenced(block, "attn"), X),
        X + mlp(ln_2(X)),
        {
            "The second residual is missing: the result is the MLP alone.": mlp(ln_2(X)),
            "The MLP reads what the attention wrote and no more; it should read all of X_at.": X
            + mlp(ln_2(0 * X)),
            "The input is added twice: once is in X_at already.": 2 * X + mlp(ln_2(X)),
            "`ln_1` stands in front of the MLP; that is the place of `ln_2`.": X + mlp(ln_1(X)),
            "The MLP reads the stream without `ln_2`.": X + mlp(X),
            "What the second norm made is added; add the stream as it came.": ln_2(X)
            + mlp(ln_2(X)),
        },
        "The block should return its input plus what the MLP wrote, and nothing else.",
    )

    yield "the MLP hears what the attention wrote"
    expect(
        call(block, X),
        given(X),
        {
            "The MLP reads X; it should read X_at, in which the attention has written.": X_at
            + mlp(ln_2(X)),
            "The MLP reads what the attention wrote, without the stream.": X_at
            + mlp(ln_2(attn(ln_1(X)))),
            "What the attention wrote reaches the MLP only; it is lost from the stream.": X
            + mlp(ln_2(X_at)),
        },
        "Each part alone is right, the two together are not.",
    )

    yield "it can learn"
    expect_gradient(lambda X: call(block, X), given, X)


@exercise
def post_norm_block(post_norm):
    """post_norm(X, block): [B, T, E] -> [B, T, E], in the order of the original transformer."""
    given, X = drawn_block(seed=40), noise(2, 5, 12, seed=60)  # [B=2, T=5, E=12]
    ln_1, attn, ln_2, mlp = given.ln_1, given.attn, given.ln_2, given.mlp

    yield "with both parts silenced, two norms remain"
    expect(
        call(post_norm, X, silenced(given, "attn", "mlp")),
        ln_2(ln_1(X)),
        {
            "No norm stands behind a plus: the input comes back as it was.": X,
            "There is one norm, `ln_1`: one should stand behind each plus.": ln_1(X),
            "The first norm does not reach the result. Is it missing behind its plus, or does the "
            "second plus take X in place of X_at?": ln_2(X),
            "The parts or their norms have changed places: first the attention and `ln_1`, then "
            "the MLP and `ln_2`.": ln_1(ln_2(X)),
            "The first residual is missing: the norm should be that of a sum.": ln_2(ln_1(0 * X)),
            "The second residual is missing: the norm should be that of a sum.": ln_2(0 * X),
            "The gains and biases of the block's norms do not count. Call `block.ln_1(...)` and "
            "`block.ln_2(...)`.": F.layer_norm(X, (12,)),
            "`ln_1` is used twice.": ln_1(ln_1(X)),
            "`ln_2` is used twice.": ln_2(ln_2(X)),
            "The norm is applied to what a part writes, before the plus; apply it to the sum.": X
            + ln_1(0 * X)
            + ln_2(0 * X),
        },
        "Both parts write 0 here. Each plus should be followed by a norm of the sum.",
    )

    yield "with the MLP silenced"
    X_at = ln_1(X + attn(X))  # [B, T, E]
    expect(
        call(post_norm, X, silenced(given, "mlp")),
        ln_2(X_at),
        {
            "The attention reads ln_1(X): that norm is pre-norm's. It should read X.": ln_2(
                ln_1(X + attn(ln_1(X)))
            ),
            "What the attention wrote is lost.": ln_2(ln_1(X)),
            "The first residual is missing.": ln_2(ln_1(attn(X))),
            "Only what was carried past is normed, not the sum.": ln_2(ln_1(X) + attn(X)),
        },
        "The attention should read X, its result should be added to X, and then comes `ln_1`.",
    )

    yield "with the attention silenced"
    X_1 = ln_1(X)  # [B, T, E]
    expect(
        call(post_norm, X, silenced(given, "attn")),
        ln_2(X_1 + mlp(X_1)),
        {
            "The MLP reads ln_2(X_at): that norm is pre-norm's. It should read X_at.": ln_2(
                X_1 + mlp(ln_2(X_1))
            ),
            "The MLP reads what stands in front of the first norm; it should read X_at, what comes "
            "out of it.": ln_2(X_1 + mlp(X)),
            "The second residual is missing.": ln_2(mlp(X_1)),
        },
        "The MLP should read X_at, its result should be added to X_at, and then comes `ln_2`.",
    )

    yield "both parts"
    expect(
        call(post_norm, X, given),
        ln_2(X_at + mlp(X_at)),
        otherwise="Each part alone is right, the two together are not.",
    )

    yield "it can learn"

    def right(X):
        X_at = ln_1(X + attn(X))
        return ln_2(X_at + mlp(X_at))

    expect_gradient(lambda X: call(post_norm, X, given), right, X)


# ----------------------------------------------------------------------- 4 · The whole model


@exercise
def parameters_of_a_larger_vocabulary(count):
    """Parameters of GPT-2 small with 100,000 tokens and untied weights."""
    new = parameter_counts(GPT2Config(vocab_size=100_000, tie_weights=False))
    small = parameter_counts(GPT2Config())
    right, table, old_table = sum(new.values()), new["wte"], small["wte"]
    one_block = new["blocks"] // 12
    yield "all parts, each counted once"
    expect_number(
        count,
        right,
        {
            "This is the tied model: untied, the unembedding has its own table.": right - table,
            "Only one of the two tables has grown.": right - table + old_table,
            "The tables should have 100,000 rows, not 100,000 more.": right + 2 * old_table,
            "There are two new tables, and an old one is still in the sum.": right + old_table,
            "There are two old tables, and a new one.": right - table + 2 * old_table,
            "These are the two tables. What else has parameters?": 2 * table,
            "The positions are missing.": right - new["wpe"],
            "Only one of the blocks is counted.": right - 11 * one_block,
            "This is GPT-2 small as it is, tied.": sum(small.values()),
            "This is GPT-2 small as it is, untied.": sum(small.values()) + old_table,
            "Give the number itself, not millions.": right / 1e6,
        },
        "Which of the parts in section 4 depend on the vocabulary, and how many of those are there "
        "without the tie?",
        tolerance=2.1e-4,  # 50,000
    )


@exercise
def next_token_loss(loss):
    """loss(logits [B, T, V], ids [B, T]): mean cross-entropy of logits[:, t] and ids[:, t + 1]."""

    def reference(logits, targets):
        return F.cross_entropy(logits.double().flatten(0, -2), targets.flatten()).to(logits)

    def reader(logits, ids):
        got = call(loss, logits, ids)
        expect_kind(got, logits)
        if got.ndim:
            raise Mistake(
                f"The result has the shape {list(got.shape)}. Return the mean over all texts and "
                "places, a tensor of one number and no axes."
            )
        return got

    yield "knowing nothing costs ln V"
    logits, ids = torch.zeros(3, 5, 50), torch.arange(15).view(3, 5)  # [B, T, V], [B, T]
    cost = torch.tensor(50.0).log()
    expect(
        reader(logits, ids),
        cost,
        {
            "The sign is wrong: the probability is below 1, so its logarithm is negative.": -cost,
            "The logarithm is to the base 2; the loss takes the natural one.": cost / math.log(2),
            "The logarithm is to the base 10; the loss takes the natural one.": cost / math.log(10),
            "This is the number of equally likely tokens, V; its logarithm is missing.": cost.exp(),
            "This is the probability of a token; its logarithm is missing.": (-cost).exp(),
            "The softmax runs over the places, not over the vocabulary.": torch.tensor(5.0).log(),
            "The softmax runs over the T - 1 places, not over the vocabulary.": torch.tensor(
                4.0
            ).log(),
            "The softmax runs over the texts, not over the vocabulary.": torch.tensor(3.0).log(),
            "You divide by T, but only T - 1 places have a successor.": cost * 4 / 5,
            "A sum over the texts; the loss is the mean over texts and places.": cost * 3,
            "A sum over the places; the loss is the mean over texts and places.": cost * 4,
            "A sum over texts and places; the loss is their mean.": cost * 12,
        },
        "All logits are 0 here, so each of the 50 tokens has the probability 1/50.",
    )

    yield "the target's own logit counts"
    opinion, alike = noise(50, seed=1) * 2, torch.full((2, 4), 3)  # [V], [B, T]: token 3 throughout
    logits, total = opinion.repeat(2, 4, 1), opinion.logsumexp(0)  # [B, T, V], []
    expect(
        reader(logits, alike),
        reference(logits, alike),
        {
            "This is ln of the sum of exponentials alone: subtract the target's logit.": total,
            "The target's logit is added; it has to be subtracted.": total + opinion[3],
            "This is the loss of the favourite token, whatever the target.": total - opinion.max(),
            "This is the mean over all tokens; only the target's probability counts.": total
            - opinion.mean(),
        },
        "All places have the same logits here, and all ids are 3: only token 3 is asked for. If "
        "you subtract a number from all logits, does it drop out again in the end?",
    )

    yield "place t is asked for the token at t + 1"
    logits, ids = noise(1, 6, 7, seed=2), torch.tensor([[4, 0, 6, 1, 5, 2]])  # [B=1, T=6, V=7]
    expect(
        reader(logits, ids),
        reference(logits[:, :-1], ids[:, 1:]),
        {
            "No shift: each place is asked for the token that it has just read.": reference(
                logits, ids
            ),
            "No shift: the last place is left out, but the others are asked for the token that "
            "they have just read.": reference(logits[:, :-1], ids[:, :-1]),
            "No shift: the first place is left out, but the others are asked for the token that "
            "they have just read.": reference(logits[:, 1:], ids[:, 1:]),
            "Shifted the wrong way: each place is asked for the token before its own.": reference(
                logits[:, 1:], ids[:, :-1]
            ),
            "The last place is asked for the first token of the text. Nothing follows it: leave "
            "it out.": reference(logits, ids.roll(-1, 1)),
            "Shifted by two.": reference(logits[:, :-2], ids[:, 2:]),
        },
        "Which logits have a target, and which ids are one? Write out the pairs for T = 3.",
    )

    yield "two texts that know nothing of each other"
    logits, ids = noise(2, 3, 7, seed=3), torch.tensor([[4, 0, 6], [1, 5, 2]])  # [B=2, T=3, V=7]
    expect(
        reader(logits, ids),
        reference(logits[:, :-1], ids[:, 1:]),
        {
            "The last place of a text is asked for the first token of the next text: shift before "
            "you flatten.": reference(logits.flatten(0, 1)[:-1], ids.flatten()[1:]),
            "Only the first text counts.": reference(logits[:1, :-1], ids[:1, 1:]),
            "Only the last text counts.": reference(logits[1:, :-1], ids[1:, 1:]),
        },
        "One text is right, two are not. Does each place of each text meet its own target?",
    )

    yield "logits around 10,000"
    cut_off = (
        "The result is finite and wrong. Are large logits cut off? That changes their distances, "
        "and only those count."
    )
    logits = logits + 1e4
    got, right = reader(logits, ids), reference(logits[:, :-1], ids[:, 1:])
    if not got.isfinite():
        raise Mistake(
            "The result is inf or nan: e to the power of 10,000 is more than a float can hold. If "
            "the same number is subtracted from all logits of a place, its probabilities stay."
        )
    expect(got, right, otherwise=cut_off)

    yield "each place at a height of its own"
    logits = logits - 1e4 * torch.tensor([0.0, 2, 1])[:, None]  # [B, T, V] at 10,000, -10,000, 0
    got, right = reader(logits, ids), reference(logits[:, :-1], ids[:, 1:])
    if not got.isfinite():
        raise Mistake(
            "The result is inf or nan: here the logits of one place are far below those of "
            "another, and all its exponentials are 0. Subtract from each place what suits it."
        )
    expect(got, right, otherwise=cut_off)

    yield "a target that is 10,000 behind"
    logits = torch.zeros(1, 2, 7)  # [B=1, T=2, V=7]
    logits[0, 0, 3] = 1e4
    got, right = reader(logits, torch.tensor([[0, 1]])), torch.tensor(1e4)
    if not got.isfinite():
        raise Mistake(
            "The result is inf or nan. Either the target's probability is rounded to 0, and has no "
            "logarithm: take the logarithm of the quotient on paper first. Or what you subtract is "
            "not the largest logit of the place, and an exponential is infinite."
        )
    expect(
        got,
        right,
        otherwise=f"The loss is {got:.0f}, and should be the distance of the two logits. Is a "
        "small number added, or the probability kept from falling below one?",
    )

    yield "a model can learn from it"
    logits, ids = noise(2, 4, 7, seed=4).requires_grad_(), torch.arange(8).view(2, 4) % 7
    got = reader(logits, ids)
    if not got.requires_grad:
        raise Mistake(
            "The loss has lost its gradient: no .item(), .detach(), torch.tensor(...) or no_grad "
            "on the way."
        )
    right = torch.autograd.grad(reference(logits[:, :-1], ids[:, 1:]), logits)[0]
    expect(
        torch.autograd.grad(got, logits)[0],
        right,
        otherwise="The loss is right, its gradient is not: is a part of it detached?",
        tolerance=1e-5,
    )


def small_gpt2(tie, layers=2):
    """A GPT2 of V = 101 and E = 12 with weights that hide nothing; biases are drawn too."""
    config = GPT2Config(
        vocab_size=101, n_positions=16, n_embd=12, n_layer=layers, n_head=3, tie_weights=tie
    )
    model = GPT2(config)
    with torch.no_grad():
        for n, parameter in enumerate(model.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=n) / 2)
    return model


def ids_and_targets(B, T):
    """Token ids and their successors for `small_gpt2`, each [B, T]; no text is like another."""
    tokens = torch.arange(B * T + 1) * 37 % 101  # [B * T + 1]
    return tokens[:-1].view(B, T), tokens[1:].view(B, T)


def plain_step(model, ids, targets):
    """Mean loss and {name: gradient} of all rows at once; the model keeps its own gradients."""
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return loss.item(), dict(zip(names, gradients, strict=True))


@exercise
def mended_growth(grow):
    """grow(model, extra): a tied GPT2, with `extra` more tokens, still tied."""
    model, extra = small_gpt2(tie=False), 40
    model.unembed.weight = model.wte.weight  # tied as in section 3, whatever the config says
    config = model.config
    ids, targets = ids_and_targets(2, 12)  # [B, T]
    before = model(ids).detach()  # [B, T, V]
    V, E = model.wte.weight.shape
    parameters = sum(p.numel() for p in model.parameters())

    yield "the sizes"
    grown = call(grow, model, extra, may_change=True)
    if not isinstance(grown, nn.Module):
        raise Mistake(f"Return the model; this is {a_kind(grown)}.")
    if list(grown.wte.weight.shape) != [V + extra, E]:
        raise Mistake(
            f"`wte.weight` has the shape {list(grown.wte.weight.shape)}; {V} tokens and {extra} "
            f"new ones should make it {[V + extra, E]}."
        )
    if grown.config.vocab_size != V + extra:
        raise Mistake(
            "`config.vocab_size` still says how many tokens there were: the model would refuse "
            "the new ones."
        )
    if grown.config != replace(config, vocab_size=V + extra):
        raise Mistake(
            f"Other entries of the configuration have changed. Before: {config}; now: "
            f"{grown.config}. `replace` changes one entry of the model's own."
        )
    logits = call(grown, ids + extra)  # old tokens and new ones
    if logits.shape[-1] != V + extra:
        raise Mistake(
            f"The model gives {logits.shape[-1]} logits for {V + extra} tokens: the table at the "
            "exit has not grown."
        )

    yield "one table, one Parameter"
    if getattr(grown.unembed, "bias", None) is not None:
        raise Mistake("The new unembedding has a bias, and GPT-2's has none: `bias=False`.")
    added = sum(p.numel() for p in grown.parameters()) - parameters
    if added == (V + 2 * extra) * E:
        raise Mistake(
            "`parameters()` gives two tables: those of the entrance and of the exit are two "
            "Parameters, even if they share their memory. Test it with `is`."
        )
    if added != extra * E:
        raise Mistake(
            f"The model has {added:,} parameters more than before. {extra} new tokens of {E} "
            f"numbers are {extra * E:,}."
        )

    yield "old tokens keep their vectors, and their places"
    expect(
        call(grown, ids)[..., :V],
        before,
        otherwise="For the old tokens the model gives other logits than before. Are the first rows "
        "of the table the old ones, in their order, and all other weights as they were?",
    )

    yield "new tokens start like all others"
    new = grown.wte.weight[V:].detach()  # [extra, E]
    if new.std(dim=0).mean() < 1e-4:
        raise Mistake("All new tokens have one and the same vector: nothing tells them apart.")
    if not 0.015 < new.std() < 0.025:
        raise Mistake(
            f"The new vectors have the standard deviation {new.std():.4f}, not 0.02. What a layer "
            "is born with is not what GPT-2 starts with; and 0.02 is the standard deviation, not "
            "the variance."
        )
    if new.mean().abs() > 0.006:
        raise Mistake(f"The new vectors have the mean {new.mean():.3f}, not 0.")

    yield "it learns from both of its uses"
    fixed = [name for name, p in grown.named_parameters() if not p.requires_grad]
    if fixed:
        raise Mistake(f"`{fixed[0]}` does not learn any more: its requires_grad is False.")
    apart = GPT2(replace(config, vocab_size=V + extra, tie_weights=False))
    theirs = dict(grown.named_parameters())
    with torch.no_grad():
        for name, parameter in apart.named_parameters():
            parameter.copy_(theirs["wte.weight" if name == "unembed.weight" else name])
    ids, targets = ids + extra, targets + extra
    gradients = plain_step(apart, ids, targets)[1]
    entrance, exit_ = gradients["wte.weight"], gradients["unembed.weight"]  # [V + extra, E]
    expect(
        plain_step(grown, ids, targets)[1]["wte.weight"],
        entrance + exit_,
        {
            "The table learns at the entrance only: the exit uses a copy, or its data.": entrance,
            "The table learns at the exit only.": exit_,
        },
        "The gradient of the table is not the sum of what its two uses give.",
        tolerance=1e-5,
    )

    yield "it stays one after a move and a step of training"
    grown.to(torch.float64)
    F.cross_entropy(call(grown, ids).flatten(0, 1), targets.flatten()).backward()
    torch.optim.SGD(grown.parameters(), lr=1.0).step()
    seen = []
    with_hook = grown.ln_f.register_forward_hook(lambda module, given, made: seen.append(made))
    logits = call(grown, ids)
    with_hook.remove()
    expect(
        logits,
        seen[0] @ grown.wte.weight.T,
        otherwise="After a move and a step the exit no longer uses the table of the entrance.",
    )


def before_the_exit(model, ids):
    """The residual stream behind the last block, of a batch of one text: [T, E]."""
    X = model.wte(ids) + model.wpe.weight[: ids.shape[1]]  # [B=1, T, E]
    for block in model.blocks:
        X = block(X)
    return X[0]


class TensorsAlive(TorchFunctionMode):
    """Counts the bytes that logits take at the same time: tensors with an axis V, and none of E.

    `most` is the most so far, `largest` the most of a single one.

    with TensorsAlive(V, E) as alive, saved_tensors_hooks(alive.note, lambda tensor: tensor): ...

    It sees what code holds and, by the hooks, what autograd keeps.
    """

    def __init__(self, V, E):
        super().__init__()
        self.V, self.E, self.seen, self.most, self.largest = V, E, [], 0, 0

    def note(self, tensor):
        if self.V in tensor.shape and self.E not in tensor.shape:
            self.seen = [known for known in self.seen if known() is not None]
            self.seen.append(weakref.ref(tensor))
            memory = [known().untyped_storage() for known in self.seen]
            memory = {part.data_ptr(): part.nbytes() for part in memory}  # views count once
            self.most = max(self.most, sum(memory.values()))
            self.largest = max(self.largest, *memory.values())
        return tensor

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self.note(tensor)
        return result


def expect_gradients(
    model, right, mistakes=None, otherwise="Is what has gathered at the cut sent back?"
):
    """Mistake unless the gradients of all parameters are those in `right`, {name: gradient}.

    `mistakes` maps a message to a function that makes the wrong gradient from a name.
    """
    for name, parameter in reversed(list(model.named_parameters())):  # the way backward goes
        if parameter.grad is None:
            raise Mistake(
                f"`{name}` has no gradient. "
                + (
                    "Is `backward()` called on each text's loss?"
                    if name.startswith("unembed")
                    else "Where the graph is cut the way back ends: what has gathered at the cut "
                    "must be handed on by a `backward` of its own."
                )
            )
        size = right[name].abs().max()
        expect(
            parameter.grad / size,
            right[name] / size,
            {f"`{name}`: {text}": wrong(name) / size for text, wrong in (mistakes or {}).items()},
            f"The gradient of `{name}` is not right. {otherwise}",
        )


@exercise
def row_by_row_step(step):
    """step(model, ids [B, T], targets [B, T]) -> mean loss; see notebook 4."""

    def run(model, ids, targets):
        try:
            loss = call(step, model, ids, targets)
        except Mistake as mistake:
            if "backward through the graph a second time" in str(mistake):
                raise Mistake(
                    "The first text's `backward()` goes on into the blocks and frees what the next "
                    "needs. `retain_graph` is not the cure: cut the graph in front of the "
                    "unembedding, so that each text's way back ends there."
                ) from None
            if "grad can be implicitly created only for scalar outputs" in str(mistake):
                raise Mistake(
                    "`X.backward(G)` was called without G, or with G = None because nothing has "
                    "gathered at the cut. Is the cut a tensor without a history (`detach`) that "
                    "asks for a gradient (`requires_grad_`), and do the logits come from it?"
                ) from None
            raise
        if isinstance(loss, torch.Tensor) and loss.requires_grad:
            raise Mistake("The loss still has its gradient. Return a number: .item(), .detach().")
        return loss

    yield "one text: the loss"
    model, (ids, targets) = small_gpt2(tie=False), ids_and_targets(1, 5)  # [B=1, T=5]
    loss, gradients = plain_step(model, ids, targets)
    expect_number(
        run(model, ids, targets),
        loss,
        {
            "This is the sum over the places: take their mean.": 5 * loss,
            "The mean is divided by T a second time.": loss / 5,
            "That is the loss of the ids that went in; the targets are one place on already.": (
                plain_step(model, ids, ids)[0]
            ),
            "The targets are shifted once more: they are one place on already.": F.cross_entropy(
                model(ids)[0, :-1], targets[0, 1:]
            ).item(),
            "The logits come from `wte`. This model is not tied: use `unembed`.": F.cross_entropy(
                model.ln_f(before_the_exit(model, ids)) @ model.wte.weight.T, targets[0]
            ).item(),
            "`ln_f` is missing, the norm in front of the unembedding.": F.cross_entropy(
                model.unembed(before_the_exit(model, ids)), targets[0]
            ).item(),
        },
        "With one text it should be F.cross_entropy of all its places.",
        tolerance=1e-4,
    )

    yield "one text: the gradients, from the exit to the entrance"
    expect_gradients(model, gradients)

    yield "three texts: the loss"
    model, (ids, targets) = small_gpt2(tie=False), ids_and_targets(3, 5)  # [B=3, T=5]
    loss, gradients = plain_step(model, ids, targets)
    last_loss, last = plain_step(model, ids[-1:], targets[-1:])
    first_loss, first = plain_step(model, ids[:1], targets[:1])
    expect_number(
        run(model, ids, targets),
        loss,
        {
            "This is the sum of the texts' losses; return their mean.": 3 * loss,
            "The mean is divided by B a second time.": loss / 3,
            "This is the loss of the last text only.": last_loss,
            "This is a third of the loss of the last text.": last_loss / 3,
            "This is the loss of the first text only. Is the `return` inside the loop?": first_loss,
            "This is a third of the loss of the first text. Is the `return` inside the loop?": (
                first_loss / 3
            ),
        },
        "It should be the mean of the three texts' losses.",
        tolerance=1e-4,
    )

    yield "three texts: the gradients"
    expect_gradients(
        model,
        gradients,
        {
            "The gradients are B times too large: they are those of a sum of losses, not of their "
            "mean.": lambda name: 3 * gradients[name],
            "The gradients are divided by B twice.": lambda name: gradients[name] / 3,
            "Only the last text has left a gradient. Does each add its own, or replace it?": (
                lambda name: last[name] / 3
            ),
            "This is the gradient of the last text alone.": lambda name: last[name],
            "Only the first text has left a gradient.": lambda name: first[name] / 3,
            "This is the gradient of the first text alone.": lambda name: first[name],
        },
        "Each text adds its share, divided by B; does each hand its own part on to the blocks?",
    )

    yield "the shared table learns from both uses"
    model = small_gpt2(tie=True)
    apart = small_gpt2(tie=False)
    with torch.no_grad():
        for name, parameter in apart.named_parameters():
            source = "wte.weight" if name == "unembed.weight" else name
            parameter.copy_(model.get_parameter(source))
    uses = plain_step(apart, ids, targets)[1]
    run(model, ids, targets)
    expect_gradients(
        model,
        plain_step(model, ids, targets)[1],
        {
            "Only its use at the entrance counts.": lambda name: uses[name],
            "Only its use at the exit counts: what the blocks hand on replaces it, or never "
            "arrives.": lambda name: uses["unembed.weight" if name == "wte.weight" else name],
        },
    )

    yield "the blocks run once, on all texts, forwards and backwards"
    forwards, backwards = [], []

    def watch(block, given, made):
        forwards.append(len(given[0]))
        if made.requires_grad:
            made.register_hook(lambda gradient: backwards.append(1))

    model = small_gpt2(tie=True)
    hook = model.blocks[0].register_forward_hook(watch)
    run(model, ids, targets)
    hook.remove()
    if forwards != [3]:
        raise Mistake(
            f"The first block ran {len(forwards)} times, on {sum(forwards)} texts in all: it "
            "should run once, on the whole batch. Only the unembedding goes text by text."
        )
    if len(backwards) != 1:
        raise Mistake(
            f"The backward pass goes through the blocks {len(backwards)} times. Cut the graph in "
            "front of the unembedding, let the gradient gather there, and go through the blocks "
            "once, at the end."
        )

    yield "the logits of one text at a time"
    most = []
    for B in (2, 6):
        with TensorsAlive(V=101, E=12) as alive, saved_tensors_hooks(alive.note, lambda t: t):
            run(small_gpt2(tie=True), *ids_and_targets(B, 16))  # [B, T=16]
        most.append(alive.most)
    if most[1] > 1.5 * most[0]:
        raise Mistake(
            f"Six texts keep {most[1] / most[0]:.1f} times as many numbers of width V as two: the "
            "memory still grows with B. Does each text's `backward()` run before the next text's "
            "logits are made, and does nothing hold on to the old ones (a list of logits, "
            "`retain_graph`, one `backward()` at the end)?"
        )

    if alive.largest > 16 * 101 * 4:
        raise Mistake(
            "A tensor holds the logits of more than one text. The next text's logits are made when "
            "this one's `backward()` is through."
        )

    yield "gradients are added to those already there"
    model, (ids, targets) = small_gpt2(tie=False), ids_and_targets(2, 5)
    gradients = plain_step(model, ids, targets)[1]
    for _ in range(2):
        run(model, ids, targets)
    expect_gradients(
        model,
        {name: 2 * gradient for name, gradient in gradients.items()},
        {
            "A second call clears, or replaces, what the first one has left. `backward()` adds, "
            "and so should this.": lambda name: gradients[name]
        },
    )


# ------------------------------------------------------------------------ 5 · The timing lab


@exercise
def speed_of_five_steps(teraflops):
    """TFLOP/s, if the lecture's 1.6 s are the time of five training steps."""
    forward = forward_flops(GPT2Config(), 8, 1024) / 1e12  # TFLOP
    yield "TFLOP/s of five training steps in 1.6 s"
    expect_number(
        teraflops,
        5 * 3 * forward / 1.6,
        {
            "That is one training step in 1.6 s. Here all five are done in that time.": 3
            * forward
            / 1.6,
            "That is five forward passes. A training step has the backward pass too, and the "
            "notebook says how much the two make together.": 5 * forward / 1.6,
            "That is one forward pass in 1.6 s, and there are five training steps.": forward / 1.6,
            "That is the work of the backward passes alone. A step begins with a forward pass.": 5
            * 2
            * forward
            / 1.6,
            "That counts the forward pass twice: the factor of the notebook has it in it.": 5
            * 4
            * forward
            / 1.6,
            "That is the number of TFLOP, the work. The speed is work per second.": 15 * forward,
            "Upside down: TFLOP/s are the work divided by the seconds.": 1.6 / (15 * forward),
            "The work is divided by five in place of multiplied.": 3 * forward / 5 / 1.6,
            "Work times seconds is no speed: divide.": 15 * forward * 1.6,
            "That is in FLOP/s. Give it in TFLOP/s, millions of millions of them.": 15e12
            * forward
            / 1.6,
        },
        "Write down three numbers: the TFLOP of one training step, the number of steps, and the "
        "seconds for all of them.",
        tolerance=0.03,
    )


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
    # be too long, a wrong one is longer by some tenths of a second.

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


class Recorder(nn.Module):
    """In place of a model: it keeps the ids that it is given, and makes numbers of them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, ids):
        self.seen.append(ids.detach().clone())
        return ids[..., None].float()  # [B, T, 1]


@exercise
def mended_runs(make_runs):
    """make_runs(model, ids, lengths) -> {T: a function that runs the model on T tokens a text}."""

    def runs_of(model, ids, lengths):
        runs = call(make_runs, model, ids, lengths)
        if not isinstance(runs, dict) or set(runs) != set(lengths):
            raise Mistake("Return a dictionary with a run for each length, {T: run}.")
        if model.seen:
            raise Mistake(
                "The model ran while the runs were made. Then a clock around a run measures "
                "nothing: the work must wait until the run is called."
            )
        return runs

    def seen_by(run, model):
        model.seen.clear()
        try:
            result = call(run)
        except Mistake as mistake:
            if "positional argument" in str(mistake):
                raise Mistake(
                    "A run is called without arguments, `run()`; yours asks for some."
                ) from None
            raise
        if len(model.seen) != 1:
            raise Mistake(
                f"A run calls the model that was passed in {len(model.seen)} times, not once. Does "
                "each call compute anew, with that model, and with nothing else?"
            )
        return model.seen[0], result

    def expect_tokens(run, model, ids, T, mistakes=None):
        seen, result = seen_by(run, model)
        if torch.equal(seen, ids[:, :T]):
            if not (isinstance(result, torch.Tensor) and torch.equal(result, model(seen))):
                raise Mistake("A run does not return what the model returns, its logits.")
            return
        for message, wrong in (mistakes or {}).items():
            if torch.equal(seen, wrong):
                raise Mistake(message)
        raise Mistake(
            f"There are ids {list(ids.shape)}, and the run for T = {T} hands {list(seen.shape)} "
            "to the model. It should be the first tokens of each text."
        )

    model, ids, lengths = Recorder(), torch.arange(96).view(8, 12), [3, 6, 7]  # ids [B=8, 12]
    yield "a run for each length, and nothing computed yet"
    runs = runs_of(model, ids, lengths)

    yield "the last length, which the suspect does too"

    def mistakes(T):
        return {
            "A run hands the whole texts to the model. Cut the ids, not what comes out: a clock "
            "around the run measures what goes in.": ids,
            "All runs see as many tokens as the first one.": ids[:, :3],
            "All runs see as many tokens as the last one. When does each of them look up the name "
            "that the loop changes?": ids[:, :7],
            "A run sees the last tokens of each text; it should see the first.": ids[:, -T:],
            "A run cuts along the axis of the texts; the tokens are the second axis, [B, T].": ids[
                :T
            ],
            "A run sees the first text only.": ids[:1, :T],
        }

    expect_tokens(runs[7], model, ids, 7, mistakes(7))

    yield "every other length sees its own first tokens"
    for T in lengths[:2]:
        expect_tokens(runs[T], model, ids, T, mistakes(T))

    yield "other lengths, run twice and backwards"
    model, ids, lengths = Recorder(), torch.arange(40).view(4, 10), [7, 2, 10, 1]  # ids [B=4, 10]
    runs = runs_of(model, ids, lengths)
    for T in 2 * lengths[::-1]:
        expect_tokens(runs[T], model, ids, T)


def straight(overhead, each, tokens=(1, 64, 256, 1024)):
    """Points (tokens, seconds) on a line, from milliseconds."""
    return [(N, (overhead + each * N) / 1e3) for N in tokens]


def crossing_of_fits(*devices):
    """Tokens at which the fitted lines of two devices meet, by torch's own least squares."""
    fits = []
    for points in devices:
        N, seconds = torch.tensor(points, dtype=torch.float64).T  # [points] each
        columns = torch.stack([torch.ones_like(N), N], dim=1)  # [points, 2]
        fits.append(torch.linalg.lstsq(columns, seconds[:, None]).solution.flatten().tolist())
    (overhead_1, each_1), (overhead_2, each_2) = fits
    return (overhead_2 - overhead_1) / (each_1 - each_2)


@exercise
def where_the_gpu_wins(crossover):
    """crossover(cpu, gpu), each [(tokens, seconds), ...]: from how many tokens on is it ahead?"""

    def crossing(cpu, gpu):
        return number_or_never(crossover, cpu, gpu, never="`math.inf`")

    yield "two exact lines"
    cpu, gpu = straight(1, 0.02), straight(9, 0.004)  # they meet where 8 = 0.016 N
    lines = {
        "Each device has its own overhead and its own cost per token: where the two lines meet, "
        "both differences count, that of the overheads and that of the costs.": 625,
        "Compare the costs per token by their difference, not by their sum.": 8 / 0.024,
    }
    expect_number(
        crossing(cpu, gpu),
        500,
        lines
        | {
            "Negative: one of the two differences has the wrong sign.": -500,
            "That is the time at which the lines meet. How many tokens is it?": 0.011,
            "With few tokens the CPU is ahead here: its overhead is smaller. Is the overhead in "
            "your fit, and has each difference its right sign?": 0.0,
            "With many tokens the GPU is ahead here: it needs less time per token. Are the devices "
            "swapped, or overhead and cost (what does your fit return first)?": math.inf,
        },
        "Set the two lines equal, overhead + cost times tokens, and solve for the tokens. And "
        "print the fits: here they are 1 ms and 0.02 ms a token, 9 ms and 0.004 ms a token.",
    )

    yield "points in any order, more for one device than for the other"
    expect_number(
        crossing(cpu[::-1] + straight(1, 0.02, (16, 2)), [gpu[2], gpu[0], gpu[1]]),
        500,
        {},
        "The points lie on the same lines as before, only their order and number changed.",
    )

    yield "points off the line: least squares"
    tokens, jitter = (1, 64, 64, 256, 1024), [1.0, 1.6, 0.7, 1.15, 0.97]
    cpu, gpu = (
        [(N, s * j) for (N, s), j in zip(line, factors, strict=True)]
        for line, factors in [
            (straight(1, 0.02, (*tokens, 512)), [*jitter, 1.3]),
            (straight(9, 0.004, tokens), jitter[::-1]),
        ]
    )
    expect_number(
        crossing(cpu, gpu),
        crossing_of_fits(cpu, gpu),
        {
            "The line goes through the first and the last point, and the others are not "
            "heard.": crossing_of_fits(cpu[:: len(cpu) - 1], gpu[:: len(gpu) - 1]),
            "The points that one device has more than the other are lost.": crossing_of_fits(
                cpu[: len(gpu)], gpu
            ),
            "The line goes through the first two points only.": crossing_of_fits(cpu[:2], gpu[:2]),
        },
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


# ------------------------------------------------------------- 6 · The timing lab, continued


@exercise
def tokens_per_second_at_most(tokens):
    """GPT-2 small, one token at a time, float32, weights from memory at 1.6 TB/s."""
    counts = parameter_counts(GPT2Config())
    speed, parameters = 1.6e12, sum(counts.values())
    yield "tokens per second, at most"
    expect_number(
        tokens,
        speed / (4 * parameters),
        {
            "One byte for each weight? How many has a float32 number?": speed / parameters,
            "Two bytes for each weight are those of a 16-bit format.": speed / (2 * parameters),
            "The speed of memory is given in bytes, not in bits.": speed / (32 * parameters),
            "That counts the table of tokens twice. The unembedding is the same table, and it lies "
            "in memory once.": speed / (4 * (parameters + counts["wte"])),
            "That reads the blocks only. To score the next token takes the unembedding, too, which "
            "is the table of tokens.": speed / (4 * counts["blocks"]),
            "That is the limit that arithmetic sets. With one token at a time another one is "
            "lower: see the roofline, at N = 1.": 19.5e12 / (2 * parameters),
            "That is the limit of arithmetic in bfloat16. How often can the weights be "
            "read?": 312e12 / (2 * parameters),
            "That is the time for one token, in seconds. How many fit into a second?": 4
            * parameters
            / speed,
            "That is the time for one token, in milliseconds.": 4e3 * parameters / speed,
            "One token at a time: the weights are read again for each, not once for 1024.": 1024
            * speed
            / (4 * parameters),
            "A terabyte is 10 to the power of 12 bytes.": speed / 1e3 / (4 * parameters),
            "A terabyte is 10 to the power of 12 bytes, not 2 to the power of 40.": 1.6
            * 2**40
            / (4 * parameters),
        },
        "Write down the bytes of all weights, and how often they can be read in one second.",
        tolerance=0.025,
    )


class Walk(nn.Module):
    """Layers, of which those run whose numbers are in `order`."""

    def __init__(self, layers, order):
        super().__init__()
        self.layers, self.order = nn.ModuleList(layers), order

    def forward(self, X):
        for n in self.order:
            X = self.layers[n](X)
        return X


class Kept(nn.Module):
    """A model of one layer that keeps what it gave back each time."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.made = layer, []

    def forward(self, X):
        self.made.append(self.layer(X))
        return self.made[-1]


class Scores(nn.Module):
    """A product of matrices that no Linear layer makes: [..., T, E] -> [..., T, T]."""

    def forward(self, X):
        return X @ X.transpose(-2, -1)


class Pair(nn.Module):
    """A model with two inputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(7, 5)

    def forward(self, X, Y):
        return self.left(X) + self.right(Y)


class Failing(nn.Module):
    def forward(self, X):
        raise ValueError("this model fails on purpose")


def hooks_on(model):
    """The number of forward hooks on all modules of a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@exercise
def flops_by_hooks(count):
    """count(model, *inputs): FLOPs of all Linear layers that run, 2 for a multiply-add."""

    def expect_flops(model, inputs, right, mistakes, otherwise):
        expect_number(call(count, model, *inputs), right, mistakes, otherwise, tolerance=1e-9)

    yield "one layer, one token"
    expect_flops(
        nn.Linear(30, 7),
        [noise(1, 30)],
        2 * 30 * 7,
        {
            "A multiply-add counts as two.": 30 * 7,
            "The bias is in it. Here it does not count.": 2 * 30 * 7 + 7,
            "That is the number of parameters.": 30 * 7 + 7,
            "Nothing was counted. Is the model itself, a single layer here, among the modules "
            "that you look at? And is it called, `model(...)`? Its `forward` calls no hooks.": 0,
            "Every number of the input is counted as a token. The input is [1, 30] here, one row "
            "of n_in numbers; how many axes stand in front varies.": 2 * 30 * 30 * 7,
            "Exactly twice as many: does the model run twice, or is the 2 there twice?": 840,
        },
        "The input is [1, 30], the layer has 30 inputs and 7 outputs: one multiply-add for each of "
        "its weights and each token.",
    )

    yield "the model runs once, and its results stay as they are"
    kept, X = Kept(nn.Linear(4, 6)), noise(3, 4)
    first = number(call(count, kept, X))
    made = kept.made[0] if kept.made else kept.layer(X)
    if not (isinstance(made, torch.Tensor) and torch.equal(made, kept.layer(X))):
        raise Mistake(
            "While your hooks are there the model computes something else. What a hook returns "
            "takes the place of the layer's output: let yours return nothing."
        )
    if len(kept.made) > 1:
        raise Mistake(f"The model runs {len(kept.made)} times in one call; it should run once.")
    if number(call(count, kept, X)) != first:
        raise Mistake(
            "A second count of the same model gives another number. Begin at 0 each time."
        )

    yield "any number of tokens, in any shape"
    for shape, tokens in [((2, 5, 30), 10), ((30,), 1), ((2, 3, 4, 30), 24)]:
        expect_flops(
            nn.Linear(30, 7),
            [noise(*shape)],
            2 * 30 * 7 * tokens,
            {
                "Every token uses all weights again: the number of tokens is missing.": 420,
                "That counts the first axis only. Which axes of the input are tokens?": 420
                * shape[0],
                "That counts the last axis of tokens only. All but the very last axis are "
                "tokens.": 420 * shape[-2:][0],
            },
            f"The input has the shape {list(shape)}: every row of 30 numbers is a token.",
        )

    yield "layers inside layers, and others that cost nothing"
    inner = nn.Sequential(nn.Linear(8, 3), nn.GELU(), nn.Sequential(nn.Linear(3, 5), Scores()))
    right = 2 * 14 * (24 + 15)
    expect_flops(
        nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8), inner),
        [torch.arange(14).view(2, 7) % 10],  # [B=2, T=7]
        right,
        {
            "The embedding is counted. It looks up rows, which is no arithmetic.": right
            + 2 * 14 * 80,
            "The embedding or the LayerNorm is counted, with each number that goes through.": right
            + 2 * 14 * 8,
            "Nothing was counted: the layers sit deeper in the model. Which method of a module "
            "gives all modules inside it?": 0,
            "Containers are counted as well as what is in them.": 2 * right,
            "Each layer has an input of its own. That takes the tokens from the model's input.": 2
            * 2
            * (24 + 15),
            "A product that is in no Linear layer is counted as well.": right + 2 * 2 * 7 * 7 * 5,
        },
        "Count the Linear layers, however deep they sit, and nothing else.",
    )

    yield "a layer that does not run costs nothing"
    expect_flops(
        Walk([nn.Linear(4, 6), nn.Linear(6, 50)], [0]),
        [noise(3, 4)],
        2 * 3 * 24,
        {"The second layer of this model never runs, and you count it.": 2 * 3 * (24 + 300)},
        "Only the first of the two layers runs.",
    )

    yield "a layer that runs three times costs three times as much"
    expect_flops(
        Walk([nn.Linear(6, 6)], [0, 0, 0]),
        [noise(2, 6)],
        3 * 2 * 2 * 36,
        {"The layer ran three times, and you count it once. What does a hook see?": 2 * 2 * 36},
        "The only layer of this model runs three times.",
    )

    yield "a layer that sits in two places gets one hook"
    shared = nn.Linear(6, 6)
    expect_flops(
        Walk([nn.Sequential(shared), nn.Sequential(shared)], [0, 1]),
        [noise(2, 6)],
        2 * 2 * 2 * 36,
        {
            "One layer sits in two places of this model, and runs twice. With a hook for each "
            "place every run counts twice.": 4 * 2 * 2 * 36,
            "One layer sits in two places of this model, and runs twice.": 2 * 2 * 36,
        },
        "One layer sits in two places of this model, and runs twice.",
    )

    yield "two layers with one weight both count"
    one, other = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    other.weight = one.weight
    expect_flops(
        Walk([one, other], [0, 1]),
        [noise(2, 6)],
        2 * 2 * 2 * 36,
        {"A shared weight saves memory, not arithmetic: both layers compute.": 2 * 2 * 36},
        "Two layers run, with the same weight.",
    )

    yield "a model with two inputs"
    expect_flops(Pair(), [noise(4, 3), noise(4, 7)], 2 * 4 * (15 + 35), {}, "Both layers run.")

    yield "the hooks are gone afterwards, and those of others are still there"
    model, X = Walk([nn.Linear(6, 6), nn.Linear(6, 6)], [0, 1]), noise(2, 6)
    model.layers[0].register_forward_hook(lambda module, inputs, output: None)
    call(count, model, X)
    if hooks_on(model) > 1:
        raise Mistake(
            "Your hooks stay on the model, and will count in every later pass. Keep what "
            "`register_forward_hook` returns, and call its `remove`."
        )
    if hooks_on(model) < 1:
        raise Mistake("The model had a hook already, and it is gone. Remove your own hooks only.")

    yield "also if the model fails"
    model, raised = nn.Sequential(nn.Linear(6, 6), Failing()), ""
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
    expect_flops(
        GPT2(sizes),
        [torch.arange(B * T).view(B, T)],
        forward_flops(sizes, B, T) - attention,
        {"Attention's own two products are no Linear layers.": forward_flops(sizes, B, T)},
        "Eight layers in two blocks, and the unembedding.",
    )


@exercise
def mended_mfu(mfu):
    """mfu(config, B, T, seconds, peak): a share of the peak, None if there is no peak."""

    def flops(config, B, T, attends_to):
        """B T tokens, each of which meets `attends_to` tokens in attention."""
        E, L, V = config.n_embd, config.n_layer, config.vocab_size
        return 2.0 * B * T * (12 * L * E**2 + V * E + 2 * L * attends_to * E)

    def ask(config, B, T, peak=1e12):
        return call_or_none(mfu, config, B, T, 0.5, peak)

    def expect_share(config, B, T, mistakes, otherwise, peak=1e12):
        got = ask(config, B, T, peak)
        if got is None:
            raise Mistake("Your code returns None. Is the `return` missing?")
        wrong = {message: work / 0.5 / peak for message, work in mistakes.items()}
        right = flops(config, B, T, T) / 0.5 / peak
        wrong |= {"It is rounded; return it as it is.": round(right, 2)}
        wrong |= {"More than 1 is cut off. Who would then see that something is wrong?": 1.0}
        expect_number(got, right, wrong, otherwise, tolerance=1e-6)

    small = GPT2Config()
    yield "one text, where the suspect is right"
    work = flops(small, 1, 1024, 1024)
    expect_share(
        small,
        1,
        1024,
        {
            "That is in percent. Return the share, between 0 and 1.": 100 * work,
            "The two products of attention are missing.": flops(small, 1, 1024, 0),
            "That is the work of a training step; this is a forward pass.": 3 * work,
            "The masked half of attention is left out. By convention it counts, as in section 3; "
            "the suspect's mistake is another.": flops(small, 1, 1024, 512),
            "A multiply-add counts as two FLOPs.": work / 2,
            "The peak is missing.": 1e12 * work,
            "That divides by 312e12, whatever the peak is. Use the one that is given.": work / 312,
        },
        "With one text the suspect is right, and yours is not: what else did you change?",
    )

    yield "eight texts"
    expect_share(
        small,
        8,
        100,
        {
            "As the suspect: each token meets those of all texts in attention. How many tokens "
            "does it really meet?": flops(small, 8, 100, 800),
            "Now no token meets any other: the two products of attention are missing.": flops(
                small, 8, 100, 0
            ),
            "Each token meets itself only. How long is the text that it stands in?": flops(
                small, 8, 100, 1
            ),
            "B and T are swapped: each token meets as many others as there are texts.": flops(
                small, 8, 100, 8
            ),
            "That is the work of one of the eight texts.": flops(small, 1, 100, 100),
            "The number of texts is counted twice.": 8 * flops(small, 8, 100, 100),
            "That takes every text for 1,024 tokens. Use the T that is given.": flops(
                small, 8, 1024, 1024
            ),
            "In attention that takes every text for 1,024 tokens. Use the T that is given.": flops(
                small, 8, 100, 1024
            ),
        },
        "Count the tokens, and for each the tokens that it meets in attention.",
    )

    yield "another model"
    expect_share(
        GPT2Config(vocab_size=1000, n_embd=96, n_layer=3),
        3,
        64,
        {
            "Those are the FLOPs of GPT-2 small. Use the config that is given.": flops(
                small, 3, 64, 64
            )
        },
        "With other sizes the number is wrong. Does anything come from the notebook's variables?",
        peak=1e7,
    )

    yield "no peak, no MFU"
    if (got := ask(small, 8, 100, None)) is not None:
        raise Mistake(f"Without a peak there is no MFU, None; you return {a_kind(got)}.")


@exercise
def crossing_the_ridge(crossing):
    """crossing(n_in, n_out, ridge, bytes_per_number): tokens at which a layer reaches the ridge."""

    def reached(*layer):
        got = number_or_never(crossing, *layer, never='infinity, `float("inf")`')
        if got < 0:
            raise Mistake(
                "A number of tokens cannot be negative. With ever more tokens the intensity comes "
                "close to a highest value; what if the ridge lies above that?"
            )
        return got

    def intensity(N, n_in, n_out, size):
        return 2 * n_in * n_out * N / (size * (n_in * n_out + N * (n_in + n_out)))

    def expect_ridge(n_in, n_out, ridge, size, mistakes=None):
        layer = f"(n_in = {n_in}, n_out = {n_out}, ridge = {ridge}, bytes_per_number = {size})"
        N = reached(n_in, n_out, ridge, size)
        if math.isinf(N):
            raise Mistake(
                f"You return infinity, and this layer does reach its ridge. {layer} When there are "
                "so many tokens that the weights no longer count, what is the intensity then?"
            )
        got = intensity(N, n_in, n_out, size)
        rounded_up = N.is_integer() and got >= ridge > intensity(N - 1, n_in, n_out, size)
        if not (rounded_up or math.isclose(got, ridge, rel_tol=2e-3)):
            for message, wrong in (mistakes or {}).items():
                if math.isclose(N, wrong, rel_tol=2e-3):
                    raise Mistake(message)
            raise Mistake(
                f"At {N:,.2f} tokens the layer has {got:.2f} FLOP per byte, and the ridge lies at "
                f"{ridge}. {layer} Count FLOPs and bytes as in section 4: the weights once, each "
                "token's input and output once."
            )

    def expect_never(n_in, n_out, ridge, size):
        if reached(n_in, n_out, ridge, size) != math.inf:
            raise Mistake(
                f"With {n_in} inputs, {n_out} outputs and {size} bytes a number the intensity "
                f"stays under {ridge}, however many tokens there are. Where is your limit?"
            )

    yield "a square layer in float32"
    expect_ridge(
        1024,
        1024,
        100,
        4,
        {
            "The inputs and outputs are left out. They must be moved, too.": 200,
            "A multiply-add counts as two FLOPs.": 400 * 1024 / (1024 - 800),
            "Of inputs and outputs, only one is counted.": 400 * 1024 / (2048 - 400),
            "That moves one byte for each number.": 100 * 1024 / (2048 - 200),
        },
    )

    yield "a layer that is not square"
    expect_ridge(768, 3072, 200, 4)
    expect_ridge(3072, 768, 200, 4)

    yield "a small layer"
    expect_ridge(
        12, 20, 1.5, 4, {"The bias is counted. Leave it out.": 1.5 * 4 * 260 / (480 - 6 * 32)}
    )

    yield "another number format"
    expect_ridge(
        1024,
        1024,
        200,
        2,
        {"As in float32. Here a number has two bytes.": 800 * 1024 / (2048 - 1600)},
    )
    expect_ridge(1024, 1024, 300, 2)

    yield "a ridge just under the highest intensity"
    expect_ridge(1024, 1024, 250, 4)

    yield "a ridge that no number of tokens reaches"
    expect_never(1024, 1024, 600, 4)
    expect_never(768, 3072, 320, 4)
    expect_never(1024, 1024, 600, 2)

    yield "a ridge at the highest intensity, which is never quite reached"
    expect_never(1024, 1024, 256, 4)
