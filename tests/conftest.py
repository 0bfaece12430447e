"""What tests share: GPT-2 as `transformers` builds it, weights that hide nothing, a browser."""

import os
import shutil
import warnings

import pytest
import torch
from playwright.sync_api import sync_playwright

import gpt2_helpers as gpt2

SMALL = [
    gpt2.GPT2Config(vocab_size=97, n_positions=16, n_embd=24, n_layer=1, n_head=1),
    gpt2.GPT2Config(vocab_size=131, n_positions=33, n_embd=48, n_layer=3, n_head=4),
    gpt2.GPT2Config(vocab_size=64, n_positions=8, n_embd=60, n_layer=2, n_head=5),
]


def reference_model(config, seed=0):
    """A `GPT2LMHeadModel` of the sizes of `config`, its attention written out, no dropout.

    Biases and LayerNorms are drawn too: at their usual 0 and 1 they would hide mistakes.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    reference = GPT2LMHeadModel(
        GPT2Config(
            **{
                name: getattr(config, name)
                for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
            },
            tie_word_embeddings=config.tie_weights,
            attn_implementation="eager",
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if ".ln_" in name or name.endswith(".bias"):
                parameter += 0.2 * torch.randn(parameter.shape)
            elif "wte" not in name and "wpe" not in name and "lm_head" not in name:
                parameter *= 4  # far enough from 0 for the softmax and the GELU to matter
    return reference.eval()


def random_ids(config, batch_size=2, seq_len=None, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, seq_len or config.n_positions)
    return torch.randint(config.vocab_size, shape, generator=generator)


@pytest.fixture(params=SMALL, ids=lambda config: f"E{config.n_embd}-L{config.n_layer}")
def config(request):
    return request.param


@pytest.fixture(scope="session")
def full_size():
    """GPT-2 small, ours; share it and leave it as it is."""
    torch.manual_seed(0)
    return gpt2.GPT2(gpt2.GPT2_CONFIGS["gpt2"])


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, Chrome or Edge of this machine; without one the test is skipped.

    With NEED_BROWSER=1 in the environment, as in CI, it fails instead.
    """
    path = find_browser()
    if path is None:
        refuse = pytest.fail if os.environ.get("NEED_BROWSER") else pytest.skip
        refuse("there is no Chromium, Chrome or Edge on this machine")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


def find_browser():
    names = ["chromium", "chromium-browser", "google-chrome", "chrome", "msedge"]
    places = [  # where macOS and Windows have them
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ]
    for folder in filter(None, map(os.environ.get, ("PROGRAMFILES", "PROGRAMFILES(X86)"))):
        places.append(f"{folder}/Google/Chrome/Application/chrome.exe")
        places.append(f"{folder}/Microsoft/Edge/Application/msedge.exe")
    found = [*map(shutil.which, names), *filter(os.path.exists, places)]
    return next(filter(None, found), None)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
