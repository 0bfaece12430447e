"""The model is GPT-2: logits, gradients, causality, initialisation, the tie, bad input."""

import ast
import copy
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, random_ids, reference_model
from torch._subclasses import FakeTensorMode

import gpt2_helpers as gpt2


def ours_and_reference(config, dtype=torch.float32, seed=0):
    reference = reference_model(config, seed).to(dtype)
    ours = gpt2.load_openai_weights(gpt2.GPT2(config).to(dtype), reference.state_dict())
    return ours, reference


def loss_of(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


# ------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_transformers(config, tie_weights, seed):
    config = replace(config, tie_weights=tie_weights)
    ours, reference = ours_and_reference(config, seed=seed)
    for seq_len in (1, 2, config.n_positions):
        ids = random_ids(config, 3, seq_len, seed)
        torch.testing.assert_close(ours(ids), reference(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_logits_and_gradients_equal_transformers_in_float64(config, tie_weights):
    """Rounding is out of the way here: exact GELU or another eps is 1,000 times the tolerance."""
    config = replace(config, tie_weights=tie_weights)
    ours, reference = ours_and_reference(config, torch.float64)
    ids = random_ids(config)
    logits, expected = ours(ids), reference(ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=0)

    loss_of(logits, ids).backward()
    loss_of(expected, ids).backward()
    # The reference's gradients, carried to our names and layout by the loader.
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    carried = gpt2.load_openai_weights(gpt2.GPT2(config).double(), gradients)
    for (name, parameter), expected in zip(
        ours.named_parameters(), carried.parameters(), strict=True
    ):
        torch.testing.assert_close(
            parameter.grad, expected, atol=1e-9, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("tie_weights", [True, False])
def test_full_size_equals_transformers(tie_weights):
    config = gpt2.GPT2Config(tie_weights=tie_weights)
    ours, reference = ours_and_reference(config)
    ids = random_ids(config, 2, 64)
    logits, expected = ours(ids), reference(ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    loss_of(logits, ids).backward()
    loss_of(expected, ids).backward()
    for name, theirs in [
        ("wte.weight", reference.transformer.wte.weight.grad),
        ("wpe.weight", reference.transformer.wpe.weight.grad),
        ("blocks.0.attn.qkv.weight", reference.transformer.h[0].attn.c_attn.weight.grad.T),
        ("blocks.11.mlp.proj.weight", reference.transformer.h[11].mlp.c_proj.weight.grad.T),
        ("ln_f.weight", reference.transformer.ln_f.weight.grad),
    ]:
        gradient = ours.get_parameter(name).grad
        torch.testing.assert_close(gradient, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=0)


# ---------------------------------------------------------------------------- structure


def test_names():
    model = gpt2.GPT2(SMALL[1])
    block = ["ln_1.weight", "ln_1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight"]
    block += ["attn.proj.bias", "ln_2.weight", "ln_2.bias", "mlp.fc.weight", "mlp.fc.bias"]
    block += ["mlp.proj.weight", "mlp.proj.bias"]
    expected = ["wte.weight", "wpe.weight"]
    expected += [f"blocks.{i}.{name}" for i in range(3) for name in block]
    expected += ["ln_f.weight", "ln_f.bias", "unembed.weight"]
    assert list(model.state_dict()) == expected  # and no buffer: no mask in the checkpoint


def test_a_token_is_seen_by_itself_and_later_ones_only(config):
    model = ours_and_reference(config)[0].eval()
    ids = random_ids(config, 1)
    before = model(ids)
    for t in range(config.n_positions):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % config.vocab_size
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t], before[:, t])
        assert not torch.allclose(after[:, -1], before[:, -1])


def test_rows_of_a_batch_are_independent(config):
    model = ours_and_reference(config, torch.float64)[0]
    ids = random_ids(config, 3)
    alone = torch.cat([model(row) for row in ids.split(1)])
    torch.testing.assert_close(model(ids), alone, atol=1e-12, rtol=0)


def test_initialisation():
    config = gpt2.GPT2Config(vocab_size=3000, n_positions=500, n_embd=384, n_layer=6, n_head=6)
    torch.manual_seed(0)
    model = gpt2.GPT2(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert (parameter == 0).all(), name
        elif "ln_" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(12) if name.endswith("proj.weight") else 0.02
            # The standard error of a standard deviation of n normal numbers is s / sqrt(2n).
            n = parameter.numel()
            assert abs(parameter.std().item() / expected - 1) < 5 / math.sqrt(2 * n), name
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(n), name


def test_initialisation_repeats_with_a_seeded_generator():
    first, second = gpt2.GPT2(SMALL[0]), gpt2.GPT2(SMALL[0])
    for model in (first, second):
        model.init_weights(torch.Generator().manual_seed(3))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_loss_at_the_start_is_near_ln_v(full_size):
    ids, targets = gpt2.get_batch(1, 128)
    with torch.inference_mode():
        loss = F.cross_entropy(full_size(ids).flatten(0, 1), targets.flatten())
    assert abs(loss.item() - math.log(50257)) < 0.3


# ------------------------------------------------------------------------------- the tie


def tied(model):
    return model.unembed.weight is model.wte.weight


def test_untied_model_has_two_tables():
    model = gpt2.GPT2(replace(SMALL[0], tie_weights=False))
    assert not tied(model)
    assert model.unembed.weight.data_ptr() != model.wte.weight.data_ptr()


def test_tie_survives_moves_copies_and_checkpoints():
    model = gpt2.GPT2(SMALL[0])
    assert tied(model)
    assert tied(copy.deepcopy(model))
    assert tied(copy.deepcopy(model).to(torch.float64))
    assert tied(copy.deepcopy(model).bfloat16())
    fresh = gpt2.GPT2(SMALL[0])
    fresh.load_state_dict(model.state_dict())
    assert tied(fresh) and torch.equal(fresh.wte.weight, model.wte.weight)


def test_tie_after_meta_device():
    """`to_empty` makes every tensor anew and so breaks any tie; `init_weights` makes it again."""
    with torch.device("meta"):
        model = gpt2.GPT2(SMALL[0])
    assert tied(model)
    model.to_empty(device="cpu").init_weights()
    assert tied(model) and model.wte.weight.std() > 0


def test_tie_survives_training():
    torch.manual_seed(0)
    model = gpt2.GPT2(SMALL[0]).to(torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ids = random_ids(SMALL[0])
    before = model.wte.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model(ids), ids).backward()
        optimizer.step()
    assert tied(model)
    assert (model.unembed.weight - model.wte.weight).abs().max() == 0
    assert (model.wte.weight - before).abs().max() > 0.1


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.tensor([[3, 97]]), ValueError, "token id 97 is out of range.*0 to 96"),
        (torch.tensor([[3, -1]]), ValueError, "token id -1 is out of range.*0 to 96"),
        (torch.zeros(1, 17, dtype=torch.int64), ValueError, "17 tokens.*16 at most"),
        (torch.zeros(1, 4), TypeError, "whole numbers .*got torch.float32"),
        (torch.zeros(1, 4, dtype=torch.bool), TypeError, "whole numbers .*got torch.bool"),
        ([[1, 2]], TypeError, "whole numbers .*got list"),
        ("text", TypeError, "whole numbers .*got str"),
        (torch.tensor([1, 2]), ValueError, r"shape \[B, T\].*got \[2\].*unsqueeze"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), ValueError, r"got \[1, 2, 3\]$"),
        (torch.zeros(2, 0, dtype=torch.int64), ValueError, r"no ids.*\[2, 0\]: an empty text"),
        (torch.tensor([[]]), ValueError, r"no ids.*\[1, 0\]: an empty text"),
        (torch.zeros(1, 4, dtype=torch.int64, device="meta"), RuntimeError, "on meta.*on cpu"),
    ],
)
def test_bad_ids_are_refused_in_words(ids, error, message):
    model = gpt2.GPT2(SMALL[0])
    with pytest.raises(error, match=message):
        model(ids)


def test_int32_ids_are_fine():
    model, ids = gpt2.GPT2(SMALL[0]), random_ids(SMALL[0])
    assert torch.equal(model(ids.int()), model(ids))


def test_a_model_on_meta_takes_ids_on_meta():
    with torch.device("meta"):
        model, ids = gpt2.GPT2(SMALL[0]), torch.zeros(2, 5, dtype=torch.int64)
    assert model(ids).shape == (2, 5, 97)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_embd": 100, "n_head": 12}, "n_embd=100 .* n_head=12 heads"),
        ({"n_layer": 0}, "n_layer must be an int of at least 1, got 0"),
        ({"n_layer": True}, "n_layer must be an int of at least 1, got True"),
        ({"vocab_size": 5.5}, "vocab_size must be an int.*5.5"),
        ({"n_positions": "1024"}, "n_positions must be an int.*'1024'"),
        ({"tie_weights": "no"}, "tie_weights must be True or False, got 'no'"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        gpt2.GPT2Config(**sizes)


def test_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        gpt2.GPT2Config().n_embd = 5


# ----------------------------------------------------------------------------------- GPU


def test_no_value_is_read_in_forward():
    """On a GPU that would make Python wait; and fake tensors have none."""
    with FakeTensorMode():
        model = gpt2.GPT2(SMALL[0])
        assert model(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 97)
    exported = torch.export.export(gpt2.GPT2(SMALL[0]), (random_ids(SMALL[0]),))
    assert not any("local_scalar" in str(node.target) for node in exported.graph.nodes)


def test_a_model_maps_over_batches():
    model = gpt2.GPT2(SMALL[0])
    ids = torch.stack([random_ids(SMALL[0], seed=n) for n in range(3)])  # [3, B, T]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one kernel has no batched form, and runs three times
        mapped = torch.func.vmap(model)(ids)
    torch.testing.assert_close(mapped, torch.stack([model(batch) for batch in ids]))


def test_a_compiled_model_gives_the_same_logits():
    """The range check must not break the graph."""
    model, ids = gpt2.GPT2(SMALL[0]), random_ids(SMALL[0])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), model(ids))


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs a GPU")
def test_logits_on_the_gpu_equal_those_on_the_cpu(full_size):
    device, ids = gpt2.pick_device(), gpt2.get_batch(1, 256)[0]
    moved = copy.deepcopy(full_size).to(device)
    assert tied(moved)
    with torch.inference_mode():
        expected, logits = full_size(ids), moved(ids.to(device)).cpu()
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)


def test_the_helper_imports_no_plotting_and_no_measuring():
    """Who only wants the model waits for torch and tiktoken, and for nothing else."""
    code = "import sys, gpt2_helpers; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"matplotlib", "psutil", "pandas", "IPython"} & set(modules)


# ------------------------------------------------------------- what notebook 4 itself defines


@pytest.fixture(scope="module")
def sample():
    """The function of its section 8."""
    path = Path(__file__).resolve().parent.parent / "notebooks" / "04_gpt2_model.ipynb"
    cells = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
    function = next(
        node
        for node in ast.parse(cells["torch-inference-mode"]).body
        if isinstance(node, ast.FunctionDef)
    )
    names = {"torch": torch, "F": F}
    exec(ast.unparse(function), names)
    return names["sample"]


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0])
def test_a_temperature_that_cannot_be_is_not_the_models_fault(sample, temperature):
    with pytest.raises(ValueError, match="temperature must be above 0; top_k=1"):
        sample(gpt2.GPT2(SMALL[0]), random_ids(SMALL[0], 1), 2, temperature)


def test_logits_that_are_nan_write_no_text(sample):
    model = gpt2.GPT2(SMALL[0])
    with torch.no_grad():
        model.ln_f.bias[0] = torch.nan
    with pytest.raises(ValueError, match="logits are nan"):
        sample(model, random_ids(SMALL[0], 1), 2)


def test_a_text_longer_than_the_model_has_positions_for_goes_on(sample):
    ids = torch.zeros(1, SMALL[0].n_positions + 3, dtype=torch.int64)
    assert sample(gpt2.GPT2(SMALL[0]), ids, 2, top_k=1).shape == (1, SMALL[0].n_positions + 5)
