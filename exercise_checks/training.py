"""The checks of notebook 7, training, and the mistakes they know."""

import math
from collections import namedtuple
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_

from gpt2_helpers import GPT2, GPT2Config
from telegraph import LENGTH, VOCABULARY, batch

from . import (
    Mistake,
    alike,
    call,
    call_or_none,
    drawn,
    exercise,
    expect,
    expect_number,
    noise,
    number,
)

# ---------------------------------------------------------------- 1: twice as many stations

# Words that are predicted in a telegram, on average: three of the four sentences, of 9, 10, 13 and
# 6 words, and 6 words before them and 1 behind, of which the first is given.
PREDICTED = 3 / 4 * (9 + 10 + 13 + 6) + 6 + 1 - 1
FIRST, SECOND = 24 / 12, 23 / 11  # so many times as many stations to choose from


def rise(*ratios, words=PREDICTED, log=math.log):
    """By how much the floor rises if choices become so many times larger."""
    return sum(log(ratio) for ratio in ratios or (FIRST, SECOND)) / words


@exercise
def rise_of_the_floor(nats):
    """The floor with 24 stations less the floor with 12, per predicted word."""
    yield "nats per predicted word"
    expect_number(
        nats,
        rise(),
        "Add up by how much the surprise at each choice of a station grows, for one telegram, and "
        "divide by the words that are predicted in it.",
        tolerance=0.012,
    )


rise_of_the_floor.mistakes = {
    "That is for a whole telegram. The floor is a mean over predicted words.": rise(words=1),
    "38 is the length of a row, with what is left empty in it. How many words are predicted in a "
    "telegram, on average?": rise(words=38),
    "38 is the length of a row, with what is left empty in it. And can the second station be any "
    "of the 24?": rise(FIRST, FIRST, words=38),
    "That is close, and 3 percent too low. Can the second station be any of the 24? And is the "
    "word TELEGRAM predicted?": rise(FIRST, FIRST),
    "That is in bits. A nat belongs to the natural logarithm.": rise(log=math.log2),
    "That is by the logarithm to the base 10. A nat belongs to the natural one.": rise(
        log=math.log10
    ),
    "That is one station. How many does a telegram choose?": rise(FIRST),
    "That is the second station alone. How many does a telegram choose?": rise(SECOND),
    "A station that is said again is copied, and no copy is a surprise. The sentence about the "
    "road is in three of four telegrams, and adds nothing.": 7 / 4 * rise(),
    "A station that is said again is copied, and no copy is a surprise.": 2 * rise(),
    "That is what two of 24 stations contribute to the floor. By how much is it more than with "
    "12?": rise(24, 23),
    "That is what two of 12 stations contribute to the floor now. By how much does it rise?": rise(
        12, 11
    ),
    "That is the rise as a share of the floor. In nats, please.": rise() / 0.668,
    "That is the floor itself. By how much does it rise?": 0.668,
    "That is the new floor. By how much does it rise?": 0.668 + rise(),
    "The sign is wrong: more to choose from is harder to predict.": -rise(),
    "That is in hundredths of a nat.": 100 * rise(),
}

# ------------------------------------------------------------------- 2: one norm for all

NO_GRADIENT = (
    "A parameter that the loss does not depend on has no gradient: its `.grad` is None, and your "
    "code tries to calculate with it."
)


def parameters_with(gradients):
    """Parameters with these gradients; None for one that has none."""
    parameters = []
    for n, gradient in enumerate(gradients):
        shape = [3] if gradient is None else gradient.shape
        parameters.append(nn.Parameter(noise(*shape, seed=50 + n)))
        parameters[-1].grad = None if gradient is None else gradient.clone()
    return parameters


def clipped_by(answer, gradients, max_norm, as_given=list):
    """The norm that is returned, and all numbers of the gradients afterwards, [n]."""
    parameters = parameters_with(gradients)
    norm = call(answer, as_given(parameters), max_norm, may_change=True)
    for parameter, before in zip(parameters, parameters_with(gradients), strict=True):
        if not torch.equal(parameter, before):
            raise Mistake("The weights have changed. Only their gradients are to be scaled.")
        if parameter.grad is None and before.grad is not None:
            raise Mistake("A gradient is gone: its `.grad` is None after your call.")
        if parameter.grad is not None and before.grad is None:
            raise Mistake(
                "A parameter that had no gradient has one now. An optimizer that finds one, even "
                "of zeros, applies its weight decay and momentum: leave None as it is."
            )
    gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
    return number(norm), torch.cat(gradients)


@exercise
def clipped_gradients(clip):
    """clip(parameters, max_norm) -> norm before; scales the gradients in place."""

    def expect_clipped(gradients, max_norm, otherwise, as_given=list):
        """Compare what is returned, and then the gradients, with those of torch."""

        def observe(n):
            return lambda answer: clipped_by(answer, gradients, max_norm, as_given)[n]

        norm, clipped = clipped_by(clip_grad_norm_, gradients, max_norm)
        before = "Return the norm that the gradients had before, all numbers taken together."
        expect_number(clip, norm, before, tolerance=1e-4, observe=observe(0))
        expect(observe(1), clip, clipped, otherwise)

    yield "a gradient that is too long"
    otherwise = "The gradient (3, 4) has the norm 5; it should keep its direction and get the norm "
    expect_clipped([torch.tensor([3.0, 4.0])], 2.0, otherwise + "2.")

    yield "one that is short enough"
    otherwise = "The gradient has the norm 0.5, and 2 is allowed: it should stay as it is."
    expect_clipped([torch.tensor([0.3, 0.4])], 2.0, otherwise)

    yield "several parameters: one norm, and one factor"
    several = [noise(3, 4, seed=1), 5 * noise(5, seed=2), noise(1, seed=3), noise(2, 2, 3, seed=4)]
    otherwise = "The gradients differ from those of torch: is each multiplied by the same factor?"
    expect_clipped(several, 2.0, otherwise)

    yield "each short enough, and together too long"
    expect_clipped([noise(3, 4, seed=n) for n in range(20)], 6.0, otherwise)

    yield "a parameter without a gradient"
    try:
        expect_clipped([several[0], None, several[1]], 2.0, "The other gradients are not right.")
    except Mistake as mistake:
        if "NoneType" not in str(mistake):
            raise
        raise Mistake(NO_GRADIENT) from None

    yield "parameters that can be gone through only once, as from `model.parameters()`"
    expect_clipped(several, 2.0, otherwise, as_given=iter)

    yield "gradients that are all 0"
    expect_clipped([torch.zeros(3), torch.zeros(2, 2)], 2.0, "They should stay 0.")

    yield "in place"
    parameters = parameters_with(several)
    held = [parameter.grad for parameter in parameters]
    call(clip, parameters, 2.0, may_change=True)
    if any(p.grad is not old for p, old in zip(parameters, held, strict=True)):
        raise Mistake(
            "The numbers are right, but `.grad` is a new tensor now. Whoever holds the old one, as "
            "programs for many GPUs do, still sees the long gradient: change its numbers in place."
        )


def norm_of(gradients, power=2.0):
    """The norm of all numbers taken together."""
    return torch.cat([gradient.flatten() for gradient in gradients]).norm(power)


def clip_by_norm(
    parameters,
    max_norm,
    norm=norm_of,
    of=lambda parameter: parameter.grad,
    factor=lambda norm, max_norm: (max_norm / norm).clamp(max=1),
    change=lambda gradient, scale, max_norm: gradient.mul_(scale),
    returned=lambda before, after, factor: before,
):
    """The clipping, with switches for the usual mistakes."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    with torch.no_grad():
        before = norm([of(parameter) for parameter in parameters])
        scale = factor(before, max_norm)
        for parameter in parameters:
            change(parameter.grad, scale, max_norm)
        return returned(before, norm([of(parameter) for parameter in parameters]), scale)


def while_adding_up(parameters, max_norm):
    """Scales each gradient by the norm so far."""
    squares = 0.0
    for parameter in parameters:
        squares = squares + parameter.grad.square().sum()
        parameter.grad.mul_((max_norm / squares.sqrt()).clamp(max=1))
    return squares.sqrt()


def through_twice(parameters, max_norm):
    """Clips what is left of the parameters when the norm is known."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = norm_of(gradients)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_((max_norm / norm).clamp(max=1))
    return norm


def spectral(gradients):
    """torch.linalg.norm(g, 2) of a matrix is its largest singular value."""
    norms = [torch.linalg.norm(g, 2) if g.dim() == 2 else g.norm() for g in gradients]
    return torch.stack(norms).norm()


# fmt: off
clipped_gradients.mistakes = {
    "This is the norm afterwards. Return the one before: it shows when training runs wild.":
        partial(clip_by_norm, returned=lambda before, after, factor: after),
    "This is the factor. Return the norm before.":
        partial(clip_by_norm, returned=lambda before, after, factor: factor),
    "This is the sum of the squares; the norm is its root.":
        partial(clip_by_norm, norm=lambda gradients: norm_of(gradients).square()),
    "This adds up absolute values. The L2 norm adds up squares, and takes the root.":
        partial(clip_by_norm, norm=partial(norm_of, power=1)),
    "This is the largest entry. The L2 norm is the root of the sum of all squares.":
        partial(clip_by_norm, norm=partial(norm_of, power=math.inf)),
    "This is the root of the mean of the squares; the norm is the root of their sum.":
        partial(clip_by_norm, norm=lambda gradients: torch.cat(
            [gradient.flatten() for gradient in gradients]).square().mean().sqrt()),
    "This is the norm of the weights. The gradient is in `.grad`.":
        partial(clip_by_norm, of=lambda parameter: parameter),
    "The gradient is as it was. `g = g * factor` makes a new tensor: the old one, which the "
    "optimizer reads, does not change.":
        partial(clip_by_norm, factor=lambda norm, max_norm: 1),
    "Each value is cut off by itself. That turns the gradient into another direction.":
        partial(clip_by_norm, change=lambda gradient, scale, most: gradient.clamp_(-most, most)),
    "The factor is upside down: it makes a long gradient longer.":
        partial(clip_by_norm, factor=lambda norm, max_norm: (norm / max_norm).clamp(min=1)),
    "It has the norm 1 now, whatever `max_norm` is.":
        partial(clip_by_norm, factor=lambda norm, max_norm: (1 / norm).clamp(max=1)),
    "The short gradient is made longer. Nothing is to be done where the norm is small enough.":
        partial(clip_by_norm, factor=lambda norm, max_norm: max_norm / norm),
    "The norms of the parameters are added up. Add up their squares, and take one root at the "
    "end.":
        partial(clip_by_norm, norm=lambda gradients: sum(g.norm() for g in gradients)),
    "This is the longest of the norms. Take all numbers of all gradients together.":
        partial(clip_by_norm, norm=lambda gradients: max(g.norm() for g in gradients)),
    "This is the norm of the first gradient alone.":
        partial(clip_by_norm, norm=lambda gradients: gradients[0].norm()),
    "This is the norm of the last gradient alone.":
        partial(clip_by_norm, norm=lambda gradients: gradients[-1].norm()),
    "This is the mean of the norms. Take all numbers of all gradients together.":
        partial(clip_by_norm, norm=lambda gradients: sum(g.norm() for g in gradients)
            / len(gradients)),
    "`torch.linalg.norm(g, 2)` is another norm where g is a matrix: flatten it first, or leave "
    "out the 2.":
        partial(clip_by_norm, norm=spectral),
    "Each gradient is clipped by itself. That changes the direction of the whole: the longest "
    "ones lose the most.":
        partial(clip_by_norm, change=lambda gradient, scale, most:
            gradient.mul_((most / gradient.norm()).clamp(max=1))),
    "The first gradients are scaled before the norm is complete. It takes two loops.":
        while_adding_up,
    "`model.parameters()` can be gone through only once: your second loop finds nothing. Make a "
    "list of it first.":
        through_twice,
}
# fmt: on

# ----------------------------------------------------------- 3: parts of a batch, and words


def small_gpt2():
    """A GPT2 for telegrams in float64, with weights that hide nothing."""
    config = GPT2Config(len(VOCABULARY), n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2)
    return drawn(GPT2(config)).double()


def cost_of(model, ids, targets, reduction="mean"):
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction=reduction)


def words_in(targets):
    return (targets != -100).sum().item()


def together(micro_batches):
    """The whole batch, ids and targets."""
    return [torch.cat(tensors) for tensors in zip(*micro_batches, strict=True)]


def plain_step(model, micro_batches):
    """The usual step, all micro-batches at once."""
    model.zero_grad()
    loss = cost_of(model, *together(micro_batches))
    loss.backward()
    return loss.item()


def gradient_of(model):
    """All gradients of a model in one row."""
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            raise Mistake(
                f"`{name}` has no gradient at the end. Is `backward()` called for each "
                "micro-batch, and `zero_grad` before the first, not later?"
            )
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def weights_of_words(gradient, micro_batches):
    """How much a word of each micro-batch counts in a gradient; None if it is no sum of theirs."""
    of_each = []
    for ids, targets in micro_batches:
        model = small_gpt2()
        cost_of(model, ids, targets, "sum").backward()
        of_each.append(gradient_of(model))
    parts = torch.stack(of_each, dim=1)  # [parameters, micro-batches]
    found = torch.linalg.lstsq(parts, gradient[:, None]).solution  # [micro-batches, 1]
    return found.flatten() if alike((parts @ found).flatten(), gradient, 1e-6) else None


@exercise
def mended_accumulation(accumulate):
    """accumulate(model, micro_batches) -> mean loss; leaves the whole batch's gradient."""

    def run(answer, micro_batches, calls=1):
        """The gradient, in one row, and the loss."""
        model = small_gpt2()
        for _ in range(calls):
            loss = number(call(answer, model, micro_batches))
        return gradient_of(model), loss

    def expect_gradient_of(micro_batches, otherwise, calls=1):
        right = run(plain_step, micro_batches)[0]
        size = right.abs().max()

        def in_words(got):
            """What the weights of the words tell about a wrong gradient."""
            weights = weights_of_words(got * size, micro_batches)
            if weights is None or weights.abs().max() == 0 or len(weights) == 1:
                return otherwise
            shares = weights / weights.abs().max()
            if shares.min() > 0.9999:
                times = weights[0].item() * sum(words_in(targets) for _, targets in micro_batches)
                return f"All words count the same now, but the gradient is {times:.3g} times it."
            text = ", ".join(f"{share:.3f}" for share in shares)
            return f"A word of each micro-batch should count the same. In yours they count {text}."

        expect(
            lambda answer: run(answer, micro_batches, calls)[0] / size,
            accumulate,
            right / size,
            in_words,
            tolerance=1e-5,
        )

    ids, targets = batch(7, seed=0)  # [B=7, T]; 34, 35, 35, 34, 34, 35 and 31 words

    yield "one micro-batch"
    otherwise = "With one micro-batch the suspect is right, and yours is not: what else changed?"
    expect_gradient_of([(ids[:3], targets[:3])], otherwise)

    yield "three with equally many words"
    otherwise = "Here the suspect is right, and yours is not: what else did you change?"
    expect_gradient_of([(ids[[n]], targets[[n]]) for n in (0, 3, 4)], otherwise)

    yield "the last with fewer telegrams"
    otherwise = "The gradient is not that of the whole batch."
    parts = list(zip(ids.split(3), targets.split(3), strict=True))
    expect_gradient_of(parts, otherwise)

    yield "equally many telegrams, and few words to predict in one"
    answers_only = targets[2:4].clone()
    answers_only[:, :25] = -100
    few = [(ids[:2], targets[:2]), (ids[2:4], answers_only)]
    expect_gradient_of(few, otherwise)

    yield "the loss that is returned"
    for micro_batches in (parts, few):
        expect_number(
            accumulate,
            run(plain_step, micro_batches)[1],
            "Return the mean over all predicted words of the whole batch.",
            tolerance=1e-5,
            observe=lambda answer, given=micro_batches: run(answer, given)[1],
        )

    yield "each call begins anew"
    expect_gradient_of(parts, "The second call gives another gradient than the first.", calls=2)

    yield "one micro-batch in memory at a time"
    events, model = [], small_gpt2()

    def watch(model, given, made):
        events.append(len(given[0]))
        if made.requires_grad:
            made.register_hook(lambda gradient: events.append("back"))

    model.register_forward_hook(watch)
    call(accumulate, model, parts)
    runs = [event for event in events if event != "back"]
    if runs != [3, 3, 1]:
        raise Mistake(
            f"There are 3 micro-batches, of 3, 3 and 1 telegrams, and the model runs {len(runs)} "
            f"times, on {sum(runs)} telegrams in all. Let it run once on each, by "
            "`model(ids)`: memory holds no more."
        )
    if events != [3, "back", 3, "back", 1, "back"]:
        raise Mistake(
            "The way back of a micro-batch is to be done before the next one goes in. As it is, "
            "memory holds what all of them need for their way back."
        )


Part = namedtuple("Part", "words telegrams places")


def total(parts, what):
    return sum(getattr(part, what) for part in parts)


def accumulated(
    model,
    micro_batches,
    share=lambda part, parts: 1 / total(parts, "words"),
    counting=slice(None),
    returned=lambda costs, parts: sum(costs) / total(parts, "words"),
    clear=True,
):
    """Accumulation; `share` is how much a word of a part counts. With switches for mistakes."""
    if clear:
        model.zero_grad()
    parts = [Part(words_in(targets), *targets.shape) for _, targets in micro_batches]
    parts = [part._replace(places=part.telegrams * part.places) for part in parts]
    costs = []
    for n, ((ids, targets), part) in enumerate(zip(micro_batches, parts, strict=True)):
        cost = cost_of(model, ids, targets, "sum")
        if n in range(len(parts))[counting]:
            (cost * share(part, parts)).backward()
        costs.append(cost.item())
    return returned(costs, parts)


def sharing(share):
    """`accumulated` with this share, in the gradient and in the loss."""
    return partial(
        accumulated,
        share=share,
        returned=lambda costs, parts: sum(
            cost * share(part, parts) for cost, part in zip(costs, parts, strict=True)
        ),
    )


def returning(returned):
    return partial(accumulated, returned=returned)


# fmt: off
mended_accumulation.mistakes = {
    "As the suspect: each micro-batch counts the same, however many words are predicted in it.":
        sharing(lambda part, parts: 1 / part.words / len(parts)),
    "It is as many times too large as there are micro-batches. Are means added up, or is there a "
    "factor too many?":
        sharing(lambda part, parts: 1 / part.words),
    "The sum over all words is not divided by their number.": sharing(lambda part, parts: 1),
    "That divides by places, B times T. Where the target is -100 nothing is predicted.":
        sharing(lambda part, parts: 1 / total(parts, "places")),
    "Each micro-batch counts by its telegrams (or its places). That comes near, but not all have "
    "equally many words to predict.":
        sharing(lambda part, parts: part.telegrams / total(parts, "telegrams") / part.words),
    "That divides by the number of telegrams.":
        sharing(lambda part, parts: 1 / total(parts, "telegrams")),
    "That is right, but for a factor: it is still divided by the number of micro-batches, too.":
        sharing(lambda part, parts: 1 / total(parts, "words") / len(parts)),
    "The mean of each micro-batch is divided by the number of words: that is done twice.":
        sharing(lambda part, parts: 1 / part.words / total(parts, "words")),
    "Only the last micro-batch has left a gradient. Is `zero_grad` inside the loop, or `backward` "
    "behind it?": partial(accumulated, counting=slice(-1, None)),
    "Only the last micro-batch has left a gradient, its mean. Is `zero_grad` inside the loop, or "
    "`backward` behind it?":
        partial(accumulated, counting=slice(-1, None), share=lambda part, parts: 1 / part.words),
    "Only the first micro-batch has left a gradient. Is the `return` inside the loop?":
        partial(accumulated, counting=slice(1)),
    "The gradient is right. The loss is still the mean of the micro-batches' means.":
        returning(lambda costs, parts: sum(cost / part.words for cost, part in zip(
            costs, parts, strict=True)) / len(parts)),
    "The gradient is right. The loss is that of the last micro-batch.":
        returning(lambda costs, parts: costs[-1] / parts[-1].words),
    "The gradient is right. The loss is what the last micro-batch adds to it.":
        returning(lambda costs, parts: costs[-1] / total(parts, "words")),
    "The gradient is right. The loss is a sum over the words; return their mean.":
        returning(lambda costs, parts: sum(costs)),
    "The gradient is right. The loss is the sum of the micro-batches' means.":
        returning(lambda costs, parts: sum(cost / part.words for cost, part in zip(
            costs, parts, strict=True))),
    "A second call adds to what the first one has left. Clear the gradients once, before the "
    "loop.": partial(accumulated, clear=False),
}
# fmt: on

# ------------------------------------------------------------------- 4: a scale for the loss


class TorchScaler:
    """PyTorch's own, with the interface of the exercise."""

    def __init__(self, init_scale, growth_interval):
        self.scaler = torch.amp.GradScaler(
            "cpu",
            init_scale=init_scale,
            growth_factor=2.0,
            backoff_factor=0.5,
            growth_interval=growth_interval,
        )

    def scale(self, loss):
        return self.scaler.scale(loss)

    def step(self, optimizer):
        self.scaler.step(optimizer)
        self.scaler.update()


def made(answer, init_scale, growth_interval):
    """The reader's scaler."""
    scaler = call(answer, init_scale, growth_interval)
    for name in ("scale", "step"):
        method = getattr(scaler, name, None)
        if isinstance(method, (int, float, torch.Tensor)):
            raise Mistake(
                f"`self.{name}` is a number, and hides the method of this name. Give the number "
                "another name."
            )
        if not callable(method):
            raise Mistake(f"What is made has no method `{name}`.")
    return scaler


def scaled_loss(scaler, loss):
    """What `scale(loss)` returns, a tensor to call `backward` on."""
    scaled = call(scaler.scale, loss)
    if not isinstance(scaled, torch.Tensor):
        raise Mistake("`scale` should return the loss times the scale, a tensor.")
    if not scaled.requires_grad:
        raise Mistake("What `scale` returns has no gradient: no .item() and no .detach() in it.")
    return scaled


def in_float16(parameter, bad):
    """The parameter, with a way back that adds `bad` and holds no more than float16 does."""
    through = parameter.view_as(parameter)
    through.register_hook(lambda gradient: (gradient + bad).half().float())
    return through


def course(answer, gradients, interval=100, optimizer=torch.optim.SGD):
    """The weights after each step, [steps, n], and the scales in use, as powers of two, [steps].

    `gradients` are those of the loss itself; a number that is not finite comes up on the way back,
    and so does infinity where a scaled gradient is more than float16 holds.
    """
    first = gradients[0]
    parameters = [nn.Parameter(torch.ones(3 if g is None else len(g))) for g in first]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
    optimizer, scaler = optimizer(groups, lr=0.01), made(answer, 1024.0, interval)
    weights, scales = [], []
    for step in gradients:
        loss, used = 1.0, [(p, g) for p, g in zip(parameters, step, strict=True) if g is not None]
        for parameter, gradient in used:
            finite = gradient.isfinite()
            there = in_float16(parameter, bad=gradient.where(~finite, 0.0))
            loss = loss + (there * gradient.where(finite, 0.0)).sum()
        scaled = scaled_loss(scaler, loss)
        scaled.backward()
        scales.append((scaled / loss).abs().log2().detach())
        try:
            call_or_none(scaler.step, optimizer)
        except Mistake as mistake:
            if "NoneType" not in str(mistake) or len(used) == len(parameters):
                raise
            raise Mistake(NO_GRADIENT) from None
        optimizer.zero_grad()
        weights.append(torch.cat([parameter.detach().clone() for parameter in parameters]))
    # Sentinels, so that two courses that go wrong in the same way are equal.
    return [torch.stack(seen).nan_to_num(-7.0, 9.0, -9.0) for seen in (weights, scales)]


def steps(text):
    """Gradients of two parameters for each step; bad ones where the text says so.

    `.` is a good step. `i`, `n` and `m` have an infinity, nan and minus infinity in the first
    parameter; `I`, `N` and `M` in the last. `h` is too much for float16 when scaled by 1024 or 512.
    """
    gradients = []
    for n, kind in enumerate(text):
        step = [noise(3, seed=2 * n), noise(4, seed=2 * n + 1)]
        if kind.lower() in "inm":
            bad = {"i": math.inf, "n": math.nan, "m": -math.inf}[kind.lower()]
            step[0 if kind.islower() else -1][1] = bad
        gradients.append([200 * g / g.abs().max() for g in step] if kind == "h" else step)
    return gradients


@exercise
def loss_scaler(LossScaler):  # noqa: N803
    """LossScaler(init_scale, growth_interval), with scale(loss) and step(optimizer)."""

    def expect_course(gradients, weights, scales, **how):
        """Compare weights, and scales in use, with those of torch.amp.GradScaler."""
        right = course(TorchScaler, gradients, **how)
        for n, otherwise in enumerate([weights, scales]):
            if otherwise:
                expect(
                    lambda answer, n=n: course(answer, gradients, **how)[n],
                    LossScaler,
                    right[n],
                    otherwise,
                    tolerance=1e-5,
                )

    yield "the loss, times the scale"
    loss = torch.tensor(3.0, requires_grad=True)
    for init_scale in (1024.0, 8.0):
        expect(
            lambda answer, s=init_scale: scaled_loss(made(answer, s, 10), loss).detach(),
            LossScaler,
            3 * torch.tensor(init_scale),
            f"A loss of 3 with a scale of {init_scale:.0f} should become {3 * init_scale:.0f}.",
        )

    yield "good steps, as if there were no scale"
    step_wrong = "The weights differ from those of a training without a scale."
    stays = "The scale has changed, after fewer good steps than `growth_interval`."
    expect_course(steps("..."), step_wrong, stays)

    yield "an infinite gradient: the step is left out"
    left_out = "The weights are not what they should be: a step with a bad gradient is left out."
    expect_course(steps(".i.I."), left_out, None)

    yield "and the scale is halved"
    expect_course(steps(".i.I."), left_out, "It should be half as large after a bad step.")

    yield "nan and minus infinity are bad, too"
    expect_course(steps(".n.N.m.M."), left_out, "It should be half as large after a bad step.")

    yield "too much for float16: the scale comes down until it fits"
    expect_course(steps("hhhhh"), left_out, "The scale is not right.")

    yield "a parameter without a gradient"
    without = [[first, None, last] for first, last in steps("..i..")]
    expect_course(without, left_out, "The scale is not right.")

    yield "after `growth_interval` good steps, twice the scale"
    grows = "The scale should double after 3 good steps, and again after 3 more."
    expect_course(steps("........"), step_wrong, grows, interval=3)

    yield "good steps in a row"
    row = "A bad step ends the row, and the next good step is the first of a new one."
    expect_course(steps("..i..i...i...."), left_out, row, interval=3)

    yield "beside torch.amp.GradScaler, with AdamW"
    expect_course(
        steps("...h.N...i.m......hh....M..n......"),
        "The weights differ from those with torch.amp.GradScaler. Where a step is left out, "
        "nothing of the optimizer's may move.",
        "The scale differs from that of torch.amp.GradScaler.",
        interval=3,
        optimizer=torch.optim.AdamW,
    )


def not_finite(gradients):
    return not all(gradient.isfinite().all() for gradient in gradients)


def gradients_in(optimizer):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [p.grad for p in parameters if p.grad is not None]


class Scaler:
    """The scaler, with switches for the usual mistakes."""

    def __init__(self, init_scale, growth_interval, **mistake):
        self.factor, self.interval, self.good = init_scale, growth_interval, 0
        right = {
            "scaled": torch.mul,
            "unscale": torch.Tensor.div_,
            "bad": not_finite,
            "when_bad": lambda optimizer: None,
            "backoff": 0.5,
            "growth": 2.0,
            "early": 0,  # so many steps too early it grows
            "new_row": lambda good: 0,  # how many good steps count after a bad one
            "after_growth": 0,  # and after doubling
            "scale_first": False,
        }
        self.__dict__.update(right | mistake)

    def scale(self, loss):
        return self.scaled(loss, self.factor)

    def step(self, optimizer):
        gradients, factor = gradients_in(optimizer), self.factor
        bad = self.bad(gradients)
        self.update(bad)
        for gradient in gradients:
            self.unscale(gradient, self.factor if self.scale_first else factor)
        (self.when_bad if bad else type(optimizer).step)(optimizer)

    def update(self, bad):
        self.good = self.new_row(self.good) if bad else self.good + 1
        if bad:
            self.factor *= self.backoff
        elif self.good >= self.interval - self.early:
            self.factor *= self.growth
            self.good = self.after_growth


def scaler(**mistake):
    """`Scaler` with a mistake."""
    return partial(Scaler, **mistake)


def step_with_zeros(optimizer):
    for gradient in gradients_in(optimizer):
        gradient.zero_()
    optimizer.step()


def step_without_the_bad_numbers(optimizer):
    for gradient in gradients_in(optimizer):
        gradient.nan_to_num_(0.0, 0.0, 0.0)
    optimizer.step()


def step_of_the_others(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and not_finite([parameter.grad]):
                parameter.grad = None
    optimizer.step()


# fmt: off
loss_scaler.mistakes = {
    "The loss comes back as it is. Multiply it by the scale.":
        scaler(scaled=lambda loss, factor: 1 * loss),
    "The loss is divided by the scale. Multiply it.": scaler(scaled=torch.div),
    "That multiplies by 1024, whatever `init_scale` is.":
        scaler(scaled=lambda loss, factor: loss * 1024),
    "The gradients are still scaled when the optimizer takes its step.":
        scaler(unscale=lambda gradient, factor: None),
    "The gradients are multiplied by the scale once more. Divide by it.":
        scaler(unscale=torch.Tensor.mul_),
    "The gradients are divided by the scale twice.":
        scaler(unscale=lambda gradient, factor: gradient.div_(factor**2)),
    "No step is taken. Is the optimizer's `step` called?": scaler(bad=lambda gradients: True),
    "The scale doubles after every good step. Count up to `growth_interval`.":
        scaler(early=99),
    "The step is taken in spite of the infinite gradient, and the weights are lost.":
        scaler(bad=lambda gradients: False),
    "The infinite gradient is set to 0, and a step is taken with the rest of it. Leave the whole "
    "step out.": scaler(when_bad=step_without_the_bad_numbers),
    "The parameter with the infinite gradient stays, and the others take the step. Leave the "
    "whole step out.": scaler(when_bad=step_of_the_others),
    "Only the first parameter is looked at. The infinity can be in any.":
        scaler(bad=lambda gradients: not_finite(gradients[:1])),
    "Only the last parameter is looked at. Does a later one overwrite what an earlier one found?":
        scaler(bad=lambda gradients: not_finite(gradients[-1:])),
    "After a bad step the scale stays as it was. The next gradient would be infinite again.":
        scaler(backoff=1.0),
    "After a bad step the scale is doubled.": scaler(backoff=2.0),
    "After a bad step the scale is a quarter. Is it halved twice?": scaler(backoff=0.25),
    "nan passes for a good gradient. It is not infinite, and as bad.":
        scaler(bad=lambda gradients: any(gradient.isinf().any() for gradient in gradients)),
    "nan is found, minus infinity is not.":
        scaler(bad=lambda gradients: any((gradient.isnan() | (gradient == math.inf)).any()
            for gradient in gradients)),
    "The scale never grows.": scaler(growth=1.0),
    "The scale grows one step too late.": scaler(early=-1),
    "The scale grows one step too early.": scaler(early=1),
    "Once it has doubled the scale doubles after every step. The count must begin anew.":
        scaler(after_growth=99),
    "The second doubling comes one step too early: the count begins anew at 0.":
        scaler(after_growth=1),
    "The step at which the scale doubles is unscaled by the new scale. The loss had the old one.":
        scaler(scale_first=True),
    "All good steps are counted. After a bad one the count must begin anew.":
        scaler(new_row=lambda good: good),
    "A bad step is counted as well. After it the count must begin anew.":
        scaler(new_row=lambda good: good + 1),
    "After a bad step the count begins at 1. It should begin at 0.":
        scaler(new_row=lambda good: 1),
    "Where a step is to be left out, the optimizer takes one with gradients of 0. AdamW moves the "
    "weights all the same, by its momentum.": scaler(when_bad=step_with_zeros),
}
# fmt: on
