"""The checks of the exercises: right answers pass, every mistake gets the message meant for it."""

import importlib
import inspect
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from answers import RIGHT, WRONG
from torch import nn

import exercise_checks as check
from gpt2_helpers import GPT2Config

for path in sorted(Path(__file__).parent.glob("answers_*.py")):
    importlib.import_module(path.stem)

CHECKS = [thing for thing in vars(check).values() if isinstance(thing, check.exercise)]
KNOWN = [(ask, answer, message) for ask in CHECKS for message, answer in ask.mistakes.items()]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The checks' tensors are tiny: a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def verdict(ask, capsys, *answer):
    """What a check prints. It never raises, and shows neither a traceback nor its own code."""
    capsys.readouterr()
    assert ask(*answer) is None
    text = capsys.readouterr().out
    assert text.startswith(f"{ask.__name__}:")
    assert "Traceback" not in text and "exercise_checks.py" not in text
    return text


def label(case):
    return case.__name__ if hasattr(case, "__name__") else None


@pytest.mark.parametrize("ask, answer", RIGHT, ids=label)
def test_a_right_answer_is_solved(ask, answer, capsys):
    """And the check leaves the reader's session as it was."""
    before = torch.get_rng_state(), torch.is_grad_enabled()
    text = verdict(ask, capsys, answer)
    assert text.endswith("Solved.\n") and "✗" not in text, text
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == torch.is_grad_enabled()


@pytest.mark.parametrize("ask, answer, message", KNOWN + WRONG, ids=label)
def test_a_wrong_answer_gets_its_message(ask, answer, message, capsys):
    text = verdict(ask, capsys, answer)
    problem = text.partition("✗")[2]
    assert message in problem and "Solved." not in text, text
    name = problem.splitlines()[0].strip()
    assert text.count("✗") == 1 and f"✓ {name}\n" not in text, text


def test_every_check_is_tried():
    """One right answer at least, and four wrong ones."""
    for ask in CHECKS:
        assert sum(known is ask for known, _ in RIGHT) >= 1, ask.__name__
        assert sum(known is ask for known, *_ in KNOWN + WRONG) >= 4, ask.__name__


@pytest.mark.parametrize("answers", [(), (1, 2)])
def test_the_wrong_number_of_answers_is_pythons_own_error(answers):
    with pytest.raises(TypeError, match=r"parameters_of_a_larger_vocabulary\(\)"):
        check.parameters_of_a_larger_vocabulary(*answers)


def test_the_overview_names_every_mechanism(capsys):
    """`python -m exercise_checks` reads them off the code; a solved check has ticked them all."""
    overview = subprocess.check_output([sys.executable, "-m", "exercise_checks"], text=True)
    for ask, answer in dict(RIGHT).items():
        ticked = re.findall("✓ (.+)", verdict(ask, capsys, answer))
        assert f"| {ask.__name__} | {'; '.join(ticked)} |" in overview


# -------------------------------------------------------------------------- hostile answers

FUNCTIONS = {}  # each check that takes a function, with a right answer
for ask, answer in RIGHT:
    if inspect.isfunction(answer):
        FUNCTIONS.setdefault(ask, answer)
every_function = pytest.mark.parametrize("ask, answer", FUNCTIONS.items(), ids=label)
every_check = pytest.mark.parametrize("ask", CHECKS, ids=label)


@every_function
def test_where_gradients_were_switched_off(ask, answer, capsys):
    with torch.no_grad():
        assert verdict(ask, capsys, answer).endswith("Solved.\n")


@every_check
@pytest.mark.parametrize("placeholder", [None, ...])
def test_no_answer_yet(ask, placeholder, capsys):
    text = verdict(ask, capsys, placeholder)
    assert text.count("\n") == 1 and "not attempted yet; replace `None`" in text


@every_function
def test_no_code_yet(ask, answer, capsys):
    def stub(*given):
        raise NotImplementedError

    text = verdict(ask, capsys, stub)
    assert text.count("\n") == 1 and "replace `raise NotImplementedError`" in text


@every_function
def test_returns_none(ask, answer, capsys):
    assert "Is the `return` missing?" in verdict(ask, capsys, lambda *given: None)


@every_function
def test_raises(ask, answer, capsys):
    def clumsy(*given):
        raise ZeroDivisionError("division by zero")

    text = verdict(ask, capsys, clumsy)
    assert "Your code raised ZeroDivisionError: division by zero" in text
    assert 'in the line `raise ZeroDivisionError("division by zero")`' in text


def test_the_line_shown_is_the_readers_own(capsys):
    """Not one of Python's library, of torch, or of the helper."""

    def library(*given):
        return statistics.mean([])

    def package(*given):
        return torch.nn.functional.one_hot(given[0], num_classes="many")

    def helper(*given):
        return GPT2Config(n_embd=-1)

    for clumsy in (library, package, helper):
        line = inspect.getsource(clumsy).splitlines()[1].strip()
        assert f"in the line `{line}`" in verdict(check.attention_with_loops, capsys, clumsy)


@every_function
def test_leaves(ask, answer, capsys):
    assert "Your code raised SystemExit" in verdict(ask, capsys, lambda *given: exit())


@every_function
@pytest.mark.parametrize("odd", ["text", 7, [], {}, (), object(), torch.zeros(0), nn.Linear(1, 1)])
def test_returns_something_odd(ask, answer, odd, capsys):
    assert "✗" in verdict(ask, capsys, lambda *given: odd)


@every_check
@pytest.mark.parametrize("odd", ["text", True, [], {}, object(), float("nan"), 10**400, object])
def test_is_something_odd(ask, odd, capsys):
    assert "✗" in verdict(ask, capsys, odd)


def test_takes_other_arguments(capsys):
    text = verdict(check.attention_with_loops, capsys, lambda q: q)
    assert "takes 1 positional argument but 3 were given" in text
    assert "Does it take the arguments that the exercise names" in text


def changed(result, change):
    """A result with `change` applied to every tensor in it."""
    if isinstance(result, torch.Tensor):
        return change(result)
    if isinstance(result, (list, tuple)):
        return type(result)(changed(part, change) for part in result)
    return result


GIVES_TENSORS = [case for case in FUNCTIONS.items() if case[0].__name__ in (
    "mended_embedding", "attention_with_loops", "mended_attention", "attention_with_a_cache",
    "root_mean_square_norm", "post_norm_block", "next_token_loss")]  # fmt: skip
every_tensor = pytest.mark.parametrize("ask, answer", GIVES_TENSORS, ids=label)


@every_tensor
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.double(), "The result is of type torch.float64; it should be torch.float32"),
        (lambda t: t.to("meta"), "The result is on the device meta"),
        (lambda t: t * float("nan"), "The result contains nan"),
    ],
    ids=["dtype", "device", "nan"],
)
def test_gives_tensors_of_another_kind(ask, answer, change, message, capsys):
    assert message in verdict(ask, capsys, lambda *given: changed(answer(*given), change))


@every_tensor
def test_changes_its_input(ask, answer, capsys):
    def greedy(*given):
        result = answer(*given)
        given[0].zero_()
        return result

    assert "Your code changes its input" in verdict(ask, capsys, greedy)


def test_an_interrupt_by_hand_still_interrupts():
    def impatient(*given):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.attention_with_loops(impatient)
