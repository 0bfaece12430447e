"""Answers to the exercises of notebook 3."""

import numpy as np
import torch
import torch.nn.functional as F
from answers import right, wrong
from torch import nn

import exercise_checks as check
from gpt2_helpers import FeedForward, MultiHeadAttention, TransformerBlock

# ------------------------------------------------------------- 1: a block of the largest one

right(check.parameters_of_an_xl_block)(30_740_800)
right(check.parameters_of_an_xl_block)(np.float64(12 * 1600**2 + 13 * 1600))
wrong(check.parameters_of_an_xl_block, "biases and the LayerNorms are missing")(12 * 1600**2)
wrong(check.parameters_of_an_xl_block, "The LayerNorms are missing")(12 * 1600**2 + 9 * 1600)
wrong(check.parameters_of_an_xl_block, "biases of the four linear layers")(12 * 1600**2 + 6400)
wrong(check.parameters_of_an_xl_block, "Has each of the two LayerNorms a gain and a bias")(
    12 * 1600**2 + 11 * 1600
)
wrong(check.parameters_of_an_xl_block, "one number for each output")(12 * 1600**2 + 8 * 1600)
wrong(check.parameters_of_an_xl_block, "This is all 48 blocks")(1_475_558_400)
wrong(check.parameters_of_an_xl_block, "And it is all 48 blocks")(48 * 12 * 1600**2)
wrong(check.parameters_of_an_xl_block, "the block of GPT-2 small.")(7_087_872)
wrong(check.parameters_of_an_xl_block, "grow with E times E")(14_766_400)
wrong(check.parameters_of_an_xl_block, "not everything grows")(round(7_087_872 * (1600 / 768) ** 2))
wrong(check.parameters_of_an_xl_block, "not in millions")(30.7408)
wrong(check.parameters_of_an_xl_block, "Rounded. The question")(30_740_000)
wrong(check.parameters_of_an_xl_block, "row by row")(30_740_801)

# ------------------------------------------------------------------------------ 2: RMSNorm


def rms(X, gain, eps, dim=-1, mean=True, root=0.5, inside=True, minus=0, last=1):
    """The solution with switches for the usual mistakes."""
    size = (X - minus * X.mean(-1, keepdim=True)).square()
    size = size.mean(dim, keepdim=True) if mean else size.sum(dim, keepdim=True)
    size = (size + eps) ** root if inside else size**root + eps
    return gain * last * X / size


right(check.root_mean_square_norm)(rms)
right(check.root_mean_square_norm)(lambda X, gain, eps: F.rms_norm(X, X.shape[-1:], gain, eps))


@right(check.root_mean_square_norm)
def token_by_token(X, gain, eps):
    rows = []
    for x in X.reshape(-1, X.shape[-1]):
        rows.append(
            [g * v / (sum(x * x) / len(x) + eps) ** 0.5 for g, v in zip(gain, x, strict=True)]
        )
    return torch.tensor(rows).view_as(X)


@right(check.root_mean_square_norm)
def by_einsum_on_a_copy(X, gain, eps):
    X = X.clone()
    X *= torch.einsum("bte,bte->bt", X, X).div(X.size(-1)).add(eps).rsqrt()[:, :, None]
    return torch.einsum("bte,e->bte", X, gain)


wrong(check.root_mean_square_norm, "not divided by E, the length")(
    lambda *given: rms(*given, mean=False)
)
wrong(check.root_mean_square_norm, "divided by E - 1")(
    lambda X, gain, eps: gain * X / (X.var(-1, keepdim=True) + eps).sqrt()
)
wrong(check.root_mean_square_norm, "The square root is missing")(lambda *given: rms(*given, root=1))
wrong(check.root_mean_square_norm, "You multiply by the root")(
    lambda *given: rms(*given, root=-0.5)
)
wrong(check.root_mean_square_norm, "the mean of the sizes")(
    lambda X, gain, eps: gain * X / (X.abs().mean(-1, keepdim=True) + eps)
)
wrong(check.root_mean_square_norm, "this is LayerNorm")(
    lambda X, gain, eps: F.layer_norm(X, X.shape[-1:], gain, eps=eps)
)
wrong(check.root_mean_square_norm, "as in a standard deviation")(
    lambda *given: rms(*given, minus=1)
)
wrong(check.root_mean_square_norm, "above the line")(
    lambda X, gain, eps: rms(X, gain, eps, last=(X - X.mean(-1, keepdim=True)) / X)
)
wrong(check.root_mean_square_norm, "over all tokens of all texts")(
    lambda *given: rms(*given, dim=(0, 1, 2))
)
wrong(check.root_mean_square_norm, "over a whole text")(lambda *given: rms(*given, dim=(1, 2)))
wrong(check.root_mean_square_norm, "The gain is missing")(
    lambda X, gain, eps: rms(X, torch.ones_like(gain), eps)
)
wrong(check.root_mean_square_norm, "The gain comes too early")(
    lambda X, gain, eps: rms(X * gain, torch.ones_like(gain), eps)
)
wrong(check.root_mean_square_norm, "is added; multiply by it")(
    lambda X, gain, eps: rms(X, torch.ones_like(gain), eps) + gain
)
wrong(check.root_mean_square_norm, "Is the gain 1 + gain?")(lambda X, *rest: 2 * rms(X, *rest))
wrong(check.root_mean_square_norm, "the E of the notebook")(
    lambda X, gain, eps: gain * X / (X.square().sum(-1, keepdim=True) / 768 + eps).sqrt()
)
wrong(check.root_mean_square_norm, "Every number is divided by itself")(
    lambda *given: rms(*given, dim=1)
)
wrong(check.root_mean_square_norm, "first at the index")(  # one width, typed in
    lambda X, gain, eps: gain * X / (X.square().sum(-1, keepdim=True) / 6 + eps).sqrt()
)
wrong(check.root_mean_square_norm, "eps is not used")(lambda X, gain, eps: rms(X, gain, 1e-6))
wrong(check.root_mean_square_norm, "eps stands outside")(lambda *given: rms(*given, inside=False))
wrong(check.root_mean_square_norm, "eps is squared")(lambda X, gain, eps: rms(X, gain, eps**2))


@wrong(check.root_mean_square_norm, "The mean runs over the tokens of a text")
def wrong_axis(X, gain, eps):
    return rms(X, gain, eps, dim=1 if X.shape[1] > 1 else -1)


@wrong(check.root_mean_square_norm, "eps is divided by E too")
def eps_in_the_sum(X, gain, eps):
    return gain * X / ((X.square().sum(-1, keepdim=True) + eps) / X.shape[-1]).sqrt()


@wrong(check.root_mean_square_norm, "changes its input")
def in_place(X, gain, eps):
    X /= (X.square().mean(-1, keepdim=True) + eps).sqrt()
    return gain * X


# -------------------------------------------------------------------- 3: a voice that gets lost


def block_with(forward):
    """A subclass of TransformerBlock with this forward(block, X)."""
    return type("MendedBlock", (TransformerBlock,), {"forward": forward})


@right(check.mended_block)
class Mended(TransformerBlock):
    def forward(self, X):
        for norm, part in [(self.ln_1, self.attn), (self.ln_2, self.mlp)]:
            X = X + part(norm(X))
        return X


@right(check.mended_block)
class FromNothing(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.attn, self.mlp = MultiHeadAttention(config), FeedForward(config)

    def forward(self, X):
        stream = X.clone()
        stream = stream.add(self.attn(self.ln_1(stream)))
        return torch.stack([stream, self.mlp(self.ln_2(stream))]).sum(0)


@right(check.mended_block)
def one_that_makes_blocks(config):
    return Mended(config)


@wrong(check.mended_block, "is lost, as in the suspect")
class Suspect(TransformerBlock):
    def forward(self, X):
        kept = X
        X = self.attn(self.ln_1(X))
        X = kept + X
        X = self.mlp(self.ln_2(X))
        return kept + X


def forward(b, X, first=None, second=None, ln_1=None, ln_2=None, heard=None):
    """The mended forward with switches: what is added at each plus, what each part reads."""
    attended = b.attn(ln_1(b, X) if ln_1 else b.ln_1(X))
    X_at = (first(b, X) if first else X) + attended
    reads = heard(X, X_at, attended) if heard else X_at
    return (second(b, X, X_at) if second else X_at) + b.mlp(
        ln_2(b, reads) if ln_2 else b.ln_2(reads)
    )


for message, switches in [
    ("The first residual is missing", {"first": lambda b, X: 0}),
    ("reads X without `ln_1`", {"ln_1": lambda b, X: X}),
    ("`ln_2` stands in front of the attention", {"ln_1": lambda b, X: b.ln_2(X)}),
    ("What the first norm made is added", {"first": lambda b, X: b.ln_1(X)}),
    ("what the second norm made", {"second": lambda b, X, X_at: b.ln_2(X_at)}),
    ("The input is added twice", {"second": lambda b, X, X_at: X + X_at}),
    ("what the MLP wrote to itself or to nothing", {"second": lambda b, X, X_at: 0}),
    ("should read all of X_at", {"heard": lambda X, X_at, attended: attended}),
    ("its gradient is not", {"second": lambda b, X, X_at: X_at.detach()}),
    ("`ln_1` stands in front of the MLP", {"ln_2": lambda b, X: b.ln_1(X)}),
    ("reads the stream without `ln_2`", {"ln_2": lambda b, X: X}),
    ("The MLP reads X; it should", {"heard": lambda X, X_at, attended: X}),
]:
    wrong(check.mended_block, message)(block_with(lambda b, X, s=switches: forward(b, X, **s)))

wrong(check.mended_block, "changes its input")(
    block_with(lambda b, X: X.add_(b.attn(b.ln_1(X))) + b.mlp(b.ln_2(X)))
)


@wrong(check.mended_block, "The backward pass fails: an operation in place")
class InPlace(TransformerBlock):
    def forward(self, X):
        X = X.clone()
        X += self.attn(self.ln_1(X))
        X += self.mlp(self.ln_2(X))
        return X


wrong(check.mended_block, "the helper's own `forward`")(TransformerBlock)
wrong(check.mended_block, "The norms stand behind the plus")(
    block_with(lambda b, X: b.ln_2((X_at := b.ln_1(X + b.attn(X))) + b.mlp(X_at)))
)
wrong(check.mended_block, "has no gradient")(lambda config: NoGradient(config))
wrong(check.mended_block, "Is the `return` missing?")(block_with(lambda b, X: None))
wrong(check.mended_block, "change `forward` alone")(lambda config: nn.Linear(1, 1))
wrong(check.mended_block, "the class itself")(Mended(check.GPT2Config(n_embd=12, n_head=3)))


class NoGradient(Mended):
    @torch.no_grad()
    def forward(self, X):
        return super().forward(X)


# ------------------------------------------------------------------ 4: the norm behind the plus


@right(check.post_norm_block)
def in_a_loop(X, block):
    for part, norm in [(block.attn, block.ln_1), (block.mlp, block.ln_2)]:
        X = norm(part(X).add(X))
    return X


@right(check.post_norm_block)
def with_layer_norm_by_hand(X, block):
    for part, norm in [("attn", block.ln_1), ("mlp", block.ln_2)]:
        X = X + block.get_submodule(part)(X)
        centred = X - X.mean(-1, keepdim=True)
        X = (
            norm.weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            + norm.bias
        )
    return X


def post(X, b, reads_1=None, reads_2=None, kept_1=True, kept_2=True):
    """The solution with switches: what each part reads, what each plus keeps."""
    X_at = b.ln_1(kept_1 * X + b.attn(reads_1(X) if reads_1 else X))
    return b.ln_2(kept_2 * X_at + b.mlp(reads_2(X, X_at) if reads_2 else X_at))


right(check.post_norm_block)(post)
wrong(check.post_norm_block, "No norm stands behind a plus")(lambda X, block: block(X))
wrong(check.post_norm_block, "There is one norm, `ln_1`")(
    lambda X, b: (X_at := b.ln_1(X + b.attn(X))) + b.mlp(X_at)
)
wrong(check.post_norm_block, "The first norm does not reach")(
    lambda X, b: b.ln_2(X + b.attn(X) + b.mlp(X + b.attn(X)))
)
wrong(check.post_norm_block, "The first norm does not reach")(
    lambda X, b: b.ln_2(X + b.mlp(b.ln_1(X + b.attn(X))))
)
wrong(check.post_norm_block, "The parts or their norms have changed places")(
    lambda X, b: b.ln_1((X_at := b.ln_2(X + b.attn(X))) + b.mlp(X_at))
)
wrong(check.post_norm_block, "`ln_1` is used twice")(
    lambda X, b: b.ln_1((X_at := b.ln_1(X + b.attn(X))) + b.mlp(X_at))
)
wrong(check.post_norm_block, "apply it to the sum")(
    lambda X, b: (X_at := X + b.ln_1(b.attn(X))) + b.ln_2(b.mlp(X_at))
)
wrong(check.post_norm_block, "The attention reads ln_1(X)")(lambda X, b: post(X, b, reads_1=b.ln_1))
wrong(check.post_norm_block, "Only what was carried past is normed")(
    lambda X, b: b.ln_2((X_at := b.ln_1(X) + b.attn(X)) + b.mlp(X_at))
)
wrong(check.post_norm_block, "The MLP reads ln_2(X_at)")(
    lambda X, b: post(X, b, reads_2=lambda X, X_at: b.ln_2(X_at))
)
wrong(check.post_norm_block, "The MLP reads what stands in front")(
    lambda X, b: post(X, b, reads_2=lambda X, X_at: X)
)
wrong(check.post_norm_block, "The first residual is missing")(lambda X, b: post(X, b, kept_1=False))
wrong(check.post_norm_block, "The second residual is missing")(
    lambda X, b: post(X, b, kept_2=False)
)
wrong(check.post_norm_block, "Call `block.ln_1(...)` and")(
    lambda X, b: F.layer_norm((Y := F.layer_norm(X + b.attn(X), (12,))) + b.mlp(Y), (12,))
)
wrong(check.post_norm_block, "Each plus should be followed by a norm")(
    lambda X, b: b.ln_2(b.ln_2(post(X, b)))
)
wrong(check.post_norm_block, "its gradient is not")(lambda X, b: post(X.detach(), b) + 0 * X)
