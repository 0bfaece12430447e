"""Files of timings, the choice of a batch, peaks: what the timing lab stands on."""

import platform
from datetime import date
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch

import gpt2_helpers as gpt2

CONFIG = gpt2.GPT2Config()
REFERENCE = gpt2.DATA / "reference_timings.csv"


def some_rows():
    rows = [gpt2.timing("forward", "cpu", [0.4, 0.123456, 0.2, 0.9, 0.15], 1, 256)]
    rows.append(gpt2.timing("creating", "cpu", [1.0]))
    rows[1]["note"] = 'a "nöte", with a comma'
    return rows


def test_a_row_says_what_was_measured_and_where(monkeypatch):
    monkeypatch.setattr(gpt2, "describe_device", lambda device: f"a {device}")
    row = gpt2.timing("forward", "cpu:0", [0.4, 0.1, 0.2, 0.9, 0.3], 2, 8, "bfloat16", "gpt2-xl")
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


def test_saved_rows_come_back(tmp_path):
    path = tmp_path / "mine.csv"
    gpt2.save_timings(path, some_rows())
    assert gpt2.read_timings(path) == some_rows()
    assert gpt2.read_timings(path, path) == some_rows() * 2
    gpt2.save_timings(path, some_rows()[:1])  # a second run replaces the first
    assert len(gpt2.read_timings(path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv"]


def test_entries_that_are_no_columns_are_left_out(tmp_path):
    path = tmp_path / "mine.csv"
    gpt2.save_timings(path, [some_rows()[0] | {"flops": 5}])
    assert gpt2.read_timings(path) == some_rows()[:1]


@pytest.fixture
def unharmed(tmp_path):
    """A file of timings that must be as it was when the test is over, and the only file there."""
    path = tmp_path / "mine.csv"
    gpt2.save_timings(path, some_rows())
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv"]


@pytest.mark.parametrize("row", [{"median_s": -1.0}, {"experiment": ""}, {"note": "two\nlines"}])
def test_a_failed_save_leaves_the_old_file(unharmed, row):
    with pytest.raises(ValueError, match="the rows to be saved, line 2"):
        gpt2.save_timings(unharmed, [some_rows()[0] | row])


def test_saving_nothing_leaves_the_old_file(unharmed):
    with pytest.raises(ValueError, match="no timings to save"):
        gpt2.save_timings(unharmed, [])


def test_a_save_that_breaks_off_leaves_the_old_file(unharmed, monkeypatch):
    def break_off(*paths):
        raise OSError("no space left")

    monkeypatch.setattr(gpt2.os, "replace", break_off)
    with pytest.raises(OSError, match="no space"):
        gpt2.save_timings(unharmed, some_rows()[:1])


def test_a_foreign_file_is_not_replaced(tmp_path):
    path = tmp_path / "thesis.csv"
    path.write_text("years of work\n")
    with pytest.raises(ValueError, match=r"thesis\.csv, line 1: .* it is in the way"):
        gpt2.save_timings(path, some_rows())
    assert path.read_text() == "years of work\n"
    path.write_text("")  # nothing is lost with an empty one
    gpt2.save_timings(path, some_rows())
    assert len(gpt2.read_timings(path)) == 2


GOOD = "measured,cpu,a CPU,2,torch,gpt2,float32,1,256,forward,5,0.2,0.1,0.3,2026-11-22,"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (GOOD[:40], "8 values in place of 16: is the line cut off"),
        (GOOD[:-5], "15 values in place of 16"),
        (GOOD.replace("2026-11-22", "2026-11-2"), "'2026-11-2' is no date"),
        (GOOD.replace("2026-11-22", "2026-02-30"), "day"),
        (GOOD.replace("measured", "guessed"), "'guessed' is no source"),
        (GOOD.replace("float32", "float33"), "'float33' is no dtype"),
        (GOOD.replace("gpt2", "gpt2-huge"), "'gpt2-huge' is no model"),
        (GOOD.replace("forward", ""), "'' is no experiment"),
        (GOOD.replace(",5,", ",0,"), "'0' is no repeats"),
        (GOOD.replace("0.2", "fast"), "fast"),
        (GOOD.replace("0.2", "nan"), "must be positive"),
        (GOOD.replace("0.3", "inf"), "must be positive"),
        (GOOD.replace("0.1", "0"), "must be positive"),
        (GOOD.replace("0.1", "0.25"), "low_s <= median_s"),
        (GOOD + ",", "17 values"),
        (GOOD.replace("a CPU", ""), "'' is no machine"),
        (GOOD.replace(",2,", ",0,"), "'0' is no threads"),
        (GOOD.replace(",1,256", ",0,256"), "both 0 or both not"),
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
    header = ",".join(gpt2.TIMING_COLUMNS)
    path.write_text(f"{header}\n{GOOD}\n")
    assert len(gpt2.read_timings(path)) == 1
    path.write_text(f"{header}\n{GOOD}\n\n")  # a blank line at the end harms nobody
    assert len(gpt2.read_timings(path)) == 1
    path.write_text(f"{header}\n{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(ValueError, match=r"class\.csv, line 3: .*" + complaint):
        gpt2.read_timings(path)


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16", "float16"])
def test_all_formats_are_known(tmp_path, dtype):
    path = tmp_path / "class.csv"
    gpt2.save_timings(path, [some_rows()[0] | {"dtype": dtype}])
    assert gpt2.read_timings(path)[0]["dtype"] == dtype


HEADER = ",".join(gpt2.TIMING_COLUMNS)
SHUFFLED = ",".join(reversed(gpt2.TIMING_COLUMNS))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"a,b\n1,2\n", b"\xff\xfe\x00", SHUFFLED.encode(), HEADER.encode() + b",more"],
)
def test_what_is_no_file_of_timings(tmp_path, content):
    path = tmp_path / "other.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.csv, line 1"):
        gpt2.read_timings(path)


def test_a_file_that_excel_saved_is_read(tmp_path):
    path = tmp_path / "excel.csv"
    text = ",".join(gpt2.TIMING_COLUMNS) + f"\n{GOOD}\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert gpt2.read_timings(path)[0]["median_s"] == 0.2


def test_the_recorded_timings():
    """What was measured says with what and when; what was only reported says so."""
    rows = gpt2.read_timings(REFERENCE)
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


def test_a_figure_shows_each_row():
    """Place, range, mark, colour and text of three rows, the slowest below."""
    small, other = some_rows()[0], some_rows()[0] | {"device": "cuda", "machine": "a GPU"}
    other |= {"batch_size": 8, "seq_len": 1024, "source": "reported", "note": "more than"}
    medium = other | {"model": "gpt2-medium", "dtype": "bfloat16", "seq_len": 512}
    medium |= {"source": "computed", "note": ""}
    fig = gpt2.draw_timings([small, other, medium, some_rows()[1]], experiments=["forward"])
    ax = fig.axes[0]
    assert ax.get_xscale() == "log"

    large = (8, 1024)
    scale = gpt2.forward_flops(CONFIG, *large) / gpt2.forward_flops(CONFIG, 1, 256)
    sizes = gpt2.GPT2_CONFIGS["gpt2-medium"]
    scale_medium = gpt2.forward_flops(sizes, *large) / gpt2.forward_flops(sizes, 8, 512)
    marks = [line for line in ax.lines if line.get_marker() != "None"]
    ranges = [line for line in ax.lines if line.get_marker() == "None"]
    marks.sort(key=lambda mark: mark.get_ydata()[0])
    assert [mark.get_marker() for mark in marks] == ["D", "|", "o"]
    assert [mark.get_xdata()[0] for mark in marks] == [0.2, 0.2 * scale_medium, 0.2 * scale]
    grey, green = gpt2.COLOURS["other"], gpt2.COLOURS["attention"]
    assert [mark.get_color() for mark in marks] == [green, green, grey]
    assert [mark.get_markerfacecolor() for mark in marks] == [green, "white", "white"]
    assert len({mark.get_ydata()[0] for mark in marks}) == 3
    assert sorted(line.get_xdata()[1] for line in ranges) == [0.9, 0.9 * scale_medium, 0.9 * scale]
    texts = [text.get_text().strip() for text in ax.texts]
    assert texts[0] == "forward, one pass of 8 x 1024" and "more than 0.2 s" in texts
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[:2] == ["a GPU", "a GPU, gpt2-medium, bfloat16"]
    plt.close(fig)


def test_a_figure_of_nothing():
    with pytest.raises(ValueError, match="no row is of one of the experiments creating, forward"):
        gpt2.draw_timings([])


# -------------------------------------------------------------- the size, and what bounds it


@pytest.fixture
def with_memory(monkeypatch):
    """Pretend that so many bytes are free."""
    return lambda free: monkeypatch.setattr(gpt2, "free_memory", lambda device: free)


def needs(batch_size, seq_len):
    return sum(gpt2.training_memory(CONFIG, batch_size, seq_len).values())


def test_the_batch_is_the_lectures_where_all_is_plenty(with_memory):
    with_memory(1e12)
    assert gpt2.choose_batch(CONFIG, "cpu", 1e15) == ((8, 1024), "the lecture's size")


def test_the_batch_shrinks_to_fit_the_memory_and_says_so(with_memory):
    assert gpt2.SIZES[0] == (1, 64) and gpt2.SIZES[-2:] == [(4, 1024), (8, 1024)]
    for size, larger in zip(gpt2.SIZES, gpt2.SIZES[1:], strict=False):
        with_memory(needs(*size) / 0.75 + 1)
        chosen, why = gpt2.choose_batch(CONFIG, "cpu", 1e15)
        assert chosen == size
        assert why.startswith(f"{larger[0]} x {larger[1]} needs {needs(*larger) / 1e9:.1f} GB")


def test_the_batch_shrinks_to_fit_the_time_and_says_so(with_memory):
    with_memory(1e12)
    flops = gpt2.forward_flops(CONFIG, 1, 256)
    chosen, why = gpt2.choose_batch(CONFIG, "cpu", 10 * flops, seconds=1.01, passes=10)
    assert chosen == (1, 256) and "1 x 512 would take about 2 s, and 1 s are allowed" in why
    assert gpt2.choose_batch(CONFIG, "cpu", 1.0, seconds=1)[0] == gpt2.SIZES[0]  # however slow


def test_a_device_that_may_store_scores_gets_less(with_memory):
    scores = 2 * 12 * 4 * 8 * 12 * 1024 * 1024  # bytes, at 8 x 1024
    for free, chosen in [(needs(8, 1024) + 1.01 * scores, 8), (needs(8, 1024) + 0.9 * scores, 4)]:
        with_memory(free / 0.75)
        assert gpt2.choose_batch(CONFIG, "cuda", 1e15)[0] == (8, 1024)
        assert gpt2.choose_batch(CONFIG, "mps", 1e15)[0] == (chosen, 1024)


def test_too_little_memory_is_an_error_in_words(with_memory):
    with_memory(1e9)
    with pytest.raises(MemoryError, match="too little free memory to train even 1 x 64"):
        gpt2.choose_batch(CONFIG, "cpu", 1e15)


def test_a_model_for_short_texts_gets_short_ones(with_memory):
    with_memory(1e12)
    assert gpt2.choose_batch(gpt2.GPT2Config(n_positions=128), "cpu", 1e15)[0] == (1, 128)
    assert gpt2.choose_batch(gpt2.GPT2Config(n_positions=20), "cpu", 1e15)[0] == (1, 20)


def test_free_memory(monkeypatch):
    monkeypatch.setattr(gpt2, "CGROUP", gpt2.Path("no such folder"))
    assert 1e8 < gpt2.free_memory("cpu") < 1e14
    monkeypatch.setattr(gpt2.psutil, "virtual_memory", lambda: SimpleNamespace(available=5))
    assert gpt2.free_memory("cpu") == gpt2.free_memory("mps") == 5
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 900))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert gpt2.free_memory("cuda") == 120


@pytest.mark.parametrize(("limit", "free"), [("1000", 1000 - 700 + 200), ("max", 900)])
def test_free_memory_in_a_container(monkeypatch, tmp_path, limit, free):
    monkeypatch.setattr(gpt2.psutil, "virtual_memory", lambda: SimpleNamespace(available=900))
    monkeypatch.setattr(gpt2, "CGROUP", tmp_path)
    assert gpt2.free_memory("cpu") == 900
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\nactive_file 100\ninactive_file 200\n")
    assert gpt2.free_memory("cpu") == free


@pytest.mark.parametrize(
    "name", ["", "Tesla T40", "NVIDIA T400", "NVIDIA A1000", "NVIDIA H100 PCIe", "Radeon"]
)
def test_an_unknown_gpu_has_no_data_sheet(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert gpt2.data_sheet("cuda") is None
    assert gpt2.data_sheet("cpu") is None and gpt2.data_sheet("mps") is None


def test_data_sheets(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert gpt2.data_sheet("cuda") == {"float32": 8.1, "float16": 65, "memory": 0.32}
    assert gpt2.DATA_SHEETS["NVIDIA A100-SXM4-40GB"] == {
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

    monkeypatch.setattr(gpt2, "measure", measure)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert gpt2.matrix_peak("cpu", size=50) == 2 * 50**3 / (1.0 if onednn else 2.0)
    for result in results:
        assert result.shape == (50, 50) and result.dtype == torch.float32

    times = iter([[2.0]])
    assert gpt2.matrix_peak("cpu", torch.bfloat16, size=50) == 2 * 50**3 / 2.0
    assert results[-1].dtype == torch.bfloat16


def test_matrix_peak_grows_until_a_product_takes_its_time(monkeypatch):
    sizes = []

    def measure(product, device, repeats):
        sizes.append(len(product()))
        return [0.01 if sizes[-1] < 4096 else 0.03]

    monkeypatch.setattr(gpt2, "measure", measure)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert gpt2.matrix_peak("cpu") == 2 * 4096**3 / 0.03
    assert sizes == [2048, 4096]


def test_matrix_peak_of_this_machine():
    assert 1e8 < gpt2.matrix_peak("cpu", size=256, repeats=2) < 1e15
