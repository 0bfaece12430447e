"""Tables of timings, the choice of a batch, peaks, the stopwatch."""

import platform
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gpt2_helpers as gpt2
import timing_helpers
from timing_helpers import COLUMNS, read_timings, save_timings, timing

CONFIG = gpt2.GPT2Config()
REFERENCE = gpt2.DATA / "reference_timings.csv"


def some_rows():
    rows = [timing("forward", "cpu", [0.4, 0.123456, 0.2, 0.9, 0.15], 1, 256)]
    rows.append(timing("creating", "cpu", [1.0]))
    rows[1]["note"] = 'a "nöte", with a comma'
    return rows


def test_a_row_says_what_was_measured_and_where(monkeypatch):
    monkeypatch.setattr(timing_helpers, "describe_device", lambda device: f"a {device}")
    row = timing("forward", "cpu:0", [0.4, 0.1, 0.2, 0.9, 0.3], 2, 8, "bfloat16", "gpt2-xl")
    assert row == {
        "source": "measured",
        "device": "cpu",
        "machine": "a cpu:0",
        "threads": torch.get_num_threads(),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "model": "gpt2-xl",
        "dtype": "bfloat16",
        "batch_size": 2,
        "seq_len": 8,
        "experiment": "forward",
        "repeats": 5,
        "median_s": 0.3,  # the mean would be 0.38
        "low_s": 0.1,
        "high_s": 0.9,
        "date": date.today().isoformat(),
        "note": "",
    }


def records(table):
    """The rows of a table as dicts, with plain numbers."""
    return table.to_dict("records")


def test_saved_rows_come_back(tmp_path):
    path = tmp_path / "mine.csv"
    save_timings(path, some_rows())
    assert records(read_timings(path)) == some_rows()
    assert records(read_timings(path, path)) == some_rows() * 2
    assert list(read_timings(path, path).index) == [0, 1, 2, 3]
    save_timings(path, read_timings(path)[:1])  # a second run replaces the first; a table is taken
    assert records(read_timings(path)) == some_rows()[:1]
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv"]


def test_entries_that_are_no_columns_are_left_out(tmp_path):
    path = tmp_path / "mine.csv"
    save_timings(path, [some_rows()[0] | {"flops": 5}])
    assert records(read_timings(path)) == some_rows()[:1]


def test_one_row_need_not_be_in_a_list(tmp_path):
    path = tmp_path / "mine.csv"
    save_timings(path, some_rows()[0])
    assert records(read_timings(path)) == some_rows()[:1]


def test_no_files_make_no_table():
    """A pattern such as class/*.csv may find nothing."""
    with pytest.raises(ValueError, match="there are no files of timings to read"):
        read_timings(*Path("no such folder").glob("*.csv"))


@pytest.fixture
def unharmed(tmp_path):
    """A file of timings that must be as it was when the test is over, and the only file there."""
    path = tmp_path / "mine.csv"
    save_timings(path, some_rows())
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv"]


@pytest.mark.parametrize(
    "row",
    [
        {"median_s": -1.0},
        {"experiment": ""},
        {"note": "two\nlines"},
        {"low_s": None},
        {"date": None},
    ],
)
def test_a_failed_save_leaves_the_old_file(unharmed, row):
    with pytest.raises(ValueError, match="the rows to be saved, line 2"):
        save_timings(unharmed, [some_rows()[0] | row])


def test_saving_nothing_leaves_the_old_file(unharmed):
    with pytest.raises(ValueError, match="no timings to save"):
        save_timings(unharmed, [])


def test_a_save_that_breaks_off_leaves_the_old_file(unharmed, monkeypatch):
    def break_off(*paths):
        raise OSError("no space left")

    monkeypatch.setattr(timing_helpers.os, "replace", break_off)
    with pytest.raises(OSError, match="no space"):
        save_timings(unharmed, some_rows()[:1])


def test_a_foreign_file_is_not_replaced(tmp_path):
    path = tmp_path / "thesis.csv"
    path.write_text("years of work\n")
    with pytest.raises(ValueError, match=r"thesis\.csv, line 1: .* it is in the way"):
        save_timings(path, some_rows())
    assert path.read_text() == "years of work\n"
    path.write_text("")  # nothing is lost with an empty one
    save_timings(path, some_rows())
    assert len(read_timings(path)) == 2


GOOD = "measured,cpu,a CPU,2,torch,gpt2,float32,1,256,forward,5,0.2,0.1,0.3,2026-11-22,"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (GOOD[:40], "8 values in place of 16: is the line cut off"),
        (GOOD[:-1], "15 values in place of 16"),
        (GOOD.replace("2026-11-22", "2026-11-2"), "'2026-11-2' is no date"),
        (GOOD.replace("measured", "guessed"), "'guessed' is no source"),
        (GOOD.replace("float32", "float33"), "'float33' is no dtype"),
        (GOOD.replace("gpt2", "gpt2-huge"), "'gpt2-huge' is no model"),
        (GOOD.replace("forward", ""), "'' is no experiment"),
        (GOOD.replace(",5,", ",0,"), "'0' is no repeats"),
        (GOOD.replace("0.2", "fast"), "'fast' is no median_s"),
        (GOOD.replace("0.2", "nan"), "'nan' is no median_s"),
        (GOOD.replace("0.3", "inf"), "'inf' is no high_s"),
        (GOOD.replace("0.3", "1e999"), "must be positive"),
        (GOOD.replace("0.2", "1e-e"), "could not convert"),
        (GOOD.replace("0.1", "0"), "must be positive"),
        (GOOD.replace("0.1", "0.25"), "low_s <= median_s"),
        (GOOD + ",", "17 values"),
        (GOOD.replace("a CPU", ""), "'' is no machine"),
        (GOOD.replace(",2,", ",0,"), "'0' is no threads"),
        (GOOD.replace(",1,256", ",-1,256"), "'-1' is no batch_size"),
        (GOOD.replace("2026-11-22", ""), "needs a date"),
        (GOOD.replace("torch", ""), "needs a date, versions"),
        (GOOD.replace(",2,", ",,"), "needs a date, versions and threads"),
        (GOOD.replace("cpu", "CPU 1"), "'CPU 1' is no device"),
        (GOOD + '"a note, wi', "unexpected end of data"),
        (GOOD + '"a"b', "expected after"),
        ("", "0 values"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, complaint):
    path = tmp_path / "class.csv"
    header = ",".join(COLUMNS)
    path.write_text(f"{header}\n{GOOD}\n")
    assert len(read_timings(path)) == 1
    path.write_text(f"{header}\n{GOOD}\n\n")  # a blank line at the end harms nobody
    assert len(read_timings(path)) == 1
    path.write_text(f"{header}\n{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(ValueError, match=r"class\.csv, line 3: .*" + complaint):
        read_timings(path)


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16", "float16"])
def test_all_formats_are_known(tmp_path, dtype):
    path = tmp_path / "class.csv"
    save_timings(path, [some_rows()[0] | {"dtype": dtype}])
    assert read_timings(path)["dtype"][0] == dtype


HEADER = ",".join(COLUMNS)
SHUFFLED = ",".join(reversed(COLUMNS))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"a,b\n1,2\n", b"\xff\xfe\x00", SHUFFLED.encode(), HEADER.encode() + b",more"],
)
def test_what_is_no_file_of_timings(tmp_path, content):
    path = tmp_path / "other.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.csv, line 1"):
        read_timings(path)


def test_a_file_that_excel_saved_is_read(tmp_path):
    path = tmp_path / "excel.csv"
    text = ",".join(COLUMNS) + f"\n{GOOD}\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_timings(path).median_s[0] == 0.2


def test_the_recorded_timings():
    """What was measured says with what and when; what was only reported says so."""
    rows = records(read_timings(REFERENCE))
    lecture = {
        (row["experiment"], row["device"]): row["median_s"]
        for row in rows
        if row["source"] == "reported"
    }
    assert lecture == {
        ("creating", "cpu"): 1.2,
        ("creating", "cuda"): 1.5,
        ("forward", "cpu"): 20,
        ("forward", "cuda"): 0.03,
        ("backpropagation", "cpu"): 60,
        ("backpropagation", "cuda"): 1.6,
    }
    measured = [row for row in rows if row["source"] == "measured"]
    assert all(row["date"] and row["versions"] and row["threads"] for row in measured)


# -------------------------------------------------------------- the size, and what bounds it


@pytest.fixture
def with_memory(monkeypatch):
    """Pretend that so many bytes are free."""
    return lambda free: monkeypatch.setattr(timing_helpers, "free_memory", lambda device: free)


def needs(batch_size, seq_len):
    return sum(gpt2.training_memory(CONFIG, batch_size, seq_len).values())


def test_the_batch_is_the_lectures_where_all_is_plenty(with_memory):
    with_memory(1e12)
    assert timing_helpers.choose_batch(CONFIG, "cpu", 1e15) == ((8, 1024), "the lecture's size")


def test_the_batch_shrinks_to_fit_the_memory_and_says_so(with_memory):
    assert timing_helpers.SIZES[0] == (1, 64) and timing_helpers.SIZES[-2:] == [
        (4, 1024),
        (8, 1024),
    ]
    for size, larger in zip(timing_helpers.SIZES, timing_helpers.SIZES[1:], strict=False):
        with_memory(needs(*size) / 0.75 + 1)
        chosen, why = timing_helpers.choose_batch(CONFIG, "cpu", 1e15)
        assert chosen == size
        assert why.startswith(f"{larger[0]} x {larger[1]} needs {needs(*larger) / 1e9:.1f} GB")


def test_the_batch_shrinks_to_fit_the_time_and_says_so(with_memory):
    with_memory(1e12)
    flops = gpt2.forward_flops(CONFIG, 1, 256)
    chosen, why = timing_helpers.choose_batch(CONFIG, "cpu", 10 * flops, seconds=1.01, passes=10)
    assert chosen == (1, 256) and "1 x 512 would take about 2 s, and 1 s are allowed" in why
    assert (
        timing_helpers.choose_batch(CONFIG, "cpu", 1.0, seconds=1)[0] == timing_helpers.SIZES[0]
    )  # however slow


def test_a_device_that_may_store_scores_gets_less(with_memory):
    scores = 2 * 12 * 4 * 8 * 12 * 1024 * 1024  # bytes, at 8 x 1024
    for free, chosen in [(needs(8, 1024) + 1.01 * scores, 8), (needs(8, 1024) + 0.9 * scores, 4)]:
        with_memory(free / 0.75)
        assert timing_helpers.choose_batch(CONFIG, "cuda", 1e15)[0] == (8, 1024)
        assert timing_helpers.choose_batch(CONFIG, "mps", 1e15)[0] == (chosen, 1024)


def test_too_little_memory_is_an_error_in_words(with_memory):
    with_memory(1e9)
    with pytest.raises(MemoryError, match="too little free memory to train even 1 x 64"):
        timing_helpers.choose_batch(CONFIG, "cpu", 1e15)


def test_a_model_for_short_texts_gets_short_ones(with_memory):
    with_memory(1e12)
    assert timing_helpers.choose_batch(gpt2.GPT2Config(n_positions=128), "cpu", 1e15)[0] == (1, 128)
    assert timing_helpers.choose_batch(gpt2.GPT2Config(n_positions=20), "cpu", 1e15)[0] == (1, 20)


def test_free_memory(monkeypatch):
    monkeypatch.setattr(timing_helpers, "MEMBERSHIP", Path("no such file"))
    assert 1e8 < timing_helpers.free_memory("cpu") < 1e14
    monkeypatch.setattr(
        timing_helpers.psutil, "virtual_memory", lambda: SimpleNamespace(available=5)
    )
    assert timing_helpers.free_memory("cpu") == timing_helpers.free_memory("mps") == 5
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 900))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert timing_helpers.free_memory("cuda") == 120


V2 = "0::{group}"
V1 = "5:cpu,cpuacct:/x\n3:memory:{group}\n0::/"
FILES = {
    V2: ("memory.max", "memory.current", ""),
    V1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


@pytest.mark.parametrize("version", [V2, V1], ids=["v2", "v1"])
@pytest.mark.parametrize(
    ("limits", "group", "free"),
    [
        ({"": 1000}, "/", 1000 - 700 + 200),
        ({"": "max"}, "/", 900),
        ({}, "/", 900),
        ({"job": 1000}, "/job", 500),  # in a group of its own: SLURM, systemd
        ({"job/step": "max", "job": 1000}, "/job/step", 500),  # the group around it limits it
        ({"job/step": 1300, "job": 1100}, "/job/step", 600),
        ({"": 1000}, "/docker/4f5e", 500),  # the host's name of a group that is the root in here
        ({"other": 800}, "/job", 900),
    ],
)
def test_free_memory_in_a_container(monkeypatch, tmp_path, version, limits, group, free):
    monkeypatch.setattr(
        timing_helpers.psutil, "virtual_memory", lambda: SimpleNamespace(available=900)
    )
    monkeypatch.setattr(timing_helpers, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(timing_helpers, "CGROUP", tmp_path / "fs")
    assert timing_helpers.free_memory("cpu") == 900
    (tmp_path / "cgroup").write_text(version.format(group=group) + "\n")
    limit_file, used_file, total = FILES[version]
    for name, limit in limits.items():
        folder = tmp_path / "fs" / ("memory" if version == V1 else "") / name
        folder.mkdir(parents=True, exist_ok=True)
        if version == V1 and limit == "max":
            limit = 2**63 - 4096
        (folder / limit_file).write_text(f"{limit}\n")
        (folder / used_file).write_text("700\n")
        stat = f"anon 400\n{total}active_file 100\n{total}inactive_file 200\n"
        (folder / "memory.stat").write_text(stat)
    assert timing_helpers.free_memory("cpu") == free


@pytest.mark.parametrize("stat", [None, "anon 400\n"])
def test_a_group_that_does_not_tell_its_cache(monkeypatch, tmp_path, stat):
    monkeypatch.setattr(timing_helpers, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(timing_helpers, "CGROUP", tmp_path)
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    if stat:
        (tmp_path / "memory.stat").write_text(stat)
    assert timing_helpers.free_memory("cpu") == 300


@pytest.mark.parametrize(
    "name", ["", "Tesla T40", "NVIDIA T400", "NVIDIA A1000", "NVIDIA H100 PCIe", "Radeon"]
)
def test_an_unknown_gpu_has_no_data_sheet(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert timing_helpers.data_sheet("cuda") is None
    assert timing_helpers.data_sheet("cpu") is None and timing_helpers.data_sheet("mps") is None


def test_data_sheets(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert timing_helpers.data_sheet("cuda") == {"float32": 8.1, "float16": 65, "memory": 0.32}
    assert timing_helpers.DATA_SHEETS["NVIDIA A100-SXM4-40GB"] == {
        "float32": 19.5,
        "tf32": 156,
        "bfloat16": 312,  # dense; 624 is for sparse matrices
        "float16": 312,
        "memory": 1.555,
    }


@pytest.mark.parametrize("onednn", [True, False])
def test_matrix_peak_is_work_by_time(monkeypatch, onednn):
    """A product that takes 2 s, and one by oneDNN that takes 1 s: the faster one counts."""
    times = iter([[3.0, 2.0], [4.0, 1.0]])
    results = []

    def measure(product, device, repeats):
        results.append(product())
        return next(times)

    monkeypatch.setattr(timing_helpers, "measure", measure)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert timing_helpers.matrix_peak("cpu", size=50) == 2 * 50**3 / (1.0 if onednn else 2.0)
    for result in results:
        assert result.shape == (50, 50) and result.dtype == torch.float32

    times = iter([[2.0]])
    assert timing_helpers.matrix_peak("cpu", torch.bfloat16, size=50) == 2 * 50**3 / 2.0
    assert results[-1].dtype == torch.bfloat16


def test_matrix_peak_grows_until_a_product_takes_its_time(monkeypatch):
    sizes = []

    def measure(product, device, repeats):
        sizes.append(len(product()))
        return [0.01 if sizes[-1] < 4096 else 0.03]

    monkeypatch.setattr(timing_helpers, "measure", measure)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert timing_helpers.matrix_peak("cpu") == 2 * 4096**3 / 0.03
    assert sizes == [2048, 4096]


def test_matrix_peak_of_this_machine():
    assert 1e8 < timing_helpers.matrix_peak("cpu", size=256, repeats=2) < 1e15


# ------------------------------------------------------------------------- the stopwatch


def test_measure_waits_before_the_start_and_before_the_stop(monkeypatch):
    events = []
    monkeypatch.setattr(timing_helpers, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(
        timing_helpers.time, "perf_counter", lambda: events.append("clock") or len(events)
    )
    seconds = timing_helpers.measure(lambda: events.append("work"), "cuda", repeats=2, warmup=3)
    assert events == ["work"] * 3 + ["wait", "clock", "work", "wait", "clock"] * 2
    assert len(seconds) == 2


def test_measure_frees_the_result_outside_the_timed_region(monkeypatch):
    class Result:
        alive = 0

        def __init__(self):
            Result.alive += 1

        def __del__(self):
            Result.alive -= 1

    alive = []
    monkeypatch.setattr(
        timing_helpers.time, "perf_counter", lambda: alive.append(Result.alive) or 0.0
    )
    timing_helpers.measure(Result, "cpu", repeats=3)
    assert alive == [0, 1, 0, 1, 0, 1]


def test_synchronize_waits_for_an_accelerator_only(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    for device in ("cpu", torch.device("cpu"), "cuda", torch.device("cuda", 1)):
        timing_helpers.synchronize(device)
    assert waited == ["cuda", torch.device("cuda", 1)]
