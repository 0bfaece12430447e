"""The benchmark compares like with like, and its table is arithmetic."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gpt2_helpers as gpt2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import compare  # noqa: E402

FORWARD = compare.Row("GPT-2 small", "forward", 2, 16)
TRAINING = FORWARD._replace(kind="training step")
TELEGRAPH = compare.ROWS[-1]._replace(per_turn=2)
FUSED = "transformers, sdpa, fused GELU"


@pytest.fixture
def small(monkeypatch):
    config = gpt2.GPT2Config(n_positions=64, n_embd=48, n_layer=2, n_head=4)
    monkeypatch.setitem(compare.SIZES, "GPT-2 small", config)
    monkeypatch.setattr(compare, "MATRIX", 32)


@pytest.mark.parametrize("row", [FORWARD, TRAINING, TELEGRAPH], ids=str)
def test_all_models_do_the_same_work(small, row):
    seconds = compare.compare(row, rounds=5)  # raises if results differ
    assert set(compare.contenders(row.kind)) < set(seconds)
    assert all(len(s) == 5 and min(s) > 0 for s in seconds.values())


def test_the_telegraph_is_trained_on_telegrams_at_its_own_size(small):
    assert str(compare.ROWS[-1]) == "telegraph: training step, 16 × 38"
    ids, targets = TELEGRAPH.batch()
    assert ids.shape == targets.shape == (16, 38) and (targets == -100).any()
    for name in compare.contenders(TELEGRAPH.kind):
        model, parameters = compare.make(name, TELEGRAPH)
        assert model(ids).shape == (16, 38, 85)
        assert sum(p.numel() for p in parameters.values()) == 412_544


@pytest.mark.parametrize("row", [FORWARD, TELEGRAPH], ids=str)
def test_a_model_that_computes_something_else_is_refused(small, monkeypatch, row):
    monkeypatch.setitem(compare.THEIRS, FUSED, {"layer_norm_epsilon": 0.5})
    with pytest.raises(AssertionError, match=FUSED):
        compare.compare(row, rounds=5)


def test_a_model_with_another_gradient_is_refused(small, monkeypatch):
    make = compare.make

    def with_another_gradient(name, *rest):
        model, parameters = make(name, *rest)
        if name == FUSED:  # its forward pass, and so the loss, are right
            parameters["transformer.h.1.attn.c_proj.weight"].register_hook(torch.t)  # square
        return model, parameters

    monkeypatch.setattr(compare, "make", with_another_gradient)
    with pytest.raises(AssertionError, match=FUSED):
        compare.compare(TELEGRAPH, rounds=5)


def test_a_turn_of_several_counts_as_one_of_them(monkeypatch):
    clock = iter([0.0, 6.0])
    monkeypatch.setattr(compare.time, "perf_counter", lambda: next(clock))
    calls = []
    assert compare.seconds_of(lambda: calls.append(1), times=3) == 2.0 and len(calls) == 3


def test_the_table(small, monkeypatch):
    """Ours takes 1 s, all others 2 s, and in a slow round all take twice as long."""
    monkeypatch.setattr(compare, "contenders", lambda kind: ["ours", "theirs"])
    flops = gpt2.forward_flops(FORWARD.config, 2, 16)
    product = 2 * 32**3 / (4 * flops)  # seconds: so fast that ours reaches a quarter of it
    slow = [1, 1, 1, 1, 2]
    seconds = {
        "ours": slow,
        "theirs": [2 * s for s in slow],
        "product": [product * s for s in slow],
    }
    lines = compare.table({FORWARD: seconds}, {(FORWARD, "ours"): 5e8}).splitlines()[2:]
    work = "GPT-2 small: forward, 2 × 16"
    assert lines == [
        f"| {work} | ours | 1 | 32 |  | 0.50 GB | 25% |",
        f"| {work} | theirs | 2 | 16 | 0.50 (0.50 to 0.50) | not measured | 12% |",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_sees_what_is_freed_again():
    """In a process of its own, as it is used: what other tests have freed would be used again."""
    code = (
        "import compare, torch\n"
        "compare.make = lambda name, row: (None, None)\n"
        "compare.work = lambda *arguments: lambda: len(torch.ones(50_000_000))\n"  # 200 MB, freed
        "print(compare.peak_memory(compare.ROWS[0], 'ours'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True
    )
    if "clear_refs" in done.stderr:
        pytest.skip("this kernel does not let a process reset its peak")
    assert 150e6 < int(done.stdout) < 400e6


def test_saving_replaces_the_table_and_keeps_the_words(small, monkeypatch, tmp_path):
    page = tmp_path / "README.md"
    page.write_text("# Words\n\n| work | old |\n", encoding="utf-8")
    monkeypatch.setattr(compare, "ROWS", [])
    monkeypatch.setattr(compare, "caption", lambda results, rounds: f"{rounds} rounds")
    monkeypatch.setattr(sys, "argv", ["compare.py", "--save", str(page)])
    compare.main()
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Words\n\n| work | model |") and "old" not in text
    assert text.count("| work |") == 1 and text.endswith("\n15 rounds\n")
