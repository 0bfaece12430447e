"""The tokenizer is GPT-2's: the same ids as the byte-level BPE of `tokenizers`."""

import json
import random

import pytest
import torch
from tokenizers import AddedToken, ByteLevelBPETokenizer
from transformers import GPT2TokenizerFast

import gpt2_helpers as gpt2

END = "<|endoftext|>"
HOSTILE = [
    "",
    " ",
    "   \n\n\t\t  ",
    "\tif x:\r\n\t\treturn  y  \n",
    "Tiếng Việt: Trời xanh thẳm, những áng mây trôi lững lờ.",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☃",
    "don't we'll THEY'RE I'd 've 'S",
    "1234567890 3.14159 ½ ² Ⅷ",
    "中文，日本語、한국어 العربية עברית",
    "e\u0301 é \u200b\u00a0\u3000 \ufeff \x00 \x7f",
    "a" * 300 + " " * 300 + "!" * 300,
    f"before{END}after {END}",
    "naïve café — “quotes” … ‘single’",
    "\U0001d518\U0010ffff",
]


@pytest.fixture(scope="module")
def tokenizer():
    return gpt2.get_tokenizer()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Built by `tokenizers` from the same merges, the vocabulary numbered by the published rule."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges_file = gpt2.DATA / "vocab.bpe"
    merges = merges_file.read_text(encoding="utf-8").splitlines()[1:]
    vocabulary = [*bytes_to_unicode().values(), *(m.replace(" ", "") for m in merges), END]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.json"
    path.write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    return ByteLevelBPETokenizer(str(path), str(merges_file))


def test_vocabulary_size(tokenizer):
    assert tokenizer.n_vocab == 50257 == 256 + 50000 + 1
    assert tokenizer.eot_token == 50256


def test_known_ids(tokenizer):
    """OpenAI's own examples, from the documentation of tiktoken."""
    assert tokenizer.encode("hello world") == [31373, 995]
    assert tokenizer.encode(END) == [27, 91, 437, 1659, 5239, 91, 29]


@pytest.mark.parametrize("text", [*HOSTILE, gpt2.get_text()], ids=lambda text: repr(text[:12]))
def test_same_ids_as_the_reference(tokenizer, reference, text):
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_ordinary(text) == ids


def test_same_ids_as_the_reference_on_random_text(tokenizer, reference):
    random.seed(0)
    characters = [chr(c) for c in (*range(0xD800), *range(0xE000, 0x11000))]
    for _ in range(300):
        text = "".join(random.choices(characters, k=20) + random.choices("ab '\n1!", k=20))
        assert tokenizer.encode(text) == reference.encode(text).ids


def test_endoftext_as_one_special_token(tokenizer, reference):
    reference.add_special_tokens([AddedToken(END, special=True)])
    text = f"one{END} two"
    ids = tokenizer.encode(text, allowed_special={END})
    assert ids == reference.encode(text).ids
    assert ids.count(50256) == 1
    assert tokenizer.decode(ids) == text


def test_every_door_takes_endoftext_for_text(tokenizer):
    text, plain = f"one{END}", [505, 27, 91, 437, 1659, 5239, 91, 29]
    assert tokenizer.encode(text) == tokenizer.encode_ordinary(text) == plain
    assert tokenizer.encode_batch([text, text]) == [plain, plain]
    assert tokenizer.encode_ordinary_batch([text]) == [plain]
    assert tokenizer.encode_to_numpy(text).tolist() == plain


@pytest.mark.parametrize("character", [" ", "a", "!", "7", "\n"])
def test_a_million_of_one_character(tokenizer, character):
    text = "a" + 10**6 * character
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_all_special_tokens_may_be_allowed(tokenizer):
    assert tokenizer.encode(f"a{END}", allowed_special="all") == [64, 50256]


@pytest.mark.parametrize("text", [None, b"bytes", 5])
def test_what_is_no_text_is_refused(tokenizer, text):
    with pytest.raises(TypeError, match=f"must be a str, got {type(text).__name__}"):
        tokenizer.encode(text)


def test_transformers_agrees(tokenizer, tmp_path):
    """transformers' GPT2TokenizerFast needs a vocabulary file; ours, written out, serves it."""
    merges = (gpt2.DATA / "vocab.bpe").read_text(encoding="utf-8")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    visible = bytes_to_unicode()
    vocabulary = {
        "".join(visible[b] for b in tokenizer.decode_single_token_bytes(i)): i for i in range(50256)
    } | {END: 50256}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    theirs = GPT2TokenizerFast.from_pretrained(tmp_path)
    for text in [text for text in HOSTILE if END not in text] + [gpt2.get_text()]:
        assert tokenizer.encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("text", ["\ud800", "fine until here \udfff", "\ude00\ud83d"])
def test_lone_surrogates_are_refused(tokenizer, text):
    for encode in (tokenizer.encode, tokenizer.encode_ordinary):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            encode(text)


def test_pieces(tokenizer):
    text = "Odile Brännström 👍"
    pieces = tokenizer.pieces(tokenizer.encode(text))
    assert pieces[:5] == ["O", "d", "ile", " Br", "ä"]
    assert "\\x" in "".join(pieces)  # the emoji's bytes are spread over several tokens
    assert tokenizer.pieces(torch.tensor([50256])) == [END]


def test_a_changed_merges_file_is_refused(tmp_path):
    path = tmp_path / "vocab.bpe"
    path.write_bytes((gpt2.DATA / "vocab.bpe").read_bytes().replace(b"t he", b"h te", 1))
    with pytest.raises(ValueError, match="not GPT-2's merges file"):
        gpt2.get_tokenizer(path)


def test_the_story_fills_one_batch(tokenizer):
    tokens = tokenizer.encode(gpt2.get_text())
    assert len(tokens) >= 8 * 1024 + 1
    ids, targets = gpt2.get_batch()
    assert ids.shape == targets.shape == (8, 1024)
    assert ids.flatten().tolist() == tokens[:8192]
    assert targets.flatten().tolist() == tokens[1:8193]
    assert torch.equal(ids[:, 1:], targets[:, :-1])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((9, 1024), "a batch of 9 x 1024 needs 9,217 tokens .* the story has 8,308"),
        ((8, 1040), "needs 8,321 tokens"),
        ((0, 4), "sizes of at least 1, got 0 x 4"),
        ((2, -1), "sizes of at least 1, got 2 x -1"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        gpt2.get_batch(*shape)


@pytest.mark.parametrize("make", [list, tuple, torch.tensor, iter])
def test_ids_of_any_kind_become_text(tokenizer, make):
    ids = tokenizer.encode("Odile Brännström 👍")
    assert tokenizer.decode(make(ids)) == "Odile Brännström 👍"
    assert tokenizer.decode(make(ids[:-1])).endswith("\ufffd")  # half a character
    assert tokenizer.pieces(make(ids)) == [tokenizer.decode([i], "backslashreplace") for i in ids]


@pytest.mark.parametrize("id", [-100, -1, 50257, 2**70])
def test_what_is_no_id_is_refused(tokenizer, id):
    for read in (tokenizer.decode, tokenizer.pieces):
        with pytest.raises(ValueError, match=f"{id} is no token id: GPT-2 has 0 to 50256"):
            read([464, id])


@pytest.mark.parametrize("ids", [[464, 1.7], torch.tensor([0.3, 2.0]), torch.tensor([[464, 3290]])])
def test_what_is_no_row_of_whole_numbers_is_refused(tokenizer, ids):
    """Logits in place of ids, or a batch."""
    for read in (tokenizer.decode, tokenizer.pieces):
        with pytest.raises(TypeError, match="integer"):
            read(ids)
