"""Answers to the exercises of notebook 4."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from answers import right, wrong
from torch import nn
from torch.utils.checkpoint import checkpoint

import exercise_checks as check
from gpt2_helpers import GPT2

# ------------------------------------------------------------------- 1: a larger vocabulary

V, E = 100_000, 768
rest = 124_439_808 - 50257 * E  # all but the tables
right(check.parameters_of_a_larger_vocabulary)(2 * V * E + rest)
right(check.parameters_of_a_larger_vocabulary)(239.4e6)
right(check.parameters_of_a_larger_vocabulary)(np.int64(239_442_432))
for count, message in [
    (V * E + rest, "the unembedding has its own table"),
    (V * E + 50257 * E + rest, "Only one of the two tables has grown"),
    (163_037_184 + 2 * V * E, "not 100,000 more"),
    (124_439_808 + 2 * V * E, "an old one is still in the sum"),
    (163_037_184 + V * E, "There are two old tables, and a new one"),
    (2 * V * E, "What else has parameters?"),
    (2 * V * E + rest - 1024 * E, "The positions are missing"),
    (2 * V * E + 1024 * E + 7_087_872 + 2 * E, "Only one of the blocks"),
    (163_037_184, "as it is, untied"),
    (124_439_808, "as it is, tied"),
    (239.4, "not millions"),
    (200_000_000, "depend on the vocabulary"),
]:
    wrong(check.parameters_of_a_larger_vocabulary, message)(count)

# --------------------------------------------------------------- 2: the loss from one tensor


def loss(
    logits,
    ids,
    shift=lambda logits, ids: (logits[:, :-1], ids[:, 1:]),
    height=lambda z: z.amax(dim=-1, keepdim=True).detach(),
    log=torch.log,
    axis=-1,
    pick=lambda log_p, targets: log_p.gather(-1, targets[..., None]).squeeze(-1),
    reduce=lambda cost: cost.mean(),
):
    """The solution with switches for the usual mistakes."""
    logits, targets = shift(logits, ids)
    z = logits - height(logits)
    log_p = z - log(z.exp().sum(dim=axis, keepdim=True))
    return reduce(-pick(log_p, targets))


def naive(logits, ids, epsilon=0.0):
    """Softmax first, then its logarithm."""
    p = logits[:, :-1].softmax(-1).gather(-1, ids[:, 1:, None])
    return -(p + epsilon).log().mean()


right(check.next_token_loss)(loss)


@right(check.next_token_loss)
def by_the_library(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@right(check.next_token_loss)
def text_by_text_and_place_by_place(logits, ids):
    costs = []
    for z_of_text, text in zip(logits, ids, strict=True):
        for z, target in zip(z_of_text[:-1], text[1:], strict=True):
            highest = max(z.tolist())
            costs.append(highest + (z - highest).exp().sum().log() - z[target])
    return sum(costs) / len(costs)


@right(check.next_token_loss)
def by_one_hot(logits, ids):
    one_hot = F.one_hot(ids, logits.shape[-1]).roll(-1, 1)
    log_p = logits.log_softmax(-1)
    return -torch.einsum("btv,btv->", log_p[:, :-1], one_hot[:, :-1].float()) / ids[:, 1:].numel()


for switches, message in {
    "unshifted": (dict(shift=lambda z, ids: (z, ids)), "No shift: each place"),
    "cut, unshifted": (dict(shift=lambda z, ids: (z[:, :-1], ids[:, :-1])), "the last place is"),
    "cut in front": (dict(shift=lambda z, ids: (z[:, 1:], ids[:, 1:])), "the first place is"),
    "backwards": (dict(shift=lambda z, ids: (z[:, 1:], ids[:, :-1])), "Shifted the wrong way"),
    "roll": (dict(shift=lambda z, ids: (z, ids.roll(-1, 1))), "Nothing follows it"),
    "by two": (dict(shift=lambda z, ids: (z[:, :-2], ids[:, 2:])), "Shifted by two"),
    "flat first": (
        dict(shift=lambda z, ids: (z.flatten(0, 1)[:-1], ids.flatten()[1:])),
        "shift before you flatten",
    ),
    "one text": (dict(shift=lambda z, ids: (z[0, :-1], ids[0, 1:])), "Only the first text"),
    "log2": (dict(log=torch.log2), "takes the natural one"),
    "log10": (dict(log=torch.log10), "base 10"),
    "sum": (dict(reduce=torch.sum), "A sum over texts and places"),
    "sum over texts": (dict(reduce=lambda cost: cost.mean(-1).sum()), "A sum over the texts"),
    "sum over places": (dict(reduce=lambda cost: cost.mean(0).sum()), "A sum over the places"),
    "not reduced": (dict(reduce=lambda cost: cost), "has the shape [3, 4]. Return the mean"),
    "sign": (dict(reduce=lambda cost: -cost.mean()), "The sign is wrong"),
    "perplexity": (dict(reduce=lambda cost: cost.mean().exp()), "its logarithm is missing"),
    "over places": (dict(axis=1), "softmax runs over the T - 1 places"),
    "over texts": (dict(axis=0), "softmax runs over the texts"),
    "mean of all": (dict(pick=lambda log_p, targets: log_p), "only the target's probability"),
    "favourite": (dict(pick=lambda log_p, targets: log_p.amax(-1)), "the favourite token"),
    "no height": (dict(height=lambda z: 0), "more than a float can hold"),
    "one height": (dict(height=lambda z: z.max().detach()), "Subtract from each place"),
    "item": (dict(reduce=lambda cost: torch.tensor(cost.mean().item())), "lost its gradient"),
    "detached": (
        dict(log=lambda total: total.log().detach()),
        "is a part of it detached?",
    ),
}.values():
    wrong(check.next_token_loss, message)(partial(loss, **switches))

wrong(check.next_token_loss, "has no logarithm")(naive)
wrong(check.next_token_loss, "Is a small number added")(partial(naive, epsilon=1e-9))
wrong(check.next_token_loss, "a value of type float")(lambda *given: loss(*given).item())


@wrong(check.next_token_loss, "You divide by T")
def divided_by_t(logits, ids):
    return by_the_library(logits, ids) * (ids.shape[1] - 1) / ids.shape[1]


@wrong(check.next_token_loss, "subtract the target's logit")
def without_the_target(logits, ids):
    return logits[:, :-1].logsumexp(-1).mean()


@wrong(check.next_token_loss, "has to be subtracted")
def target_added(logits, ids):
    z = logits[:, :-1]
    return (z.logsumexp(-1) + z.gather(-1, ids[:, 1:, None])[..., 0]).mean()


@wrong(check.next_token_loss, "This is the probability of a token")
def probability(logits, ids):
    return logits[:, :-1].softmax(-1).gather(-1, ids[:, 1:, None]).mean()


@wrong(check.next_token_loss, "changes its input")
def in_place(logits, ids):
    logits -= logits.amax(dim=-1, keepdim=True)
    return loss(logits, ids)


# ------------------------------------------------------------------ 3: a vocabulary that grows


def grow(
    model,
    extra,
    table=lambda old, new: torch.cat([old, new]),
    new=lambda extra, E: torch.randn(extra, E, generator=torch.Generator().manual_seed(0)) * 0.02,
    tie=None,
    config=True,
):
    """The solution with switches for the usual mistakes."""
    V, E = model.wte.weight.shape
    rows = table(model.wte.weight.detach(), new(extra, E))
    model.wte = nn.Embedding.from_pretrained(rows, freeze=False)
    if tie is None:
        model.unembed.weight = model.wte.weight
    else:
        tie(model, rows)
    if config:
        model.config = replace(model.config, vocab_size=V + extra)
    return model


right(check.mended_growth)(grow)


@right(check.mended_growth)
def new_numbers_for_the_same_parameter(model, extra):
    new = torch.randn(extra, model.wte.weight.shape[1]) * 0.02
    model.wte.weight.data = torch.cat([model.wte.weight.data, new])
    model.wte.num_embeddings = model.unembed.out_features = len(model.wte.weight)
    model.config = replace(model.config, vocab_size=len(model.wte.weight))
    return model


@right(check.mended_growth)
def a_new_model(model, extra):
    V = model.config.vocab_size
    larger = GPT2(replace(model.config, vocab_size=V + extra))
    larger.unembed.weight = larger.wte.weight
    with torch.no_grad():
        for (name, parameter), old in zip(
            larger.named_parameters(), model.parameters(), strict=True
        ):
            (parameter[:V] if name == "wte.weight" else parameter).copy_(old)
    return larger


class TiedUnembedding(nn.Module):
    """An exit without a Parameter of its own."""

    def __init__(self, wte):
        super().__init__()
        self.wte = wte

    def forward(self, X):
        return F.linear(X, self.wte.weight)


@right(check.mended_growth)
def without_a_second_parameter(model, extra):
    model = grow(copy.deepcopy(model), extra)
    model.unembed = TiedUnembedding(model.wte)
    return model


@right(check.mended_growth)
def a_new_way_through_the_exit(model, extra):
    model = grow(model, extra, tie=lambda model, rows: delattr(model.unembed, "weight"))
    model.unembed.forward = lambda X: X @ model.wte.weight.T
    return model


def set_exit(parameter):
    """A tie that sets the exit's Parameter to `parameter(wte.weight, rows)`."""
    return lambda model, rows: setattr(model.unembed, "weight", parameter(model.wte.weight, rows))


def plain_tensor(model, rows):
    del model.unembed.weight
    model.unembed.weight = model.wte.weight.data


def a_view(model, rows):
    del model.unembed.weight
    model.unembed.weight = model.wte.weight.view(rows.shape)


def entrance_as_plain_tensor(model, rows):
    model.unembed.weight = model.wte.weight
    table = model.wte.weight
    model.wte.forward = lambda ids: F.embedding(ids, table.detach())


@wrong(check.mended_growth, "are two Parameters")
def suspect(model, extra):
    V, E = model.wte.weight.shape
    table = torch.cat([model.wte.weight.detach(), 0.02 * torch.randn(extra, E)])
    model.unembed.weight = nn.Parameter(table)
    model.wte = nn.Embedding.from_pretrained(model.unembed.weight, freeze=False)
    model.config = replace(model.config, vocab_size=V + extra)
    return model


wrong(check.mended_growth, "are two Parameters")(
    partial(grow, tie=set_exit(lambda weight, rows: nn.Parameter(weight)))
)
wrong(check.mended_growth, "are two Parameters")(
    partial(grow, tie=set_exit(lambda weight, rows: nn.Parameter(rows.clone())))
)


@wrong(check.mended_growth, "are two Parameters")
def by_data(model, extra):
    model = grow(model, extra)
    model.unembed.weight = nn.Parameter(torch.empty_like(model.wte.weight))
    model.unembed.weight.data = model.wte.weight.data
    return model


wrong(check.mended_growth, "learns at the entrance only")(partial(grow, tie=plain_tensor))
wrong(check.mended_growth, "learns at the exit only")(partial(grow, tie=entrance_as_plain_tensor))
wrong(check.mended_growth, "Your code raised RuntimeError")(partial(grow, tie=a_view))
wrong(check.mended_growth, "`wte.weight` does not learn any more")(
    lambda *given: grow(*given).requires_grad_(False)
)
wrong(check.mended_growth, "Other entries of the configuration have changed")(
    lambda model, extra: config_of(grow(model, extra), check.GPT2Config(vocab_size=101 + extra))
)
wrong(check.mended_growth, "have the mean 5.0")(
    partial(grow, new=lambda *size: 5 + 0.02 * check.noise(*size))
)
wrong(check.mended_growth, "not the variance")(
    partial(grow, new=lambda *size: 0.0004 * check.noise(*size))
)


@wrong(check.mended_growth, "are two Parameters")
def trusts_the_config(model, extra):
    larger = GPT2(replace(model.config, vocab_size=101 + extra))
    tensors = model.state_dict()
    table = torch.cat([model.wte.weight.detach(), 0.02 * check.noise(extra, 12)])
    larger.load_state_dict(tensors | {"wte.weight": table, "unembed.weight": table})
    return larger


def with_a_bias(model):
    model.unembed = nn.Linear(12, len(model.wte.weight))
    model.unembed.weight = model.wte.weight


def config_of(model, config):
    model.config = config
    return model


wrong(check.mended_growth, "the table at the exit has not grown")(
    partial(grow, tie=lambda model, rows: None)
)
wrong(check.mended_growth, "still says how many tokens there were")(partial(grow, config=False))
wrong(check.mended_growth, "Are the first rows of the table the old ones")(
    partial(grow, table=lambda old, new: torch.cat([new, old]))
)
wrong(check.mended_growth, "are two Parameters")(
    lambda model, extra: GPT2(replace(model.config, vocab_size=model.config.vocab_size + extra))
)
wrong(check.mended_growth, "the shape [40, 12]")(partial(grow, table=lambda old, new: new))
wrong(check.mended_growth, "one and the same vector")(partial(grow, new=torch.zeros))
wrong(check.mended_growth, "standard deviation 1.0")(
    partial(grow, new=lambda *size: torch.randn(size, generator=torch.Generator().manual_seed(0)))
)
wrong(check.mended_growth, "The new unembedding has a bias")(
    partial(grow, tie=lambda model, rows: with_a_bias(model))
)
wrong(check.mended_growth, "Return the model")(lambda *given: grow(*given).wte.weight)
wrong(check.mended_growth, "Is the `return` missing?")(lambda *given: grow(*given) and None)

# ------------------------------------------------------------------------- 4: row by row


def final(model, ids):
    """The residual stream behind `ln_f`, [B, T, E]."""
    X = model.wte(ids) + model.wpe(torch.arange(ids.shape[1], device=ids.device))
    for block in model.blocks:
        X = block(X)
    return model.ln_f(X)


def rows(
    model,
    ids,
    targets,
    share=True,
    returned=lambda total, B: total,
    hand_on=True,
    at_the_end=False,
    clear=False,
    gathered=lambda gradient: gradient,
):
    """The solution with switches for the usual mistakes."""
    B = len(ids)
    if clear:
        model.zero_grad()
    X = final(model, ids)
    cut = X.detach().requires_grad_()
    total, waiting = 0.0, 0.0
    for row, wanted in zip(cut, targets, strict=True):
        cost = F.cross_entropy(model.unembed(row), wanted) / (B if share else 1)
        if at_the_end:
            waiting = waiting + cost
        else:
            cost.backward()
        total += cost.item() / (1 if share else B)
    if at_the_end:
        waiting.backward()
    if hand_on:
        X.backward(gathered(cut.grad))
    return returned(total, B)


right(check.row_by_row_step)(rows)


@right(check.row_by_row_step)
def a_leaf_for_each_row(model, ids, targets):
    X = final(model, ids)
    gradients, costs = [], []
    for b in range(len(ids)):
        leaf = X[b].detach().clone().requires_grad_(True)
        logits = leaf @ model.unembed.weight.T
        cost = -logits.log_softmax(-1)[torch.arange(len(leaf)), targets[b]].mean()
        (cost / len(ids)).backward()
        gradients.append(leaf.grad)
        costs.append(cost.detach())
    torch.autograd.backward(X, torch.stack(gradients))
    return torch.stack(costs).mean()


@right(check.row_by_row_step)
def by_hand_without_autograd_at_the_exit(model, ids, targets):
    X, W = final(model, ids), model.unembed.weight
    upstream, total = torch.zeros_like(X), 0.0
    if W.grad is None:
        W.grad = torch.zeros_like(W)
    with torch.no_grad():
        for b, wanted in enumerate(targets):
            p = (X[b] @ W.T).softmax(-1)  # [T, V]
            total -= p.gather(-1, wanted[:, None]).log().mean() / len(ids)
            p[torch.arange(len(wanted)), wanted] -= 1
            p /= wanted.numel() * len(ids)
            upstream[b] = p @ W
            W.grad += p.T @ X[b]
    X.backward(upstream)
    return total


@right(check.row_by_row_step)
def cut_before_the_last_norm(model, ids, targets):
    kept = []
    hook = model.blocks[-1].register_forward_hook(lambda block, given, made: kept.append(made))
    unembed, model.unembed = model.unembed, nn.Identity()
    try:
        model(ids)
    finally:
        hook.remove()
        model.unembed = unembed
    X, total = kept[0], 0.0
    upstream = torch.zeros_like(X)
    for b in range(len(ids)):
        part = X.detach()[b : b + 1].requires_grad_()
        cost = F.cross_entropy(model.unembed(model.ln_f(part))[0], targets[b]) / len(ids)
        cost.backward()
        upstream[b] = part.grad
        total = total + cost.detach()
    X.backward(upstream)
    return total


@right(check.row_by_row_step)
def logits_computed_again_on_the_way_back(model, ids, targets):
    def cost(row, wanted):
        return F.cross_entropy(model.unembed(row), wanted)

    costs = [
        checkpoint(cost, row, wanted, use_reentrant=False)
        for row, wanted in zip(final(model, ids), targets, strict=True)
    ]
    mean = torch.stack(costs).mean()
    mean.backward()
    return mean.detach()


for switches, message in {
    "sum of gradients": (dict(share=False), "B times too large"),
    "sum of losses": (dict(returned=lambda total, B: total * B), "sum of the texts' losses"),
    "divided twice": (dict(returned=lambda total, B: total / B), "divided by B a second time"),
    "gradients too": (
        dict(gathered=lambda gradient: gradient / len(gradient)),
        "divided by B twice",
    ),
    "blocks cut off": (
        dict(hand_on=False),
        "`ln_f.bias` has no gradient. Where the graph is cut",
    ),
    "one backward": (dict(at_the_end=True), "the memory still grows with B"),
    "a tensor with a history": (
        dict(returned=lambda total, B: torch.tensor(total, requires_grad=True)),
        "The loss still has its gradient",
    ),
    "clears": (dict(clear=True), "A second call clears"),
    "nothing": (dict(returned=lambda total, B: None), "Is the `return` missing?"),
    "list": (dict(returned=lambda total, B: [total]), "a plain number"),
}.values():
    wrong(check.row_by_row_step, message)(partial(rows, **switches))


@wrong(check.row_by_row_step, "the memory still grows with B")
def plain(model, ids, targets):
    cost = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    cost.backward()
    return cost.item()


@wrong(check.row_by_row_step, "The first block ran 3 times, on 3 texts in all")
def small_batches(model, ids, targets):
    return sum(
        plain_share(model, ids[b : b + 1], targets[b : b + 1], len(ids)) for b in range(len(ids))
    )


def plain_share(model, ids, targets, B):
    cost = F.cross_entropy(model(ids)[0], targets[0]) / B
    cost.backward()
    return cost.detach()


@wrong(check.row_by_row_step, "goes through the blocks 3 times")
def without_a_cut(model, ids, targets):
    X, total = final(model, ids), 0.0
    for row, wanted in zip(X, targets, strict=True):
        cost = F.cross_entropy(model.unembed(row), wanted) / len(ids)
        cost.backward(retain_graph=True)
        total += cost.item()
    return total


@wrong(check.row_by_row_step, "`retain_graph` is not the cure")
def without_a_cut_and_without_retaining(model, ids, targets):
    X, total = final(model, ids), 0.0
    for b in range(len(ids)):
        cost = F.cross_entropy(model.unembed(X[b]), targets[b]) / len(ids)
        cost.backward()
        total += cost.item()
    return total


@wrong(check.row_by_row_step, "holds the logits of more than one text")
def two_at_a_time(model, ids, targets):
    X, B = final(model, ids), len(ids)
    cut, total = X.detach().requires_grad_(), 0.0
    for b in range(0, B, 2):
        logits, wanted = model.unembed(cut[b : b + 2]), targets[b : b + 2]
        cost = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
        (cost / targets.numel()).backward()
        total += cost.item() / targets.numel()
    X.backward(cut.grad)
    return total


@wrong(check.row_by_row_step, "the memory still grows with B")
def one_backward_in_the_other_layout(model, ids, targets):
    X, total = final(model, ids), 0.0
    cut = X.detach().requires_grad_()
    for b in range(len(ids)):
        logits = model.unembed(cut[b : b + 1]).mT
        total = total + F.cross_entropy(logits, targets[b : b + 1]) / len(ids)
    total.backward()
    X.backward(cut.grad)
    return total.item()


@wrong(check.row_by_row_step, "Is the cut a tensor without a history")
def a_cut_that_asks_for_nothing(model, ids, targets):
    X, total = final(model, ids), 0.0
    cut = X.detach()
    for row, wanted in zip(cut, targets, strict=True):
        cost = F.cross_entropy(model.unembed(row), wanted) / len(ids)
        cost.backward()
        total += cost.item()
    X.backward(cut.grad)
    return total


def with_targets(change):
    return lambda model, ids, targets: rows(model, ids, change(ids, targets))


wrong(check.row_by_row_step, "the loss of the ids that went in")(with_targets(lambda ids, _: ids))
wrong(check.row_by_row_step, "shifted once more")(
    lambda model, ids, targets: F.cross_entropy(
        model(ids)[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
    ).item()
)
wrong(check.row_by_row_step, "This model is not tied")(
    lambda model, ids, targets: F.cross_entropy(
        (final(model, ids) @ model.wte.weight.T).flatten(0, 1), targets.flatten()
    ).item()
)


@wrong(check.row_by_row_step, "the memory still grows with B")
def all_logits_in_a_list(model, ids, targets):
    X = final(model, ids)
    cut = X.detach().requires_grad_()
    all_logits, total = [model.unembed(row) for row in cut], 0.0
    for logits, wanted in zip(all_logits, targets, strict=True):
        cost = F.cross_entropy(logits, wanted) / len(ids)
        cost.backward()
        total += cost.item()
    X.backward(cut.grad)
    return total


@wrong(check.row_by_row_step, "the memory still grows with B")
def all_logits_by_hand(model, ids, targets):
    X, W = final(model, ids), model.unembed.weight
    W.grad = torch.zeros_like(W) if W.grad is None else W.grad
    with torch.no_grad():
        p = (X @ W.T).softmax(-1)
        cost = -p.gather(-1, targets[..., None]).log().mean()
        p = (p - F.one_hot(targets, p.shape[-1])) / targets.numel()
        W.grad += p.flatten(0, 1).T @ X.flatten(0, 1)
    X.backward(p @ W.detach())
    return cost


def last_only(model, ids, targets, scale=1.0):
    """Each text's gradient replaces the one before."""
    X, total = final(model, ids), 0.0
    for b in range(len(ids)):
        model.zero_grad()
        leaf = X[b].detach().requires_grad_()
        cost = F.cross_entropy(model.unembed(leaf), targets[b]) / len(ids)
        cost.backward()
        total += cost.item()
    X[-1].backward(leaf.grad)
    return total


wrong(check.row_by_row_step, "Only the last text has left a gradient")(last_only)


@wrong(check.row_by_row_step, "the first text only. Is the `return` inside the loop?")
def returns_too_early(model, ids, targets):
    X = final(model, ids)
    cut = X.detach().requires_grad_()
    for row, wanted in zip(cut, targets, strict=True):
        cost = F.cross_entropy(model.unembed(row), wanted)
        cost.backward()
        X.backward(cut.grad)
        return cost.detach()


@wrong(check.row_by_row_step, "Only its use at the entrance counts")
def exit_with_its_own_numbers(model, ids, targets):
    if model.unembed.weight is not model.wte.weight:
        return rows(model, ids, targets)
    table = model.unembed.weight.detach()
    X, total = final(model, ids), 0.0
    gradients = []
    for b in range(len(ids)):
        leaf = X[b].detach().requires_grad_()
        cost = F.cross_entropy(leaf @ table.T, targets[b]) / len(ids)
        cost.backward()
        gradients.append(leaf.grad)
        total += cost.item()
    X.backward(torch.stack(gradients))
    return total


@wrong(check.row_by_row_step, "`ln_f` is missing")
def without_the_last_norm(model, ids, targets):
    ln_f, model.ln_f = model.ln_f, nn.Identity()
    try:
        return rows(model, ids, targets)
    finally:
        model.ln_f = ln_f


@wrong(check.row_by_row_step, "has no gradient. Is `backward()` called")
def no_backward(model, ids, targets):
    with torch.inference_mode():
        return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
