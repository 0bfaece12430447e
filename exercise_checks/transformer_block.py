"""The checks of notebook 3, the transformer block, and the mistakes they know."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from gpt2_helpers import GPT2Config, TransformerBlock

from . import Mistake, call, drawn, exercise, expect, expect_gradient, expect_number, noise, number

# ----------------------------------------------------------- 1: a block of the largest one

E, OURS = 1600, 7_087_872  # the width of GPT-2 XL, and the notebook's block of GPT-2 small


@exercise
def parameters_of_an_xl_block(count):
    """One block of GPT-2 XL, E = 1600."""
    yield "weights, biases and LayerNorms"
    if 0 < number(count) < 1000:
        raise Mistake("Give the number itself, to the last one: not in millions.")
    expect_number(
        count,
        12 * E**2 + 13 * E,
        "Take the table of section 4 and put in E = 1600, row by row. The number of heads plays no "
        "part.",
        tolerance=2e-8,
    )


of_one_block = {
    "These are the weight matrices. The biases and the LayerNorms are missing.": 12 * E**2,
    "The LayerNorms are missing.": 12 * E**2 + 9 * E,
    "The biases of the four linear layers are missing.": 12 * E**2 + 4 * E,
    "A little is missing. Has each of the two LayerNorms a gain and a bias, and is the bias of "
    "`qkv` 3 E long?": 12 * E**2 + 11 * E,
    "Rounded. The question is about the last one.": 30_740_000,
    "Rounded; the question is about the last one.": 30_700_000,
    "A bias has one number for each output: `qkv` has 3 E of them, `fc` has 4 E.": E * (12 * E + 8),
    "This is the block of GPT-2 small.": OURS,
    "The block of GPT-2 small grows with E here. Its matrices grow with E times E.": OURS * E / 768,
    "Close, but not everything grows with the square of E: the biases and LayerNorms grow with "
    "E.": OURS * (E / 768) ** 2,
}
parameters_of_an_xl_block.mistakes = {
    **of_one_block,
    **{message + " And it is all 48 blocks.": 48 * n for message, n in of_one_block.items()},
    "This is all 48 blocks; the question is about one.": 48 * (12 * E**2 + 13 * E),
}

# ----------------------------------------------------------------------------- 2: RMSNorm


def rms(
    dim=-1, size=torch.square, N=lambda E: E, root=lambda m, eps: (m + eps) ** 0.5, above=0, below=0
):
    """An `rms_norm`, with switches for mistakes (N: what a sum of E numbers is divided by)."""

    def rms_norm(X, gain, eps):
        E, mean = X.shape[-1], X.mean(-1, keepdim=True)  # mean [B, T, 1]
        m = size(X - below * mean).mean(dim, keepdim=True) * E / N(E)
        return gain * (X - above * mean) / root(m, eps)

    return rms_norm


@exercise
def root_mean_square_norm(rms_norm):
    """rms_norm(X [B, T, E], gain [E], eps) returns [B, T, E]."""
    ones = torch.ones(6)  # [E=6]

    def expect_normed(X, otherwise, gain=ones, eps=1e-5):
        right = F.rms_norm(X, gain.shape, gain, eps)
        expect(lambda answer: call(answer, X, gain, eps), rms_norm, right, otherwise)

    yield "a vector of mean 0 gets the typical size 1"
    expect_normed(
        3 * F.layer_norm(noise(1, 1, 6), (6,)),  # [B=1, T=1, E=6] mean 0, mean square 9
        "Divide by the root of the mean of the squares: square, mean, plus eps, root.",
    )

    yield "the mean stays"
    X = noise(1, 1, 6) + 2
    expect_normed(X, "With a mean of 0 yours is right, with another mean it is not.")

    yield "every token by itself"
    X = noise(2, 3, 6, seed=1) * torch.arange(1.0, 7).view(2, 3, 1)  # [B=2, T=3, E=6]
    expect_normed(
        X,
        "With one token yours is right, with several it is not: which axis does the mean run over?",
    )

    yield "the gain, one number for each place"
    expect_normed(X, "With a gain of 1 yours is right: where does the gain go?", noise(6, seed=2))

    yield "eps, inside the root"
    otherwise = "With an eps that hardly counts yours is right, with eps = 100 it is not."
    expect_normed(X, otherwise, eps=100.0)

    yield "another width"
    expect_normed(noise(1, 2, 9, seed=3), None, noise(9, seed=4))  # [B=1, T=2, E=9]


root_mean_square_norm.mistakes = {
    "The squares are added up, but not divided by E, the length of a vector.": rms(N=lambda E: 1),
    "The sum is divided by 768, the E of the notebook. Here the vectors are shorter: take "
    "`X.shape[-1]`, or a mean.": rms(N=lambda E: 768),
    "Every number is divided by itself. Does the mean run along the last axis?": rms(dim=1),
    "Twice too large. Is the gain 1 + gain? Here it is the number itself.": lambda X, g, eps: rms()(
        X, 1 + g, eps
    ),
    "The gain, which is 1 here, is added; multiply by it.": lambda X, g, eps: rms()(X, 1, eps) + g,
    "The squares are divided by E - 1; divide by E.": lambda X, g, eps: (
        g * X / (X.var(-1, keepdim=True) + eps).sqrt()
    ),
    "The square root is missing: you divide by the mean of the squares.": rms(root=torch.add),
    "You multiply by the root; divide by it.": rms(root=lambda m, eps: (m + eps) ** -0.5),
    "You divide by the mean of the sizes. Square first, then mean, then root.": rms(
        size=torch.abs, root=torch.add
    ),
    "The input comes back as it is.": lambda X, g, eps: X,
    "The mean is subtracted: this is LayerNorm.": rms(above=1, below=1),
    "The mean is subtracted before the root is taken, as in a standard deviation. Take the squares "
    "of the numbers themselves.": rms(below=1),
    "The mean is subtracted above the line.": rms(above=1),
    "The mean runs over all tokens of all texts. Use the last axis, `dim=-1`.": rms(dim=(0, 1, 2)),
    "The mean runs over the tokens of a text. Use the last axis, `dim=-1`.": lambda X, *rest: rms(
        dim=1 if X.shape[1] > 1 else -1
    )(X, *rest),
    "The mean runs over a whole text. Use the last axis alone, `dim=-1`.": rms(dim=(1, 2)),
    "The mean runs over the texts. Use the last axis, `dim=-1`.": lambda X, *rest: rms(
        dim=0 if X.shape[0] > 1 else -1
    )(X, *rest),
    "The gain is missing.": lambda X, g, eps: rms()(X, 1, eps),
    "The gain comes too early: normalise first, then multiply.": lambda X, g, eps: rms()(
        X * g, 1, eps
    ),
    "You divide by the gain; multiply by it.": lambda X, g, eps: rms()(X, 1 / g, eps),
    "eps is not used, or a number stands in its place.": lambda X, g, eps: rms()(X, g, 1e-5),
    "eps stands outside the root: add it to the mean of the squares.": rms(
        root=lambda m, eps: m**0.5 + eps
    ),
    "eps is squared.": lambda X, g, eps: rms()(X, g, eps**2),
    "eps is added to X.": lambda X, g, eps: rms()(X + eps, g, 0),
    "eps is divided by E too: add it behind the mean.": lambda X, g, eps: rms()(
        X, g, eps / X.shape[-1]
    ),
    "eps takes part as a lower limit; add it.": rms(root=lambda m, eps: m.clamp(eps) ** 0.5),
}

# ------------------------------------------------------------------ 3: a voice that gets lost

CONFIG = GPT2Config(n_embd=12, n_head=3)  # of the blocks in the checks


def silenced(block, *parts):
    """A copy of the block in which these parts add nothing: their last layer gives 0."""
    block = copy.deepcopy(block)
    for part in parts:
        for parameter in block.get_submodule(part).proj.parameters():
            nn.init.zeros_(parameter)
    return block


def pre(
    X_at=lambda b, X: X + b.attn(b.ln_1(X)), X_ff=lambda b, X, X_at: X_at + b.mlp(b.ln_2(X_at))
):
    """A class of pre-norm blocks, from the two lines of its `forward`."""
    return type("Block", (TransformerBlock,), {"forward": lambda b, X: X_ff(b, X, X_at(b, X))})


def post(
    X_at=lambda b, X: b.ln_1(X + b.attn(X)), X_ff=lambda b, X, X_at: b.ln_2(X_at + b.mlp(X_at))
):
    """A `post_norm(X, block)`, from its two lines."""
    return lambda X, b: X_ff(b, X, X_at(b, X))


@exercise
def mended_block(block_class):
    """A TransformerBlock with a forward of its own, the notebook's suspect without its fault."""
    given, X = drawn(TransformerBlock(CONFIG)), noise(2, 5, 12, seed=20)  # [B=2, T=5, E=12]

    def built(answer, *silent):
        block = call(answer, CONFIG)
        block.load_state_dict(given.state_dict())
        return silenced(block, *silent)

    def expect_result_of_given(otherwise, *silent):
        right = silenced(given, *silent)(X)
        expect(lambda answer: call(built(answer, *silent), X), block_class, right, otherwise)

    yield "the parts of a TransformerBlock"
    if isinstance(block_class, nn.Module):
        raise Mistake("Pass the class itself, its name without brackets; the check builds a block.")
    block = call(block_class, CONFIG)
    if getattr(block_class, "forward", None) is TransformerBlock.forward:
        raise Mistake("This is the helper's own `forward`. Write one, in a class that inherits.")
    names = set(block.state_dict()) if isinstance(block, nn.Module) else set()
    if names != set(given.state_dict()):
        raise Mistake(
            "The parts should be those of the helper's block, ln_1, attn, ln_2 and mlp. Inherit "
            "from TransformerBlock and change `forward` alone."
        )
    built(block_class)  # the sizes fit, too

    yield "with the MLP silenced, what the attention wrote comes out"
    expect_result_of_given(
        "The block should return its input plus what the attention wrote, and nothing else.", "mlp"
    )

    yield "with the attention silenced, the MLP adds to the input"
    expect_result_of_given(
        "The block should return its input plus what the MLP wrote, and nothing else.", "attn"
    )

    yield "the MLP hears what the attention wrote"
    expect_result_of_given("Each part alone is right, the two together are not.")

    yield "it can learn"
    expect_gradient(lambda X: call(built(block_class), X), given, X)


mended_block.mistakes = {
    "The input comes back: what the attention wrote is lost, as in the suspect.": pre(
        X_ff=lambda b, X, X_at: X + b.mlp(b.ln_2(X_at))
    ),
    "Nothing comes out: the second plus adds what the MLP wrote to itself or to nothing.": pre(
        X_ff=lambda b, X, X_at: b.mlp(b.ln_2(X_at))
    ),
    "The norms stand behind the plus; here they belong in front of each part.": pre(
        lambda b, X: b.ln_1(X + b.attn(X)), lambda b, X, X_at: b.ln_2(X_at + b.mlp(X_at))
    ),
    "The first residual is missing.": pre(X_at=lambda b, X: b.attn(b.ln_1(X))),
    "The input is added twice.": pre(X_ff=lambda b, X, X_at: X + X_at + b.mlp(b.ln_2(X_at))),
    "The attention reads X without `ln_1`.": pre(X_at=lambda b, X: X + b.attn(X)),
    "`ln_2` stands in front of the attention; that is the place of `ln_1`.": pre(
        X_at=lambda b, X: X + b.attn(b.ln_2(X))
    ),
    "The result is what the second norm made. Add the MLP to the stream itself.": pre(
        X_ff=lambda b, X, X_at: (normed := b.ln_2(X_at)) + b.mlp(normed)
    ),
    "What the first norm made is added; add the input as it came.": pre(
        X_at=lambda b, X: (normed := b.ln_1(X)) + b.attn(normed)
    ),
    "The MLP reads what the attention wrote and no more; it should read all of X_at.": pre(
        X_ff=lambda b, X, X_at: X_at + b.mlp(b.ln_2(X_at - X))
    ),
    "`ln_1` stands in front of the MLP; that is the place of `ln_2`.": pre(
        X_ff=lambda b, X, X_at: X_at + b.mlp(b.ln_1(X_at))
    ),
    "The MLP reads the stream without `ln_2`.": pre(X_ff=lambda b, X, X_at: X_at + b.mlp(X_at)),
    "The MLP reads X; it should read X_at, in which the attention has written.": pre(
        X_ff=lambda b, X, X_at: X_at + b.mlp(b.ln_2(X))
    ),
}

# --------------------------------------------------------------- 4: the norm behind the plus


@exercise
def post_norm_block(post_norm):
    """post_norm(X, block): [B, T, E] -> [B, T, E], in the order of the original transformer."""
    given, X = drawn(TransformerBlock(CONFIG), 40), noise(2, 5, 12, seed=60)  # [B=2, T=5, E=12]
    right = post()

    def expect_post_norm(otherwise, *silent):
        def observe(answer):
            return call(answer, X, silenced(given, *silent))

        expect(observe, post_norm, observe(right), otherwise)

    yield "with both parts silenced, two norms remain"
    expect_post_norm(
        "Both parts write 0 here. Each plus should be followed by a norm of the sum.", "attn", "mlp"
    )

    yield "with the MLP silenced"
    expect_post_norm(
        "The attention should read X, its result should be added to X, and then comes `ln_1`.",
        "mlp",
    )

    yield "with the attention silenced"
    expect_post_norm(
        "The MLP should read X_at, its result should be added to X_at, and then comes `ln_2`.",
        "attn",
    )

    yield "both parts"
    expect_post_norm("Each part alone is right, the two together are not.")

    yield "it can learn"
    expect_gradient(lambda X: call(post_norm, X, given), lambda X: right(X, given), X)


post_norm_block.mistakes = {
    "No norm stands behind a plus: the input comes back as it was.": lambda X, b: b(X),
    "There is one norm, `ln_1`: one should stand behind each plus.": post(
        X_ff=lambda b, X, X_at: X_at + b.mlp(X_at)
    ),
    "The first norm does not reach the result. Is it missing behind its plus, or does the second "
    "plus take X in place of X_at?": post(X_at=lambda b, X: X + b.attn(X)),
    "The parts or their norms have changed places: first the attention and `ln_1`, then the MLP "
    "and `ln_2`.": post(
        lambda b, X: b.ln_2(X + b.attn(X)), lambda b, X, X_at: b.ln_1(X_at + b.mlp(X_at))
    ),
    "The first residual is missing: the norm should be that of a sum.": post(
        X_at=lambda b, X: b.ln_1(b.attn(X))
    ),
    "The second residual is missing: the norm should be that of a sum.": post(
        X_ff=lambda b, X, X_at: b.ln_2(b.mlp(X_at))
    ),
    "The gains and biases of the block's norms do not count. Call `block.ln_1(...)` and "
    "`block.ln_2(...)`.": post(
        lambda b, X: F.layer_norm(X + b.attn(X), (12,)),
        lambda b, X, X_at: F.layer_norm(X_at + b.mlp(X_at), (12,)),
    ),
    "`ln_1` is used twice.": post(X_ff=lambda b, X, X_at: b.ln_1(X_at + b.mlp(X_at))),
    "`ln_2` is used twice.": post(X_at=lambda b, X: b.ln_2(X + b.attn(X))),
    "The norm is applied to what a part writes, before the plus; apply it to the sum.": post(
        lambda b, X: X + b.ln_1(b.attn(X)), lambda b, X, X_at: X_at + b.ln_2(b.mlp(X_at))
    ),
    "The attention reads ln_1(X): that norm is pre-norm's. It should read X.": post(
        X_at=lambda b, X: b.ln_1(X + b.attn(b.ln_1(X)))
    ),
    "What the attention wrote is lost.": post(
        X_ff=lambda b, X, X_at: b.ln_2(b.ln_1(X) + b.mlp(X_at))
    ),
    "Only what was carried past is normed, not the sum.": post(
        X_at=lambda b, X: b.ln_1(X) + b.attn(X)
    ),
    "The MLP reads ln_2(X_at): that norm is pre-norm's. It should read X_at.": post(
        X_ff=lambda b, X, X_at: b.ln_2(X_at + b.mlp(b.ln_2(X_at)))
    ),
    "The MLP reads what stands in front of the first norm; it should read X_at, what comes out of "
    "it.": post(X_ff=lambda b, X, X_at: b.ln_2(X_at + b.mlp(X))),
}
