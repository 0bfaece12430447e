"""The checks of notebook 4, the whole model, and the mistakes they know."""

import weakref
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from gpt2_helpers import GPT2, GPT2Config, parameter_counts

from . import Mistake, alike, call, drawn, exercise, expect, expect_number, noise, number

# --------------------------------------------------------------- 1: a larger vocabulary


@exercise
def parameters_of_a_larger_vocabulary(count):
    """Parameters of GPT-2 small with 100,000 tokens and untied weights."""
    yield "all parts, each counted once"
    expect_number(
        count,
        sum(parameter_counts(GPT2Config(vocab_size=100_000, tie_weights=False)).values()),
        "Which of the parts in section 4 depend on the vocabulary, and how many of those are there "
        "without the tie?",
        tolerance=2.1e-4,  # 50,000
    )


OLD, NEW = 50257 * 768, 100_000 * 768  # a table of each vocabulary
POSITIONS, BLOCK = 1024 * 768, 7_087_872
REST = POSITIONS + 12 * BLOCK + 2 * 768  # and `ln_f`

parameters_of_a_larger_vocabulary.mistakes = {
    "This is the tied model: untied, the unembedding has its own table.": NEW + REST,
    "Only one of the two tables has grown.": NEW + OLD + REST,
    "The tables should have 100,000 rows, not 100,000 more.": 2 * (OLD + NEW) + REST,
    "There are two new tables, and an old one is still in the sum.": 2 * NEW + OLD + REST,
    "There are two old tables, and a new one.": NEW + 2 * OLD + REST,
    "These are the two tables. What else has parameters?": 2 * NEW,
    "The positions are missing.": 2 * NEW + REST - POSITIONS,
    "Only one of the blocks is counted.": 2 * NEW + REST - 11 * BLOCK,
    "This is GPT-2 small as it is, tied.": OLD + REST,
    "This is GPT-2 small as it is, untied.": 2 * OLD + REST,
    "Give the number itself, not millions.": (2 * NEW + REST) / 1e6,
}

# -------------------------------------------------------- 2: the loss from one tensor


def mean_cost(
    logits,
    ids,
    shift=lambda logits, ids: (logits[:, :-1], ids[:, 1:]),
    height=lambda z: z.amax(dim=-1, keepdim=True).detach(),
    log=torch.log,
    axis=-1,
    pick=lambda log_p, targets: log_p.gather(-1, targets[..., None]).squeeze(-1),
    reduce=torch.mean,
):
    """The loss step by step, with switches for the usual mistakes."""
    logits, targets = shift(logits, ids)
    z = logits - height(logits)
    log_p = z - log(z.exp().sum(dim=axis, keepdim=True))  # [B, T - 1, V]
    return reduce(-pick(log_p, targets))


@exercise
def next_token_loss(loss):
    """loss(logits [B, T, V], ids [B, T]): mean cross-entropy of logits[:, t] and ids[:, t + 1]."""

    def right_cost(logits, ids):
        logits = logits[:, :-1].flatten(0, 1)
        return F.cross_entropy(logits.double(), ids[:, 1:].flatten()).to(logits)

    def cost(answer, logits, ids):
        got = call(answer, logits, ids)
        if isinstance(got, torch.Tensor) and got.ndim:
            raise Mistake(
                f"The result has the shape {list(got.shape)}. Return the mean over all texts and "
                "places, a tensor of one number and no axes."
            )
        return got

    def expect_cost(logits, ids, otherwise, not_finite=None):
        if not_finite and not cost(loss, logits, ids).isfinite():
            raise Mistake(f"The result is inf or nan{not_finite}")
        right = right_cost(logits, ids)
        expect(lambda answer: cost(answer, logits, ids), loss, right, otherwise)

    yield "knowing nothing costs ln V"
    expect_cost(
        torch.zeros(3, 5, 50),  # [B, T, V]
        torch.arange(15).view(3, 5),
        "All logits are 0 here, so each of the 50 tokens has the probability 1/50.",
    )

    yield "the target's own logit counts"
    expect_cost(
        2 * noise(50, seed=1).repeat(2, 4, 1),  # [B, T, V]
        torch.full((2, 4), 3),
        "All places have the same logits here, and all ids are 3: only token 3 is asked for. If "
        "you subtract a number from all logits, does it drop out again in the end?",
    )

    yield "place t is asked for the token at t + 1"
    expect_cost(
        noise(1, 6, 7, seed=2),  # [B=1, T=6, V=7]
        torch.tensor([[4, 0, 6, 1, 5, 2]]),
        "Which logits have a target, and which ids are one? Write out the pairs for T = 3.",
    )

    yield "two texts that know nothing of each other"
    logits, ids = noise(2, 3, 7, seed=3), torch.tensor([[4, 0, 6], [1, 5, 2]])  # [B=2, T=3, V=7]
    expect_cost(
        logits,
        ids,
        "One text is right, two are not. Does each place of each text meet its own target?",
    )

    yield "logits around 10,000"
    cut_off = (
        "The result is finite and wrong. Are large logits cut off? That changes their distances, "
        "and only those count."
    )
    expect_cost(
        logits + 1e4,
        ids,
        cut_off,
        ": e to the power of 10,000 is more than a float can hold. If the same number is "
        "subtracted from all logits of a place, its probabilities stay.",
    )

    yield "each place at a height of its own"
    expect_cost(
        logits + 1e4 * torch.tensor([1.0, -1, 0])[:, None],  # [B, T, V]
        ids,
        cut_off,
        ": here the logits of one place are far below those of another, and all its exponentials "
        "are 0. Subtract from each place what suits it.",
    )

    yield "a target that is 10,000 behind"
    behind = torch.tensor([[[0.0, 0, 1e4], [0.0, 0, 0]]]), torch.tensor([[0, 1]])  # B=1, T=2, V=3
    expect_cost(
        *behind,
        f"The loss is {cost(loss, *behind):.0f}, and should be the distance of the two logits. Is "
        "a small number added, or the probability kept from falling below one?",
        ". Either the target's probability is rounded to 0, and has no logarithm: take the "
        "logarithm of the quotient on paper first. Or what you subtract is not the largest logit "
        "of the place, and an exponential is infinite.",
    )

    yield "a model can learn from it"

    def gradient(function):
        logits = noise(2, 4, 7, seed=4).requires_grad_()
        got = function(logits, torch.arange(8).view(2, 4) % 7)
        if not got.requires_grad:
            raise Mistake(
                "The loss has lost its gradient: no .item(), .detach(), torch.tensor(...) or "
                "no_grad on the way."
            )
        return torch.autograd.grad(got, logits)[0]

    expect(
        lambda answer: gradient(partial(cost, answer)),
        loss,
        gradient(right_cost),
        "The loss is right, its gradient is not: is a part of it detached?",
        tolerance=1e-5,
    )


# fmt: off
next_token_loss.mistakes = {
    "The sign is wrong: the probability is below 1, so its logarithm is negative.":
        partial(mean_cost, reduce=lambda cost: -cost.mean()),
    "The logarithm is to the base 2; the loss takes the natural one.":
        partial(mean_cost, log=torch.log2),
    "The logarithm is to the base 10; the loss takes the natural one.":
        partial(mean_cost, log=torch.log10),
    "This is the number of equally likely tokens, V; its logarithm is missing.":
        partial(mean_cost, reduce=lambda cost: cost.mean().exp()),
    "This is the probability of a token; its logarithm is missing.":
        partial(mean_cost, reduce=lambda cost: (-cost).exp().mean()),
    "The softmax runs over the places, not over the vocabulary.":
        lambda z, ids: F.nll_loss(z.log_softmax(1)[:, :-1].mT, ids[:, 1:]),
    "The softmax runs over the T - 1 places, not over the vocabulary.": partial(mean_cost, axis=1),
    "The softmax runs over the texts, not over the vocabulary.": partial(mean_cost, axis=0),
    "You divide by T, but only T - 1 places have a successor.":
        lambda z, ids: mean_cost(z, ids) * (ids.shape[1] - 1) / ids.shape[1],
    "A sum over the texts; the loss is the mean over texts and places.":
        partial(mean_cost, reduce=lambda cost: cost.mean(1).sum()),
    "A sum over the places; the loss is the mean over texts and places.":
        partial(mean_cost, reduce=lambda cost: cost.mean(0).sum()),
    "A sum over texts and places; the loss is their mean.": partial(mean_cost, reduce=torch.sum),
    "This is ln of the sum of exponentials alone: subtract the target's logit.":
        lambda z, ids: z[:, :-1].logsumexp(-1).mean(),
    "The target's logit is added; it has to be subtracted.":
        lambda z, ids: 2 * z[:, :-1].logsumexp(-1).mean() - mean_cost(z, ids),
    "This is the loss of the favourite token, whatever the target.":
        partial(mean_cost, pick=lambda log_p, targets: log_p.amax(-1)),
    "This is the mean over all tokens; only the target's probability counts.":
        partial(mean_cost, pick=lambda log_p, targets: log_p),
    "No shift: each place is asked for the token that it has just read.":
        partial(mean_cost, shift=lambda z, ids: (z, ids)),
    "No shift: the last place is left out, but the others are asked for the token that they have "
    "just read.": partial(mean_cost, shift=lambda z, ids: (z[:, :-1], ids[:, :-1])),
    "No shift: the first place is left out, but the others are asked for the token that they have "
    "just read.": partial(mean_cost, shift=lambda z, ids: (z[:, 1:], ids[:, 1:])),
    "Shifted the wrong way: each place is asked for the token before its own.":
        partial(mean_cost, shift=lambda z, ids: (z[:, 1:], ids[:, :-1])),
    "The last place is asked for the first token of the text. Nothing follows it: leave it out.":
        partial(mean_cost, shift=lambda z, ids: (z, ids.roll(-1, 1))),
    "Shifted by two.": partial(mean_cost, shift=lambda z, ids: (z[:, :-2], ids[:, 2:])),
    "The last place of a text is asked for the first token of the next text: shift before you "
    "flatten.": lambda z, ids: F.cross_entropy(z.flatten(0, 1)[:-1], ids.flatten()[1:]),
    "Only the first text counts.": lambda z, ids: mean_cost(z[:1], ids[:1]),
    "Only the last text counts.": lambda z, ids: mean_cost(z[-1:], ids[-1:]),
}
# fmt: on

# ------------------------------------------------------ 3: a vocabulary that grows


def small_gpt2(tie):
    """A GPT2 of V = 101 and E = 12 with weights that hide nothing."""
    config = GPT2Config(101, n_positions=16, n_embd=12, n_layer=2, n_head=3, tie_weights=tie)
    return drawn(GPT2(config))


def ids_and_targets(B, T):
    """Token ids and their successors for `small_gpt2`, each [B, T]; no text is like another."""
    tokens = torch.arange(B * T + 1) * 37 % 101  # [B * T + 1]
    return tokens[:-1].view(B, T), tokens[1:].view(B, T)


def plain_step(model, ids, targets):
    """The usual step, all texts at once."""
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    loss.backward()
    return loss.item()


def tie_the_exit(model):
    model.unembed.weight = model.wte.weight


def enlarge(
    model,
    extra,
    table=lambda old, new: torch.cat([old, new]),
    new=lambda *size: 0.02 * noise(*size),
    tie=tie_the_exit,
    config=lambda old, V: replace(old, vocab_size=V),
):
    """The model with a larger table, with switches for the usual mistakes."""
    old = model.wte.weight.detach()
    rows = table(old, new(extra, old.shape[1]))  # [V + extra, E]
    model.wte = nn.Embedding.from_pretrained(rows, freeze=False)
    tie(model)
    model.config = config(model.config, len(old) + extra)
    return model


@exercise
def mended_growth(grow):
    """grow(model, extra): a tied GPT2, with `extra` more tokens, still tied."""
    extra, (ids, targets) = 40, ids_and_targets(2, 12)  # [B, T]
    new_ids, new_targets = ids + extra, targets + extra  # old tokens and new ones

    def tied_gpt2():
        model = small_gpt2(tie=False)
        tie_the_exit(model)  # as in section 3, whatever the config says
        return model

    def grown_by(answer):
        return call(answer, tied_gpt2(), extra, may_change=True)

    old = tied_gpt2()
    V, E = old.wte.weight.shape

    yield "the sizes"
    grown = grown_by(grow)
    if not isinstance(grown, nn.Module):
        raise Mistake(f"Return the model; this is a value of type {type(grown).__name__}.")
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
    if grown.config != replace(old.config, vocab_size=V + extra):
        raise Mistake(
            f"Other entries of the configuration have changed. Before: {old.config}; now: "
            f"{grown.config}. `replace` changes one entry of the model's own."
        )
    logits = call(grown, new_ids)
    if logits.shape[-1] != V + extra:
        raise Mistake(
            f"The model gives {logits.shape[-1]} logits for {V + extra} tokens: the table at the "
            "exit has not grown."
        )

    yield "one table, one Parameter"
    if getattr(grown.unembed, "bias", None) is not None:
        raise Mistake("The new unembedding has a bias, and GPT-2's has none: `bias=False`.")
    added = sum(p.numel() for p in grown.parameters()) - sum(p.numel() for p in old.parameters())
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
        lambda answer: grown_by(answer)(ids)[..., :V],
        grow,
        old(ids),
        "For the old tokens the model gives other logits than before. Are the first rows of the "
        "table the old ones, in their order, and all other weights as they were?",
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

    def learned_from(answer):
        """Which uses the table learns from; a model with two such tables tells them apart."""
        grown = grown_by(answer)
        apart = GPT2(replace(grown.config, tie_weights=False))
        theirs = grown.state_dict() | {"unembed.weight": grown.wte.weight}
        apart.load_state_dict(theirs, strict=False)
        grown.wte.weight.grad = torch.zeros_like(grown.wte.weight)
        for model in (grown, apart):
            plain_step(model, new_ids, new_targets)
        entrance, exit_ = apart.wte.weight.grad, apart.unembed.weight.grad  # [V + extra, E]
        uses = {"entrance": entrance, "exit": exit_, "both": entrance + exit_}
        return [name for name, part in uses.items() if alike(grown.wte.weight.grad, part, 1e-5)]

    expect(
        learned_from,
        grow,
        ["both"],
        "The gradient of the table is not the sum of what its two uses give.",
    )

    yield "it stays one after a move and a step of training"
    grown.to(torch.float64)
    call(plain_step, grown, new_ids, new_targets)
    torch.optim.SGD(grown.parameters(), lr=1.0).step()
    by_the_table = before_the_exit(grown, new_ids) @ grown.wte.weight.T
    if not alike(call(grown, new_ids), by_the_table, 1e-4):
        raise Mistake("After a move and a step the exit no longer uses the table of the entrance.")


def exit_by_numbers(model):
    del model.unembed.weight
    model.unembed.weight = model.wte.weight.data


def entrance_by_numbers(model):
    tie_the_exit(model)
    model.wte.forward = lambda ids: F.embedding(ids, model.wte.weight.data)


mended_growth.mistakes = {
    "The table learns at the entrance only: the exit uses a copy, or its data.": partial(
        enlarge, tie=exit_by_numbers
    ),
    "The table learns at the exit only.": partial(enlarge, tie=entrance_by_numbers),
}

# ------------------------------------------------------------------------ 4: row by row


def before_the_exit(model, ids, wte=lambda model: model.wte.weight, norm=True):
    """The residual stream in front of the unembedding, [B, T, E]."""
    X = F.embedding(ids, wte(model)) + model.wpe.weight[: ids.shape[1]]  # [B, T, E]
    for block in model.blocks:
        X = block(X)
    return model.ln_f(X) if norm else X


def by_rows(
    model,
    ids,
    targets,
    wte=lambda model: model.wte.weight,
    norm=True,
    cut=lambda X: X.detach().requires_grad_(),
    unembed=lambda model: model.unembed.weight,
    cost=F.cross_entropy,
    share=lambda B: B,
    counting=slice(None),
    backward=torch.Tensor.backward,
    hand_on=lambda X, rows: X.backward(rows.grad),
    returned=torch.mean,
):
    """The step with one text's logits at a time, with switches for the usual mistakes."""
    X, costs, B = before_the_exit(model, ids, wte, norm), [], len(ids)
    rows = cut(X)  # [B, T, E]
    for b in range(B):
        loss = cost(F.linear(rows[b], unembed(model)), targets[b])  # of logits [T, V]
        if b in range(B)[counting]:
            backward(loss / share(B))
        costs.append(loss.detach())
    hand_on(X, rows)
    return returned(torch.stack(costs))


class TensorsAlive(TorchFunctionMode):
    """Counts the bytes of logits, tensors with an axis V and none of E, that are there at once.

    `most` is the most so far, `largest` the most of a single tensor. It sees what code holds, and,
    where autograd calls `note`, what autograd keeps.
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
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, torch.Tensor):
                self.note(part)
        return result


@exercise
def row_by_row_step(step):
    """step(model, ids [B, T], targets [B, T]) -> mean loss; see notebook 4."""

    def run(answer, model, ids, targets):
        try:
            loss = call(answer, model, ids, targets)
        except Mistake as mistake:
            for error, meaning in {
                "backward through the graph a second time": "The first text's `backward()` goes on "
                "into the blocks and frees what the next needs. `retain_graph` is not the cure: "
                "cut the graph in front of the unembedding, so that each text's way back ends "
                "there.",
                "grad can be implicitly created only for scalar outputs": "`X.backward(G)` was "
                "called without G, or with G = None because nothing has gathered at the cut. Is "
                "the cut a tensor without a history (`detach`) that asks for a gradient "
                "(`requires_grad_`), and do the logits come from it?",
            }.items():
                if error in str(mistake):
                    raise Mistake(meaning) from None
            raise
        if isinstance(loss, torch.Tensor) and loss.requires_grad:
            raise Mistake("The loss still has its gradient. Return a number: .item(), .detach().")
        return loss

    def trained(answer, B, tie=False, calls=1):
        """The last loss, and {name: gradient} in the order of the way back."""
        model, batch = small_gpt2(tie), ids_and_targets(B, 5)
        for _ in range(calls):
            loss = run(answer, model, *batch)
        return loss, {name: p.grad for name, p in reversed(list(model.named_parameters()))}

    def expect_loss(B, otherwise):
        def loss(answer):
            return number(trained(answer, B)[0])

        message = f"{loss(step):,.10g} is not it. {otherwise}"
        expect(loss, step, loss(plain_step), message, tolerance=1e-4)

    def expect_gradients(otherwise="Is what has gathered at the cut sent back?", **batch):
        right, got = trained(plain_step, **batch)[1], trained(step, **batch)[1]
        for name in right:  # up to the first that is wrong, or the last
            if got[name] is None:
                at_exit = "Is `backward()` called on each text's loss?"
                behind_it = (
                    "Where the graph is cut the way back ends: what has gathered at the cut must "
                    "be handed on by a `backward` of its own."
                )
                where = at_exit if name.startswith("unembed") else behind_it
                raise Mistake(f"`{name}` has no gradient. {where}")
            size = right[name].abs().max()
            if not alike(got[name] / size, right[name] / size, 1e-4):
                break
        expect(
            lambda answer: trained(answer, **batch)[1][name] / size,
            step,
            right[name] / size,
            f"The gradient of `{name}` is not right. {otherwise}",
        )

    yield "one text: the loss"
    expect_loss(1, "With one text it should be F.cross_entropy of all its places.")

    yield "one text: the gradients, from the exit to the entrance"
    expect_gradients(B=1)

    yield "three texts: the loss"
    expect_loss(3, "It should be the mean of the three texts' losses.")

    yield "three texts: the gradients"
    expect_gradients(
        "Each text adds its share, divided by B; does each hand its own part on to the blocks?", B=3
    )

    yield "the shared table learns from both uses"
    expect_gradients(B=3, tie=True)

    yield "the blocks run once, on all texts, forwards and backwards"
    forwards, backwards = [], []

    def watch(block, given, made):
        forwards.append(len(given[0]))
        if made.requires_grad:
            made.register_hook(lambda gradient: backwards.append(1))

    model = small_gpt2(tie=True)
    hook = model.blocks[0].register_forward_hook(watch)
    run(step, model, *ids_and_targets(3, 5))
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
            run(step, small_gpt2(tie=True), *ids_and_targets(B, 16))  # [B, T=16]
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
    expect_gradients(B=2, calls=2)


def numbers_if_tied(user, model):
    """The table of `user`; where it is shared, only its numbers, which do not learn."""
    tied = model.unembed.weight is model.wte.weight
    return user.weight.detach() if tied else user.weight


# fmt: off
row_by_row_step.mistakes = {
    "This is the sum over the places: take their mean.":
        partial(by_rows, cost=partial(F.cross_entropy, reduction="sum")),
    "The mean is divided by T a second time.":
        partial(by_rows, cost=lambda z, wanted: F.cross_entropy(z, wanted) / len(wanted)),
    "That is the loss of the ids that went in; the targets are one place on already.":
        lambda model, ids, targets: by_rows(model, ids, ids),
    "The targets are shifted once more: they are one place on already.":
        partial(by_rows, cost=lambda z, wanted: F.cross_entropy(z[:-1], wanted[1:])),
    "The logits come from `wte`. This model is not tied: use `unembed`.":
        partial(by_rows, unembed=lambda model: model.wte.weight),
    "`ln_f` is missing, the norm in front of the unembedding.":
        partial(by_rows, norm=False),
    "This is the sum of the texts' losses; return their mean.":
        partial(by_rows, returned=torch.sum),
    "The mean is divided by B a second time.":
        partial(by_rows, returned=lambda costs: costs.mean() / len(costs)),
    "This is the loss of the last text only.": partial(by_rows, returned=lambda costs: costs[-1]),
    "This is a third of the loss of the last text.":
        partial(by_rows, returned=lambda costs: costs[-1] / len(costs)),
    "This is the loss of the first text only. Is the `return` inside the loop?":
        partial(by_rows, returned=lambda costs: costs[0]),
    "This is a third of the loss of the first text. Is the `return` inside the loop?":
        partial(by_rows, returned=lambda costs: costs[0] / len(costs)),
    "The gradients are B times too large: they are those of a sum of losses, not of their mean.":
        partial(by_rows, share=lambda B: 1),
    "The gradients are divided by B twice.": partial(by_rows, share=lambda B: B**2),
    "Only the last text has left a gradient. Does each add its own, or replace it?":
        partial(by_rows, counting=slice(-1, None)),
    "This is the gradient of the last text alone.":
        partial(by_rows, counting=slice(-1, None), share=lambda B: 1),
    "Only the first text has left a gradient.": partial(by_rows, counting=slice(1)),
    "This is the gradient of the first text alone.":
        partial(by_rows, counting=slice(1), share=lambda B: 1),
    "Only its use at the entrance counts.":
        partial(by_rows, unembed=lambda model: numbers_if_tied(model.unembed, model)),
    "Only its use at the exit counts: what the blocks hand on replaces it, or never arrives.":
        partial(by_rows, wte=lambda model: numbers_if_tied(model.wte, model)),
    "A second call clears, or replaces, what the first one has left. `backward()` adds, and so "
    "should this.": lambda model, *batch: model.zero_grad() or by_rows(model, *batch),
}
# fmt: on
