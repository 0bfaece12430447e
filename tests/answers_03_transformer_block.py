"""Answers to the exercises of notebook 3."""

import numpy as np
import torch
import torch.nn.functional as F
from answers import right, wrong
from torch import nn

import exercise_checks as check
from exercise_checks.transformer_block import CONFIG, post, pre, rms
from gpt2_helpers import FeedForward, GPT2Config, MultiHeadAttention, TransformerBlock

# ------------------------------------------------------------- 1: a block of the largest one

right(check.parameters_of_an_xl_block)(30_740_800)
right(check.parameters_of_an_xl_block)(np.float64(12 * 1600**2 + 13 * 1600))
wrong(check.parameters_of_an_xl_block, "not everything grows")(round(7_087_872 * (1600 / 768) ** 2))
wrong(check.parameters_of_an_xl_block, "not in millions")(30.7408)
wrong(check.parameters_of_an_xl_block, "row by row")(30_740_801)

# ------------------------------------------------------------------------------ 2: RMSNorm

right(check.root_mean_square_norm)(rms())
right(check.root_mean_square_norm)(lambda X, gain, eps: F.rms_norm(X, X.shape[-1:], gain, eps))


@right(check.root_mean_square_norm)
def token_by_token(X, gain, eps):
    rows = []
    for x in X.reshape(-1, X.shape[-1]):
        size = (sum(x * x) / len(x) + eps) ** 0.5
        rows.append([g * v / size for g, v in zip(gain, x, strict=True)])
    return torch.tensor(rows).view_as(X)


@right(check.root_mean_square_norm)
def by_einsum_on_a_copy(X, gain, eps):
    X = X.clone()
    X *= torch.einsum("bte,bte->bt", X, X).div(X.size(-1)).add(eps).rsqrt()[:, :, None]
    return torch.einsum("bte,e->bte", X, gain)


wrong(check.root_mean_square_norm, "Divide by the root of the")(rms(N=lambda E: 2 * E))
wrong(check.root_mean_square_norm, "with another mean it is not")(rms(above=2))
wrong(check.root_mean_square_norm, "which axis does the mean run over?")(rms(dim=(0, 2)))
wrong(check.root_mean_square_norm, "where does the gain go?")(lambda X, g, eps: rms()(X, g**2, eps))
wrong(check.root_mean_square_norm, "first at the index")(rms(N=lambda E: 6))  # typed in
wrong(check.root_mean_square_norm, "changes its input")(
    lambda X, gain, eps: gain * X.div_((X.square().mean(-1, keepdim=True) + eps).sqrt())
)

# -------------------------------------------------------------------- 3: a voice that gets lost

right(check.mended_block)(pre())


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


right(check.mended_block)(lambda config: Mended(config))
wrong(check.mended_block, "the helper's own `forward`")(TransformerBlock)
wrong(check.mended_block, "change `forward` alone")(lambda config: nn.Linear(1, 1))
wrong(check.mended_block, "the class itself")(Mended(CONFIG))
wrong(check.mended_block, "of a TransformerBlock\n    The check cannot work with what you return")(
    lambda config: TransformerBlock(GPT2Config(n_embd=24, n_head=3))
)
wrong(check.mended_block, "attention wrote, and nothing")(pre(lambda b, X: X - b.attn(b.ln_1(X))))
wrong(check.mended_block, "what the MLP wrote, and nothing else")(
    pre(X_ff=lambda b, X, X_at: X_at - b.mlp(b.ln_2(X_at)))
)
wrong(check.mended_block, "Is the `return` missing?")(pre(X_ff=lambda b, X, X_at: None))
wrong(check.mended_block, "changes its input")(pre(lambda b, X: X.add_(b.attn(b.ln_1(X)))))
wrong(check.mended_block, "The backward pass fails: an operation in place")(
    pre(lambda b, X: (Y := X.clone()).add_(b.attn(b.ln_1(Y))))
)
wrong(check.mended_block, "its gradient is not")(
    pre(X_ff=lambda b, X, X_at: X_at.detach() + b.mlp(b.ln_2(X_at)))
)
wrong(check.mended_block, "has no gradient")(
    pre(X_ff=torch.no_grad()(lambda b, X, X_at: X_at + b.mlp(b.ln_2(X_at))))
)

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
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        X = norm.weight * normed + norm.bias
    return X


right(check.post_norm_block)(post())
wrong(check.post_norm_block, "The first norm does not reach")(
    post(X_ff=lambda b, X, X_at: b.ln_2(X + b.mlp(X_at)))
)
wrong(check.post_norm_block, "Each plus should be followed by a norm")(
    lambda X, b: b.ln_2(b.ln_2(post()(X, b)))
)
wrong(check.post_norm_block, "The attention should")(post(lambda b, X: b.ln_1(X - b.attn(X))))
wrong(check.post_norm_block, "The MLP should read X_at, its result")(
    post(X_ff=lambda b, X, X_at: b.ln_2(X_at - b.mlp(X_at)))
)
wrong(check.post_norm_block, "the two together are not")(
    post(X_ff=lambda b, X, X_at: b.ln_2(X_at + b.mlp(b.ln_1(X))))
)
wrong(check.post_norm_block, "its gradient is not")(lambda X, b: post()(X.detach(), b) + 0 * X)
