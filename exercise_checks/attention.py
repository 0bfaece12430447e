"""The checks of notebook 2, attention, and the mistakes they know."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

from gpt2_helpers import GPT2Config, MultiHeadAttention

from . import Mistake, call, drawn, exercise, expect, expect_kind, expect_result, noise, number

# ---------------------------------------------------------------------- 1: another question


SCORES = torch.tensor([0.0, 4, 0, 0])  # only the bridge is built: 2 times 2
WEIGHTS = F.softmax(SCORES / 2, dim=0)  # D = 4


@exercise
def weights_of_another_query(weights):
    """Four weights, in the order mule, bridge, was, tired, for the query (0, 2, 0, 0)."""

    def four_numbers(weights):
        return torch.tensor([number(weight) for weight in weights])

    yield "four numbers"
    if not hasattr(weights, "__len__") or len(weights) != 4 or isinstance(weights, (str, dict)):
        raise Mistake("Give a list of four weights, in the order mule, bridge, was, tired.")
    got = four_numbers(weights)

    yield "they are weights"
    if (got < 0).any() or not math.isclose(got.sum(), 1, abs_tol=0.02):
        no_weights = f"They sum to {got.sum():.2f}: weights are positive and sum to 1."
        # With a sum that is wrong by 0.02, one of the four is wrong by 0.005.
        expect(four_numbers, weights, WEIGHTS, no_weights, tolerance=0.005)

    yield "the right query and the right scale"
    expect(
        four_numbers,
        weights,
        WEIGHTS,
        "Multiply the new query with the label (key) of each word, place by place, and add up: "
        "who is built? Words with equal scores get equal weights.",
        tolerance=0.012,
    )


weights_of_another_query.mistakes = {
    "These are scores. The softmax, which makes weights of them, is missing.": SCORES,
    "These are scores, divided by the square root of D. The softmax, which makes weights of them, "
    "is missing.": SCORES / 2,
    "A score of 0 does not give a weight of 0: the softmax takes e to the power of each.": (
        SCORES / SCORES.sum()
    ),
    "Too sharp: divide the scores by the square root of D before the softmax.": F.softmax(
        SCORES, 0
    ),
    "Too even. Is a score the query's number times the label's, and is it divided by the square "
    "root of D, not by D?": F.softmax(SCORES / 4, dim=0),
    "The words stand in another order: mule, bridge, was, tired.": WEIGHTS[[1, 0, 2, 3]],
    "The words stand in another order: mule first, then bridge.": WEIGHTS[[0, 2, 1, 3]],
    "The words stand in another order: mule first, tired last.": WEIGHTS[[0, 2, 3, 1]],
}

# ------------------------------------------------------------ 2: attention with three loops


def expect_causal(attend, *inputs):
    """Mistake if an output moves when the tensors in `inputs`, [..., T, width], change later on."""
    like = inputs[0]

    def outputs(change):
        given = [change(part) if isinstance(part, torch.Tensor) else part for part in inputs]
        result = call(attend, *given)
        expect_kind(result, like)
        if result.shape != like.shape:
            raise Mistake(f"The result has the shape {list(result.shape)}, not {list(like.shape)}.")
        return result.detach()

    def changed_at(t):
        here = torch.arange(like.shape[-2])[:, None] == t  # [T, 1]
        return lambda part: torch.where(here, 3 - part, part)

    before = outputs(torch.clone)
    for t in range(1, like.shape[-2]):
        moved = (outputs(changed_at(t)) - before).abs()[..., :t, :] > 1e-5  # [..., t, width]
        if moved.any():
            early = moved.nonzero()[0, -2].item()
            raise Mistake(
                f"Position {early} listens to position {t}, a later one: is the mask there, does "
                "it point the right way, and does it come before the softmax, which runs over the "
                "keys?"
            )


def masked_softmax(scores):
    """Softmax over the keys, each query with itself and earlier ones only: [..., T, T]."""
    visible = torch.ones_like(scores, dtype=torch.bool).tril()
    return F.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)


def attend(q, k, v, scale=lambda H, T, D: D**-0.5, weights=masked_softmax):
    """Causal attention [H, T, D], with switches for the usual mistakes."""
    return weights(q @ k.mT * scale(*q.shape)) @ v


@exercise
def attention_with_loops(attend):
    """attend(q, k, v), each [H, T, D], returns causal attention [H, T, D]."""

    def expect_attention(qkv, otherwise):
        right = sdpa(*qkv, is_causal=True)
        expect_result(attend, qkv, right, otherwise)

    yield "one token alone takes its own value"
    try:
        expect_attention(
            noise(3, 1, 1, 4),  # q, k, v with H=1, T=1, D=4
            "With a single token its weight is 1, whatever its score: the output is its value.",
        )
    except Mistake as mistake:
        if "non-empty" in str(mistake):
            raise Mistake(f"{mistake}\n    Does the token hear itself, too?") from None
        raise

    yield "no position listens to a later one"
    q, k, v = noise(3, 1, 5, 4, seed=1)  # [H=1, T=5, D=4]
    expect_causal(attend, q, k, v)

    yield "a query of zeros hears itself and all before it equally"
    expect_attention(
        [0 * q, k, v],
        "All scores are 0 here, so each output is the mean of the values up to its position. "
        "Is the sum in the softmax taken over the keys, do all visible keys take part, and is each "
        "weight times its own value added up? (The axes are [H, T, D].)",
    )

    yield "the scale of the scores"
    expect_attention(
        noise(3, 1, 6, 9, seed=2),  # H=1, T=6, D=9
        "The weights follow the scores in another way than softmax(q k / sqrt(D)).",
    )

    yield "each head by itself"
    expect_attention(
        noise(3, 3, 4, 4, seed=3),  # H=3, T=4, D=4
        "With several heads the numbers change: a head must use its own q, k and v only.",
    )


def weighted(weights):
    return partial(attend, weights=weights)


def scaled(scale):
    return partial(attend, scale=scale)


attention_with_loops.mistakes = {
    "You return the key; what is handed over is the value.": lambda q, k, v: attend(q, v, k),
    "You return the query; what is handed over is the value.": lambda q, k, v: attend(v, k, q),
    "The result is 0: a token may listen to itself too. Is the range off by one?": weighted(
        lambda scores: masked_softmax(scores).tril(-1)
    ),
    "The result is a sum that is not divided by the sum of the exponentials.": weighted(
        lambda scores: scores.exp().tril()
    ),
    "A position listens to those before it, but not to itself: the range ends one too "
    "early.": lambda q, k, v: torch.cat([v[:, :1], attend(q[:, 1:], k[:, :-1], v[:, :-1])], dim=1),
    "The weights are shares of all T tokens, the hidden ones too. Divide by the sum over the "
    "visible keys.": weighted(lambda scores: scores.tril().softmax(-1).tril()),
    "The weights do not sum to 1: divide by the sum of the exponentials.": weighted(
        lambda scores: torch.ones_like(scores).tril()  # a sum of values, as softmax(scores) / max
    ),
    "Only the last key's share is left: add the shares up (`+=`).": weighted(
        lambda scores: masked_softmax(scores).triu()
    ),
    "Each query hears its own value only. The values belong to the keys.": lambda q, k, v: v,
    "The scores are not divided by the square root of D.": scaled(lambda H, T, D: 1.0),
    "The scores are divided by D; it should be its square root.": scaled(lambda H, T, D: 1 / D),
    "The scores are divided by the square root of T, not of D.": scaled(lambda H, T, D: T**-0.5),
    "The scores are multiplied by the square root of D.": scaled(lambda H, T, D: D**0.5),
    "The scores are divided by 8, the square root of the notebook's D; here D is another: "
    "`q.shape[-1]`.": scaled(lambda H, T, D: 1 / 8),
    "The scores are divided by 2, as in the example by hand; here D is another: "
    "`q.shape[-1]`.": scaled(lambda H, T, D: 1 / 2),
    "Query and key are swapped: the token that asks brings the query.": lambda q, k, v: attend(
        k, q, v
    ),
    "The scale comes from the width of all heads together, E, not from D.": scaled(
        lambda H, T, D: (H * D) ** -0.5
    ),
    "Every head gives the result of the last one: is it written to its own "
    "place?": lambda q, k, v: attend(q, k, v)[-1:].expand_as(v),
    "Only the first head is computed.": lambda q, k, v: torch.cat([attend(q, k, v)[:1], 0 * v[1:]]),
}

# ------------------------------------------------------------- 3: a mask that does not help


def attention_layer(E=12, H=3):
    """The helper's MultiHeadAttention with weights that hide nothing."""
    return drawn(MultiHeadAttention(GPT2Config(n_embd=E, n_head=H)))


def heads_first(M, H):
    """[B, T, E] -> [B, H, T, D]"""
    return M.unflatten(-1, (H, -1)).transpose(1, 2)


def mended(X, qkv, proj, H, suspect="", cut=heads_first, transpose=True, causal=True):
    """The mended layer with switches for the usual mistakes; `suspect` names what it cuts wrong."""
    parts = [
        M.reshape(len(M), H, M.shape[1], -1) if name in suspect else cut(M, H)
        for name, M in zip("qkv", qkv(X).chunk(3, dim=-1), strict=True)
    ]
    heads = sdpa(*parts, is_causal=causal)
    merged = (heads.transpose(1, 2) if transpose else heads).reshape(X.shape)
    return proj(merged)


@exercise
def mended_attention(attend):
    """attend(X, qkv, proj, H): [B, T, E] -> [B, T, E], the notebook's suspect without its fault."""

    def expect_layer(layer, X, otherwise):
        expect_result(attend, [X, layer.qkv, layer.proj, layer.n_head], layer(X), otherwise)

    yield "one head: nothing to cut"
    expect_layer(
        attention_layer(E=8, H=1),
        noise(2, 5, 8, seed=1),  # [B=2, T=5, E=8]
        "With one head the suspect is right, and yours is not: what else did you change?",
    )

    yield "no position listens to a later one"
    layer, X = attention_layer(), noise(1, 5, 12, seed=2)  # [B=1, T=5, E=12], H=3
    try:
        expect_causal(attend, X, layer.qkv, layer.proj, 3)
    except Mistake as mistake:
        expect_layer(layer, X, str(mistake))  # is there a known mistake behind it?
        raise

    yield "head h owns the columns from h D to (h + 1) D - 1"
    expect_layer(
        layer,
        X,
        "No later position is heard, yet the numbers differ from the helper's layer. "
        "Head 0 owns the first D columns of q, of k and of v, head 1 the next D. Are all three "
        "cut that way, and merged in the same order? Is the scale that of D, not of E?",
    )

    yield "two texts at once"
    expect_layer(
        layer,
        noise(2, 4, 12, seed=3),
        "With B = 2 the numbers change: does one text hear the other?",
    )


mended_attention.mistakes = {
    "The mask is gone, and it was not the culprit.": partial(mended, causal=False),
    "The last layer, `proj`, is missing.": lambda X, qkv, proj, H: mended(X, qkv, nn.Identity(), H),
    "Each position hears only itself. The product of q and k goes over the last two axes, so they "
    "must be [T, D]; are the heads still behind the tokens, [B, T, H, D]?": partial(
        mended, cut=lambda M, H: M.unflatten(-1, (H, -1)), transpose=False, causal=False
    ),
    "T and E are exchanged before the cut. Cut the last axis first.": partial(
        mended, cut=lambda M, H: M.mT.reshape(len(M), H, M.shape[1], -1)
    ),
    "The heads are merged without a transpose: [B, H, T, D] must become [B, T, H, D] before its "
    "last two axes can become E.": partial(mended, transpose=False),
} | {
    f"Still cut in the suspect's way: {', '.join(suspect)}. `reshape` (or `view`) keeps all "
    f"numbers in their order; which of them land in head 0 that way?{merged}": partial(
        mended, suspect=suspect, transpose=transpose
    )
    for suspect in ["q", "k", "v", "qk", "qv", "kv", "qkv"]
    for merged, transpose in [("", True), (" The heads are merged that way, too.", False)]
}

# ------------------------------------------------------------------ 4: one token at a time


def step(x, cache, attention, attend=sdpa, keep=lambda q, k, v: (k, v), proj=True):
    """One token [B, 1, E] with a cache, with switches for the usual mistakes."""
    q, k, v = (heads_first(M, attention.n_head) for M in attention.qkv(x).chunk(3, dim=-1))
    if cache is not None:
        k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
    merged = attend(q, k, v).transpose(1, 2).flatten(2)  # [B, 1, E]
    return attention.proj(merged) if proj else merged, keep(q, k, v)


@exercise
def attention_with_a_cache(attend_next):
    """attend_next(x, cache, attention) -> (output [B, 1, E], (k, v)); see notebook 2."""
    layer, X = attention_layer(E=18), noise(2, 5, 18, seed=4)  # [B=2, T=5, E=18], H=3, D=6
    right = layer(X).detach()
    _, keys, values = (heads_first(M, 3).detach() for M in layer.qkv(X).chunk(3, dim=-1))

    def next_step(answer, x, cache):
        tokens = []
        hook = layer.qkv.register_forward_hook(
            lambda module, given, made: tokens.append(given[0].numel() // (2 * 18))
        )
        try:
            result = call(answer, x, cache, layer)
        except Mistake as mistake:
            if cache is None or "RuntimeError" not in str(mistake):
                raise
            hint = "Are old and new joined along the axis of the tokens?"
            raise Mistake(f"{mistake}\n    {hint}") from None
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
        expect_kind(output, x)
        return output, cache

    def after(answer, n, texts):
        """After n tokens of each text, in turn: the last text's outputs, k and v."""
        outputs, caches = [], [None] * len(texts)
        for t in range(n):
            for i, text in enumerate(texts):
                output, caches[i] = next_step(answer, text[:, t : t + 1], caches[i])
            outputs.append(output)
        return torch.cat(outputs, dim=1), *caches[-1]

    def expect_after(right, otherwise, part=0, texts=(X,)):
        """As `expect`, of one part after as many tokens as there are in `right`."""
        n = right.shape[-2]
        expect(lambda answer: after(answer, n, texts)[part], attend_next, right, otherwise)

    yield "the first token, with None for a cache"
    expect_after(
        right[:, :1],
        "The first token can hear only itself: its value, through `proj`. Is `qkv`'s result split "
        "into q, k and v in this order?",
    )

    yield "the cache holds keys and values, [B, H, 1, D]"
    for part, what, old in [(1, "k", keys), (2, "v", values)]:
        expect_after(
            old[:, :, :1],
            f"The {what} in the cache is another than that of the token. Its shape should be "
            "[B, H, 1, D], with H = `attention.n_head`.",
            part,
        )

    yield "the second token hears the first and itself"
    expect_after(
        right[:, :2],
        "The new query should meet the old keys and its own, each with its value. Are k and v "
        "joined alike, along dim=2, and does the softmax run over the keys?",
    )

    yield "the cache grows by one"
    for part, old in [(1, keys), (2, values)]:
        expect_after(
            old[:, :, :2],
            "The new cache should be the old keys and values and behind them the new ones, joined "
            "along the axis of the tokens, dim=2.",
            part,
        )

    yield "five tokens, one after the other, equal all five at once"
    lost = "The first two tokens are right, a later one is not: what is lost on the way?"
    expect_after(right, lost)

    yield "two texts in turn, each with its own cache"
    other = noise(2, 3, 18, seed=5)  # [B=2, T=3, E=18]
    expect_after(
        layer(other),
        "The output does not follow from the cache that is passed in. Is one kept "
        "somewhere else, outside the function?",
        texts=(X, other),
    )


def attends(**how):
    """A step whose kernel gets this keyword; in the check D = 6 and E = 18."""
    return partial(step, attend=partial(sdpa, **how))


def hears(choose):
    """A step whose query meets what is chosen of the keys and values, [B, H, tokens, D]."""
    return partial(step, attend=lambda q, k, v: sdpa(q, *choose(k, v)))


def keeps(parts, choose):
    """A step that keeps, in these parts, what is chosen of query, its own and the other part."""

    def keep(q, k, v):
        return choose(q, k, v) if "k" in parts else k, choose(q, v, k) if "v" in parts else v

    return partial(step, keep=keep)


attention_with_a_cache.mistakes = {
    "The last layer, `proj`, is missing.": partial(step, proj=False),
    "It hears the first token only. Are the new key and value joined before you attend? And is a "
    "single query at the end in need of a mask (`is_causal=True` lines up the first query with the "
    "first key)?": attends(is_causal=True),
    "It hears itself only: the keys and values of the cache take no part.": hears(
        lambda k, v: (k[:, :, -1:], v[:, :, -1:])
    ),
    "The values that are joined are not those of the cache: its second part is v.": hears(
        lambda k, v: (k, torch.cat([k[:, :, :-1], v[:, :, -1:]], dim=2))
    ),
    "Keys and values are joined in different orders: each key needs its own value.": hears(
        lambda k, v: (k, v.flip(2))
    ),
    "The scores are not divided by the square root of D.": attends(scale=1.0),
    "The scores are divided by D; it should be its square root.": attends(scale=1 / 6),
    "The scores are divided by the square root of E; a head is D wide.": attends(scale=18**-0.5),
    "The scores are divided by 8, the square root of the notebook's D; here D is E / H of the "
    "layer that is given.": attends(scale=1 / 8),
    "The new cache holds the new token only.": keeps("kv", lambda q, own, other: own[:, :, -1:]),
    "The new cache is the old one: the new token is missing.": keeps(
        "kv", lambda q, own, other: own[:, :, :1]
    ),
    "The new token stands in front of the old ones; it should come last.": keeps(
        "kv", lambda q, own, other: own.flip(2)
    ),
}
for part in "kv":
    attention_with_a_cache.mistakes |= {
        f"The place of {part} in the cache holds the other one of k and v.": keeps(
            part, lambda q, own, other: other
        ),
        f"The place of {part} in the cache holds the query.": keeps(part, lambda q, own, other: q),
        f"Keep {part} with its heads in front, [B, H, t, D].": keeps(
            part, lambda q, own, other: own.transpose(1, 2)
        ),
    }
