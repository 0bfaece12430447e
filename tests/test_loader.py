"""Checkpoints: right ones load, damaged ones are refused and change nothing; saving; the tie."""

import copy
import io
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from conftest import SMALL, random_ids, reference_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

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
    ours = {"transformer.h.2.mlp.c_fc.bias": "blocks.2.mlp.fc.bias"}
    expect_refusal(state, f"nothing for .*{ours.get(name, name.removeprefix('transformer.'))}")


def test_extra_tensor(saved):
    state = load_file(saved[0]) | {"transformer.h.3.ln_1.weight": torch.ones(48)}
    expect_refusal(state, "no place for: blocks.3.ln_1.weight")


def test_wrong_shape(saved):
    state = load_file(saved[0])
    state["transformer.wpe.weight"] = torch.zeros(34, 48)
    expect_refusal(state, r"wpe.weight does not fit.*\[33, 48\].*\[34, 48\]")


def test_the_checkpoint_of_another_size():
    expect_refusal(reference_model(SMALL[2]).state_dict(), "has nothing for the model.s blocks.2")


def test_layers_as_nn_linear_stores_them(saved):
    state = load_file(saved[0])
    for name in state:
        if ".c_" in name and name.endswith("weight"):
            state[name] = state[name].T
    expect_refusal(state, r"qkv.weight does not fit.*\[144, 48\].*\[48, 144\]")


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
    expect_refusal(
        reference.state_dict(),
        "another unembedding, but this model ties the two: .*tie_weights=False",
    )
    model = gpt2.load_openai_weights(gpt2.GPT2(untied), reference.state_dict())
    assert torch.equal(model.unembed.weight, reference.lm_head.weight)


def test_meta_tensors_are_refused(saved):
    state = load_file(saved[0])
    expect_refusal(state | {"transformer.ln_f.bias": torch.zeros(48, device="meta")}, "meta")
    with torch.device("meta"):
        model = gpt2.GPT2(CONFIG)
    with pytest.raises(ValueError, match="meta device"):
        gpt2.load_openai_weights(model, state)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.transformer."])
def test_what_compile_and_parallel_training_put_in_front_of_names(saved, prefix):
    state = {name.removeprefix("transformer."): t for name, t in load_file(saved[0]).items()}
    plain = gpt2.load_openai_weights(gpt2.GPT2(CONFIG), state)
    named = {prefix + name: tensor for name, tensor in state.items()}
    other = gpt2.load_openai_weights(gpt2.GPT2(CONFIG), named)
    assert all(map(torch.equal, plain.parameters(), other.parameters()))


# ------------------------------------------------------------- every door leads to one table


def two_copies(model):
    """A state dict in which a shared table stands twice, as files have it."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def through_pickle(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded(model, **options):
    other = gpt2.GPT2(model.config)
    other.load_state_dict(two_copies(model), **options)
    return other


DOORS = {
    "load_state_dict": loaded,
    "load_state_dict, assign": lambda model: loaded(model, assign=True),
    "as a part of another module": lambda model: as_a_part(model),
    "to_empty, then loaded": lambda model: load_into(empty_model(), model),
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "to and back": lambda model: copy.deepcopy(model).to(torch.float64).to(torch.float32),
    "compile": lambda model: torch.compile(copy.deepcopy(model), backend="eager")._orig_mod,
}


def as_a_part(model):
    outer = torch.nn.ModuleDict({"gpt2": gpt2.GPT2(model.config)})
    outer.load_state_dict({f"gpt2.{k}": v for k, v in two_copies(model).items()}, assign=True)
    return outer["gpt2"]


def load_into(other, model):
    other.load_state_dict(two_copies(model))
    return other


@pytest.mark.parametrize("door", DOORS)
def test_the_tie_comes_through_every_door(door):
    model = gpt2.GPT2(CONFIG)
    other = DOORS[door](model)
    assert other.unembed.weight is other.wte.weight
    assert sum(p.numel() for p in other.parameters()) == sum(p.numel() for p in model.parameters())
    assert torch.equal(other(random_ids(CONFIG)), model(random_ids(CONFIG)))


@pytest.mark.parametrize("options", [{}, {"assign": True}, {"strict": False}])
def test_two_different_tables_are_refused_and_nothing_is_changed(options):
    model = gpt2.GPT2(CONFIG)
    before, state = two_copies(model), two_copies(gpt2.GPT2(CONFIG))
    state["unembed.weight"] += 1
    with pytest.raises(ValueError, match="another unembedding, but this model ties the two"):
        model.load_state_dict(state, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def empty_model():
    """A model on the CPU whose tie `to_empty` has broken."""
    with torch.device("meta"):
        model = gpt2.GPT2(CONFIG)
    return model.to_empty(device="cpu")


def test_two_different_tables_are_refused_by_a_model_whose_tie_is_broken():
    state = two_copies(gpt2.GPT2(CONFIG))
    state["unembed.weight"] += 1
    with pytest.raises(ValueError, match="another unembedding, but this model ties the two"):
        empty_model().load_state_dict(state)
    untied = reference_model(replace(CONFIG, tie_weights=False)).state_dict()
    with pytest.raises(ValueError, match="another unembedding, but this model ties the two"):
        gpt2.load_openai_weights(empty_model(), untied)


def test_shapes_without_numbers_load():
    with torch.device("meta"):
        model, other = gpt2.GPT2(CONFIG), gpt2.GPT2(CONFIG)
    model.load_state_dict(other.state_dict(), assign=True)
    assert model.unembed.weight is model.wte.weight


@pytest.mark.parametrize("make", [lambda: gpt2.GPT2(CONFIG), empty_model])
def test_one_table_is_enough(make):
    model, state = make(), two_copies(gpt2.GPT2(CONFIG))
    del state["unembed.weight"]
    model.load_state_dict(state)
    assert torch.equal(model.unembed.weight, state["wte.weight"])


@pytest.mark.parametrize("tie_weights", [True, False])
def test_a_file_of_safetensors_own_function_loads(tie_weights, tmp_path):
    """It keeps a shared table under one of its names only, and not under the one that ours keeps.

    Its `load_model` is no way back: it counts the name that the file lacks as unexpected.
    """
    path, config = tmp_path / "model.safetensors", replace(CONFIG, tie_weights=tie_weights)
    model, other = gpt2.GPT2(config), gpt2.GPT2(config)
    safetensors.torch.save_model(model, path)
    for load in [other.load_state_dict, lambda state: gpt2.load_openai_weights(other, state)]:
        other.init_weights()
        load(load_file(path))
        assert all(map(torch.equal, model.parameters(), other.parameters()))
        assert (other.unembed.weight is other.wte.weight) == tie_weights


@pytest.mark.parametrize("options", [{}, {"strict": False}, {"strict": False, "assign": True}])
@pytest.mark.parametrize("name", ["wte.weight", "unembed.weight"])
@pytest.mark.parametrize("make", [lambda: gpt2.GPT2(CONFIG), empty_model])
def test_one_table_under_either_name_is_the_table(make, name, options):
    model, state = make(), two_copies(gpt2.GPT2(CONFIG))
    table = state.pop(name)
    model.load_state_dict(state, **options)
    assert model.unembed.weight is model.wte.weight and torch.equal(model.wte.weight, table)


@pytest.mark.parametrize("kept", ["transformer.wte.weight", "lm_head.weight"])
def test_a_published_checkpoint_needs_one_of_its_two_tables(saved, kept):
    """`safetensors.torch.save_model(GPT2LMHeadModel)` keeps the other one than transformers."""
    state = dict(saved[1].state_dict())
    both = gpt2.load_openai_weights(gpt2.GPT2(CONFIG), state)
    for name in {"transformer.wte.weight", "lm_head.weight"} - {kept}:
        del state[name]
    one = gpt2.load_openai_weights(gpt2.GPT2(CONFIG), state)
    assert all(map(torch.equal, both.parameters(), one.parameters()))


def test_a_table_with_nan_is_no_other_table():
    """The weights of a training that went wrong can be loaded, and looked at."""
    model, state = gpt2.GPT2(CONFIG), two_copies(gpt2.GPT2(CONFIG))
    state["wte.weight"][3, 5] = state["unembed.weight"][3, 5] = torch.nan
    model.load_state_dict(state)
    assert model.wte.weight.isnan().sum() == 1
    state["unembed.weight"] += 1
    with pytest.raises(ValueError, match="another unembedding"):
        model.load_state_dict(state)


# ------------------------------------------------------------------------ saving and loading


@pytest.mark.parametrize("tie_weights", [True, False])
def test_a_saved_model_comes_back(tie_weights, tmp_path):
    path = tmp_path / "a folder, ä" / "model.safetensors"
    path.parent.mkdir()
    model = gpt2.GPT2(replace(CONFIG, tie_weights=tie_weights)).to(torch.bfloat16)
    gpt2.save_model(path, gpt2.GPT2(CONFIG))
    gpt2.save_model(path, model)  # a second one replaces the first
    other = gpt2.load_model(path)
    assert other.config == model.config
    assert (other.unembed.weight is other.wte.weight) == tie_weights
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype, name
        assert theirs.requires_grad, name
    assert ("unembed.weight" in load_file(path)) != tie_weights
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_a_save_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    gpt2.save_model(path, gpt2.GPT2(CONFIG))
    before = path.read_bytes()

    def break_off(*paths):
        raise OSError("no space left")

    monkeypatch.setattr(gpt2.os, "replace", break_off)
    with pytest.raises(OSError, match="no space"):
        gpt2.save_model(path, gpt2.GPT2(SMALL[0]))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def foreign(path):
    save_file({"x": torch.zeros(2)}, path)


def another_size(path):
    model = gpt2.GPT2(CONFIG)
    model.config = replace(CONFIG, n_positions=7)
    gpt2.save_model(path, model)


def a_part_is_missing(path):
    model = gpt2.GPT2(CONFIG)
    del model.ln_f
    gpt2.save_model(path, model)


@pytest.mark.parametrize(
    "make",
    [foreign, another_size, a_part_is_missing, lambda path: path.write_bytes(b"years of work")],
)
def test_a_damaged_or_foreign_file_is_refused(make, tmp_path):
    path = tmp_path / "model.safetensors"
    make(path)
    with pytest.raises(ValueError, match="model.safetensors is damaged, or was not written by"):
        gpt2.load_model(path)


def test_half_a_file_is_refused_and_none_is_not_found(tmp_path):
    path = tmp_path / "model.safetensors"
    gpt2.save_model(path, gpt2.GPT2(CONFIG))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        gpt2.load_model(path)
    with pytest.raises(FileNotFoundError):
        gpt2.load_model(tmp_path / "nothing.safetensors")


def compiled_blocks(model):
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend="eager")
    return model


@pytest.mark.parametrize(
    "wrap", [lambda model: torch.compile(model, backend="eager"), compiled_blocks]
)
def test_a_compiled_model_can_be_saved(wrap, tmp_path):
    path = tmp_path / "model.safetensors"
    model = gpt2.GPT2(CONFIG)
    gpt2.save_model(path, wrap(copy.deepcopy(model)))
    assert torch.equal(gpt2.load_model(path)(random_ids(CONFIG)), model(random_ids(CONFIG)))


def test_a_saved_file_is_like_any_other_file(tmp_path):
    """Others may read it as the system's rules say, and a link stays a link."""
    path, link, other = (tmp_path / name for name in ("model.st", "link.st", "other"))
    other.touch()
    link.symlink_to(path)
    gpt2.save_model(link, gpt2.GPT2(CONFIG))
    assert link.is_symlink() and gpt2.load_model(path).config == CONFIG
    assert path.stat().st_mode == other.stat().st_mode


def test_where_nothing_can_be_written_it_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        gpt2.save_model(tmp_path / "no folder" / "model.safetensors", gpt2.GPT2(CONFIG))


def test_a_device_that_is_not_there_is_not_the_files_fault(tmp_path):
    path = tmp_path / "model.safetensors"
    gpt2.save_model(path, gpt2.GPT2(CONFIG))
    for device in ["no device", "cuda:99"]:
        with pytest.raises((RuntimeError, AssertionError)) as refused:
            gpt2.load_model(path, device)
        assert "damaged" not in str(refused.value)
