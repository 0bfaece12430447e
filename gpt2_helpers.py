"""GPT-2 as the notebooks build it: model, tokenizer, real text, arithmetic, timing, colours.

Every notebook builds its own part step by step, proves that it equals the class here, and
imports it from then on. Shapes are written in one vocabulary:

    B  batch size                 H  attention heads       L  transformer blocks
    T  sequence length (tokens)   D  width of a head, E/H  V  vocabulary size
    E  embedding width

Source of the architecture: Radford et al., "Language Models are Unsupervised Multitask
Learners" (2019), and the layout of the checkpoints that OpenAI published with it.
"""

import csv
import hashlib
import io
import math
import os
import platform
import re
import statistics
import time
from dataclasses import dataclass, fields
from datetime import date
from functools import lru_cache
from pathlib import Path

import matplotlib.pyplot as plt
import psutil
import tiktoken
import torch
import torch.nn.functional as F
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

DATA = Path(__file__).resolve().parent / "data"

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
        for field in fields(self):
            size = getattr(self, field.name)
            if field.name == "tie_weights":
                if type(size) is not bool:
                    raise ValueError(f"tie_weights must be True or False, got {size!r}")
            elif type(size) is not int or size < 1:
                raise ValueError(f"{field.name} must be an int of at least 1, got {size!r}")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} cannot be shared equally by n_head={self.n_head} heads: "
                f"{self.n_embd} / {self.n_head} is not a whole number"
            )


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
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator=None):
        """Start as GPT-2 is built today: weights N(0, 0.02), biases 0, LayerNorms 1 and 0, the tie.

        The two projections that write into the residual stream are scaled by 1/sqrt(2L), because
        2L of them add up there (Radford et al. 2019, section 2.3). OpenAI's code drew `wpe` with
        a standard deviation of 0.01; 0.02 throughout is what transformers and others do.
        `generator` is a torch.Generator on the model's device.
        """
        if self.config.tie_weights:
            self.unembed.weight = self.wte.weight  # one Parameter, two users
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif "ln_" in name:
                parameter.fill_(1.0)
            else:
                scale = 1 / math.sqrt(2 * self.config.n_layer) if ".proj." in name else 1.0
                parameter.normal_(0.0, 0.02 * scale, generator=generator)

    def forward(self, ids):
        check_ids(ids, self.config, self.wte.weight.device)
        positions = torch.arange(ids.shape[1], device=ids.device)  # [T]
        X = self.wte(ids) + self.wpe(positions)  # [B, T, E] + [T, E] -> [B, T, E]
        for block in self.blocks:
            X = block(X)  # [B, T, E]
        return self.unembed(self.ln_f(X))  # [B, T, V]


def check_ids(ids, config, device):
    """Raise TypeError, ValueError or RuntimeError, in words, if a model cannot take these ids.

    Ids that lie on a GPU are not read back: that would make Python wait for the GPU in every
    forward pass. So check new ids on the CPU, or pass them through the model there once.
    """
    if not isinstance(ids, torch.Tensor) or ids.dtype not in (torch.int32, torch.int64):
        kind = str(ids.dtype) if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise TypeError(f"ids must be a tensor of whole numbers (torch.int64), got {kind}")
    if ids.ndim != 2 or 0 in ids.shape:
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
    if ids.is_cpu and not torch.compiler.is_compiling():
        low, high = ids.aminmax()
        if low < 0 or high >= config.vocab_size:
            wrong = int(low if low < 0 else high)
            raise ValueError(
                f"token id {wrong} is out of range: this model knows ids 0 to "
                f"{config.vocab_size - 1}"
            )


def load_openai_weights(model, state_dict):
    """Copy a published GPT-2 checkpoint into `model`; returns the model.

    `state_dict` has the names of OpenAI's checkpoint or of transformers'
    `GPT2LMHeadModel.state_dict()`, with or without "transformer." in front. It stores the layers
    of a block as [in, out], the transpose of `nn.Linear`. Raises ValueError, and leaves the model
    as it was, if a tensor is missing, unknown, of the wrong shape, or if the model ties
    two tensors that differ in the checkpoint. A square matrix stored the wrong way round cannot
    be told from a right one by its shape: compare the logits with a known result.
    """
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in state_dict.items()}
    for name in [n for n in theirs if n.endswith((".attn.bias", ".attn.masked_bias"))]:
        del theirs[name]  # the causal mask, which older checkpoints stored
    theirs.setdefault("lm_head.weight", theirs.get("wte.weight"))

    copies = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        source = name.replace("blocks.", "h.").replace("unembed", "lm_head")
        for ours, openai in [("qkv", "c_attn"), ("proj", "c_proj"), ("fc", "c_fc")]:
            source = source.replace(f".{ours}.", f".{openai}.")
        tensor = theirs.pop(source, None)
        if tensor is None:
            raise ValueError(f"the checkpoint has no tensor named {source!r}")
        tensor = torch.as_tensor(tensor)
        if tensor.ndim == 2 and ".c_" in source:
            tensor = tensor.T  # [in, out] -> [out, in]
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"{source!r} does not fit: the model's {name} is {list(parameter.shape)}, the "
                f"checkpoint's tensor (as nn.Linear stores it) {list(tensor.shape)}"
            )
        if tensor.is_meta or parameter.is_meta:
            raise ValueError(f"{name} is on the meta device, which holds shapes but no numbers")
        copies.append((parameter, tensor))
    if theirs:
        raise ValueError(
            f"the checkpoint has tensors this model has no place for: {sorted(theirs)[:4]}"
        )
    if model.unembed.weight is model.wte.weight:
        table, unembedding = (t for p, t in copies if p is model.wte.weight)
        if not torch.equal(table, unembedding):
            raise ValueError(
                "the checkpoint's 'lm_head.weight' differs from its 'wte.weight', but this model "
                "ties them: build it with tie_weights=False"
            )
    with torch.no_grad():
        for parameter, tensor in copies:
            parameter.copy_(tensor)
    return model


# ---------------------------------------------------------------------- tokenizer and text

MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
SPLIT_PATTERN = (  # GPT-2's own: contractions, words, numbers, punctuation, white space
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
)


class GPT2Tokenizer(tiktoken.Encoding):
    """A `tiktoken.Encoding` whose `encode` reads <|endoftext|> as plain text by default."""

    def encode(self, text, *, allowed_special=frozenset(), disallowed_special=()):
        """Token ids of `text`, a list of int; TypeError or, for invalid Unicode, ValueError."""
        if not isinstance(text, str):
            raise TypeError(f"the text must be a str, got {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"character {error.start} of the text is half of a surrogate pair, which stands "
                "for no character: repair the text before encoding it"
            ) from None
        special = {"allowed_special": allowed_special, "disallowed_special": disallowed_special}
        return super().encode(text, **special)

    def encode_ordinary(self, text):
        """Token ids of `text`, every special token in it taken for plain text."""
        return self.encode(text)

    def pieces(self, ids):
        """Each token as a string of its own; bytes that are no whole character as \\xNN."""
        return [
            self.decode_single_token_bytes(int(i)).decode("utf-8", "backslashreplace") for i in ids
        ]


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
        pat_str=SPLIT_PATTERN,
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
    [B, T, E] in each block, 2 behind them. "logits" are four tensors of [B, T, V]: the logits,
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


def kept_for_backward(function):
    """Bytes of all tensors that autograd keeps between `function()` and its backward pass.

    Weights are among them; tensors that share their memory count once. Raises ValueError on the
    meta device, which keeps nothing.
    """
    storages = {}

    def keep(tensor):
        if tensor.is_meta:
            raise ValueError("tensors on the meta device take no memory")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()  # bound to a name, so that nothing is freed before it is counted
    del result
    return sum(storage.nbytes() for storage in storages.values())


# ---------------------------------------------------------------------- devices and timing


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


def synchronize(device):
    """Wait until the device has finished all work it was given; the CPU always has."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def measure(function, device, repeats=5, warmup=1):
    """Wall-clock seconds of each of `repeats` calls of `function()`, after `warmup` uncounted ones.

    The clock starts and stops when the device has nothing left to do, so a call's own work is
    measured, all of it, and nothing else. Freeing its result is not.
    """
    for _ in range(warmup):
        function()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        result = function()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        del result
    return seconds


CGROUP = Path("/sys/fs/cgroup")  # where Linux writes the limits of a container


def free_memory(device):
    """Bytes that can still be reserved on a device; where that is unknown, in the machine.

    On a GPU, memory that PyTorch holds in reserve counts as free. In a container with a limit of
    its own (Linux), what is left of that limit counts.
    """
    if torch.device(device).type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = psutil.virtual_memory().available
    limit = CGROUP / "memory.max"
    if limit.exists() and limit.read_text().strip().isdigit():
        cache = re.search(r"inactive_file (\d+)", (CGROUP / "memory.stat").read_text())
        used = int((CGROUP / "memory.current").read_text()) - int(cache.group(1))
        free = min(free, int(limit.read_text()) - used)
    return free


SIZES = [(1, 64), (1, 128), (1, 256), (1, 512), (1, 1024), (2, 1024), (4, 1024), (8, 1024)]


def choose_batch(config, device, flops_per_second, seconds=math.inf, passes=1):
    """The largest batch of SIZES that a device can train: (B, T), and the reason for it in words.

    Memory: a training step may take three quarters of what is free; on devices other than CPUs and
    CUDA's, attention is taken to store its scores, [B, H, T, T] twice in each block. Time: `passes`
    forward passes may take `seconds` at `flops_per_second`; the smallest batch is always allowed.
    Raises MemoryError if nothing fits.
    """
    stores_scores = torch.device(device).type not in ("cpu", "cuda")
    allowed, limit = 0.75 * free_memory(device), "the lecture's size"
    sizes = [(B, T) for B, T in SIZES if config.n_positions >= T] or [(1, config.n_positions)]
    for B, T in reversed(sizes):
        memory = sum(training_memory(config, B, T).values())
        memory += stores_scores * 4 * 2 * config.n_layer * B * config.n_head * T * T
        wait = passes * forward_flops(config, B, T) / flops_per_second
        if memory > allowed:
            limit = (
                f"{B} x {T} needs {memory / 1e9:.1f} GB, and {allowed / 1e9:.1f} GB are to spare"
            )
        elif wait > seconds and sizes[0] != (B, T):
            limit = f"{B} x {T} would take about {wait:.0f} s, and {seconds:.0f} s are allowed"
        else:
            return (B, T), limit
    raise MemoryError(f"too little free memory to train even {B} x {T}: {limit}")


A100 = {"float32": 19.5, "tf32": 156, "bfloat16": 312, "float16": 312}
H100 = {"float32": 67, "tf32": 494, "bfloat16": 989, "float16": 989}
DATA_SHEETS = {  # NVIDIA's: dense TFLOP/s in each format, TB/s of memory; keys as PyTorch names it
    "Tesla T4": {"float32": 8.1, "float16": 65, "memory": 0.32},
    "NVIDIA A100-SXM4-40GB": A100 | {"memory": 1.555},
    "NVIDIA A100-SXM4-80GB": A100 | {"memory": 2.039},
    "NVIDIA H100 80GB HBM3": H100 | {"memory": 3.35},
}


def data_sheet(device):
    """Peaks of a device by its maker's data sheet, or None: an unknown device is not guessed.

    {"float32": TFLOP/s, ..., "memory": TB/s}; a format that the chip lacks is missing.
    """
    if torch.device(device).type != "cuda":
        return None
    return DATA_SHEETS.get(torch.cuda.get_device_name(device))


def matrix_peak(device, dtype=torch.float32, size=2048, repeats=8):
    """FLOP/s of the fastest large matrix product seen on a device: what a model can hope for.

    A product of two [size, size] matrices, and larger ones while they take under 20 ms. On a CPU,
    PyTorch's float32 products run in one library (MKL, on x86) though oneDNN, which is there as
    well, may be faster; so both are tried.
    """
    with torch.inference_mode():
        left, right = torch.randn(2, size, size).to(device, dtype)
        products = [lambda: left @ right]
        if left.is_cpu and dtype == torch.float32 and torch.backends.mkldnn.is_available():
            left_onednn, right_onednn = left.to_mkldnn(), right.to_mkldnn()
            products.append(lambda: torch._C._nn.mkldnn_linear(left_onednn, right_onednn))
        fastest = min(min(measure(product, device, repeats)) for product in products)
    rate = 2 * size**3 / fastest
    if fastest < 0.02 and 2048 <= size < 8192:
        return max(rate, matrix_peak(device, dtype, 2 * size, repeats))
    return rate


# ------------------------------------------------------------------------- files of timings

TIMING_COLUMNS = {  # column: what its text must match
    "source": r"measured|reported",
    "device": r"[a-z]+",  # cpu, cuda, mps, ...
    "machine": r".+",  # describe_device()
    "threads": r"[1-9]\d*|",
    "versions": r".*",
    "model": "|".join(GPT2_CONFIGS),
    "dtype": r"float32|tf32|bfloat16|float16",
    "batch_size": r"\d+",  # 0 x 0 where there is no batch
    "seq_len": r"\d+",
    "experiment": r".+",
    "repeats": r"[1-9]\d*",
    "median_s": r".+",
    "low_s": r".+",
    "high_s": r".+",
    "date": r"\d{4}-\d\d-\d\d|",
    "note": r".*",
}


def timing(experiment, device, seconds, batch_size=0, seq_len=0, dtype="float32", model="gpt2"):
    """One row of a file of timings, a dict: this machine, now; median and range of `seconds`."""
    return {
        "source": "measured",
        "device": torch.device(device).type,
        "machine": describe_device(device),
        "threads": torch.get_num_threads(),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "model": model,
        "dtype": dtype,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "experiment": experiment,
        "repeats": len(seconds),
        "median_s": statistics.median(seconds),
        "low_s": min(seconds),
        "high_s": max(seconds),
        "date": date.today().isoformat(),
        "note": "",
    }


def save_timings(path, rows):
    """Write rows to a CSV, whole or not at all; times are rounded to six digits.

    Other entries of a row than TIMING_COLUMNS are left out. A file that is there already is
    replaced if it holds timings, or nothing. Raises ValueError if it does not, or if a row makes
    no sense, and OSError as `open` does; the file is then as it was.
    """
    path, rows = Path(path).resolve(), list(rows)
    if not rows:
        raise ValueError("there are no timings to save")
    if path.exists() and path.stat().st_size:
        try:
            read_timings(path)
        except ValueError as error:
            raise ValueError(f"{error}. Rename or delete {path.name}: it is in the way") from None
    text = io.StringIO()
    writer = csv.DictWriter(text, TIMING_COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {k: f"{float(row[k]):.6g}" for k in ("median_s", "low_s", "high_s")})
    _parse_timings("the rows to be saved", text.getvalue())
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text.getvalue(), encoding="utf-8", newline="")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_timings(*paths):
    """The rows of any number of files of timings: dicts, numbers as numbers.

    Raises ValueError with file and line for a row that is cut off or makes no sense.
    """
    rows = []
    for path in map(Path, paths):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{path.name}, line 1: this is not text in UTF-8") from None
        rows += _parse_timings(path.name, text)
    return rows


def _parse_timings(name, text):
    lines = text.rstrip().split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            values = next(csv.reader([line.rstrip("\r")], strict=True), [])
            if number > 1:
                rows.append(_timing_of(values))
            elif values != list(TIMING_COLUMNS):
                raise ValueError(f"a file of timings starts with {','.join(TIMING_COLUMNS)}")
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
    return rows


def _timing_of(values):
    if len(values) != len(TIMING_COLUMNS):
        found = f"{len(values)} values in place of {len(TIMING_COLUMNS)}"
        raise ValueError(f"{found}: is the line cut off?")
    row = dict(zip(TIMING_COLUMNS, values, strict=True))
    for column, pattern in TIMING_COLUMNS.items():
        if not re.fullmatch(pattern, row[column]):
            raise ValueError(f"{row[column]!r} is no {column}")
    for column in ("threads", "batch_size", "seq_len", "repeats"):
        row[column] = int(row[column]) if row[column] else None
    for column in ("median_s", "low_s", "high_s"):
        row[column] = float(row[column])
    if not 0 < row["low_s"] <= row["median_s"] <= row["high_s"] < math.inf:
        raise ValueError("the times must be positive, low_s <= median_s <= high_s")
    if row["date"]:
        date.fromisoformat(row["date"])
    if row["source"] == "measured" and not (row["date"] and row["versions"] and row["threads"]):
        raise ValueError("what is measured needs a date, versions and threads")
    if (row["batch_size"] == 0) != (row["seq_len"] == 0):
        raise ValueError("batch_size and seq_len are both 0 or both not")
    return row


# --------------------------------------------------------------------------------- figures

COLOURS = {  # Okabe and Ito's palette: told apart by colour-blind readers, one colour a component
    "token": "#0072B2",
    "position": "#E69F00",
    "attention": "#009E73",
    "feed-forward": "#D55E00",
    "residual": "#CC79A7",
    "other": "#7F7F7F",
}


def set_style():
    """Figures that can be read from the last row, on a white ground in light and dark themes."""
    plt.rcParams.update(
        {
            "figure.figsize": (9, 4),
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 13,
            "axes.titlesize": 14,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 2.5,
        }
    )


def show_matrix(
    ax,
    matrix,
    title,
    rows=None,
    columns=None,
    numbers=None,
    signed=False,
    limit=None,
    component="token",
):
    """Draw `matrix` [R, C] as a heat map, from white to the colour of a component.

    `rows` and `columns` label its sides (lists of strings). `numbers`, a format such as ".2f",
    writes every value into its cell in place of a colour bar. `signed` puts white at zero,
    between blue and red. `limit` is the value of the darkest colour, the largest one by default.
    Cells that are not finite are grey.
    """
    matrix = torch.as_tensor(matrix).detach().float().cpu()  # [R, C]
    finite = matrix[matrix.isfinite()]
    limit = limit or (finite.abs().max().item() if len(finite) else 0) or 1.0
    shades = LinearSegmentedColormap.from_list(component, ["white", COLOURS[component]])
    cmap, low = ("RdBu_r", -limit) if signed else (shades, 0.0)
    image = ax.imshow(matrix, cmap=cmap, vmin=low, vmax=limit, aspect="auto")
    ax.set_facecolor("#d0d0d0")
    if numbers is None:
        ax.figure.colorbar(image, ax=ax, fraction=0.046)
    ax.set_title(title)
    if rows is not None:
        ax.set_yticks(range(len(rows)), rows)
    if columns is not None:
        ax.set_xticks(range(len(columns)), columns)
        if max(map(len, columns)) > 3:
            plt.setp(ax.get_xticklabels(), rotation=45, ha="right")
    ax.spines[:].set_visible(False)
    if numbers:
        for r, row in enumerate(matrix.tolist()):
            for c, value in enumerate(row):
                ink = "white" if 0.6 * limit < abs(value) < math.inf else "black"
                ax.text(c, r, f"{value:{numbers}}", ha="center", va="center", color=ink)


def stacked_bars(ax, bars, unit, colours):
    """One horizontal bar per entry of `bars` ({name: {part: amount}}), its parts side by side.

    Parts of more than 4 % of the longest bar carry their amount; `colours` maps part to colour.
    """
    longest = max(sum(parts.values()) for parts in bars.values())
    for row, parts in enumerate(bars.values()):
        left = 0
        for part, amount in parts.items():
            ax.barh(row, amount, left=left, color=colours[part], edgecolor="white")
            if amount > 0.04 * longest:
                light = sum(to_rgb(colours[part])) > 1.8
                ink = "black" if light else "white"
                ax.text(
                    left + amount / 2, row, f"{amount:.1f}", ha="center", va="center", color=ink
                )
            left += amount
    ax.set_yticks(range(len(bars)), bars)
    ax.invert_yaxis()
    ax.set_xlabel(unit)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[part]) for part in colours]
    ax.legend(
        handles, colours, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False
    )


def draw_model(ax, config):
    """Draw the path from ids to logits: the parts, the residual stream (thick), the shapes."""
    millions = {part: f"{count / 1e6:.2f} M" for part, count in parameter_counts(config).items()}
    stream, grey = COLOURS["residual"], "#b0b0b0"
    ax.add_patch(plt.Rectangle((4.0, 0.15), 6.9, 4.25, facecolor="#f0f0f0", edgecolor=grey))

    ax.plot((2.9, 11.1), (3.4, 3.4), color=stream, linewidth=5, solid_capstyle="butt")
    for corners in [  # the arrows, each along its corners
        [(0.75, 2.4), (1.1, 3.1)],
        [(0.75, 2.0), (1.1, 1.6)],
        [(2.9, 1.3), (3.5, 1.3), (3.5, 3.15)],
        [(4.3, 3.4), (4.3, 1.3), (4.6, 1.3)],
        [(5.4, 1.3), (5.7, 1.3)],
        [(7.1, 1.3), (7.35, 1.3), (7.35, 3.15)],
        [(7.75, 3.4), (7.75, 1.3), (8.0, 1.3)],
        [(8.8, 1.3), (9.05, 1.3)],
        [(10.35, 1.3), (10.6, 1.3), (10.6, 3.15)],
        [(11.1, 3.4), (11.5, 3.4)],
        [(12.3, 3.4), (12.6, 3.4)],
        [(14.2, 3.4), (14.6, 3.4)],
    ]:
        style = {"color": "black", "linewidth": 1.8}
        ax.plot(*zip(*corners[:-1], strict=True), **style)
        ax.annotate("", corners[-1], corners[-2], arrowprops={"arrowstyle": "-|>", **style})
    for x in (3.5, 7.35, 10.6):  # where something is added to the stream
        ax.plot(x, 3.4, "o", markersize=19, mfc="white", mec=stream, mew=2.5)

    unembed = "unembed\n= wte" if config.tie_weights else f"unembed\n{millions['unembed']}"
    for x, y, width, height, text, component in [
        (1.1, 2.6, 1.8, 1.6, f"wte\ntokens\n{millions['wte']}", "token"),
        (1.1, 0.6, 1.8, 1.4, f"wpe\npositions\n{millions['wpe']}", "position"),
        (4.6, 0.8, 0.8, 1.0, "ln_1", "other"),
        (5.7, 0.6, 1.4, 1.4, f"attn\n{config.n_head} heads", "attention"),
        (8.0, 0.8, 0.8, 1.0, "ln_2", "other"),
        (9.05, 0.6, 1.3, 1.4, "mlp\nE→4E→E", "feed-forward"),
        (11.5, 2.9, 0.8, 1.0, "ln_f", "other"),
        (12.6, 2.6, 1.6, 1.6, unembed, "token"),
    ]:
        ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=COLOURS[component]))
        ink = "black" if component == "position" else "white"
        centre = {"ha": "center", "va": "center", "fontsize": 13, "clip_on": True}
        ax.text(x + width / 2, y + height / 2, text, color=ink, **centre)
    for x, y, text in [
        (0.35, 2.2, "ids\n[B, T]"),
        (3.5, 4.0, "[B, T, E]"),
        (4.35, 3.8, "X"),
        (7.85, 3.8, "X_at"),
        (10.58, 3.95, "X_ff"),
        (15.15, 3.4, "logits\n[B, T, V]"),
        (7.45, -0.25, f"this block {config.n_layer} times: {millions['blocks']}"),
        *((x, 3.38, "+") for x in (3.5, 7.35, 10.6)),
    ]:
        ax.text(x, y, text, **centre)
    ax.set(xlim=(-0.1, 15.8), ylim=(-0.6, 4.6))
    ax.axis("off")


THE_THREE = ("creating", "forward", "backpropagation")  # the experiments of notebook 5


def draw_timings(rows, experiments=THE_THREE, size=(8, 1024)):
    """A figure of timings, one line per row, on a log axis; returns the figure.

    Grey is a CPU, green another device. A round mark is a measured median, a diamond a reported
    time, a stroke anything else; the thin line is the range. Where a row has another batch than
    `size`, its times are scaled by the FLOPs of its model, and its mark is hollow.
    """

    def scaled(row):
        batch = row["batch_size"], row["seq_len"]
        if not all(batch) or batch == tuple(size):
            return 1.0
        config = GPT2_CONFIGS[row["model"]]
        return forward_flops(config, *size) / forward_flops(config, *batch)

    groups = {e: [row for row in rows if row["experiment"] == e] for e in experiments}
    groups = {experiment: group for experiment, group in groups.items() if group}
    if not groups:
        raise ValueError(f"no row is of one of the experiments {', '.join(experiments)}")
    lines = sum(len(group) + 1 for group in groups.values())
    fig, ax = plt.subplots(figsize=(11, 1 + 0.36 * lines))
    y, ticks, largest = 0, {}, 0.0
    for experiment, group in groups.items():
        what = "one step of" if experiment == "backpropagation" else "one pass of"
        title = f"{what} {size[0]} x {size[1]}" if any(r["seq_len"] for r in group) else "once"
        ax.text(0, y, f" {experiment}, {title}", transform=ax.get_yaxis_transform(), weight="bold")
        for row in sorted(group, key=lambda row: scaled(row) * row["median_s"]):
            y += 1
            scale = scaled(row)
            low, middle, high = (scale * row[k] for k in ("low_s", "median_s", "high_s"))
            colour = COLOURS["other" if row["device"] == "cpu" else "attention"]
            marker = {"measured": "o", "reported": "D"}.get(row["source"], "|")
            face = colour if scale == 1 else "white"
            ax.plot((low, high), (y, y), color=colour)
            ax.plot(middle, y, marker, color=colour, markerfacecolor=face, markersize=9, mew=2)
            number = f"{middle:.2g}" if middle < 9.5 else f"{middle:,.0f}"
            ax.text(1.25 * high, y, f"{row['note']} {number} s".strip(), va="center", fontsize=12)
            kind = "" if row["model"] == "gpt2" else f", {row['model']}"
            kind += "" if row["dtype"] == "float32" else f", {row['dtype']}"
            name = re.sub(r"\((R|TM|tm)\)| CPU| with .*", "", row["machine"])
            ticks[y] = (name if len(name) < 38 else name[:36] + " ...") + kind
            largest = max(largest, high)
        y += 1
    ax.set(xscale="log", xlabel="seconds", xlim=(None, 25 * largest), ylim=(y - 0.4, -0.8))
    ax.set_yticks(list(ticks), ticks.values(), fontsize=11)
    return fig
