"""Answers to the exercises of notebook 2."""

import numpy as np
import torch
from answers import right, wrong
from torch.nn.functional import scaled_dot_product_attention as sdpa

import exercise_checks as check
from exercise_checks.attention import attend, heads_first, hears, mended, step

# ---------------------------------------------------------------- 1: another question

right(check.weights_of_another_query)([0.1, 0.71, 0.1, 0.1])
right(check.weights_of_another_query)(torch.tensor([0.0, 4, 0, 0]).div(2).softmax(0))
right(check.weights_of_another_query)(np.array([0.0963, 0.7112, 0.0963, 0.0963]))
right(check.weights_of_another_query)([0.1, 0.7, 0.1, 0.1])
wrong(check.weights_of_another_query, "They sum to 10.40")([1, 7.4, 1, 1])
wrong(check.weights_of_another_query, "They sum to 1.03")([0.1, 0.72, 0.104, 0.104])
wrong(check.weights_of_another_query, "who is built?")([0.61, 0.08, 0.08, 0.22])
wrong(check.weights_of_another_query, "a list of four weights")(0.71)
wrong(check.weights_of_another_query, "a plain number")(["a", "b", "c", "d"])

# -------------------------------------------------------- 2: attention with three loops


@right(check.attention_with_loops)
def by_einsum(q, k, v):
    scores = torch.einsum("htd,hud->htu", q, k) / q.shape[-1] ** 0.5
    hidden = torch.triu(torch.ones(scores.shape[-2:], dtype=torch.bool), 1)
    return torch.einsum("htu,hud->htd", scores.masked_fill(hidden, -1e9).softmax(-1), v)


@right(check.attention_with_loops)
def by_lists_without_contiguous_memory(q, k, v):
    H, T, D = q.shape
    columns = []
    for t in range(T):
        raw = torch.stack([torch.exp((q[:, t] * k[:, u]).sum(-1) / D**0.5) for u in range(t + 1)])
        columns.append(sum(raw[u, :, None] * v[:, u] for u in range(t + 1)) / raw.sum(0)[:, None])
    return torch.stack(columns, dim=0).transpose(0, 1)


wrong(check.attention_with_loops, "Does the token hear itself, too?")(
    lambda q, k, v: torch.stack([k[:, 0] for _ in range(q.shape[1] - 1)])
)
wrong(check.attention_with_loops, "Position 0 listens to position 1")(
    lambda q, k, v: attend(q, k, v, weights=lambda scores: scores.softmax(-1))
)
wrong(check.attention_with_loops, "come before the softmax")(
    lambda q, k, v: attend(q, k, v, weights=lambda scores: scores.softmax(-1).tril())
)
wrong(check.attention_with_loops, "which runs over the keys")(
    lambda q, k, v: attend(q, k, v, weights=lambda scores: scores.tril().softmax(-2))
)
wrong(check.attention_with_loops, "in another way than softmax")(
    lambda q, k, v: attend(q, k, v, scale=lambda H, T, D: D**-0.25)
)


@wrong(check.attention_with_loops, "The result has the shape [5, 1, 4], not [1, 5, 4]")
def heads_and_tokens_swapped(q, k, v):
    out = by_einsum(q, k, v)
    return out if q.shape[1] == 1 else out.transpose(0, 1)


wrong(check.attention_with_loops, "The result should be a tensor, and is a value of type list")(
    lambda *qkv: list(by_einsum(*qkv))
)

# ------------------------------------------------------------- 3: a mask that does not help


@right(check.mended_attention)
def by_einsum_with_weights_of_its_own(X, qkv, proj, H):
    E = X.shape[-1]
    W, b = qkv.weight.view(3, H, E // H, E), qkv.bias.view(3, H, 1, E // H)
    q, k, v = torch.einsum("bte,nhde->nbhtd", X, W) + b[:, None]
    weights = by_einsum_weights(q, k)
    merged = torch.einsum("bhtu,bhud->bthd", weights, v).flatten(2)
    return proj(merged)


def by_einsum_weights(q, k):
    scores = torch.einsum("bhtd,bhud->bhtu", q, k) * q.shape[-1] ** -0.5
    return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1) > 0, -torch.inf).softmax(-1)


@right(check.mended_attention)
def head_by_head(X, qkv, proj, H):
    outputs = []
    for q, k, v in zip(*(part.chunk(H, -1) for part in qkv(X).chunk(3, -1)), strict=True):
        outputs.append(sdpa(q, k, v, is_causal=True))
    return proj(torch.cat(outputs, dim=-1))


wrong(check.mended_attention, "a later one")(  # no mask where there are several heads
    lambda X, qkv, proj, H: mended(X, qkv, proj, H, causal=H == 1)
)
wrong(check.mended_attention, "Head 0 owns the first D columns")(  # the heads interleaved
    lambda *given: mended(*given, cut=lambda M, H: M.unflatten(-1, (-1, H)).permute(0, 3, 1, 2))
)
wrong(check.mended_attention, "does one text hear the other?")(
    lambda *given: mended(
        *given, cut=lambda M, H: heads_first(M, H).transpose(0, 1).reshape(heads_first(M, H).shape)
    )
)


@wrong(check.mended_attention, "Your code raised RuntimeError: Expected size for first two")
def heads_behind_the_tokens(X, qkv, proj, H):
    B, T, E = X.shape
    q, k, v = (M.reshape(B, T, H, E // H) for M in qkv(X).split(E, dim=-1))
    scores = q @ k.transpose(-2, -1)
    return proj((scores + torch.zeros(T, T)).softmax(-1) @ v)


# ------------------------------------------------------------------ 4: one token at a time


@right(check.attention_with_a_cache)
def by_hand(x, cache, attention):
    _, (k, v) = step(x, None, attention)
    if cache is not None:
        k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
    q = attention.qkv(x)[..., : x.shape[-1]].unflatten(-1, (attention.n_head, -1))  # [B, 1, H, D]
    weights = torch.einsum("bohd,bhud->bhu", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    out = torch.einsum("bhu,bhud->bhd", weights, v).flatten(1)[:, None]
    return [attention.proj(out), [k, v]]


right(check.attention_with_a_cache)(step)
wrong(check.attention_with_a_cache, "Return two things")(lambda *given: step(*given)[0])
wrong(check.attention_with_a_cache, "should be a pair")(lambda *given: (step(*given)[0], None))
wrong(check.attention_with_a_cache, "should be a tensor")(lambda *given: ([], step(*given)[1]))
wrong(check.attention_with_a_cache, "q, k and v in this order")(hears(lambda k, v: (k, k)))
wrong(check.attention_with_a_cache, "meet the old keys and its own")(hears(lambda k, v: (0 * k, v)))
wrong(check.attention_with_a_cache, "a later one is not")(
    hears(lambda k, v: (k[:, :, -2:], v[:, :, -2:]))
)


@wrong(check.attention_with_a_cache, "Are old and new joined along the axis of the tokens?")
def joined_along_the_width(x, cache, attention):
    output, (k, v) = step(x, None, attention)
    if cache is not None:
        k, v = torch.cat([cache[0], k], dim=3), torch.cat([cache[1], v], dim=3)
        output = sdpa(k[..., :4], k, v)
    return output, (k, v)


@wrong(check.attention_with_a_cache, "was given more than the one new token")
def computes_everything_again(x, cache, attention):
    attention.qkv(torch.cat([x, x], dim=1))
    return step(x, cache, attention)


@wrong(check.attention_with_a_cache, "Is one kept somewhere else")
def keeps_its_own(x, cache, attention, own={}):  # noqa: B006
    output, own["cache"] = step(x, own.get("cache") if cache is not None else None, attention)
    return output, own["cache"]


@wrong(check.attention_with_a_cache, "changes its input")
def writes_into_the_cache(x, cache, attention):
    if cache is not None:
        cache[0].data.add_(1.0)
    return step(x, cache, attention)
