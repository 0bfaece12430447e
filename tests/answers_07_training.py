"""Answers to the exercises of notebook 7."""

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from answers import right, wrong
from torch import nn

import exercise_checks as check
from exercise_checks.training import (
    Scaler,
    TorchScaler,
    accumulated,
    clip_by_norm,
    cost_of,
    plain_step,
    rise,
    total,
    words_in,
)
from telegraph import telegrams

# ---------------------------------------------------------------- 1: twice as many stations


SOME = telegrams(1000, seed=7)
WORDS = sum(len(telegram.words) - 1 for telegram in SOME) / len(SOME)

right(check.rise_of_the_floor)((math.log(24 * 23) - math.log(12 * 11)) / WORDS)
right(check.rise_of_the_floor)(0.0415)
right(check.rise_of_the_floor)(np.float32(rise()))
right(check.rise_of_the_floor)(torch.tensor(rise()))
wrong(check.rise_of_the_floor, "3 percent too low")(rise(words=35.5))  # TELEGRAM counted
wrong(check.rise_of_the_floor, "Add up by how much")(0.5)

# ------------------------------------------------------------------- 2: one norm for all

right(check.clipped_gradients)(nn.utils.clip_grad_norm_)
right(check.clipped_gradients)(clip_by_norm)


@right(check.clipped_gradients)
def number_by_number(parameters, max_norm):
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(sum(x * x for gradient in gradients for x in gradient.flatten().tolist()))
    if norm > max_norm:
        for gradient in gradients:
            gradient *= max_norm / norm
    return norm


@right(check.clipped_gradients)
def through_data(parameters, max_norm):
    gradients = [parameter.grad.data for parameter in list(parameters) if parameter.requires_grad
                 and parameter.grad is not None]  # fmt: skip
    norm = torch.stack([torch.linalg.norm(gradient) for gradient in gradients]).norm()
    factor = max_norm / max(norm.item(), max_norm)
    for gradient in gradients:
        gradient[...] = gradient * factor
    return norm


def anew(parameters, max_norm):
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = clip_by_norm(parameters, math.inf)
    for parameter in parameters:
        parameter.grad = parameter.grad * min(1.0, max_norm / (norm.item() + 1e-6))
    return norm


def zeros_for_none(parameters, max_norm):
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return clip_by_norm(parameters, max_norm)


def the_weights(parameters, max_norm):
    parameters = list(parameters)
    norm = clip_by_norm(parameters, math.inf)
    for parameter in parameters:
        parameter.data.mul_(min(1.0, max_norm / norm))
    return norm


def removed(parameters, max_norm):
    parameters = list(parameters)
    norm = clip_by_norm(parameters, max_norm)
    for parameter in parameters:
        parameter.grad = None
    return norm


def without_a_look_at_none(parameters, max_norm):
    gradients = [parameter.grad for parameter in parameters]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    for gradient in gradients:
        gradient.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm


for message, answer in {
    "`.grad` is a new tensor now": anew,
    "had no gradient has one now": zeros_for_none,
    "The weights have changed": the_weights,
    "A gradient is gone": removed,
    "its `.grad` is None, and your code": without_a_look_at_none,
    "contains nan": partial(clip_by_norm, factor=lambda norm, most: min(1, most / norm) * norm
                            / norm),
    "it should keep its direction": partial(clip_by_norm, factor=lambda norm, most: 0.5),
    "is not it. Return the norm": lambda parameters, most: clip_by_norm(parameters, most) + 1,
    "should be a plain number": lambda parameters, most: [clip_by_norm(parameters, most)],
    "Your code raised TypeError: object of type": lambda parameters, most: (
        clip_by_norm(parameters, most) * len(parameters) / len(parameters)
    ),
}.items():  # fmt: skip
    wrong(check.clipped_gradients, message)(answer)

# ----------------------------------------------------------- 3: parts of a batch, and words

right(check.mended_accumulation)(accumulated)


@right(check.mended_accumulation)
def means_by_their_words(model, micro_batches):
    words = [(targets >= 0).sum() for _, targets in micro_batches]
    model.zero_grad(set_to_none=False)
    loss = torch.zeros((), dtype=torch.float64)
    for (ids, targets), own in zip(micro_batches, words, strict=True):
        cost = F.cross_entropy(model(ids).mT, targets) * (own / sum(words))
        cost.backward()
        loss += cost.detach()
    return loss


@right(check.mended_accumulation)
def divided_at_the_end(model, micro_batches):
    for parameter in model.parameters():
        parameter.grad = None
    words, loss = 0, 0.0
    for ids, targets in micro_batches:
        there = targets != -100
        costs = -model(ids)[there].log_softmax(-1)[range(there.sum()), targets[there]]
        costs.sum().backward()
        words, loss = words + len(costs), loss + costs.sum().item()
    for parameter in model.parameters():
        parameter.grad /= words
    return loss / words


def all_at_the_end(model, micro_batches):
    model.zero_grad()
    words = sum(words_in(targets) for _, targets in micro_batches)
    loss = sum(cost_of(model, *part, reduction="sum") for part in micro_batches) / words
    loss.backward()
    return loss


def clears_at_the_end(model, micro_batches):
    loss = accumulated(model, micro_batches)
    model.zero_grad()
    return loss


def counts_by_a_pass(model, micro_batches):
    with torch.no_grad():
        for ids, _ in micro_batches:
            model(ids)
    return accumulated(model, micro_batches)


def steps_too(model, micro_batches):
    loss = accumulated(model, micro_batches)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return loss


for message, answer in {
    "memory holds what all of them need": all_at_the_end,
    "the model runs 1 times, on 7 telegrams in all": plain_step,
    "the model runs 6 times, on 14 telegrams in all": counts_by_a_pass,
    "has no gradient at the end": clears_at_the_end,
    "Your code changes its input": steps_too,
    "what else changed": partial(accumulated, share=lambda part, parts: 2 / part.words),
    "but the gradient is 9 times it": partial(
        accumulated, share=lambda part, parts: len(parts) ** 2 / total(parts, "words")
    ),
    "It is as many times too large as there are": partial(
        accumulated, share=lambda part, parts: len(parts) / total(parts, "words")
    ),
    "That divides by places, B times T": partial(
        accumulated, share=lambda part, parts: 1 / part.places / len(parts)
    ),
    "In yours they count 0.089, 0.091, 1.000": partial(
        accumulated, share=lambda part, parts: len(parts) / part.words**2 / 3
        if len({own.words for own in parts}) > 1 else 1 / total(parts, "words")
    ),
    "Return the mean over all predicted words": partial(
        accumulated, returned=lambda costs, parts: 1.0
    ),
}.items():  # fmt: skip
    wrong(check.mended_accumulation, message)(answer)


# ------------------------------------------------------------------- 4: a scale for the loss

right(check.loss_scaler)(TorchScaler)
right(check.loss_scaler)(Scaler)


@right(check.loss_scaler)
class AsATensor:
    def __init__(self, init_scale, growth_interval):
        self.now, self.every, self.since = torch.tensor(init_scale), growth_interval, 0

    def scale(self, loss):
        return loss * self.now

    def step(self, optimizer):
        fine = True
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad = parameter.grad * (1 / self.now)
                    fine = fine and bool(torch.isfinite(parameter.grad.sum()))
        if not fine:
            self.now, self.since = self.now / 2, 0
            return False
        optimizer.step()
        self.since += 1
        if self.since % self.every == 0:
            self.now = self.now * 2
        return True


class HidesItsMethod(Scaler):
    def __init__(self, init_scale, growth_interval):
        super().__init__(init_scale, growth_interval)
        self.scale = init_scale


class WithoutStep:
    def __init__(self, init_scale, growth_interval):
        self.factor = init_scale

    def scale(self, loss):
        return loss * self.factor


class Detached(Scaler):
    def scale(self, loss):
        return super().scale(loss).detach()


class AsANumber(Scaler):
    def scale(self, loss):
        return loss.item() * self.factor


class InPlace(Scaler):
    def scale(self, loss):
        loss.data.mul_(self.factor)
        return loss


class Silent(Scaler):
    def scale(self, loss):
        super().scale(loss)


class WithoutALookAtNone(Scaler):
    def step(self, optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(1)
        super().step(optimizer)


class Clumsy(Scaler):
    def step(self, optimizer):
        optimizer.stepp()


for message, answer in {
    "`self.scale` is a number, and hides the method": HidesItsMethod,
    "has no method `step`": WithoutStep,
    "no .item() and no .detach()": Detached,
    "the loss times the scale, a tensor": AsANumber,
    "Your code changes its input": InPlace,
    "Is the `return` missing?": Silent,
    "its `.grad` is None": WithoutALookAtNone,
    "has no attribute 'stepp'": Clumsy,
    "takes 0 positional arguments but 2": lambda: Scaler(1, 2),
    "A loss of 3 with a scale of 8 should become 24": partial(
        Scaler, scaled=lambda loss, factor: loss * max(factor, 16)
    ),
    "in spite of the infinite gradient": partial(
        Scaler, bad=lambda gradients: any(g.isnan().any() for g in gradients)
    ),
}.items():  # fmt: skip
    wrong(check.loss_scaler, message)(answer)
