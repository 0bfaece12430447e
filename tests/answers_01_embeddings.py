"""Answers to the exercises of notebook 1."""

from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from answers import right, wrong
from torch import nn

import exercise_checks as check

# ---------------------------------------------------------------- 1: which numbers learn

right(check.numbers_with_a_gradient)(9984)
right(check.numbers_with_a_gradient)(np.int64(13) * 768)
wrong(check.numbers_with_a_gradient, "These are rows")(13)
wrong(check.numbers_with_a_gradient, "Every lookup is counted")(14 * 768)
wrong(check.numbers_with_a_gradient, "they are two positions")(12 * 768)
wrong(check.numbers_with_a_gradient, "The other one takes part")(6 * 768)
wrong(check.numbers_with_a_gradient, "two tables take part")(7 * 768)
wrong(check.numbers_with_a_gradient, "only those that occur in the text")(6 * 768 + 786_432)
wrong(check.numbers_with_a_gradient, "all numbers of both tables")(38_597_376 + 786_432)
wrong(check.numbers_with_a_gradient, "How many numbers is a row?")(20_000)

# ------------------------------------------------------------------ 2: learn the merges


def gluing(tokens, left, right, once=False, overlap=False, tail=True):
    """A word's tokens with the pair made one, with switches for the usual mistakes."""
    glued, n, done = [], 0, False
    while n < len(tokens) if tail else n < len(tokens) - 1:
        if tokens[n : n + 2] == [left, right] and not (once and done):
            glued.append(left + right)
            n, done = n + (1 if overlap and tokens[n + 1 : n + 3] == [left, right] else 2), True
        else:
            glued.append(tokens[n])
            n += 1
    return glued


def learn(words, n, choose=max, cut=list, count=zip, anew=True, glue=gluing, say="".join):
    """The training with switches for the usual mistakes."""
    cut_words = [cut(word) for word in words]
    made, counts = [], None
    for _ in range(n):
        if counts is None or anew:
            counts = Counter()
            for tokens in cut_words:
                counts.update(count(tokens, tokens[1:]))
        pair = choose(counts, key=counts.get)
        del counts[pair]
        made.append(say(pair))
        cut_words = [glue(tokens, *pair) for tokens in cut_words]
    return made


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
        known = {word: tuple(gluing(list(tokens), *pair)) for word, tokens in known.items()}
        made += (pair[0] + pair[1],)
    return made


right(check.merges_of_words)(learn)
wrong(check.merges_of_words, "This is the rarest pair")(lambda *given: learn(*given, choose=min))
wrong(check.merges_of_words, "Count pairs of neighbours")(
    lambda words, n: [c for c, _ in Counter("".join(words)).most_common(n)]
)
wrong(check.merges_of_words, "glued in the wrong order")(
    lambda *given: learn(*given, say=lambda pair: pair[1] + pair[0])
)
wrong(check.merges_of_words, "Every word counts once here")(
    lambda words, n: learn(sorted(set(words), reverse=True), n)
)
wrong(check.merges_of_words, "A pair that stands in a word twice")(
    lambda *given: learn(*given, count=lambda *tokens: set(zip(*tokens, strict=False)))
)
wrong(check.merges_of_words, "the beginning of the next")(
    lambda words, n: learn(["".join(words)], n)
)
wrong(check.merges_of_words, "the beginning of the next")(
    lambda words, n: learn([" ".join(words)], n)
)
wrong(check.merges_of_words, "comes from the old counts")(lambda *given: learn(*given, anew=False))
wrong(check.merges_of_words, "The pair that was just glued wins again")(
    lambda *given: learn(*given, glue=lambda tokens, *pair: tokens)
)
wrong(check.merges_of_words, "only one of the two is glued")(
    lambda *given: learn(*given, glue=lambda *word: gluing(*word, once=True))
)
wrong(check.merges_of_words, "A letter is used twice")(
    lambda *given: learn(*given, glue=lambda *word: gluing(*word, overlap=True))
)
wrong(check.merges_of_words, "Gluing begins at the left")(
    lambda *given: learn(
        *given,
        glue=lambda tokens, left, right: [
            "".join(reversed(token)) for token in gluing(tokens[::-1], right, left)
        ][::-1],
    )
)
wrong(check.merges_of_words, "the pair a, a stands twice")(
    lambda *given: learn(
        *given,
        count=lambda a, b: [
            p for k, p in enumerate(zip(a, b, strict=False)) if p[0] != a[k - 1] or not k
        ],
    )
)
wrong(check.merges_of_words, "the last letter of a word is lost")(
    lambda *given: learn(*given, glue=lambda *word: gluing(*word, tail=len(word[0]) % 2 == 0))
)
wrong(check.merges_of_words, "a list of strings")(lambda *given: learn(*given, say=tuple))
wrong(check.merges_of_words, "n was 1, and the list has 2")(lambda words, n: learn(words, n + 1))


@wrong(check.merges_of_words, "Compare whole tokens")
def by_replacing_with_blanks(words, n):
    spaced = [" ".join(word) for word in words]
    made = []
    for _ in range(n):
        counts = Counter(p for word in spaced for p in zip(word.split(), word.split()[1:]))  # noqa: B905
        pair = max(counts, key=counts.get)
        made.append("".join(pair))
        spaced = [word.replace(" ".join(pair), made[-1]) for word in spaced]
    return made


@wrong(check.merges_of_words, "changes the list of words")
def in_place(words, n):
    made = learn(words, n)
    words[:] = [list(word) for word in words]
    return made


@wrong(check.merges_of_words, "The space in front of a word is lost")
def without_the_space(words, n):
    return learn([word.strip() for word in words], n)


# -------------------------------------------------------------------- 3: it works at 1,024


@wrong(check.merges_of_words, "on the story's words they are not")
def in_small_letters(words, n):
    return learn([word.lower() for word in words], n)


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


def embed(ids, wte, wpe, positions):
    """The first stage with the positions of a mistake, any shape that broadcasts to [B, T]."""
    return wte(ids) + wpe(positions(*ids.shape))


wrong(check.mended_embedding, "The positions are missing")(lambda ids, wte, wpe: wte(ids))
wrong(check.mended_embedding, "The tokens are missing")(
    lambda ids, wte, wpe: 0 * wte(ids) + wpe(torch.arange(ids.shape[1]))
)
wrong(check.mended_embedding, "at position 0, not 1")(
    lambda *given: embed(*given, lambda B, T: torch.arange(1, T + 1))
)
wrong(check.mended_embedding, "still begins where the first one ends")(
    lambda *given: embed(*given, lambda B, T: torch.arange(B * T).view(B, T) % 8)
)
wrong(check.mended_embedding, "Your code raised IndexError")(
    lambda *given: embed(*given, lambda B, T: torch.arange(B * T).view(B, T))
)
wrong(check.mended_embedding, "The positions alternate")(
    lambda *given: embed(*given, lambda B, T: torch.arange(B * T).view(T, B).T % 8)
)
wrong(check.mended_embedding, "Every token gets the same position")(
    lambda *given: embed(*given, lambda B, T: torch.arange(B)[:, None])
)
wrong(check.mended_embedding, "The position is the place in the text")(
    lambda *given: (
        embed(*given, lambda B, T: torch.arange(T) + torch.arange(B)[:, None])
        if len(given[0]) == 1
        else embed(*given, lambda B, T: torch.arange(B)[:, None])
    )
)
wrong(check.mended_embedding, "is there still a `%`")(
    lambda *given: embed(*given, lambda B, T: torch.arange(T) % 8)
)
wrong(check.mended_embedding, "is there still a `%`")(
    lambda *given: embed(*given, lambda B, T: torch.arange(T).clamp(max=7))
)
wrong(check.mended_embedding, "has the shape [5, 6], not [1, 5, 6]")(
    lambda *given: all_in_one_go(*given).flatten(0, 1)
)

# ----------------------------------------------------------- 4: positions without a table


def table(
    n_positions,
    E,
    first=0,
    unit=1.0,
    base=1e4,
    sign=-1,
    step=2.0,
    over=None,
    halves=False,
    swap=False,
):
    """The table with switches for the usual mistakes."""
    pair = torch.arange(E // 2)
    angle = (
        unit
        * (torch.arange(n_positions) + first)[:, None]
        * base ** (sign * step * pair / (over or E))
    )
    parts = [angle.cos(), angle.sin()] if swap else [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1) if halves else torch.stack(parts, dim=2).flatten(1)


right(check.sinusoidal_positions)(table)


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


def next_pair(n_positions, E):
    """The tutorial bug: 2 (i + 1) / E in the cosine, with i the number of the first column."""
    column = torch.arange(E)
    return (torch.arange(n_positions)[:, None] / 1e4 ** (2 * (column + 1) / E)).cos()


def by_column(n_positions, E, factor):
    """The frequencies of columns instead of pairs."""
    column = torch.arange(E)
    angle = torch.arange(n_positions)[:, None] / 1e4 ** (factor * column / E)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


wrong(check.sinusoidal_positions, "The sine comes first")(lambda *s: table(*s, swap=True))
wrong(check.sinusoidal_positions, "Positions count from 0")(lambda *s: table(*s, first=1))
wrong(check.sinusoidal_positions, "in radians")(lambda *s: table(*s, unit=torch.pi / 180))
wrong(check.sinusoidal_positions, "The rows are the positions")(lambda *s: table(*s).T)
wrong(check.sinusoidal_positions, "All sines come first")(lambda *s: table(*s, halves=True))
wrong(check.sinusoidal_positions, "have different frequencies")(lambda *s: by_column(*s, 1))
wrong(check.sinusoidal_positions, "counts columns, and twice")(lambda *s: by_column(*s, 2))
wrong(check.sinusoidal_positions, "The exponent is i / E")(lambda *s: table(*s, step=1.0))
wrong(check.sinusoidal_positions, "is the factor 2 there twice")(lambda *s: table(*s, step=4.0))
wrong(check.sinusoidal_positions, "divide by it")(lambda *s: table(*s, sign=1))
wrong(check.sinusoidal_positions, "The base of the power is e")(lambda *s: table(*s, base=np.e))
wrong(check.sinusoidal_positions, "Is there a division by E - 2")(
    lambda n, E: table(n, E, over=E - 2 or float("nan"))
)
wrong(check.sinusoidal_positions, "it should end at (E - 2) / E")(
    lambda n, E: table(n, E, over=max(E - 2, 1))
)
wrong(check.sinusoidal_positions, "counts columns, and twice")(
    lambda n, E: torch.where(torch.arange(E) % 2 == 0, table(n, E), next_pair(n, E))
)
wrong(check.sinusoidal_positions, "All pairs have the same frequency")(
    lambda *s: table(*s, step=0.0)
)
wrong(check.sinusoidal_positions, "what the exponent counts")(lambda *s: table(*s, base=1000.0))
wrong(check.sinusoidal_positions, "it should be torch.float32")(lambda *s: table(*s).double())
wrong(check.sinusoidal_positions, "is a value of type ndarray")(lambda *s: table(*s).numpy())
