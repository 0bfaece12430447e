"""The formulas for parameters, FLOPs and memory against counting; the stopwatch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, random_ids
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import gpt2_helpers as gpt2
from timing_helpers import kept_for_backward

PUBLISHED = {  # layers, heads, width
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
ALL_SIZES = [*gpt2.GPT2_CONFIGS.values(), *SMALL]


def on_meta(config):
    with torch.device("meta"):
        return gpt2.GPT2(config)


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("config", ALL_SIZES, ids=str)
def test_parameter_counts(config, tie_weights):
    config = replace(config, tie_weights=tie_weights)
    model, counts = on_meta(config), gpt2.parameter_counts(config)
    for part in ("wte", "wpe", "blocks", "ln_f"):
        assert counts[part] == sum(p.numel() for p in model.get_submodule(part).parameters())
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "tied", "untied", "block"),
    [
        ("gpt2", 124_439_808, 163_037_184, 7_087_872),
        ("gpt2-medium", 354_823_168, 406_286_336, 12_596_224),
        ("gpt2-large", 774_030_080, 838_359_040, 19_677_440),
        ("gpt2-xl", 1_557_611_200, 1_638_022_400, 30_740_800),
    ],
)
def test_published_sizes(name, tied, untied, block):
    config = gpt2.GPT2_CONFIGS[name]
    # Heads change no count and no shape, so they are compared by themselves.
    sizes = (config.n_layer, config.n_head, config.n_embd, config.vocab_size, config.n_positions)
    assert sizes == (*PUBLISHED[name], 50257, 1024)
    assert config.n_embd // config.n_head == 64
    counts = gpt2.parameter_counts(config)
    assert sum(counts.values()) == tied
    assert sum(gpt2.parameter_counts(replace(config, tie_weights=False)).values()) == untied
    assert counts["blocks"] == config.n_layer * block


@pytest.mark.parametrize("config", ALL_SIZES, ids=str)
def test_forward_flops(config):
    """Counted by PyTorch on the meta device; its counter misses the CPU's fused attention."""
    shape = (2, min(config.n_positions, 1024))
    model = on_meta(config)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model(torch.zeros(shape, dtype=torch.int64, device="meta"))
    assert counter.get_total_flops() == gpt2.forward_flops(config, *shape)


def test_forward_flops_of_the_lecture():
    flops = gpt2.forward_flops(gpt2.GPT2_CONFIGS["gpt2"], 8, 1024)
    assert round(flops / 1e12, 2) == 2.33


def test_backward_takes_twice_the_forward():
    config = SMALL[1]
    model, ids = gpt2.GPT2(config), random_ids(config)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(ids).sum().backward()
    expected = 3 * gpt2.forward_flops(config, *ids.shape)
    assert counter.get_total_flops() == expected


def test_activation_memory():
    """What autograd saves for the backward pass, storage by storage, against the formula."""
    config = gpt2.GPT2Config(vocab_size=211, n_positions=64, n_embd=128, n_layer=3, n_head=4)
    model, ids = gpt2.GPT2(config), random_ids(config, 2, 64)
    kept = kept_for_backward(lambda: F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()))
    memory = gpt2.training_memory(config, 2, 64)
    weights = [  # a lookup and the bias of a sum need not be kept
        parameter.nbytes
        for name, parameter in model.named_parameters()
        if name != "wpe.weight" and not name.endswith(".bias")
    ]
    measured = kept - sum(weights)
    expected = memory["activations"] + memory["logits"] / 4  # kept: the log-probabilities
    assert abs(measured / expected - 1) < 0.01


def test_kept_for_backward_counts_shared_memory_once():
    weight = torch.randn(50, 50, requires_grad=True)
    x = torch.randn(10, 50)
    assert kept_for_backward(lambda: x @ weight) == x.nbytes
    assert kept_for_backward(lambda: (x @ weight, x[:5] @ weight)) == x.nbytes
    assert kept_for_backward(lambda: x * 2) == 0
    assert kept_for_backward(lambda: x @ weight, without=[x]) == 0


def test_kept_for_backward_refuses_the_meta_device():
    weight = torch.randn(5, 5, device="meta", requires_grad=True)
    with pytest.raises(ValueError, match="meta device take no memory"):
        kept_for_backward(lambda: weight @ weight)


def test_weights_gradients_and_optimizer_state():
    config = SMALL[1]
    model, ids = gpt2.GPT2(config), random_ids(config)
    optimizer = torch.optim.AdamW(model.parameters())
    model(ids).sum().backward()
    optimizer.step()
    memory = gpt2.training_memory(config, *ids.shape)
    assert memory["weights"] == sum(p.nbytes for p in model.parameters())
    assert memory["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    state = [t for s in optimizer.state.values() for t in s.values() if t.ndim]
    assert memory["optimizer state"] == sum(t.nbytes for t in state)


# ---------------------------------------------------------------------------------- device


def test_devices():
    assert gpt2.describe_device(gpt2.pick_device())
    assert gpt2.describe_device("cpu").endswith(("thread", "threads"))
    assert f", {torch.get_num_threads()} thread" in gpt2.describe_device("cpu")


@pytest.mark.parametrize("found", [None, torch.device("cuda"), torch.device("mps")])
def test_pick_device_takes_the_accelerator_if_there_is_one(monkeypatch, found):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    assert gpt2.pick_device() == (found or torch.device("cpu"))
