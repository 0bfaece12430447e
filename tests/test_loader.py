"""`load_openai_weights`: right checkpoints load, damaged ones are refused and change nothing."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import SMALL, random_ids, reference_model
from safetensors import SafetensorError
from safetensors.torch import load_file

import gpt2_helpers as gpt2

CONFIG = SMALL[1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint as `transformers` saves it, and the model it was saved from."""
    folder = tmp_path_factory.mktemp("checkpoint")
    reference = reference_model(CONFIG)
    reference.save_pretrained(folder)
    return folder / "model.safetensors", reference


def expect_refusal(state_dict, message, config=CONFIG):
    model = gpt2.GPT2(config)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        gpt2.load_openai_weights(model, state_dict)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed by a load that failed"


def test_a_saved_checkpoint(saved):
    path, reference = saved
    model = gpt2.GPT2(CONFIG)
    assert gpt2.load_openai_weights(model, load_file(path)) is model
    ids = random_ids(CONFIG)
    torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-4, rtol=0)
    assert model.unembed.weight is model.wte.weight


def test_from_pretrained_as_the_notebook_does_it(saved):
    from transformers import GPT2LMHeadModel

    path, reference = saved
    pretrained = GPT2LMHeadModel.from_pretrained(path.parent)
    model = gpt2.load_openai_weights(gpt2.GPT2(CONFIG), pretrained.state_dict())
    ids = random_ids(CONFIG)
    torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-4, rtol=0)


def test_the_names_of_openais_file(saved):
    """Without "transformer." and the head, with the masks that the published file still has."""
    path, reference = saved
    state = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    state.pop("lm_head.weight", None)
    for i in range(CONFIG.n_layer):
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 33, 33).tril()
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    ids = random_ids(CONFIG)
    for tie_weights in (True, False):
        model = gpt2.GPT2(replace(CONFIG, tie_weights=tie_weights))
        gpt2.load_openai_weights(model, state)
        torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-4, rtol=0)


def test_the_callers_dictionary_is_left_alone(saved):
    state = load_file(saved[0])
    names = list(state)
    gpt2.load_openai_weights(gpt2.GPT2(CONFIG), state)
    assert list(state) == names


def test_a_half_precision_checkpoint(saved):
    state = {name: tensor.half() for name, tensor in load_file(saved[0]).items()}
    model = gpt2.load_openai_weights(gpt2.GPT2(CONFIG), state)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.wpe.weight, state["transformer.wpe.weight"].float())


@pytest.mark.parametrize(
    "name", ["transformer.wte.weight", "transformer.h.2.mlp.c_fc.bias", "transformer.ln_f.weight"]
)
def test_missing_tensor(saved, name):
    state = load_file(saved[0])
    del state[name]
    expect_refusal(state, f"no tensor named '{name.removeprefix('transformer.')}'")


def test_extra_tensor(saved):
    state = load_file(saved[0]) | {"transformer.h.3.ln_1.weight": torch.ones(48)}
    expect_refusal(state, r"no place for: \['h.3.ln_1.weight'\]")


def test_wrong_shape(saved):
    state = load_file(saved[0])
    state["transformer.wpe.weight"] = torch.zeros(34, 48)
    expect_refusal(state, r"'wpe.weight' does not fit.*\[33, 48\].*\[34, 48\]")


def test_the_checkpoint_of_another_size():
    expect_refusal(reference_model(SMALL[2]).state_dict(), "'wte.weight' does not fit")


def test_layers_as_nn_linear_stores_them(saved):
    state = load_file(saved[0])
    for name in state:
        if ".c_" in name and name.endswith("weight"):
            state[name] = state[name].T
    expect_refusal(state, r"c_attn.weight' does not fit.*\[144, 48\].*\[48, 144\]")


def test_a_square_matrix_the_wrong_way_round_shows_in_the_logits(saved):
    """Its shape is right, so it loads; that is why parity is tested and not only shapes."""
    path, reference = saved
    state = load_file(path)
    name = "transformer.h.0.attn.c_proj.weight"
    state[name] = state[name].T.contiguous()
    model = gpt2.load_openai_weights(gpt2.GPT2(CONFIG), state)
    ids = random_ids(CONFIG)
    assert (model(ids) - reference(ids).logits).abs().max() > 0.01


def test_truncated_file(saved, tmp_path):
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(saved[0].read_bytes()[:-1000])
    model = gpt2.GPT2(CONFIG)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SafetensorError):
        gpt2.load_openai_weights(model, load_file(broken))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_an_untied_checkpoint_needs_an_untied_model():
    untied = replace(CONFIG, tie_weights=False)
    reference = reference_model(untied)
    expect_refusal(reference.state_dict(), "'lm_head.weight' differs .* tie_weights=False")
    model = gpt2.load_openai_weights(gpt2.GPT2(untied), reference.state_dict())
    assert torch.equal(model.unembed.weight, reference.lm_head.weight)


def test_meta_tensors_are_refused(saved):
    state = load_file(saved[0])
    expect_refusal(state | {"transformer.ln_f.bias": torch.zeros(48, device="meta")}, "meta")
    with torch.device("meta"):
        model = gpt2.GPT2(CONFIG)
    with pytest.raises(ValueError, match="meta device"):
        gpt2.load_openai_weights(model, state)
