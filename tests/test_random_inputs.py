"""A random search over inputs: whatever comes in, the right result or an error in words comes out.

`make test` runs a few seconds of it, the same each time. For longer, and with new inputs each time:
RANDOM_INPUTS=20000 python -m pytest tests/test_random_inputs.py
"""

import os

import pytest
import torch
from conftest import reference_model
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_timings import records
from test_tokenizer import reference, tokenizer  # noqa: F401 (fixtures)

import gpt2_helpers as gpt2
from timing_helpers import COLUMNS, read_timings, save_timings

ASKED = os.environ.get("RANDOM_INPUTS")


def search(examples):
    """Decorate a test with so many random examples, or with as many as were asked for."""
    return settings(
        max_examples=int(ASKED or examples),
        derandomize=ASKED is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


words = st.sampled_from(
    ["the", " mule", "'s", "'", " ", "  ", "\n", "\t", "7", "½", "é", "日", "👍🏽"]
)
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(words, max_size=30).map("".join),
    st.builds(lambda c, n, rest: c * n + rest, words, st.integers(0, 3000), words),
)


@search(300)
@given(texts)
@example(" " * 3000 + "x")
def test_text_becomes_ids_and_text_again(tokenizer, reference, text):  # noqa: F811
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, text]) == [ids, ids]
    assert tokenizer.encode_to_numpy(text).tolist() == tokenizer.encode_ordinary(text) == ids
    assert "".join(tokenizer.pieces(ids)).count("\\x") or "".join(tokenizer.pieces(ids)) == text


@search(300)
@given(st.text(st.characters()))
def test_half_a_character_is_refused_by_every_door(tokenizer, text):  # noqa: F811
    for encode in (tokenizer.encode, tokenizer.encode_ordinary, tokenizer.encode_to_numpy):
        try:
            encode(text)
        except ValueError as error:
            assert "half of a surrogate pair" in str(error)
            assert any("\ud800" <= c <= "\udfff" for c in text)
        else:
            assert not any("\ud800" <= c <= "\udfff" for c in text)


CONFIG = gpt2.GPT2Config(vocab_size=13, n_positions=5, n_embd=6, n_layer=1, n_head=2)
CHECKPOINT = reference_model(CONFIG).state_dict()
changes = st.lists(
    st.tuples(
        st.sampled_from(["drop", "rename", "transpose", "cut", "meta", "prefix"]),
        st.sampled_from(sorted(CHECKPOINT)),
    ),
    max_size=3,
)


def changed(kind, name, checkpoint):
    tensor = checkpoint.pop(name, None)
    if tensor is None or kind == "drop":
        return checkpoint
    name = {"rename": f"{name}_", "prefix": f"_orig_mod.{name}"}.get(kind, name)
    change = {
        "transpose": lambda t: t.T if t.ndim == 2 else t,
        "cut": lambda t: t[1:],
        "meta": lambda t: t.to("meta"),
    }.get(kind, lambda t: t)
    return checkpoint | {name: change(tensor)}


@search(150)
@given(changes)
def test_a_checkpoint_loads_whole_or_leaves_the_model_as_it_was(kinds):
    checkpoint = dict(CHECKPOINT)
    for kind, name in kinds:
        checkpoint = changed(kind, name, checkpoint)
    model = gpt2.GPT2(CONFIG)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    try:
        gpt2.load_openai_weights(model, checkpoint)
    except ValueError as error:
        assert str(error)
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    else:
        assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert model.unembed.weight is model.wte.weight


names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1)
seconds = st.floats(1e-9, 1e6)
plain = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]))


def a_timing(machine, note, experiment, times, batch):
    low, middle, high = (float(f"{seconds:.6g}") for seconds in sorted(times))
    row = {"source": "measured", "device": "cpu", "machine": machine, "threads": 2}
    row |= {"versions": "torch", "model": "gpt2", "dtype": "float32", "note": note}
    row |= {"batch_size": batch[0], "seq_len": batch[1], "experiment": experiment, "repeats": 3}
    return row | {"low_s": low, "median_s": middle, "high_s": high, "date": "2026-11-25"}


timings = st.builds(
    a_timing,
    names,
    plain,
    names,
    st.tuples(seconds, seconds, seconds),
    st.tuples(st.integers(0, 99), st.integers(0, 2048)),
)


@search(100)
@given(rows=st.lists(timings, min_size=1, max_size=4))
@example(rows=[a_timing("m", " ", "e", (1.0, 1.0, 1.0), (0, 0))])  # a blank at the very end
def test_a_table_of_timings_is_read_as_it_was_saved(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("timings") / "mine.csv"
    save_timings(path, rows)
    assert records(read_timings(path)) == [{name: row[name] for name in COLUMNS} for row in rows]


@search(200)
@given(place=st.integers(0, 10**4), gone=st.integers(0, 40), put=st.binary(max_size=5))
def test_a_damaged_table_is_refused_with_its_line_or_still_makes_sense(
    tmp_path_factory, place, gone, put
):
    content = (gpt2.DATA / "reference_timings.csv").read_bytes()
    place %= len(content)
    path = tmp_path_factory.mktemp("timings") / "class.csv"
    path.write_bytes(content[:place] + put + content[place + gone :])
    try:
        table = read_timings(path)
    except ValueError as error:
        assert str(error).startswith("class.csv, line ")
    else:
        assert (table.low_s > 0).all() and (table.low_s <= table.high_s).all()


@search(100)
@given(st.integers(-3, 12), st.one_of(st.integers(-3, 40), st.integers(900, 2000)))
def test_a_batch_is_the_text_or_a_sentence(B, T):
    if B < 1 or T < 1 or B * T + 1 > 8308:
        with pytest.raises(ValueError, match="a batch"):
            gpt2.get_batch(B, T)
        return
    ids, targets = gpt2.get_batch(B, T)
    assert ids.shape == targets.shape == (B, T) and ids.is_contiguous()
    assert torch.equal(ids.flatten()[1:], targets.flatten()[:-1])
