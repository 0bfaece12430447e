"""Answers to the exercises of notebook 2."""

import numpy as np
import torch
import torch.nn.functional as F
from answers import right, wrong

import exercise_checks as check

# ---------------------------------------------------------------- 1: another question

right(check.weights_of_another_query)([0.1, 0.71, 0.1, 0.1])
right(check.weights_of_another_query)(torch.tensor([0.0, 4, 0, 0]).div(2).softmax(0))
right(check.weights_of_another_query)(np.array([0.0963, 0.7112, 0.0963, 0.0963]))
wrong(check.weights_of_another_query, "The softmax, which makes weights")([0, 4, 0, 0])
wrong(check.weights_of_another_query, "does not give a weight of 0")([0, 1, 0, 0])
wrong(check.weights_of_another_query, "They sum to 10.40")([1, 7.4, 1, 1])
wrong(check.weights_of_another_query, "divide the scores by the square root of D")(
    [0.017, 0.948, 0.017, 0.017]
)
wrong(check.weights_of_another_query, "another order: mule, bridge")([0.71, 0.1, 0.1, 0.1])
right(check.weights_of_another_query)([0.1, 0.7, 0.1, 0.1])
wrong(check.weights_of_another_query, "the query's number times the label's")(
    [0.175, 0.475, 0.175, 0.175]
)
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


def loops(
    q, k, v, first=0, last=1, scale=None, divide=True, softmax_over_all=False, heads=None, into=None
):
    """The solution with switches for the usual mistakes."""
    H, T, D = q.shape
    out = torch.zeros_like(v)
    for h in range(heads or H):
        for t in range(T):
            seen = range(first, t + last if last is not None else T)
            raw = [((q[h, t] * k[h, u]).sum() * (scale or D**-0.5)).exp() for u in seen]
            if softmax_over_all:
                total = sum(
                    ((q[h, t] * k[h, u]).sum() * (scale or D**-0.5)).exp() for u in range(T)
                )
            else:
                total = sum(raw) if divide else 1.0
            for weight, u in zip(raw, seen, strict=True):
                out[into if into is not None else h, t] += weight / total * v[h, u]
    return out


wrong(check.attention_with_loops, "Does the token hear itself, too?")(
    lambda q, k, v: torch.stack([k[:, 0] for _ in range(q.shape[1] - 1)])
)
wrong(check.attention_with_loops, "a token may listen to itself too")(
    lambda q, k, v: loops(q, k, v, last=0)
)
wrong(check.attention_with_loops, "Position 0 listens to position 1")(
    lambda q, k, v: loops(q, k, v, last=None)
)
wrong(check.attention_with_loops, "come before the softmax")(
    lambda q, k, v: loops(q, k, v, softmax_over_all=True)
)
wrong(check.attention_with_loops, "not divided by the sum of the exponentials")(
    lambda q, k, v: loops(q, k, v, divide=False)
)
wrong(check.attention_with_loops, "not divided by the square root of D")(
    lambda q, k, v: loops(q, k, v, scale=1.0)
)
wrong(check.attention_with_loops, "divided by D; it should be its square root")(
    lambda q, k, v: loops(q, k, v, scale=1 / q.shape[-1])
)
wrong(check.attention_with_loops, "square root of T")(
    lambda q, k, v: loops(q, k, v, scale=q.shape[-2] ** -0.5)
)
wrong(check.attention_with_loops, "multiplied by the square root of D")(
    lambda q, k, v: loops(q, k, v, scale=q.shape[-1] ** 0.5)
)
wrong(check.attention_with_loops, "from the width of all heads together")(
    lambda q, k, v: loops(q, k, v, scale=(q.shape[0] * q.shape[-1]) ** -0.5)
)
wrong(check.attention_with_loops, "the notebook's D; here D is another")(
    lambda q, k, v: loops(q, k, v, scale=1 / 8)
)
wrong(check.attention_with_loops, "as in the example by hand")(
    lambda q, k, v: loops(q, k, v, scale=1 / 2)
)
wrong(check.attention_with_loops, "Query and key are swapped")(lambda q, k, v: loops(k, q, v))
wrong(check.attention_with_loops, "You return the key")(lambda q, k, v: loops(q, v, k))
wrong(check.attention_with_loops, "Only the first head is computed")(
    lambda q, k, v: loops(q, k, v, heads=1)
)


@wrong(check.attention_with_loops, "which runs over the keys")
def softmax_over_the_queries(q, k, v):
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, 0).softmax(-2) @ v


@wrong(check.attention_with_loops, "Every head gives the result of the last one")
def heads_in_one_place(q, k, v):
    last = by_einsum(q, k, v)[-1:]
    return last.expand(q.shape[0], -1, -1).clone()


@wrong(check.attention_with_loops, "The result has the shape [5, 1, 4], not [1, 5, 4]")
def heads_and_tokens_swapped(q, k, v):
    out = by_einsum(q, k, v)
    return out if q.shape[1] == 1 else out.transpose(0, 1)


@wrong(check.attention_with_loops, "The result should be a tensor, and is a value of type list")
def a_list_of_rows(q, k, v):
    return list(by_einsum(q, k, v))


# ------------------------------------------------------------- 3: a mask that does not help


def layer(X, qkv, proj, H, cut=None, merge=None, causal=True):
    """The mended layer with switches for the usual mistakes."""
    B, T, E = X.shape
    cut = cut or (lambda M, name: M.view(B, T, H, -1).transpose(1, 2))
    parts = (cut(M, name) for M, name in zip(qkv(X).split(E, dim=-1), "qkv", strict=True))
    heads = F.scaled_dot_product_attention(*parts, is_causal=causal)
    merge = merge or (lambda heads: heads.transpose(1, 2).reshape(B, T, E))
    return proj(merge(heads))


def wrong_cut(M, H):
    return M.reshape(M.shape[0], H, M.shape[1], -1)


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
        outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return proj(torch.cat(outputs, dim=-1))


wrong(check.mended_attention, "The mask is gone")(lambda *given: layer(*given, causal=False))
wrong(check.mended_attention, "`proj`, is missing")(
    lambda X, qkv, proj, H: layer(X, qkv, lambda merged: merged, H)
)
wrong(check.mended_attention, "merged without a transpose")(
    lambda X, *rest: layer(X, *rest, merge=lambda heads: heads.reshape(X.shape))
)
wrong(check.mended_attention, "Still cut in the suspect's way: q, k, v.")(
    lambda X, qkv, proj, H: layer(X, qkv, proj, H, cut=lambda M, name: wrong_cut(M, H))
)
wrong(check.mended_attention, "Still cut in the suspect's way: q, k, v.")(  # and merged to match
    lambda X, qkv, proj, H: layer(
        X,
        qkv,
        proj,
        H,
        cut=lambda M, name: wrong_cut(M, H),
        merge=lambda heads: heads.reshape(X.shape),
    )
)
wrong(check.mended_attention, "Cut the last axis first")(
    lambda X, qkv, proj, H: layer(
        X, qkv, proj, H, cut=lambda M, name: M.mT.reshape(len(M), H, M.shape[1], -1)
    )
)
wrong(check.mended_attention, "a later one")(  # no mask where there are several heads
    lambda X, qkv, proj, H: layer(X, qkv, proj, H, causal=H == 1)
)
wrong(check.mended_attention, "are the heads still behind the tokens, [B, T, H, D]?")(
    lambda X, qkv, proj, H: layer(
        X, qkv, proj, H, cut=lambda M, name: M.unflatten(-1, (H, -1)), causal=False
    )
)
wrong(check.mended_attention, "Still cut in the suspect's way: k, v.")(  # q is mended
    lambda X, qkv, proj, H: layer(
        X,
        qkv,
        proj,
        H,
        cut=lambda M, name: (
            wrong_cut(M, H) if name != "q" else M.unflatten(-1, (H, -1)).transpose(1, 2)
        ),
    )
)
wrong(check.mended_attention, "Head 0 owns the first D columns")(  # the heads interleaved
    lambda X, qkv, proj, H: layer(
        X, qkv, proj, H, cut=lambda M, name: M.unflatten(-1, (-1, H)).permute(0, 3, 1, 2)
    )
)


@wrong(check.mended_attention, "Your code raised RuntimeError: Expected size for first two")
def heads_behind_the_tokens(X, qkv, proj, H):
    B, T, E = X.shape
    q, k, v = (M.reshape(B, T, H, E // H) for M in qkv(X).split(E, dim=-1))
    scores = q @ k.transpose(-2, -1)
    return proj((scores + torch.zeros(T, T)).softmax(-1) @ v)


# ------------------------------------------------------------------ 4: one token at a time


def step(x, cache, attention, causal=False, keep=None, use=True, proj=True):
    """The solution with switches for the usual mistakes."""
    B, _, E = x.shape
    q, k, v = (M.unflatten(-1, (attention.n_head, -1)).transpose(1, 2) for M in
               attention.qkv(x).split(E, dim=-1))  # fmt: skip
    new = k, v
    if cache is not None:
        k, v = (torch.cat([old, now], dim=2) for old, now in zip(cache, new, strict=True))
    asked = (k, v) if use else new
    heads = F.scaled_dot_product_attention(q, *asked, is_causal=causal)
    merged = heads.transpose(1, 2).reshape(B, 1, E)
    kept = keep(cache, new, (k, v)) if keep else (k, v)
    return attention.proj(merged) if proj else merged, kept


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
wrong(check.attention_with_a_cache, "It hears the first token only")(
    lambda *given: step(*given, causal=True)
)
wrong(check.attention_with_a_cache, "It hears itself only")(lambda *given: step(*given, use=False))
wrong(check.attention_with_a_cache, "holds the new token only")(
    lambda *given: step(*given, keep=lambda old, new, both: new)
)
wrong(check.attention_with_a_cache, "the new token is missing")(
    lambda *given: step(*given, keep=lambda old, new, both: old or new)
)
wrong(check.attention_with_a_cache, "holds the other one of k and v")(
    lambda *given: step(*given, keep=lambda old, new, both: both[::-1])
)
wrong(check.attention_with_a_cache, "`proj`, is missing")(lambda *given: step(*given, proj=False))
wrong(check.attention_with_a_cache, "Return two things")(lambda *given: step(*given)[0])


@wrong(check.attention_with_a_cache, "Your code raised RuntimeError")
def joined_along_the_width(x, cache, attention):
    output, (k, v) = step(x, None, attention)
    if cache is not None:
        k, v = torch.cat([cache[0], k], dim=3), torch.cat([cache[1], v], dim=3)
        q = k[..., :4]
        output = F.scaled_dot_product_attention(q, k, v)
    return output, (k, v)


@wrong(check.attention_with_a_cache, "was given more than the one new token")
def computes_everything_again(x, cache, attention):
    return step(torch.cat([x, x], dim=1)[:, :2].mean(1, keepdim=True), cache, attention) if (
        attention.qkv(torch.cat([x, x], dim=1)) is None
    ) else step(x, cache, attention)  # fmt: skip


wrong(check.attention_with_a_cache, "it should come last")(
    lambda *given: step(*given, keep=lambda old, new, both: [part.flip(2) for part in both])
)


def attends(order=lambda v: v, scale=None, other=0):
    """The second token by hand, with switches; the first and the cache as they should be."""

    def answer(x, cache, attention):
        output, kept = step(x, cache, attention)
        if cache is not None:
            q = attention.qkv(x)[..., : x.shape[-1]].unflatten(-1, (attention.n_head, -1))
            v = torch.cat([cache[other], kept[1][:, :, -1:]], dim=2)
            q, v = q.transpose(1, 2), order(v)
            heads = F.scaled_dot_product_attention(q, kept[0], v, scale=scale)
            output = attention.proj(heads.transpose(1, 2).flatten(2))
        return output, kept

    return answer


right(check.attention_with_a_cache)(attends(other=1))
wrong(check.attention_with_a_cache, "its second part is v")(attends())
wrong(check.attention_with_a_cache, "joined in different orders")(
    attends(order=lambda v: v.flip(2), other=1)
)
wrong(check.attention_with_a_cache, "not divided by the square root of D")(
    attends(scale=1.0, other=1)
)
wrong(check.attention_with_a_cache, "divided by D; it should")(attends(scale=1 / 6, other=1))
wrong(check.attention_with_a_cache, "square root of E")(attends(scale=18**-0.5, other=1))
wrong(check.attention_with_a_cache, "the notebook's D")(attends(scale=1 / 8, other=1))


@wrong(check.attention_with_a_cache, "Is one kept somewhere else")
def keeps_its_own(x, cache, attention, own={}):  # noqa: B006
    output, own["cache"] = step(x, own.get("cache") if cache is not None else None, attention)
    return output, own["cache"]


@wrong(check.attention_with_a_cache, "changes its input")
def writes_into_the_cache(x, cache, attention):
    if cache is not None:
        cache[0].data.add_(1.0)
    return step(x, cache, attention)
