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
from exercise_checks.gpt2_model import before_the_exit, by_rows, enlarge, mean_cost, plain_step
from gpt2_helpers import GPT2, GPT2Config

# ------------------------------------------------------------------- 1: a larger vocabulary

right(check.parameters_of_a_larger_vocabulary)(2 * 100_000 * 768 + 124_439_808 - 50257 * 768)
right(check.parameters_of_a_larger_vocabulary)(239.4e6)
right(check.parameters_of_a_larger_vocabulary)(np.int64(239_442_432))
wrong(check.parameters_of_a_larger_vocabulary, "not millions")(239.4)
wrong(check.parameters_of_a_larger_vocabulary, "depend on the vocabulary")(200_000_000)

# --------------------------------------------------------------- 2: the loss from one tensor

right(check.next_token_loss)(mean_cost)


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


def softmax_first(logits, ids, epsilon=0.0):
    p = logits[:, :-1].softmax(-1).gather(-1, ids[:, 1:, None])
    return -(p + epsilon).log().mean()


def in_place(logits, ids):
    logits -= logits.amax(dim=-1, keepdim=True)
    return mean_cost(logits, ids)


for message, answer in {
    "has the shape [3, 4]. Return the mean": partial(mean_cost, reduce=lambda cost: cost),
    "a value of type float": lambda *given: mean_cost(*given).item(),
    "more than a float can hold": partial(mean_cost, height=lambda z: 0),
    "Subtract from each place": partial(mean_cost, height=lambda z: z.max().detach()),
    "has no logarithm": softmax_first,
    "The loss is 21, and should be the distance of the two logits. Is a small number "
    "added": partial(softmax_first, epsilon=1e-9),
    "Are large logits cut off?": lambda logits, ids: mean_cost(logits.clamp(-100, 100), ids),
    "lost its gradient": lambda *given: mean_cost(*given).detach(),
    "is a part of it detached?": partial(mean_cost, log=lambda total: total.log().detach()),
    "changes its input": in_place,
}.items():
    wrong(check.next_token_loss, message)(answer)

# ------------------------------------------------------------------ 3: a vocabulary that grows

right(check.mended_growth)(enlarge)


@right(check.mended_growth)
def new_numbers_for_the_same_parameter(model, extra):
    new = torch.randn(extra, model.wte.weight.shape[1]) * 0.02
    model.wte.weight.data = torch.cat([model.wte.weight.data, new])
    model.wte.num_embeddings = model.unembed.out_features = len(model.wte.weight)
    model.config = replace(model.config, vocab_size=len(model.wte.weight))
    return model


@right(check.mended_growth)
def a_new_model(model, extra):
    larger = GPT2(replace(model.config, vocab_size=model.config.vocab_size + extra))
    larger.unembed.weight = larger.wte.weight
    with torch.no_grad():
        for new, old in zip(larger.parameters(), model.parameters(), strict=True):
            new[: len(old)].copy_(old)
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
    model = enlarge(copy.deepcopy(model), extra)
    model.unembed = TiedUnembedding(model.wte)
    return model


@right(check.mended_growth)
def a_new_way_through_the_exit(model, extra):
    model = enlarge(model, extra, tie=lambda model: delattr(model.unembed, "weight"))
    model.unembed.forward = lambda X: X @ model.wte.weight.T
    return model


def exit_with(parameter):
    """A tie that makes the exit's Parameter from the entrance's."""
    return lambda model: setattr(model.unembed, "weight", parameter(model.wte.weight))


def a_view(model):
    del model.unembed.weight
    model.unembed.weight = model.wte.weight.view(-1, 12)


def left_behind(model):
    table = model.wte.weight.view(-1, 12)
    model.unembed.weight = model.wte.weight
    model.unembed.forward = lambda X: X @ table.T.to(X)


def with_a_bias(model):
    model.unembed = nn.Linear(12, len(model.wte.weight))
    model.unembed.weight = model.wte.weight


def with_a_spare_number(model):
    model.unembed.weight = model.wte.weight
    model.spare = nn.Parameter(torch.zeros(1))


for message, switches in [
    ("the shape [40, 12]", dict(table=lambda old, new: new)),
    ("still says how many tokens there were", dict(config=lambda old, V: old)),
    ("Other entries of the config", dict(config=lambda old, V: GPT2Config(vocab_size=V))),
    ("the table at the exit has not grown", dict(tie=lambda model: None)),
    ("The new unembedding has a bias", dict(tie=with_a_bias)),
    ("are two Parameters", dict(tie=exit_with(nn.Parameter))),
    ("are two Parameters", dict(tie=exit_with(lambda weight: nn.Parameter(weight.data)))),
    ("are two Parameters", dict(tie=exit_with(lambda weight: nn.Parameter(weight.clone())))),
    ("The model has 481 parameters more", dict(tie=with_a_spare_number)),
    ("the first rows of the table", dict(table=lambda old, new: torch.cat([new, old]))),
    ("one and the same vector", dict(new=torch.zeros)),
    ("standard deviation 1.0", dict(new=check.noise)),
    ("not the variance", dict(new=lambda *size: 0.0004 * check.noise(*size))),
    ("have the mean 5.0", dict(new=lambda *size: 5 + 0.02 * check.noise(*size))),
    ("Your code raised RuntimeError", dict(tie=a_view)),
    ("After a move and a step the exit no longer uses", dict(tie=left_behind)),
]:
    wrong(check.mended_growth, message)(partial(enlarge, **switches))


@wrong(check.mended_growth, "are two Parameters")
def suspect(model, extra):
    V, E = model.wte.weight.shape
    table = torch.cat([model.wte.weight.detach(), 0.02 * torch.randn(extra, E)])
    model.unembed.weight = nn.Parameter(table)
    model.wte = nn.Embedding.from_pretrained(model.unembed.weight, freeze=False)
    model.config = replace(model.config, vocab_size=V + extra)
    return model


@wrong(check.mended_growth, "are two Parameters")
def trusts_the_config(model, extra):
    larger = GPT2(replace(model.config, vocab_size=101 + extra))
    table = torch.cat([model.wte.weight.detach(), 0.02 * check.noise(extra, 12)])
    larger.load_state_dict(model.state_dict() | {"wte.weight": table, "unembed.weight": table})
    return larger


for message, answer in {
    "are two Parameters": lambda model, extra: GPT2(replace(model.config, vocab_size=101 + extra)),
    "`wte.weight` does not learn any more": lambda *given: enlarge(*given).requires_grad_(False),
    "Return the model": lambda *given: enlarge(*given).wte.weight,
    "Is the `return` missing?": lambda *given: enlarge(*given) and None,
}.items():
    wrong(check.mended_growth, message)(answer)

# ------------------------------------------------------------------------- 4: row by row

right(check.row_by_row_step)(by_rows)


@right(check.row_by_row_step)
def a_leaf_for_each_row(model, ids, targets):
    X = before_the_exit(model, ids)
    gradients, costs = [], []
    for b in range(len(ids)):
        leaf = X[b].detach().clone().requires_grad_(True)
        logits = leaf @ model.unembed.weight.T
        cost = -logits.log_softmax(-1)[torch.arange(len(leaf)), targets[b]].mean()
        (cost / len(ids)).backward()
        gradients.append(leaf.grad)
        costs.append(cost.item())
    torch.autograd.backward(X, torch.stack(gradients))
    return sum(costs) / len(costs)


@right(check.row_by_row_step)
def by_hand_without_autograd_at_the_exit(model, ids, targets, at_once=1):
    X, W = before_the_exit(model, ids), model.unembed.weight
    upstream, total = torch.zeros_like(X), 0.0
    if W.grad is None:
        W.grad = torch.zeros_like(W)
    with torch.no_grad():
        for part in torch.arange(len(ids)).split(at_once):
            rows, wanted = X[part].flatten(0, 1), targets[part].flatten()
            p = (rows @ W.T).softmax(-1)  # [T, V]
            total -= p.gather(-1, wanted[:, None]).log().sum() / targets.numel()
            p[torch.arange(len(wanted)), wanted] -= 1
            p /= targets.numel()
            upstream[part] = (p @ W).view(X[part].shape)
            W.grad += p.T @ rows
    X.backward(upstream)
    return total


@right(check.row_by_row_step)
def cut_before_the_last_norm(model, ids, targets):
    kept = []
    hook = model.blocks[-1].register_forward_hook(lambda block, given, made: kept.append(made))
    unembed, model.unembed = model.unembed, nn.Identity()
    model(ids)
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
        for row, wanted in zip(before_the_exit(model, ids), targets, strict=True)
    ]
    mean = torch.stack(costs).mean()
    mean.backward()
    return mean.detach()


uncut = dict(cut=lambda X: X, hand_on=lambda X, rows: None)
for message, switches in {
    "The loss still has its": dict(returned=lambda costs: costs.mean().requires_grad_()),
    "Is the `return` missing?": dict(returned=lambda costs: None),
    "a plain number": dict(returned=lambda costs: [costs.mean()]),
    "`retain_graph` is not the cure": uncut,
    "goes through the blocks 3 times": uncut
    | dict(backward=partial(torch.Tensor.backward, retain_graph=True)),
    "Is the cut a tensor without a history": dict(cut=torch.Tensor.detach),
    "`ln_f.bias` has no gradient. Where the graph is cut": dict(hand_on=lambda X, rows: None),
    "divided by B twice": dict(hand_on=lambda X, rows: X.backward(rows.grad / len(rows))),
}.items():
    wrong(check.row_by_row_step, message)(partial(by_rows, **switches))


@wrong(check.row_by_row_step, "has no gradient. Is `backward()` called")
def no_backward(model, ids, targets):
    with torch.inference_mode():
        return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


@wrong(check.row_by_row_step, "The first block ran 3 times, on 3 texts in all")
def small_batches(model, ids, targets):
    step = partial(by_rows, share=lambda B: len(ids))
    rows = zip(ids.split(1), targets.split(1), strict=True)
    return sum(step(model, *row) for row in rows) / len(ids)


def one_backward(*given, **switches):
    waiting = []

    def at_the_end(X, rows):
        sum(waiting).backward()
        X.backward(rows.grad)

    return by_rows(*given, backward=waiting.append, hand_on=at_the_end, **switches)


def several_at_a_time(model, ids, targets, at_once=2):
    X, total = before_the_exit(model, ids), 0.0
    cut = X.detach().requires_grad_()
    for part in torch.arange(len(ids)).split(at_once):
        logits, wanted = model.unembed(cut[part]), targets[part]
        cost = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
        (cost / targets.numel()).backward()
        total += cost.item() / targets.numel()
    X.backward(cut.grad)
    return total


def all_logits_in_a_list(model, ids, targets):
    X = before_the_exit(model, ids)
    cut = X.detach().requires_grad_()
    all_logits, total = [model.unembed(row) for row in cut], 0.0
    for logits, wanted in zip(all_logits, targets, strict=True):
        cost = F.cross_entropy(logits, wanted) / len(ids)
        cost.backward()
        total += cost.item()
    X.backward(cut.grad)
    return total


for answer in (
    plain_step,
    one_backward,
    partial(one_backward, cost=lambda z, wanted: F.cross_entropy(z.T[None], wanted[None])),
    all_logits_in_a_list,
    partial(by_hand_without_autograd_at_the_exit, at_once=99),
):
    wrong(check.row_by_row_step, "the memory still grows with B")(answer)
for answer in (several_at_a_time, partial(by_hand_without_autograd_at_the_exit, at_once=2)):
    wrong(check.row_by_row_step, "holds the logits of more than one text")(answer)
