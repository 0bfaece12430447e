"""The checks of notebook 1, embeddings, and the mistakes they know."""

import math
from collections import Counter
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from gpt2_helpers import get_text

from . import Mistake, NotAttempted, call, drawn, exercise, expect, expect_number, expect_result

# ----------------------------------------------------------------- 1: which numbers learn


@exercise
def numbers_with_a_gradient(count):
    """Of wte and wpe together, after a loss on the exercise's seven tokens; E = 768."""
    yield "the rows that take part, in both tables"
    expect_number(
        count,
        (6 + 7) * 768,
        "Count the different rows that are looked up, first in `wte`, then in `wpe`. How many "
        "numbers is a row?",
        tolerance=1e-6,
    )


numbers_with_a_gradient.mistakes = {
    "These are rows. Each row has E numbers.": 6 + 7,
    "Every lookup is counted, but a token that occurs twice has one row in `wte`, in which its "
    "gradients add up.": (7 + 7) * 768,
    "The two places of the repeated token count once, but they are two positions: each has its own "
    "row in `wpe`.": (6 + 6) * 768,
    "This is one table. The other one takes part in the sum too.": 6 * 768,
    "This is one table, or one row for each token: two tables take part in the sum.": 7 * 768,
    "`wpe` has rows for all positions, but only those that occur in the text are used.": (6 + 1024)
    * 768,
    "These are all numbers of a table. Most rows are not looked up.": 50257 * 768,
    "These are all numbers of both tables. Most rows are not looked up.": (50257 + 1024) * 768,
}

# ------------------------------------------------------------------- 2: learn the merges


def glue(tokens, left, right, once=False, overlap=False, loses_the_end=False):
    """A word's tokens with the pair made one, with switches for the usual mistakes."""
    glued, n, done = [], 0, False
    while n < len(tokens) - loses_the_end:
        if tokens[n : n + 2] == [left, right] and not (once and done):
            glued.append(left + right)
            n, done = n + (1 if overlap and tokens[n + 1 : n + 3] == [left, right] else 2), True
        else:
            glued.append(tokens[n])
            n += 1
    return glued


def glue_from_the_right(tokens, left, right):
    glued = glue([token[::-1] for token in tokens[::-1]], right[::-1], left[::-1])
    return [token[::-1] for token in glued[::-1]]


def learn(words, n, choose=max, cut=list, pairs=zip, anew=True, glue=glue, join="".join):
    """Byte-pair encoding's first n merges, with switches for the usual mistakes."""
    cut_words, merges, counts = [cut(word) for word in words], [], None
    for _ in range(n):
        if counts is None or anew:
            counts = Counter()
            for tokens in cut_words:
                counts.update(pairs(tokens, tokens[1:]))
        best = choose(counts, key=counts.get)
        del counts[best]
        merges.append(join(best))
        cut_words = [glue(tokens, *best) for tokens in cut_words]
    return merges


@exercise
def merges_of_words(learn_merges):
    """learn_merges(words, n) returns the first n tokens that byte-pair encoding makes."""

    def expect_merges(words, right, otherwise=None):
        def merges(answer):
            given = list(words)
            got = call(answer, given, len(right))
            if not isinstance(got, (list, tuple)) or not all(isinstance(t, str) for t in got):
                raise Mistake("Return a list of strings: each new token, glued from its two parts.")
            if given != words:
                raise Mistake(
                    "Your code changes the list of words. Whoever calls it still needs that."
                )
            if len(got) != len(right):
                raise Mistake(
                    f"n was {len(right)}, and the list has {len(got)}. Is the `return` in its "
                    "place, behind the loop?"
                )
            return list(got)

        made = f"With the words {sorted(set(words))} another token is made."
        expect(merges, learn_merges, right, otherwise or made)

    yield "one merge: the most frequent pair"
    expect_merges(
        ["cd", "ab", "xab"],
        ["ab"],
        "Count how often every two neighbours stand together, and glue the pair with most.",
    )

    yield "every occurrence counts"
    expect_merges(["xy"] * 5 + ["cab", "abe"], ["xy"])
    expect_merges(["abab", "abab", "xyz", "xyw", "xyv"], ["ab"])

    yield "no pair reaches across the border of two words"
    expect_merges(["a", "b"] * 4 + ["cd"] * 2, ["cd"])

    yield "the second merge meets the token of the first"
    expect_merges(
        ["abab"] * 3 + ["aba"],
        ["ab", "abab"],
        "After the first merge the most frequent pair is made of two glued tokens.",
    )

    yield "gluing loses no letter"
    expect_merges(
        ["abc"] * 3 + ["abd"] * 2 + ["xyz"] * 2,
        ["ab", "abc"],
        "In abc and abd, a and b are glued first; then ab stands in front of c most often.",
    )

    yield "aaa is aa and a"
    expect_merges(["aaa"] * 4 + ["xy"], ["aa", "aaa"])
    expect_merges(["aaa"] * 2 + ["xy"] * 3, ["aa"])
    expect_merges(["aaab"] * 4 + ["cab"] * 2, ["aa", "ab"])

    yield "only whole tokens are glued"
    expect_merges(
        ["ca"] * 5 + ["ab"] * 4 + ["cab"] * 2 + ["xy"],
        ["ca", "ab", "cab"],
        "After ca and ab it is the turn of ca with b.",
    )

    yield "a space is a letter like the others"
    expect_merges([" ab", " ac", " ad", " ae", "xab", "xab"], [" a"])

    yield "the story"
    words = [" " + word for word in get_text().split()]
    expect_merges(
        words,
        learn(words, 12),
        "On small examples your merges are right, on the story's words they are not.",
    )


def most_frequent_letters(words, n):
    return [letter for letter, _ in Counter("".join(words)).most_common(n)]


def glue_beside_the_right_part(tokens, left, right):
    made = [[t, right] if t == left + right else [t] for t in glue(tokens, left, right)]
    return [token for part in made for token in part]


def replacing_in_strings(words, n):
    """Tokens with blanks between them, glued by a text's `replace`."""
    spaced, merges = [" ".join(word) for word in words], []
    for _ in range(n):
        counts = Counter(p for word in spaced for p in zip(word.split(), word.split()[1:]))  # noqa: B905
        best = max(counts, key=counts.get)
        merges.append("".join(best))
        spaced = [word.replace(" ".join(best), merges[-1]) for word in spaced]
    return merges


merges_of_words.mistakes = {
    "This is the rarest pair, or the first one that comes along.": partial(learn, choose=min),
    "This is a letter. Count pairs of neighbours.": most_frequent_letters,
    "The parts are glued in the wrong order.": partial(learn, join=lambda pair: pair[1] + pair[0]),
    "A pair that stands in a word twice counts twice.": partial(
        learn, pairs=lambda *tokens: set(zip(*tokens, strict=False))
    ),
    "Every word counts once here. One that occurs five times counts five times.": lambda words, n: (
        learn(sorted(set(words), reverse=True), n)
    ),
    "The end of one word and the beginning of the next are counted as neighbours. Keep each word "
    "by itself.": lambda words, n: learn(["".join(words)], n),
    "The end of one word and a blank behind it are counted as neighbours. Keep each word by "
    "itself.": lambda words, n: learn([" ".join(words)], n),
    "The second merge comes from the old counts. Glue the first pair, then count anew.": partial(
        learn, anew=False
    ),
    "The pair that was just glued wins again. Is it really glued, in every word, and are the old "
    "counts gone?": partial(learn, glue=lambda tokens, *pair: tokens),
    "In a word that has the pair twice, only one of the two is glued.": partial(
        learn, glue=partial(glue, once=True)
    ),
    "After gluing, the right part of the pair is still there too.": partial(
        learn, glue=glue_beside_the_right_part
    ),
    "After gluing, the last letter of a word is lost.": partial(
        learn, glue=lambda *word: glue(*word, loses_the_end=len(word[0]) % 2)
    ),
    "A letter is used twice: in aaa the middle a cannot belong to two tokens.": partial(
        learn, glue=partial(glue, overlap=True)
    ),
    "In aaa the pair a, a stands twice, at both places: count it twice.": lambda *given: learn(
        *given,
        pairs=lambda a, b: [p for k, p in enumerate(zip(a, b)) if p[0] != a[k - 1] or not k],  # noqa: B905
    ),
    "Gluing begins at the left: aaab is aa, a, b.": partial(learn, glue=glue_from_the_right),
    "The tokens ca and b were glued when it was the turn of a and b. Compare whole tokens, not the "
    "letters at their ends.": replacing_in_strings,
    "The space in front of a word is lost. It is a letter like the others.": lambda words, n: learn(
        [word.strip() for word in words], n
    ),
}

# --------------------------------------------------------------- 3: it works with one text


def embeddings(V=11, n_positions=8, E=6):
    """Two small tables, wte and wpe."""
    return drawn(nn.Embedding(V, E)), drawn(nn.Embedding(n_positions, E), seed=1)


def embed_at(positions):
    """The first stage; `positions` makes of B and T what broadcasts to [B, T]."""
    return lambda ids, wte, wpe: wte(ids) + wpe(positions(*ids.shape))


@exercise
def mended_embedding(embed):
    """embed(ids, wte, wpe): [B, T] -> [B, T, E], the notebook's suspect without its fault."""
    wte, wpe = embeddings()
    ids = torch.tensor([[3, 10, 3, 7, 1], [4, 1, 9, 9, 5], [2, 8, 6, 3, 4]])  # [B=3, T=5]

    def expect_embedded(ids, otherwise=None):
        tokens = F.one_hot(ids, 11).to(wte.weight) @ wte.weight  # [B, T, E]
        positions = torch.eye(8).to(wpe.weight)[: ids.shape[1]] @ wpe.weight  # [T, E]
        expect_result(embed, [ids, wte, wpe], tokens + positions, otherwise)

    yield "one text, and a `wpe` of 8 rows"
    expect_embedded(
        ids[:1],
        "With a single text the suspect is right, and yours is not: what else did you change?",
    )

    yield "the second text begins at position 0"
    expect_embedded(ids[:2], "The first text is right by itself, the batch is not.")

    yield "texts as long as the table"
    expect_embedded(torch.cat([ids, ids], dim=1)[:, :8])  # [B=3, T=8]

    yield "a text that is too long fails"
    for n_positions in (8, 1024):
        wte, wpe = embeddings(n_positions=n_positions)
        too_long = ids.repeat(1, n_positions)[:, : n_positions + 1]  # [B=3, T=n_positions + 1]
        try:
            call(embed, too_long, wte, wpe)
        except NotAttempted:  # raised on purpose, for a text that is too long
            continue
        except Mistake as refusal:
            if "Your code raised" in str(refusal):
                continue
            raise
        raise Mistake(
            "A text with one token more than `wpe` has rows should fail. In yours it passes, so "
            "some token has a position that is not its own: is there still a `%`, or a limit of "
            "that kind?"
        )


mended_embedding.mistakes = {
    "The positions are missing.": lambda ids, wte, wpe: wte(ids),
    "The tokens are missing.": lambda ids, wte, wpe: 0 * wte(ids) + wpe(torch.arange(ids.shape[1])),
    "The first token stands at position 0, not 1.": embed_at(lambda B, T: torch.arange(1, T + 1)),
    "The second text still begins where the first one ends.": embed_at(
        lambda B, T: torch.arange(B * T).view(B, T) % 8
    ),
    "The positions alternate between the texts.": embed_at(
        lambda B, T: torch.arange(B * T).view(T, B).T % 8
    ),
    "Every token gets the same position.": embed_at(lambda B, T: torch.tensor(0)),
    "Each text gets the row of its place in the batch. The position is the place in the "
    "text.": embed_at(lambda B, T: torch.arange(B)[:, None] if B > 1 else torch.arange(T)),
}

# ----------------------------------------------------------- 4: positions without a table


def waves(
    n_positions,
    E,
    first=0,
    unit=1.0,
    base=1e4,
    exponent=lambda pair, E: -2 * pair / E,
    halves=False,
    cosine_first=False,
):
    """The table [n_positions, E] of the original transformer, with switches for mistakes."""
    position = torch.arange(n_positions)[:, None] + first  # [n_positions, 1]
    angle = unit * position * base ** exponent(torch.arange(E // 2), E)
    parts = [angle.sin(), angle.cos()]  # 2 x [n_positions, E / 2]
    parts = parts[::-1] if cosine_first else parts
    return torch.cat(parts, 1) if halves else torch.stack(parts, 2).flatten(1)


def waves_by_column(n_positions, E, factor):
    """The frequencies of columns in place of pairs."""
    column = torch.arange(E)
    angle = torch.arange(n_positions)[:, None] / 1e4 ** (factor * column / E)  # [n_positions, E]
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


@exercise
def sinusoidal_positions(sinusoidal):
    """sinusoidal(n_positions, E) returns the table of the original transformer."""
    yield "one pair (E = 2): sine and cosine of the position"
    if isinstance(got := call(sinusoidal, 5, 2), torch.Tensor) and got.isnan().any():
        raise Mistake(
            "The result contains nan at E = 2, so there is a 0 / 0. Is there a division by E - 2, "
            "or are brackets missing in the exponent?"
        )
    angle = torch.arange(5.0)
    expect_result(
        sinusoidal,
        [5, 2],
        torch.stack([angle.sin(), angle.cos()], dim=1),
        "With a single pair the frequency is 10000 to the power of 0: row p is sin(p), cos(p). "
        "Both columns, no sign, no factor.",
    )

    yield "position 0: sine and cosine alternate"
    expect_result(
        sinusoidal,
        [1, 8],
        torch.tensor([[0.0, 1, 0, 1, 0, 1, 0, 1]]),
        "At position 0 every angle is 0, so the row is 0, 1, 0, 1 and so on.",
    )

    yield "the frequency of each pair"
    expect_result(
        sinusoidal,
        [7, 6],
        waves(7, 6),
        "The first pair and the order of the columns are right; look at the power of 10000: its "
        "base, its sign, and what the exponent counts.",
    )

    yield "1,500 positions"
    expect_result(sinusoidal, [1500, 64], waves(1500, 64), tolerance=2e-3)


sinusoidal_positions.mistakes = {
    "The two columns of a pair have different frequencies: i counts pairs, not columns.": partial(
        waves_by_column, factor=1
    ),
    "The exponent counts columns, and twice: 2 i is a pair's first column already.": partial(
        waves_by_column, factor=2
    ),
    "The sine comes first, then the cosine.": partial(waves, cosine_first=True),
    "Positions count from 0.": partial(waves, first=1),
    "The angles are in radians, without a conversion.": partial(waves, unit=torch.pi / 180),
    "The rows are the positions: the table is [n_positions, E].": lambda *size: waves(*size).T,
    "These are the angles. Their sine and cosine are missing.": lambda n, E: (
        torch.arange(n)[:, None] * 1e4 ** (-torch.arange(E).div(2).floor() * 2 / E)
    ),
    "All sines come first, then all cosines. They should alternate, column by column.": partial(
        waves, halves=True
    ),
    "All cosines come first, then all sines. They should alternate, column by "
    "column.": lambda n, E: waves(n, E, halves=True, cosine_first=E > 2),
    "The exponent is i / E; it should be 2 i / E.": partial(waves, exponent=lambda i, E: -i / E),
    "The exponent is 4 i / E: is the factor 2 there twice?": partial(
        waves, exponent=lambda i, E: -4 * i / E
    ),
    "The position is multiplied by the power of 10000; divide by it.": partial(
        waves, exponent=lambda i, E: 2 * i / E
    ),
    "The base of the power is e; it should be 10000.": partial(waves, base=math.e),
    "The exponent reaches 1 at the last pair; it should end at (E - 2) / E.": partial(
        waves, exponent=lambda i, E: -2 * i / max(E - 2, 1)
    ),
    "All pairs have the same frequency.": partial(waves, exponent=lambda i, E: 0 * i),
}
