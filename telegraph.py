"""Telegrams of Harrow Pass: a small language in which the probability of every word is known.

    TELEGRAM TO KELD FROM MERE STOP ROAD FROM MERE TO KELD BLOCKED BY GOATS STOP
    WE HAVE 8 SLEDS AND 5 MORE MAKE 13 STOP THE CAT ATE THE MAP STOP END

A telegram names where it goes and where it comes from, and has three of four kinds of sentence. A
word is one token. The words so far determine which can come next, and how probable each is, so the
loss of a model has a floor that is known. Each word also has the skill that predicts it:

    grammar      the form leaves one word only              TO ... FROM ... STOP
    choice       several words are possible                 which station, which cause
    copy         it stands further up                       ROAD FROM MERE TO KELD
    arithmetic   it is a sum                                8 ... AND 5 MORE MAKE 13
    code book    a code word's meaning, given once before   REPEAT WALRUS MEANS ROPE
"""

import math
import random
from dataclasses import dataclass

import torch

STATIONS = "HARROW KELD MERE SALLOW TARN SCREE BECK GILL HOLM CRAG LARCH FELL".split()
CAUSES = {"SNOW": 0.4, "GOATS": 0.3, "ICE": 0.2, "POETS": 0.1}
THINGS = ["SLEDS", "MULES", "GOATS", "STOVES", "AUNTS", "LADDERS"]
NUMBERS = [str(n) for n in range(1, 19)]
CODE_WORDS = "WALRUS PIANO DUCHESS PICKLE TRUMPET OYSTER TEAPOT WIG".split()
GOODS = "ROPE COAL FLOUR TEA BOOTS SOAP NAILS LAMPS".split()
NEWS = {  # who does what, and how often
    "CAT": {"ATE": 0.7, "LOST": 0.1, "FOUND": 0.2},
    "VICAR": {"LOST": 0.6, "SOLD": 0.1, "FOUND": 0.3},
    "COOK": {"ATE": 0.3, "BURNT": 0.6, "SOLD": 0.1},
    "AUNTS": {"SOLD": 0.5, "BURNT": 0.2, "FOUND": 0.3},
}
OBJECTS = {"MAP": 0.3, "SOUP": 0.3, "HAT": 0.2, "REPLY": 0.1, "HYMN": 0.1}
START, END = "TELEGRAM", "END"
SKILLS = ["grammar", "choice", "copy", "arithmetic", "code book"]

# ----------------------------------------------------------------------------- the grammar
# Each function is a generator: for each word it yields the skill and {word: probability}, and is
# sent the word that came. So the same lines write telegrams, and judge one that is there.


def form(words):
    """Words that leave no choice."""
    for word in words.split():
        yield "grammar", {word: 1.0}


def one_of(words, *taken):
    """A choice among all words but those taken, each as probable as the others."""
    free = [word for word in words if word not in taken]
    return "choice", dict.fromkeys(free, 1 / len(free))


def road(sender, receiver):
    yield from form("FROM")
    yield "copy", {sender: 1.0}
    yield from form("TO")
    yield "copy", {receiver: 1.0}
    yield from form("BLOCKED BY")
    yield "choice", CAUSES


def stock(sender, receiver):
    yield from form("HAVE")
    first = yield one_of(NUMBERS[:9])
    yield one_of(THINGS)
    yield from form("AND")
    second = yield one_of(NUMBERS[:9])
    yield from form("MORE MAKE")
    yield "arithmetic", {str(int(first) + int(second)): 1.0}


def code_book(sender, receiver):
    code_1 = yield one_of(CODE_WORDS)
    yield from form("MEANS")
    good_1 = yield one_of(GOODS)
    yield from form("AND")
    code_2 = yield one_of(CODE_WORDS, code_1)
    yield from form("MEANS")
    good_2 = yield one_of(GOODS, good_1)
    yield from form("REPEAT")
    repeated = yield one_of([code_1, code_2])
    yield from form("MEANS")
    yield "code book", {good_1 if repeated == code_1 else good_2: 1.0}


def news(sender, receiver):
    who = yield one_of(NEWS)
    yield "choice", NEWS[who]
    yield from form("THE")
    yield "choice", OBJECTS


def telegram():
    yield from form(f"{START} TO")
    receiver = yield one_of(STATIONS)
    yield from form("FROM")
    sender = yield one_of(STATIONS, receiver)
    yield from form("STOP")
    sentences = {"ROAD": road, "WE": stock, "CODE": code_book, "THE": news}
    for _ in range(3):
        first_word = yield one_of(sentences)
        yield from sentences.pop(first_word)(sender, receiver)
        yield from form("STOP")
    yield from form(END)


# ---------------------------------------------------------------------------- words and ids
FORM = "TELEGRAM END STOP TO FROM ROAD BLOCKED BY WE HAVE AND MORE MAKE CODE MEANS REPEAT THE"
LISTS = [FORM.split(), STATIONS, CAUSES, THINGS, NUMBERS, CODE_WORDS, GOODS, OBJECTS, NEWS]
LISTS += NEWS.values()
VOCABULARY = list(dict.fromkeys(word for words in LISTS for word in words))  # each word once, V
IDS = {word: i for i, word in enumerate(VOCABULARY)}


def encode(text):
    """The ids of a text, or of a list of words; ValueError for a word that is not in VOCABULARY."""
    words = text.split() if isinstance(text, str) else text
    if unknown := [word for word in words if word not in IDS]:
        raise ValueError(f"{unknown[0]!r} is not in the telegraph's vocabulary")
    return [IDS[word] for word in words]


def decode(ids):
    """The text of ids, a list or a tensor [T]; ValueError for what is no id, also for [B, T]."""
    ids = torch.as_tensor(ids).tolist()
    if unknown := [i for i in ids if i not in range(len(VOCABULARY))]:
        raise ValueError(f"{unknown[0]} is no id of the telegraph's: 0 to {len(VOCABULARY) - 1}")
    return " ".join(VOCABULARY[i] for i in ids)


# --------------------------------------------------------------- telegrams and probabilities
LENGTH = 38  # T: the longest telegram has 39 words, and its last one is never an input


@dataclass(frozen=True)
class Telegram:
    """Four lists of one length, with an entry for every word from TELEGRAM to END."""

    words: list
    ids: list
    log_probabilities: list  # true ones, of each word given all before it, in nats
    skills: list  # of SKILLS


def telegrams(count, seed):
    """`count` telegrams, a list; the same seed gives the same ones, on every machine."""
    source = random.Random(seed)
    return [_write(source) for _ in range(count)]


def _write(source):
    written, grammar, word = Telegram([], [], [], []), telegram(), None
    while word != END:
        skill, probabilities = grammar.send(word)
        word = source.choices(list(probabilities), probabilities.values())[0]
        written.words.append(word)
        written.ids.append(IDS[word])
        written.log_probabilities.append(math.log(probabilities[word]))
        written.skills.append(skill)
    return written


def next_log_probabilities(prefix):
    """The true log-probabilities of the word that follows `prefix`, [V], nats, float64.

    `prefix` is the beginning of a telegram: a text, a list of words, or ids. A word that cannot
    come has -inf. Raises ValueError, with the place, if no telegram begins so, or if it has ended.
    """
    words = prefix.split() if isinstance(prefix, str) else prefix
    words = [word if isinstance(word, str) else decode([word]) for word in words]
    grammar = telegram()
    _, probabilities = next(grammar)
    for place, word in enumerate(words):
        if word not in probabilities:
            before, possible = " ".join(words[:place]), " or ".join(probabilities)
            raise ValueError(f"word {place} is {word}; after {before!r} only {possible} can come")
        if word == END:
            raise ValueError(f"the telegram ends with word {place}: no word can follow {END}")
        _, probabilities = grammar.send(word)
    result = torch.full([len(VOCABULARY)], -math.inf, dtype=torch.float64)  # [V]
    for word, probability in probabilities.items():
        result[IDS[word]] = math.log(probability)
    return result


def batch(count, seed):
    """`telegrams(count, seed)`, one a row, as ids and targets [B, T], T = LENGTH.

    The targets are the ids one place on; after the last, -100, which F.cross_entropy leaves out.
    """
    ids = torch.full([count, LENGTH], IDS[END])  # [B, T]
    targets = torch.full([count, LENGTH], -100)  # [B, T]
    for row, written in enumerate(telegrams(count, seed)):
        words = torch.tensor(written.ids)
        ids[row, : len(words) - 1] = words[:-1]
        targets[row, : len(words) - 1] = words[1:]
    return ids, targets
