"""A CPU that pretends to be a GPU: the code that only a GPU runs is tried on a machine without one.

What is sent to "cuda" stays on the CPU, half precision is float32, and what torch.cuda says of the
device is made up. Times mean nothing, so GPT-2 small gets two blocks, and each time two samples.
"""

import os
import time
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext

import gpt2_helpers
import timing_helpers

NAME = "a CPU that pretends to be a GPU"
HALF = {torch.float16, torch.bfloat16}


def instead(value):
    """What stands in for an argument of PyTorch's functions."""
    if isinstance(value, (str, torch.device)) and str(value).startswith("cuda"):
        return torch.device("cpu")
    return torch.float32 if isinstance(value, torch.dtype) and value in HALF else value


class Pretend(TorchFunctionMode):
    reading = "default"  # may a tensor be read, which makes Python wait? "error" if not

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.item and Pretend.reading == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if function in (torch.Tensor.bfloat16, torch.Tensor.half):
            function = torch.Tensor.float
        kwargs = kwargs or {}
        if function is not torch.device:
            args, kwargs = map(instead, args), {name: instead(v) for name, v in kwargs.items()}
        return function(*args, **kwargs)


class Event:
    def __init__(self, enable_timing=False):
        self.time = None

    def record(self):
        self.time = time.perf_counter()

    def elapsed_time(self, later):
        return 1e3 * (later.time - self.time)


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls, instead(device))


def used():
    """Bytes that this process holds (Linux)."""
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def install():
    """From here on, this process has a GPU, with 7.5 GB still free."""
    total, enter, measure = used() + 7_500_000_000, DeviceContext.__init__, timing_helpers.measure
    torch.accelerator.synchronize = lambda device=None: None
    torch.cuda.synchronize = lambda device=None: None  # torch.compile wants each to be its own
    torch.cuda.Event = Event
    torch.cuda.get_device_name = lambda device=None: NAME
    torch.cuda.get_device_capability = lambda device=None: (8, 0)
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(total_memory=total)
    torch.cuda.mem_get_info = lambda device=None: (total - used(), total)
    torch.cuda.memory_reserved = lambda device=None: 0
    torch.cuda.memory_allocated = lambda device=None: 0
    torch.cuda.set_sync_debug_mode = lambda mode: setattr(Pretend, "reading", mode)
    torch.Generator = Generator
    DeviceContext.__init__ = lambda self, device: enter(self, instead(device))
    sizes = (50257, 1024, 768, 2, 12, True)
    gpt2_helpers.GPT2Config.__init__.__defaults__ = sizes

    def measure_briefly(function, device, repeats=5, warmup=1):
        return measure(function, device, min(repeats, 2), warmup)

    timing_helpers.measure = measure_briefly
    gpt2_helpers.pick_device = lambda: torch.device("cuda")
    Pretend().__enter__()
