"""The checks that the exercises of the notebooks call, as `check.name(your_answer)`.

A check takes what you wrote and tests one mechanism after another, on inputs made so that only
that mechanism can fail, against an independent reference. It prints what works, stops at the
first thing that does not, and names the likely cause. It never prints the answer. How the code
is written makes no difference to it: loops, einsum, a class or a function of your own.

| check | what it isolates, in this order |
|---|---|
| **2 · Attention** | |
| weights_of_another_query | softmax, normalisation, scale |
| attention_with_loops | value path (one token), mask, normalisation (zero query), scale, heads |
| mended_attention | one head (no split), causality, who owns which columns, two texts |
| attention_with_a_cache | first token, what is kept, second token, growth, five tokens |

Each check is a generator: it yields the name of a mechanism and then tests it. What goes wrong
before the next name is the problem of that mechanism. See `exercise`.
"""

import contextlib
import functools
import linecache
import math
import signal
import threading
import traceback
from _thread import interrupt_main

import torch
import torch.nn.functional as F
from torch import nn

from gpt2_helpers import GPT2Config, MultiHeadAttention

SECONDS = 20  # that one call of a reader's function may take


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
        passed, current = [], None
        problem = None
        try:
            if any(answer is None or answer is ... for answer in answers):
                raise NotAttempted("replace `None` by your answer")
            for name in mechanisms(*answers):
                passed += [current] if current else []
                current = name
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
        else:
            passed.append(current)
        print(f"{mechanisms.__name__}:")
        for name in passed:
            print(f"  ✓ {name}")
        if problem is None:
            print("Solved.")
        else:
            print(f"  ✗ {current}\n    {problem}")

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

    def ring():
        nonlocal late
        late = True
        interrupt_main()

    def on_interrupt(signum, frame):
        if running:
            raise OutOfTime if late else KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
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


def shapes(inputs):
    """The shapes of the tensors among the inputs; weights are left out."""
    data = [tensor for tensor in tensors_in(inputs) if not isinstance(tensor, nn.Parameter)]
    return ", ".join(str(list(tensor.shape)) for tensor in data)


def call(function, *inputs):
    """What a reader's function (or class, or module) returns; Mistake if it goes wrong."""
    if not callable(function):
        raise Mistake(
            f"This check takes a function or a class, and got {a_kind(function)}. Pass its name, "
            "without calling it."
        )
    given = [tensor for tensor in tensors_in(inputs) if not tensor.is_meta]
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


def what_was_raised(error, inputs):
    text = str(error).strip().splitlines() or ["without a message"]
    message = f"Your code raised {type(error).__name__}: {text[0]}"
    theirs = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    theirs = [f for f in theirs if "site-packages" not in f.filename]
    if theirs:
        line = linecache.getline(theirs[-1].filename, theirs[-1].lineno).strip()
        message += f"\n    in the line `{line}`" if line else ""
    elif isinstance(error, TypeError):
        message += "\n    Does it take the arguments that the exercise names, in their order?"
    return message + (f"\n    when called with tensors {shapes(inputs)}." if shapes(inputs) else "")


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
        raise Mistake(f"The result is of type {got.dtype}; it should be {like.dtype}, as given.")


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
        otherwise = f"The numbers differ from the reference, first at the index {place}."
    raise Mistake(otherwise)


def number(value):
    """The float of an int, a float or a tensor or array of one number; Mistake for all else."""
    if not isinstance(value, (str, bool)):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return float(value)
    raise Mistake(f"The answer should be a plain number, and there is {a_kind(value)}.")


def expect_number(got, right, mistakes, otherwise, tolerance=0.01):
    """Mistake unless `got` is `right`, relative to its size; the rest as in `expect`."""
    got = number(got)
    if math.isclose(got, right, rel_tol=tolerance):
        return
    for message, wrong in mistakes.items():
        if math.isclose(got, wrong, rel_tol=tolerance):
            raise Mistake(message)
    raise Mistake(f"{got:,g} is not it. {otherwise}")


def noise(*shape, seed=0):
    """Normal random numbers that are the same on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
            "Too even: divide by the square root of D, not by D.": F.softmax(scores / 4, dim=0),
        },
        "Multiply the new query with the label (key) of each word, place by place, and add up: "
        "who is built? Words with equal scores get equal weights.",
        tolerance=0.01,
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
    expect(
        call(attend, q, k, v),
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
        },
        "All scores are 0 here, so each output is the mean of the values up to its position. "
        "Is the sum in the softmax taken over the keys, and do all visible keys take part?",
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
    """The helper's MultiHeadAttention with weights that hide nothing; biases are drawn too."""
    layer = MultiHeadAttention(GPT2Config(n_embd=E, n_head=H))
    with torch.no_grad():
        for n, parameter in enumerate(layer.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed + n) / E**0.5)
    return layer


@exercise
def mended_attention(attend):
    """attend(X, qkv, proj, H): [B, T, E] -> [B, T, E], the notebook's suspect without its fault."""

    def heads_of(layer, X, causal=True):
        """The heads' outputs [B, H, T, D] of a layer whose `proj` is yet to come."""
        q, k, v = (
            M.unflatten(-1, (layer.n_head, -1)).transpose(1, 2) for M in layer.qkv(X).chunk(3, -1)
        )  # [B, H, T, D]
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

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
        },
        "With one head the suspect is right, and yours is not: what else did you change?",
    )

    yield "no position listens to a later one"
    layer, X = attention_layer(), noise(1, 5, 12, seed=2)  # [B=1, T=5, E=12], H=3
    got = call(attend, X, layer.qkv, layer.proj, 3)
    if isinstance(got, torch.Tensor) and same(
        got, layer.proj(heads_of(layer, X).reshape(1, 5, 12))
    ):
        raise Mistake(
            "The heads are merged without a transpose: [B, H, T, D] must become [B, T, H, D] "
            "before its last two axes can become E."
        )
    expect_causal(attend, X, layer.qkv, layer.proj, 3)

    yield "head h owns the columns from h D to (h + 1) D - 1"
    expect(
        got,
        layer(X),
        otherwise="No later position is heard, yet the numbers differ from the helper's layer. "
        "Head 0 owns the first D columns of q, of k and of v, head 1 the next D. Are all three "
        "cut that way, and merged in the same order?",
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
    layer, X = attention_layer(), noise(2, 5, 12, seed=4)  # [B=2, T=5, E=12], H=3, D=4
    right = layer(X).detach()
    keys, values = (
        M.view(2, 5, 3, 4).transpose(1, 2).detach() for M in layer.qkv(X).split(12, dim=-1)[1:]
    )  # [B, H, T, D]

    def step(t, cache):
        tokens = []
        hook = layer.qkv.register_forward_hook(
            lambda module, given, made: tokens.append(given[0].shape[-2])
        )
        try:
            result = call(attend_next, X[:, t : t + 1], cache, layer)
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
        {"The last layer, `proj`, is missing.": values[:, :, 0].reshape(2, 1, 12)},
        "The first token can hear only itself: its value, through `proj`.",
    )

    yield "the cache holds keys and values, [B, H, 1, D]"
    key, value = cache
    expect(
        key,
        keys[:, :, :1],
        {
            "Keys and values are swapped.": values[:, :, :1],
            "Keep k with its heads in front, [B, H, t, D].": keys[:, :, :1].transpose(1, 2),
        },
    )
    expect(value, values[:, :, :1])

    yield "the second token hears the first and itself"
    output, grown = step(1, (key, value))
    v0 = layer.proj(values[:, :, 0].reshape(2, 1, 12))
    v1 = layer.proj(values[:, :, 1].reshape(2, 1, 12))
    expect(
        output,
        right[:, 1:2],
        {
            "It hears the first token only. `is_causal=True` lines up the first query with the "
            "first key; a single query at the end needs no mask at all.": v0,
            "It hears itself only: the keys and values of the cache take no part.": v1,
        },
        "The new query should meet the old keys and its own, and nothing else.",
    )

    yield "the cache grows by one"
    for now, old in zip(grown, (keys, values), strict=True):
        expect_kind(now, old)
        expect(
            now.sort(dim=2).values,  # attention does not mind in which order they stand
            old[:, :, :2].sort(dim=2).values,
            {
                "The new cache holds the new token only.": old[:, :, 1:2],
                "The new cache is the old one: the new token is missing.": old[:, :, :1],
            },
            "The new cache should be the old keys and values with the new ones, joined along the "
            "axis of the tokens, dim=2.",
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
