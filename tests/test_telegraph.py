"""The telegraph's language: its probabilities are true ones."""

import math
from collections import Counter, defaultdict

import pytest
import torch
import torch.nn.functional as F

import telegraph
from telegraph import END, SKILLS, VOCABULARY, batch, decode, encode, next_log_probabilities


def test_in_every_state_the_probabilities_sum_to_1():
    """And the words that came, with their ids and log-probabilities, are those of the telegram."""
    seen = {}
    for written in telegraph.telegrams(1000, seed=1):
        assert written.words[0] == "TELEGRAM" and written.words[-1] == END
        assert written.log_probabilities[0] == 0 and written.skills[0] == "grammar"
        assert set(written.skills) <= set(SKILLS) and encode(written.words) == written.ids
        for place, word in enumerate(written.ids):
            prefix = tuple(written.ids[:place])
            if prefix not in seen:
                seen[prefix] = next_log_probabilities(prefix)
                assert math.isclose(seen[prefix].exp().sum(), 1, abs_tol=1e-12)
            assert seen[prefix][word] == written.log_probabilities[place]
            certain = written.skills[place] != "choice"
            assert certain == (written.log_probabilities[place] == 0)
    assert len(seen) > 10_000


def test_frequencies_are_the_probabilities():
    """In 100,000 telegrams: the first seven words, and the choices within three sentences."""
    followers = defaultdict(Counter)
    for written in telegraph.telegrams(100_000, seed=2):
        for place in range(1, 7):  # TELEGRAM TO ... FROM ... STOP and the first sentence's word
            followers[" ".join(written.words[:place])][written.words[place]] += 1
        for first in ("THE", "BLOCKED", "HAVE"):  # one state of the grammar, however it is reached
            if first in written.words:
                place = written.words.index(first)
                followers[first][" ".join(written.words[place + 1 : place + 3])] += 1
    for prefix, counts in followers.items():
        total = sum(counts.values())
        if prefix.startswith("TELEGRAM"):
            p = next_log_probabilities(prefix).exp()
            expected = {word: p[i].item() for i, word in enumerate(VOCABULARY) if p[i]}
        elif prefix == "THE":
            expected = {
                f"{who} {w}": q / 4 for who, v in telegraph.NEWS.items() for w, q in v.items()
            }
        elif prefix == "BLOCKED":
            expected = {f"BY {cause}": q for cause, q in telegraph.CAUSES.items()}
        else:
            expected = {f"{n} {t}": 1 / 54 for n in range(1, 10) for t in telegraph.THINGS}
        for words, q in expected.items():  # within five standard errors
            assert abs(counts[words] - total * q) <= 5 * math.sqrt(total * q * (1 - q)) + 1e-9
        assert counts.keys() <= expected.keys()


def test_what_the_words_say_is_true():
    """Sums, stations and code words, read with rules of our own."""
    for written in telegraph.telegrams(2000, seed=3):
        words = written.words
        for place, (word, skill) in enumerate(zip(words, written.skills, strict=True)):
            if skill == "arithmetic":
                assert int(word) == int(words[place - 6]) + int(words[place - 3])
            elif skill == "copy":
                assert word == {"FROM": words[4], "TO": words[2]}[words[place - 1]]
            elif skill == "code book":
                assert words[words.index(words[place - 2]) + 2] == word


def test_a_batch_is_the_telegrams_with_targets_one_place_on():
    ids, targets = telegraph.batch(300, seed=4)
    assert ids.shape == targets.shape == (300, telegraph.LENGTH)
    longest = 0
    for row, written in enumerate(telegraph.telegrams(300, seed=4)):
        n = len(written.words) - 1
        longest = max(longest, n)
        assert decode(ids[row, :n]) == " ".join(written.words[:-1])
        assert targets[row, :n].tolist() == written.ids[1:] and (targets[row, n:] == -100).all()
        assert (ids[row, n:] == encode(END)[0]).all()
    assert longest == telegraph.LENGTH
    F.cross_entropy(torch.zeros(300 * telegraph.LENGTH, len(VOCABULARY)), targets.flatten())
    assert torch.equal(ids, telegraph.batch(300, seed=4)[0])
    assert not torch.equal(ids, telegraph.batch(300, seed=5)[0])


@pytest.mark.parametrize(
    "prefix, message",
    [
        ("TELEGRAM TO KELD FROM KELD", "word 4 is KELD; after 'TELEGRAM TO KELD FROM' only HARROW"),
        ("DEAR AUNT", "word 0 is DEAR; after '' only TELEGRAM can come"),
        (" ".join(telegraph.telegrams(1, 5)[0].words), "no word can follow END"),
    ],
)
def test_a_prefix_that_no_telegram_has(prefix, message):
    with pytest.raises(ValueError, match=message):
        next_log_probabilities(prefix)


def test_a_word_of_another_language():
    with pytest.raises(ValueError, match="'HELLO' is not in the telegraph's vocabulary"):
        encode("TELEGRAM TO HELLO")
    for ids in ([-1], [len(VOCABULARY)], torch.tensor([-100])):
        with pytest.raises(ValueError, match="is no id of the telegraph's"):
            decode(ids)
        with pytest.raises(ValueError, match="is no id of the telegraph's"):
            next_log_probabilities(ids)
    assert next_log_probabilities("").argmax() == encode("TELEGRAM")[0]


def test_a_batch_is_decoded_row_by_row():
    with pytest.raises(ValueError, match=r"\[0, 3, .* is no id of the telegraph.s"):
        decode(batch(2, seed=1)[0])
    assert decode(torch.tensor([])) == decode([]) == ""
