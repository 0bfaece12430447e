"""train_gpt2.py: the loop against PyTorch's own parts, and the program, killed and resumed."""

import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import ablations
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

import telegraph
import train_gpt2
from gpt2_helpers import DATA, GPT2, GPT2Config, get_text, get_tokenizer, load_model
from train_gpt2 import checkpoints, learning_rate, main, make_optimizer, pieces_of, train_step

ROOT = Path(__file__).resolve().parent.parent
SMALL = GPT2Config(vocab_size=85, n_positions=38, n_embd=32, n_layer=2, n_head=4)


# -------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("steps", [1, 9, 10, 100, 1500, 20_000])
def test_the_schedule_is_a_line_and_half_a_cosine(steps):
    warmup = min(max(steps // 10, 1), 500)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    parts = [
        LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1) if warmup > 1 else LinearLR(optimizer, 1),
        CosineAnnealingLR(optimizer, max(steps - warmup, 1)),
    ]
    theirs = SequentialLR(optimizer, parts, [warmup - 1]) if warmup > 1 else parts[1]
    for step in range(1, steps + 1):
        assert math.isclose(
            learning_rate(step, steps, 3e-3), theirs.get_last_lr()[0], rel_tol=1e-6, abs_tol=1e-12
        )
        optimizer.step(), theirs.step()


def test_matrices_and_tables_are_decayed_and_nothing_else():
    model = GPT2(SMALL)
    decayed, rest = make_optimizer(model).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    assert {names[id(p)].split(".")[-1] for p in decayed["params"]} == {"weight"}
    assert all("ln" not in names[id(p)] for p in decayed["params"])
    assert all("ln" in names[id(p)] or "bias" in names[id(p)] for p in rest["params"])
    assert len(decayed["params"]) + len(rest["params"]) == len(names)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_a_step_is_pytorchs_own_however_the_batch_is_cut(parts):
    torch.manual_seed(0)
    ours, theirs = GPT2(SMALL).double(), GPT2(SMALL).double()
    theirs.load_state_dict(ours.state_dict())
    ids, targets = telegraph.batch(8, seed=0)
    targets[:3, 9:] = -100  # parts with very different numbers of targets
    loss = train_step(ours, torch.optim.SGD(ours.parameters(), 0.1), ids, targets, parts)

    whole = F.cross_entropy(theirs(ids).flatten(0, 1), targets.flatten())
    whole.backward()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    torch.optim.SGD(theirs.parameters(), 0.1).step()
    assert torch.allclose(loss.double(), whole, rtol=1e-6)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-6, atol=1e-9)


def test_float16_has_a_scaler_that_leaves_out_what_overflows():
    torch.manual_seed(0)
    model = GPT2(SMALL)
    ids, targets = telegraph.batch(4, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [p.detach().clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    train_step(model, optimizer, ids, targets, dtype=torch.float16, scaler=scaler)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    train_step(model, optimizer, ids, targets, dtype=torch.float16, scaler=scaler)
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_pieces_of_a_text_follow_from_seed_and_step(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(get_text(), encoding="utf-8")
    tokens = get_tokenizer().encode(get_text())
    ids, targets = pieces_of(path, 4, 50, seed=1)(7)
    assert ids.shape == targets.shape == (4, 50)
    for row, after in zip(ids.tolist(), targets.tolist(), strict=True):
        assert row[1:] == after[:-1]
        assert any(tokens[i : i + 51] == [*row, after[-1]] for i in range(len(tokens) - 50))
    again, other = pieces_of(path, 4, 50, seed=1), pieces_of(path, 4, 50, seed=2)
    assert torch.equal(again(7)[0], ids)
    assert not torch.equal(again(8)[0], ids) and not torch.equal(other(7)[0], ids)


# ----------------------------------------------------------------------------- the program


def lines(folder):
    return (folder / "losses.csv").read_text().splitlines()


def program(folder, *more):
    return [sys.executable, str(ROOT / "train_gpt2.py"), "--device=cpu", f"--out={folder}", *more]


def test_killed_anywhere_and_resumed_the_losses_are_the_same_to_the_last_bit(tmp_path):
    options = ["--steps=40", "--checkpoint-every=6", "--batch=8", "--accumulate=2", "--seed=3"]
    subprocess.run(program(tmp_path / "calm", *options), check=True, capture_output=True)
    whole = lines(tmp_path / "calm")
    assert [line.split(",")[0] for line in whole] == ["step", *map(str, range(1, 41))]

    killed = tmp_path / "killed"
    place = random.randrange(1, 38)
    print("to be killed at about line", place)  # shown if the test fails
    process = subprocess.Popen(
        program(killed, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not ((killed / "losses.csv").exists() and len(lines(killed)) > place):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(random.random() / 50)
    process.kill()
    process.wait()
    subprocess.run(program(killed, *options, "--resume"), check=True, capture_output=True)
    assert lines(killed) == whole
    ours, theirs = (load_model(checkpoints(tmp_path / run)[-1] / "model.safetensors")
                    for run in ("calm", "killed"))  # fmt: skip
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch, capsys):
    run = ["--device=cpu", "--steps=6", "--batch=2", "--checkpoint-every=2", f"--out={tmp_path}"]
    written, calls = os.fsync, []

    def full_disk(file):
        calls.append(file)
        if len(calls) > 5:  # in the third checkpoint
            raise OSError(28, "No space left on device")
        written(file)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(SystemExit, match="No space left on device"):
        main(run)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-0000002",
        "checkpoint-0000004",
    ]
    monkeypatch.undo()
    main([*run, "--resume"])
    assert [line.split(",")[0] for line in lines(tmp_path)] == ["step", *"123456"]
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    assert len(checkpoints(tmp_path)) == 2  # old ones do not fill the disk
    other = tmp_path / "undisturbed"
    main([*run[:-1], f"--out={other}"])
    assert lines(other) == lines(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
def test_what_cannot_be_written_whole_is_one_sentence(tmp_path):
    """With room for the weights (1.7 MB), but not for the optimizer's state (3.3 MB)."""
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, 2_500_000))

    ended = subprocess.run(
        program(tmp_path, "--steps=1", "--batch=2"),
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].endswith("File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["losses.csv"]  # nothing fills the disk


def test_compiling_without_a_compiler_is_one_sentence(tmp_path, monkeypatch, capsys):
    def no_compiler(function):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(SystemExit):
        main(["--device=cpu", "--compile", f"--out={tmp_path / 'run'}"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("--compile does not work here: No working C++ compiler found")
    assert not (tmp_path / "run").exists()


def test_a_run_is_neither_overwritten_nor_resumed_as_another(tmp_path, capsys):
    run = ["--device=cpu", "--steps=2", "--batch=2", f"--out={tmp_path}"]
    main(run)
    before = lines(tmp_path)
    with pytest.raises(SystemExit):
        main(run)
    assert "add --resume, or choose another --out" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="has --batch 2, not 4"):
        main([*run, "--batch=4", "--resume"])
    main([*run, "--resume"])  # nothing is left to be done
    assert lines(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--batch=6", "--accumulate=4"], "--batch 6 makes no 4 equal parts"),
        (["--data=nowhere.txt", "--model=gpt2"], "there is no text file nowhere.txt"),
        (["--data=README.md"], "knows telegrams only"),
        (["--steps=0"], "--steps must be more than 0"),
        (["--beta2=1"], "--beta2 must be at least 0 and less than 1"),
        (["--lr=nan"], "--lr must be more than 0"),
        (["--checkpoint-every=-1"], "--checkpoint-every must be more than 0"),
        (["--data=README.md", "--model=gpt2", "--length=2000"], "gpt2 has 1024 positions"),
        (["--device=abacus"], "has no device abacus"),
        (["--model=gpt5"], "invalid choice: 'gpt5'"),
    ],
)
def test_a_bad_option_is_one_sentence_and_nothing_is_made(
    options, sentence, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main([f"--out={tmp_path / 'run'}", *options])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_text_that_is_too_short_or_no_text(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("The dog barks.")
    run = ["--device=cpu", "--model=gpt2", f"--data={path}", f"--out={tmp_path / 'run'}"]
    with pytest.raises(SystemExit, match="has 5 tokens; rows of 1024 need 1025"):
        main(run)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SystemExit, match="is no text in UTF-8"):
        main(run)


def test_a_loss_that_is_nan_ends_the_run_in_words(tmp_path):
    with pytest.raises(SystemExit, match="the loss is (nan|inf).* try a lower --lr"):
        main(["--device=cpu", "--steps=30", "--batch=2", "--lr=1e30", f"--out={tmp_path}"])
    assert checkpoints(tmp_path) == []


# --------------------------------------------------------------------- what was recorded


def test_the_record_has_every_variant_of_notebook_7_three_times():
    names = [*ablations.definitions()["VARIANTS"]]
    record = pd.read_csv(DATA / "ablations.csv")
    runs = list(zip(record["changed"], record["seed"], strict=True))
    assert runs == [(name, seed) for name in names for seed in range(3)]
    assert set(record["steps"]) == {2000}


def test_a_variant_is_trained_by_the_notebooks_own_cells():
    row = ablations.one_run("no mask", seed=1, steps=100)
    assert row["changed"] == "no mask" and row["seed"] == 1
    assert row["choice"] < -0.05  # it reads the answers


def test_the_weights_of_the_repository_are_near_the_floor():
    telegrams = telegraph.telegrams(2000, seed="never trained on")
    ids, targets = telegraph.batch(2000, seed="never trained on")
    model = load_model(DATA / "telegraph_gpt2.safetensors")
    assert model.config == train_gpt2.MODELS["telegraph"]
    with torch.inference_mode():
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()).item()
    true = [-p for telegram in telegrams for p in telegram.log_probabilities[1:]]
    assert 0 < loss - sum(true) / len(true) < 0.02
