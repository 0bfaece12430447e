"""On an NVIDIA GPU: the same numbers as on the CPU, nothing that makes Python wait, true clocks.

Plain functions, without fixtures and pytest: `tools/measure_gpu.py` runs them where there is none.
"""

import unittest

import torch
import torch.nn.functional as F

from gpt2_helpers import GPT2, GPT2Config, get_batch, pick_device
from timing_helpers import data_sheet, free_memory, matrix_peak, measure

SMALL = GPT2Config(n_positions=128, n_embd=96, n_layer=3, n_head=4)
GPU = pick_device()


def setup_module():
    if GPU.type != "cuda":
        raise unittest.SkipTest("needs an NVIDIA GPU")


def a_model(config=SMALL, device=GPU):
    model = GPT2(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.to(device)


def a_batch(device=GPU):
    return [tensor.to(device) for tensor in get_batch(2, 64)]


def loss_of(model, ids, targets):
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


def difference(ours, theirs):
    """How far apart two tensors are, as a share of their length."""
    ours, theirs = ours.detach().cpu(), theirs.detach().cpu()
    return ((ours - theirs).norm() / theirs.norm()).item()


def same_numbers(config):
    on_cpu, on_gpu = a_model(config, "cpu"), a_model(config)
    found = {"logits": difference(on_gpu(a_batch()[0]), on_cpu(a_batch("cpu")[0]))}
    loss_of(on_cpu, *a_batch("cpu")).backward()
    loss_of(on_gpu, *a_batch()).backward()
    for (name, ours), theirs in zip(on_gpu.named_parameters(), on_cpu.parameters(), strict=True):
        found[name] = difference(ours.grad, theirs.grad)
    worst = max(found, key=found.get)
    print(
        f"difference of the logits {found['logits']:.0e}, the largest {found[worst]:.0e}: {worst}"
    )
    assert found[worst] < 1e-4, f"{worst}: {found[worst]}"  # with TF32 it would be about 1e-3


def test_logits_and_gradients_are_those_of_the_cpu():
    same_numbers(SMALL)


def test_logits_and_gradients_of_gpt2_small_are_those_of_the_cpu():
    same_numbers(GPT2Config())


def test_forward_and_backward_never_make_python_wait():
    model, batch = a_model(), a_batch()
    loss_of(model, *batch).backward()  # libraries are loaded the first time
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = loss_of(model, *batch)
        loss.backward()
        try:
            loss.item()  # this does wait: is it noticed?
        except RuntimeError as error:
            noticed = str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert "synchronizing" in noticed


def test_the_tie_survives_the_move_and_a_step():
    model = a_model()
    before = model.wte.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of(model, *a_batch()).backward()
    optimizer.step()
    assert model.unembed.weight is model.wte.weight
    assert not torch.equal(model.wte.weight, before)


def test_weights_are_drawn_by_a_generator_on_the_gpu():
    model, tables = a_model(), []
    for seed in (1, 1, 2):
        model.init_weights(torch.Generator(GPU).manual_seed(seed))
        tables.append(model.wte.weight.detach().clone())
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    assert abs(tables[0].std().item() - 0.02) < 1e-3


def test_compiled_blocks_give_the_same_logits():
    model, (ids, _) = a_model(), a_batch()
    with torch.inference_mode():
        plain = model(ids)
        for block in model.blocks:
            block.compile()
        compiled = difference(model(ids), plain)
    print(f"difference {compiled:.0e}")
    assert compiled < 1e-4, compiled


def test_measure_waits_for_the_work():
    matrix = torch.randn(4096, 4096, device=GPU)
    seconds = min(measure(lambda: matrix @ matrix, GPU, repeats=2))
    print(f"{2 * 4096**3 / seconds / 1e12:.1f} TFLOP/s")
    assert 2 * 4096**3 / seconds < 2e15  # no GPU is faster than this in float32


def test_the_peak_is_below_the_data_sheets():
    peak, sheet = matrix_peak(GPU), data_sheet(GPU)
    print(f"{peak / 1e12:.1f} TFLOP/s in float32; the data sheet: {sheet}")
    assert 1e10 < peak < 1.1e12 * (sheet["float32"] if sheet else 500)


def test_memory_in_use_is_not_free_and_memory_in_reserve_is():
    torch.ones(1, device=GPU)
    before = free_memory(GPU)
    block = torch.ones(2**28, device=GPU)  # 1 GiB
    during = free_memory(GPU)
    del block
    after = free_memory(GPU)
    print(f"free: {before / 1e9:.2f}, {during / 1e9:.2f} and again {after / 1e9:.2f} GB")
    assert 0.9 * 2**30 < before - during < 1.1 * 2**30
    assert abs(after - before) < 0.1 * 2**30
