"""Training a GPT-2, as a program: the loop of notebook 7, with checkpoints to go on from.

    python train_gpt2.py --out runs/telegraph                  on telegrams: a minute or two
    python train_gpt2.py --out runs/telegraph --resume         after whatever stopped it
    python train_gpt2.py --out runs/text --model gpt2 --data my.txt --length 256 --batch 4

--out gets `losses.csv`, a line for each step (nats per predicted token), and a folder for each
checkpoint: `model.safetensors`, which `gpt2_helpers.load_model` reads, and `state.pt`, which holds
what else the next step depends on. The batch of a step follows from the seed and the step alone,
so a run that was stopped and resumed has the losses of one that never stopped, to the last digit.
"""

import argparse
import io
import math
import os
import random
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import telegraph
from gpt2_helpers import (
    GPT2,
    GPT2_CONFIGS,
    GPT2Config,
    describe_device,
    get_tokenizer,
    load_model,
    pick_device,
    save_model,
)

MODELS = {
    "telegraph": GPT2Config(
        vocab_size=len(telegraph.VOCABULARY),
        n_positions=telegraph.LENGTH,
        n_embd=128,
        n_layer=2,
        n_head=4,
    ),
    **GPT2_CONFIGS,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# -------------------------------------------------------------------------------- the loop


def learning_rate(step, steps, peak):
    """The rate of a step (1 to `steps`): a straight warm-up to `peak`, then half a cosine to 0.

    The warm-up takes a tenth of the steps, 500 at most.
    """
    warmup = min(max(steps // 10, 1), 500)
    if step <= warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def make_optimizer(model, weight_decay=0.1, beta2=0.95):
    """AdamW with its fused step; matrices and tables are decayed, biases and LayerNorms are not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, beta2), fused=True)


def train_step(
    model, optimizer, ids, targets, accumulate=1, dtype=torch.float32, scaler=None, max_norm=1.0
):
    """One step on a batch [B, T]; returns its loss before the step, a tensor, nats per target.

    The batch goes through the model in `accumulate` parts. Each adds its share of the gradient:
    its losses are divided by the number of targets in the whole batch. A `dtype` other than
    float32 is autocast's; float16 needs a `torch.amp.GradScaler`. The gradient, all parameters'
    together, is made no longer than `max_norm`.
    """
    scaler = scaler or torch.amp.GradScaler(ids.device.type, enabled=False)
    predicted = (targets != -100).sum()
    batch_loss = torch.zeros((), device=ids.device)
    optimizer.zero_grad()
    for some_ids, some_targets in zip(
        ids.chunk(accumulate), targets.chunk(accumulate), strict=True
    ):
        with torch.autocast(ids.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(some_ids)  # [B / accumulate, T, V]
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), some_targets.flatten(), reduction="sum"
        )
        loss = losses / predicted
        scaler.scale(loss).backward()
        batch_loss += loss.detach()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()
    return batch_loss


def train(model, optimizer, batch_of_step, steps, lr, done=0, schedule=learning_rate, **how):
    """Yield (step, loss) after each step from `done` + 1 to `steps`; stop whenever you like.

    `batch_of_step(step)` gives ids and targets [B, T] on the model's device; the learning rate is
    `schedule(step, steps, lr)`; `how` goes to `train_step`.
    """
    for step in range(done + 1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, steps, lr)
        ids, targets = batch_of_step(step)  # [B, T], [B, T]
        yield step, train_step(model, optimizer, ids, targets, **how)


# -------------------------------------------------------------------------------- the data
# Both give the same batch for the same seed and step, so nothing of them is in a checkpoint.


def telegrams(batch, length, seed):
    """Fresh telegrams in every step: step -> ids, targets [B, T]."""
    return lambda step: telegraph.batch(batch, f"{seed} {step}")


def pieces_of(path, batch, length, seed):
    """Pieces of a text file, in GPT-2's tokens, from random places: step -> ids, targets [B, T]."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    tokens = torch.tensor(get_tokenizer().encode(text))
    if len(tokens) <= length:
        raise ValueError(f"{path} has {len(tokens)} tokens; rows of {length} need {length + 1}")

    def batch_of_step(step):
        places = random.Random(f"{seed} {step}")
        starts = [places.randrange(len(tokens) - length) for _ in range(batch)]
        rows = torch.stack([tokens[start : start + length + 1] for start in starts])  # [B, T + 1]
        return rows[:, :-1], rows[:, 1:]

    return batch_of_step


# ----------------------------------------------------------------------------- checkpoints


def save_checkpoint(out, step, model, optimizer, scaler, options):
    """Write out/checkpoint-<step>, whole or not at all, and keep the two newest."""
    final = out / f"checkpoint-{step:07d}"
    partial = out / f"{final.name}.partial"
    random_state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state["cuda"] = torch.cuda.get_rng_state_all()
    state = {"step": step, "options": options, "random": random_state}
    state |= {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
    buffer = io.BytesIO()  # by a path, torch.save raises a RuntimeError where the disk is full
    torch.save(state, buffer)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        save_model(partial / "model.safetensors", model)
        (partial / "state.pt").write_bytes(buffer.getbuffer())
        for file in partial.iterdir():  # on the disk before the name says so
            with open(file, "r+b") as written:  # Windows wants a file that could be written
                os.fsync(written.fileno())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in checkpoints(out)[:-2]:
        shutil.rmtree(old)


def checkpoints(out):
    """The whole checkpoints in a folder, the newest last."""
    return sorted(path for path in out.glob("checkpoint-*") if path.suffix != ".partial")


def keep_losses(path, step):
    """Cut losses.csv after `step`: what came later will come again."""
    lines = path.read_text().splitlines()[: step + 1] if path.exists() else []
    partial = path.with_name("losses.csv.partial")
    partial.write_text("\n".join(lines or ["step,loss"]) + "\n")
    partial.replace(path)


# ----------------------------------------------------------------------------- the program


def read_options(arguments):
    """The options, checked; a bad one ends the program with one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the folder of the run")
    add("--model", choices=MODELS, default="telegraph")
    add("--data", default="telegraph", help="'telegraph', or the path of a text file")
    add("--steps", type=int, default=2000)
    add("--batch", type=int, default=16, help="rows in a step")
    add("--length", type=int, help="tokens in a row of a text file (the model's positions)")
    add("--accumulate", type=int, default=1, help="the parts in which a batch is worked on")
    add("--lr", type=float, help="the peak of the learning rate (3e-3 for telegraph, else 6e-4)")
    add(
        "--beta2",
        type=float,
        default=0.95,
        help="AdamW's memory of squared gradients (%(default)s)",
    )
    add("--dtype", choices=DTYPES, default="float32", help="of the forward pass, by autocast")
    add("--device", default=str(pick_device()), help="the accelerator, or the CPU (%(default)s)")
    add("--compile", action="store_true", help="with torch.compile")
    add("--seed", type=int, default=0)
    add("--checkpoint-every", type=int, metavar="STEPS", help="and after the last step")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --out, if any")
    options = parser.parse_args(arguments)

    config = MODELS[options.model]
    text = options.data != "telegraph"
    options.lr = options.lr or (3e-3 if options.model == "telegraph" else 6e-4)
    options.length = (options.length or config.n_positions) if text else telegraph.LENGTH
    options.checkpoint_every = options.checkpoint_every or options.steps
    for name in ("steps", "batch", "length", "accumulate", "lr", "checkpoint_every"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be more than 0")
    if not 0 <= options.beta2 < 1:
        parser.error("--beta2 must be at least 0 and less than 1")
    if options.batch % options.accumulate:
        parser.error(f"--batch {options.batch} makes no {options.accumulate} equal parts")
    if options.length > config.n_positions:
        parser.error(
            f"--length {options.length}: {options.model} has {config.n_positions} positions"
        )
    try:
        torch.empty(0, device=options.device)
    except (AssertionError, RuntimeError):
        parser.error(f"this PyTorch has no device {options.device} here")
    if options.compile:
        try:
            torch.compile(torch.sin)(torch.zeros(1, device=options.device))
        except RuntimeError as error:
            parser.error(f"--compile does not work here: {str(error).splitlines()[0]}")
    if text and not Path(options.data).is_file():
        parser.error(f"there is no text file {options.data}")
    if text and options.model == "telegraph":
        parser.error("the telegraph's model knows telegrams only: choose another --model")
    if not options.resume and (options.out / "losses.csv").exists():
        parser.error(f"there is a run in {options.out}: add --resume, or choose another --out")
    return options


def main(arguments=None):
    options = read_options(arguments)
    try:
        run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"train_gpt2.py: error: {error}")


def run(options):
    """Train as the options say, from the newest checkpoint on if there is one to resume."""
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    make_data = telegrams if options.data == "telegraph" else lambda *a: pieces_of(options.data, *a)
    on_cpu = make_data(options.batch, options.length, options.seed)

    def batch_of_step(step):
        return (tensor.to(device, non_blocking=True) for tensor in on_cpu(step))

    # What must be the same for the losses to be the same.
    names = ("model", "data", "steps", "batch", "length", "accumulate", "lr", "beta2")
    names += ("dtype", "seed")
    fixed = {name: getattr(options, name) for name in names}
    scaler = torch.amp.GradScaler(device.type, enabled=options.dtype == "float16")
    options.out.mkdir(parents=True, exist_ok=True)
    found = checkpoints(options.out)
    if found:
        state = torch.load(found[-1] / "state.pt", map_location="cpu", weights_only=True)
        for name, value in fixed.items():
            if value != state["options"][name]:
                raise ValueError(
                    f"the run in {options.out} has --{name} {state['options'][name]}, not {value}"
                )
        model = load_model(found[-1] / "model.safetensors", device)
        optimizer = make_optimizer(model, beta2=options.beta2)
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"]["cpu"])
        if "cuda" in state["random"] and device.type == "cuda":
            torch.cuda.set_rng_state_all(state["random"]["cuda"])
        done = state["step"]
    else:
        model, done = GPT2(MODELS[options.model]).to(device), 0
        optimizer = make_optimizer(model, beta2=options.beta2)
    keep_losses(options.out / "losses.csv", done)

    parameters = sum(p.numel() for p in model.parameters())
    print(f"{options.model}, {parameters:,} parameters, on {describe_device(device)}")
    worker = torch.compile(model) if options.compile else model
    steps = train(
        worker,
        optimizer,
        batch_of_step,
        options.steps,
        options.lr,
        done=done,
        accumulate=options.accumulate,
        dtype=DTYPES[options.dtype],
        scaler=scaler,
    )
    start, not_written = time.perf_counter(), []
    with open(options.out / "losses.csv", "a") as file:
        for step, loss in tqdm(steps, initial=done, total=options.steps, unit="step"):
            not_written.append((step, loss))
            checkpoint = step % options.checkpoint_every == 0 or step == options.steps
            if checkpoint or len(not_written) == 10:  # reading a loss makes a GPU wait
                rows = [(step, loss.item()) for step, loss in not_written]
                file.writelines(f"{step},{loss}\n" for step, loss in rows)
                file.flush()
                not_written.clear()
                if not all(math.isfinite(loss) for _, loss in rows):
                    raise ValueError(f"the loss is {rows[-1][1]} at step {step}: try a lower --lr")
            if checkpoint:
                save_checkpoint(options.out, step, model, optimizer, scaler, fixed)
    seconds = time.perf_counter() - start
    if done < options.steps:
        tokens = (options.steps - done) * options.batch * options.length
        print(f"loss {rows[-1][1]:.3f} at step {step}; {tokens / seconds:,.0f} tokens a second")


if __name__ == "__main__":
    main()
