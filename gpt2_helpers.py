"""GPT-2 as the notebooks build it: model, published weights, tokenizer, text, arithmetic, device.

Every notebook builds its own part step by step, proves that it equals the class here, and
imports it from then on. Shapes are written in one vocabulary:

    B  batch size                 H  attention heads       L  transformer blocks
    T  sequence length (tokens)   D  width of a head, E/H  V  vocabulary size
    E  embedding width

Source of the architecture: Radford et al., "Language Models are Unsupervised Multitask
Learners" (2019), and the layout of the checkpoints that OpenAI published with it.
"""

import hashlib
import json
import math
import os
import platform
import re
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from operator import index
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

HERE = Path(__file__).resolve().parent
# Beside this file in the repository; under a name of its own where the series is installed.
DATA = HERE / ("gpt2_notebooks_data" if (HERE / "gpt2_notebooks_data").is_dir() else "data")

# ------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2; the defaults are GPT-2 small. Raises ValueError on impossible sizes."""

    vocab_size: int = 50257  # V
    n_positions: int = 1024  # the longest T
    n_embd: int = 768  # E
    n_layer: int = 12  # L
    n_head: int = 12  # H
    tie_weights: bool = True  # the unembedding uses the token table

    def __post_init__(self):
        for name, size in asdict(self).items():
            if name == "tie_weights":
                if type(size) is not bool:
                    raise ValueError(f"tie_weights must be True or False, got {size!r}")
            elif type(size) is not int or size < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {size!r}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head} heads")


GPT2_CONFIGS = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}


class MultiHeadAttention(nn.Module):
    """Causal self-attention, [B, T, E] -> [B, T, E], with one layer for queries, keys and values.

    The columns of `qkv` are all queries, then all keys, then all values; inside each third,
    head 0 owns the first D columns, head 1 the next D.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, X):
        B, T, E = X.shape
        q, k, v = self.qkv(X).split(E, dim=-1)  # 3 x [B, T, E]
        q = q.view(B, T, self.n_head, -1).transpose(1, 2)  # [B, H, T, D]
        k = k.view(B, T, self.n_head, -1).transpose(1, 2)  # [B, H, T, D]
        v = v.view(B, T, self.n_head, -1).transpose(1, 2)  # [B, H, T, D]
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, H, T, D]
        merged = heads.transpose(1, 2).reshape(B, T, E)  # [B, T, E]
        return self.proj(merged)  # [B, T, E]


class FeedForward(nn.Module):
    """The MLP, applied to each position alone: [B, T, E] -> [B, T, 4E] -> [B, T, E]."""

    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, X):
        hidden = F.gelu(self.fc(X), approximate="tanh")  # [B, T, 4E]
        return self.proj(hidden)  # [B, T, E]


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each normed first and added to X: [B, T, E] -> [B, T, E]."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.attn = MultiHeadAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.mlp = FeedForward(config)

    def forward(self, X):
        X_at = X + self.attn(self.ln_1(X))  # [B, T, E]
        X_ff = X_at + self.mlp(self.ln_2(X_at))  # [B, T, E]
        return X_ff


class GPT2(nn.Module):
    """GPT-2: token ids [B, T] -> logits [B, T, V], the scores of every possible next token."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.unembed = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.register_load_state_dict_pre_hook(one_table)
        self.register_load_state_dict_post_hook(tie)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator=None):
        """Start as GPT-2 is built today: weights N(0, 0.02), biases 0, LayerNorms 1 and 0, the tie.

        The two projections that write into the residual stream are scaled by 1/sqrt(2L), because
        2L of them add up there (Radford et al. 2019, section 2.3). OpenAI's code drew `wpe` with
        0.01, transformers does not. `generator` is a torch.Generator on the model's device.
        """
        std, into_the_stream = 0.02, 0.02 / math.sqrt(2 * self.config.n_layer)
        self.wte.weight.normal_(0.0, std, generator=generator)
        self.wpe.weight.normal_(0.0, std, generator=generator)
        for block in self.blocks:
            for layer, layer_std in [
                (block.attn.qkv, std),
                (block.attn.proj, into_the_stream),
                (block.mlp.fc, std),
                (block.mlp.proj, into_the_stream),
            ]:
                layer.weight.normal_(0.0, layer_std, generator=generator)
                layer.bias.zero_()
            block.ln_1.reset_parameters()  # gain 1, bias 0
            block.ln_2.reset_parameters()
        self.ln_f.reset_parameters()
        if not self.config.tie_weights:
            self.unembed.weight.normal_(0.0, std, generator=generator)
        tie(self)

    def forward(self, ids):
        check_ids(ids, self.config, self.wte.weight.device)
        positions = torch.arange(ids.shape[1], device=ids.device)  # [T]
        try:
            tokens = self.wte(ids)  # [B, T, E]
        except IndexError:  # "index out of range in self"; a GPU says nothing so clear
            V = self.config.vocab_size
            wrong = ids[(ids < 0) | (ids >= V)][0].item()
            raise ValueError(
                f"token id {wrong} is out of range: this model knows ids 0 to {V - 1}"
            ) from None
        X = tokens + self.wpe(positions)  # [B, T, E] + [T, E] -> [B, T, E]
        for block in self.blocks:
            X = block(X)  # [B, T, E]
        return self.unembed(self.ln_f(X))  # [B, T, V]


def tie(model, *_):
    """If the config says so, let the unembedding use the token table; again after every load."""
    if model.config.tie_weights:
        model.unembed.weight = model.wte.weight  # one Parameter, two users


def one_table(model, state_dict, prefix, *_):
    """Before loading: a tied model takes one table, under one of its names or both, never two."""
    names = [f"{prefix}wte.weight", f"{prefix}unembed.weight"]
    tables = [state_dict[name] for name in names if name in state_dict]
    tied = model.config.tie_weights or model.unembed.weight is model.wte.weight
    if tied and tables:
        one = tables[0] is tables[-1] or tables[0].is_meta
        if not (one or torch.equal(*map(torch.nan_to_num, tables))):  # nan is unequal to itself
            raise ValueError(
                "what is to be loaded has a token table and another unembedding, but this model "
                "ties the two: build it with tie_weights=False"
            )
        state_dict |= dict.fromkeys(names, tables[0])


def check_ids(ids, config, device):
    """Raise TypeError, ValueError or RuntimeError, in words, if a model cannot take these ids.

    No id is read: on a GPU that would make Python wait in every forward pass.
    """
    if isinstance(ids, torch.Tensor) and ids.numel() == 0:
        raise ValueError(
            f"there are no ids, the shape is {list(ids.shape)}: an empty text has no tokens. Begin "
            "it with <|endoftext|>, id 50256"
        )
    if not isinstance(ids, torch.Tensor) or ids.dtype not in (torch.int32, torch.int64):
        kind = str(ids.dtype) if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise TypeError(f"ids must be a tensor of whole numbers (torch.int64), got {kind}")
    if ids.ndim != 2:
        raise ValueError(
            f"ids must have the shape [B, T] with B and T at least 1, got {list(ids.shape)}"
            + (": for one sequence use ids.unsqueeze(0)" if ids.ndim == 1 else "")
        )
    if ids.shape[1] > config.n_positions:
        raise ValueError(
            f"the sequence has {ids.shape[1]} tokens, but this model has positions for "
            f"{config.n_positions} at most"
        )
    if ids.device != device:
        raise RuntimeError(
            f"ids are on {ids.device}, but the model is on {device}: move them with "
            f"ids.to('{device}')"
        )


OPENAI_NAMES = {  # in the order of replacement
    r"^(_orig_mod\.|module\.)*(transformer\.)?": "",
    r"^h\.": "blocks.",
    r"^lm_head\.": "unembed.",
    r"\.c_attn\.": ".qkv.",
    r"\.c_proj\.": ".proj.",
    r"\.c_fc\.": ".fc.",
}


def load_openai_weights(model, state_dict):
    """Copy a published GPT-2 checkpoint into `model`; returns the model.

    `state_dict` has the names of OpenAI's checkpoint or of transformers' `GPT2LMHeadModel`, also
    behind what torch.compile and DataParallel put in front. It stores the layers of a block as
    [in, out], the transpose of `nn.Linear`. Raises ValueError, and leaves the model as it was, if
    a tensor is missing, unknown, of the wrong shape, or if the model ties two tensors that differ
    in the checkpoint. A square matrix stored the wrong way round cannot be told from a right one by
    its shape: compare the logits with a known result.
    """
    ours = {}
    for name, tensor in state_dict.items():
        tensor = torch.as_tensor(tensor)
        if tensor.ndim == 2 and ".c_" in name:
            tensor = tensor.T  # [in, out] -> [out, in]
        for openai, own in OPENAI_NAMES.items():
            name = re.sub(openai, own, name)
        if not name.endswith((".attn.bias", ".attn.masked_bias")):  # the mask, in older checkpoints
            ours[name] = tensor
    table = ours.get("wte.weight", ours.get("unembed.weight"))  # a shared one may stand there once
    if table is not None:
        ours = {"wte.weight": table, "unembed.weight": table} | ours
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for problem, names in [
        ("has nothing for the model's", parameters.keys() - ours.keys()),
        ("has tensors this model has no place for:", ours.keys() - parameters.keys()),
    ]:
        if names:
            raise ValueError(f"the checkpoint {problem} {', '.join(sorted(names)[:4])}")
    for name, parameter in parameters.items():
        if ours[name].shape != parameter.shape:
            raise ValueError(
                f"{name} does not fit: it is {list(parameter.shape)} in the model, and "
                f"{list(ours[name].shape)} (as nn.Linear stores it) in the checkpoint"
            )
        if ours[name].is_meta or parameter.is_meta:
            raise ValueError(f"{name} is on the meta device, which holds shapes but no numbers")
    model.load_state_dict(ours)
    return model


def save_model(path, model):
    """Write a GPT2's weights and config to a safetensors file, whole or not at all.

    A shared table stands in it once. Raises OSError as `open` does.
    """
    path = Path(path).resolve()
    tied = model.unembed.weight is model.wte.weight
    named = model.named_parameters()  # "_orig_mod." is what torch.compile puts into the names
    weights = {name.replace("_orig_mod.", ""): p.detach().contiguous() for name, p in named}
    config = json.dumps(asdict(replace(model.config, tie_weights=tied)))
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(save(weights, {"config": config}))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_model(path, device="cpu"):
    """The GPT2 that `save_model` wrote, on `device`.

    Raises FileNotFoundError, or ValueError if the file is cut off or another program's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            config = GPT2Config(**json.loads(file.metadata()["config"]))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with torch.device("meta"):
            model = GPT2(config)
        model.load_state_dict(weights, assign=True)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{Path(path).name} is damaged, or was not written by save_model: {error}"
        ) from None
    return model.to(device)


# ---------------------------------------------------------------------- tokenizer and text

MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# GPT-2's: contractions, words, numbers, punctuation, white space; a long run matched by `++`,
# tiktoken's later form of it, does not fill the stack.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


class GPT2Tokenizer(tiktoken.Encoding):
    """A `tiktoken.Encoding` whose `encode` reads <|endoftext|> as plain text by default."""

    def encode(self, text, *, allowed_special=frozenset(), disallowed_special=()):
        """Token ids of `text`; TypeError, ValueError for invalid Unicode or a million blanks."""
        if not isinstance(text, str):
            raise TypeError(f"the text must be a str, got {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"character {error.start} of the text is half of a surrogate pair: repair the text"
            ) from None
        special = {"allowed_special": allowed_special, "disallowed_special": disallowed_special}
        return super().encode(text, **special)

    def encode_ordinary(self, text):
        """Token ids of `text`, every special token in it taken for plain text."""
        return self.encode(text)

    def encode_batch(self, texts, **special):
        """Token ids of each text, lists of lists of int; as `encode`."""
        return [self.encode(text, **special) for text in texts]

    def encode_to_numpy(self, text, **special):
        """Token ids of `text`, an array; as `encode`."""
        return np.array(self.encode(text, **special), dtype=np.uint32)

    def decode(self, ids, errors="replace"):
        """The text of `ids`, a list or a tensor [T]; ValueError for a number that is no id."""
        ids = [index(i) for i in ids]  # TypeError for what is no whole number
        if wrong := [i for i in ids if not 0 <= i < self.n_vocab]:
            raise ValueError(f"{wrong[0]} is no token id: GPT-2 has 0 to {self.n_vocab - 1}")
        return super().decode(ids, errors)

    def pieces(self, ids):
        """Each token as a string of its own; bytes that are no whole character as \\xNN."""
        return [self.decode([i], "backslashreplace") for i in ids]


@lru_cache
def get_tokenizer(path=DATA / "vocab.bpe"):
    """GPT-2's byte-level BPE, built from OpenAI's merges file: 256 bytes, 50,000 merges, 1 special.

    Raises ValueError if the file is not OpenAI's, by its SHA-256.
    """
    merges = Path(path).read_bytes()
    if hashlib.sha256(merges).hexdigest() != MERGES_SHA256:
        raise ValueError(
            f"{path} is not GPT-2's merges file (its SHA-256 differs): fetch it again, as binary, "
            "with its line endings unchanged"
        )
    # The file writes every byte as one visible character: printable bytes as themselves, the
    # others, in order, as the characters from 256 on. A byte's place in that order is its id.
    visible = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    hidden = [b for b in range(256) if b not in visible]
    byte_of = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
    ranks = {bytes([b]): rank for rank, b in enumerate(visible + hidden)}
    for line in merges.decode("utf-8").splitlines()[1:]:  # the first line is a version
        ranks[bytes(byte_of[character] for character in line if character != " ")] = len(ranks)
    return GPT2Tokenizer(
        "gpt2",
        pat_str=PATTERN,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": len(ranks)},
        explicit_n_vocab=50257,
    )


def get_text():
    """The story that all notebooks read, a string."""
    return (DATA / "harrow_pass.txt").read_text(encoding="utf-8")


def get_batch(batch_size=8, seq_len=1024):
    """The story's first tokens as (ids, targets), each [B, T] and on the CPU.

    The targets are the ids one place further on: the token that follows each token.
    Raises ValueError if a size is below 1, or the story too short for B * T + 1 tokens.
    """
    if batch_size < 1 or seq_len < 1:
        raise ValueError(f"a batch needs sizes of at least 1, got {batch_size} x {seq_len}")
    tokens = get_tokenizer().encode(get_text())
    needed = batch_size * seq_len + 1
    if len(tokens) < needed:
        raise ValueError(
            f"a batch of {batch_size} x {seq_len} needs {needed:,} tokens with its targets; the "
            f"story has {len(tokens):,}"
        )
    tokens = torch.tensor(tokens[:needed])  # [B * T + 1]
    ids = tokens[:-1].view(batch_size, seq_len)  # [B, T]
    targets = tokens[1:].view(batch_size, seq_len)  # [B, T]
    return ids, targets


# ------------------------------------------------------------------------------ arithmetic


def parameter_counts(config):
    """Parameters of each part, from the sizes alone: {"wte", "wpe", "blocks", "ln_f", "unembed"}.

    A tied unembedding adds none. The values sum to the number of parameters.
    """
    E, L, V = config.n_embd, config.n_layer, config.vocab_size
    block = (
        2 * (2 * E)  # ln_1 and ln_2: a gain and a bias each
        + (E * 3 * E + 3 * E)  # attn.qkv
        + (E * E + E)  # attn.proj
        + (E * 4 * E + 4 * E)  # mlp.fc
        + (4 * E * E + E)  # mlp.proj
    )
    return {
        "wte": V * E,
        "wpe": config.n_positions * E,
        "blocks": L * block,
        "ln_f": 2 * E,
        "unembed": 0 if config.tie_weights else V * E,
    }


def forward_flops(config, batch_size, seq_len):
    """Floating-point operations of the matrix products in one forward pass, a number.

    A multiply-add counts as 2. Attention is counted in full, as if nothing were masked. A
    training step (forward and backward) takes three times as many.
    """
    E, L, V, T = config.n_embd, config.n_layer, config.vocab_size, seq_len
    layers = 12 * L * E * E + V * E  # multiply-adds per token in the linear layers
    attention = 2 * L * T * E  # multiply-adds per token: q with all k, weights with all v
    return batch_size * T * 2 * (layers + attention)


def training_memory(config, batch_size, seq_len):
    """Bytes of one float32 training step with AdamW: {"weights", "gradients", ...}.

    "activations" are what the forward pass keeps for the backward pass: 16 tensors of
    [B, T, E] in each block, 2 after them. "logits" are four tensors of [B, T, V]: the logits,
    their log-probabilities, and the gradients of both. Buffers of single operations come on top.
    """
    parameters = sum(parameter_counts(config).values())
    tokens = batch_size * seq_len
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer state": 8 * parameters,
        "activations": 4 * tokens * config.n_embd * (16 * config.n_layer + 2),
        "logits": 4 * tokens * config.vocab_size * 4,
    }


# --------------------------------------------------------------------------------- device


def pick_device():
    """The accelerator PyTorch sees (cuda, mps, ...), or the CPU: a torch.device."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def describe_device(device):
    """A device in words, for a table: a CUDA GPU's name and memory, a CPU's name and threads."""
    device = torch.device(device)
    if device.type == "cuda":
        gibibytes = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(device)}, {gibibytes:.0f} GiB"
    if device.type != "cpu":
        return f"{device.type} ({platform.processor() or platform.machine()})"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    if cpuinfo.exists() and (found := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        name = found.group(1)
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"
