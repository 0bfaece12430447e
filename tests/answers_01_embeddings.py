"""Answers to the exercises of notebook 1."""

import re
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from answers import right, wrong
from torch import nn

import exercise_checks as check
from exercise_checks.embeddings import embed_at, glue, learn, waves

# ---------------------------------------------------------------- 1: which numbers learn

right(check.numbers_with_a_gradient)(9984)
right(check.numbers_with_a_gradient)(np.int64(13) * 768)
wrong(check.numbers_with_a_gradient, "How many numbers is a row?")(20_000)

# ------------------------------------------------------------------ 2: learn the merges

right(check.merges_of_words)(learn)


@right(check.merges_of_words)
def by_different_words(words, n):
    known = {word: tuple(word) for word in words}
    often = Counter(words)
    made = ()
    for _ in range(n):
        counts = Counter()
        for word, tokens in known.items():
            for k in range(1, len(tokens)):
                counts[tokens[k - 1 : k + 1]] += often[word]
        [(pair, _)] = counts.most_common(1)
        known = {word: tuple(glue(list(tokens), *pair)) for word, tokens in known.items()}
        made += (pair[0] + pair[1],)
    return made


@right(check.merges_of_words)
def by_search_and_replace(words, n):
    """Each token between ‹ and ›, in one string."""
    text = "\n".join("".join(f"‹{letter}›" for letter in word) for word in words)
    made = []
    for _ in range(n):
        counts = Counter(re.findall("(?=(‹[^›]+›‹[^›]+›))", text))
        best = max(counts, key=counts.get)
        made.append(best.replace("›‹", "")[1:-1])
        text = text.replace(best, f"‹{made[-1]}›")
    return made


wrong(check.merges_of_words, "a list of strings")(lambda *given: learn(*given, join=tuple))
wrong(check.merges_of_words, "n was 1, and the list has 2")(lambda words, n: learn(words, n + 1))


@wrong(check.merges_of_words, "changes the list of words")
def in_place(words, n):
    made = learn(words, n)
    words[:] = [list(word) for word in words]
    return made


@wrong(check.merges_of_words, "on the story's words they are not")
def in_small_letters(words, n):
    return learn([word.lower() for word in words], n)


# -------------------------------------------------------------------- 3: it works at 1,024


@right(check.mended_embedding)
def row_by_row(ids, wte, wpe):
    X = torch.empty(*ids.shape, wte.weight.shape[1])
    for b, text in enumerate(ids.tolist()):
        for t, i in enumerate(text):
            X[b, t] = wte.weight[i] + wpe.weight[t]
    return X


@right(check.mended_embedding)
def all_in_one_go(ids, wte, wpe):
    B, T = ids.shape
    X = wte(ids.flatten()) + wpe(torch.arange(T).repeat(B))
    return X.unflatten(0, (B, T))


@right(check.mended_embedding)
def with_a_limit_in_words(ids, wte, wpe):
    if ids.shape[1] > wpe.num_embeddings:
        raise ValueError("too long")
    one_hot = F.one_hot(ids, wte.num_embeddings).float()
    return torch.einsum("btv,ve->bte", one_hot, wte.weight) + wpe.weight[: ids.shape[1]]


@right(check.mended_embedding)
def too_long_is_not_for_this_one(ids, wte, wpe):
    if ids.shape[1] > len(wpe.weight):
        raise NotImplementedError
    return wte(ids) + wpe.weight[: ids.shape[1]]


wrong(check.mended_embedding, "is there still a `%`")(
    lambda ids, wte, wpe: wte(ids) + wpe(torch.arange(ids.shape[1]) % 1024)
)


wrong(check.mended_embedding, "The tokens are missing")(
    lambda ids, wte, wpe: wpe(torch.arange(ids.shape[1]))[None]
)
wrong(check.mended_embedding, "Your code raised IndexError")(
    embed_at(lambda B, T: torch.arange(B * T).view(B, T))
)
wrong(check.mended_embedding, "is there still a `%`")(embed_at(lambda B, T: torch.arange(T) % 8))
wrong(check.mended_embedding, "is there still a `%`")(
    embed_at(lambda B, T: torch.arange(T).clamp(max=7))
)
wrong(check.mended_embedding, "has the shape [5, 6], not [1, 5, 6]")(
    lambda *given: all_in_one_go(*given).flatten(0, 1)
)

# ----------------------------------------------------------- 4: positions without a table

right(check.sinusoidal_positions)(waves)


@right(check.sinusoidal_positions)
def by_plain_loops(n_positions, E):
    rows = np.zeros((n_positions, E))
    for p in range(n_positions):
        for i in range(E // 2):
            rows[p, 2 * i : 2 * i + 2] = np.sin(p / 10000 ** (2 * i / E) + np.array([0, np.pi / 2]))
    return torch.tensor(rows, dtype=torch.float32)


@right(check.sinusoidal_positions)
def by_exponentials_in_an_embedding(n_positions, E):
    column = torch.arange(E)
    frequency = torch.exp(-torch.log(torch.tensor(1e4)) * (column - column % 2) / E)
    angle = torch.outer(torch.arange(n_positions).float(), frequency)
    waves = torch.where(column % 2 == 0, angle.sin(), angle.cos())
    return nn.Embedding.from_pretrained(waves, freeze=False).weight


@wrong(check.sinusoidal_positions, "counts columns, and twice")
def next_pair_in_the_cosine(n_positions, E):
    """The tutorial bug: 2 (i + 1) / E in the cosine, with i the number of the first column."""
    column = torch.arange(E)
    cosine = (torch.arange(n_positions)[:, None] / 1e4 ** (2 * (column + 1) / E)).cos()
    return torch.where(column % 2 == 0, waves(n_positions, E), cosine)


wrong(check.sinusoidal_positions, "Is there a division by E - 2")(
    lambda n, E: waves(n, E, exponent=lambda i, E: -2 * i / torch.tensor(E - 2))
)
wrong(check.sinusoidal_positions, "what the exponent counts")(lambda *s: waves(*s, base=1000.0))
wrong(check.sinusoidal_positions, "it should be torch.float32")(lambda *s: waves(*s).double())
wrong(check.sinusoidal_positions, "is a value of type ndarray")(lambda *s: waves(*s).numpy())
