"""Files of timings, the choice of a batch, peaks: what the timing lab stands on."""

import matplotlib.pyplot as plt
import pytest
import torch

import gpt2_helpers as gpt2

CONFIG = gpt2.GPT2Config()
REFERENCE = gpt2.DATA / "reference_timings.csv"


def some_rows():
    rows = [gpt2.timing("forward", "cpu", [0.3, 0.1, 0.2], 1, 256)]
    rows.append(gpt2.timing("creating", "cpu", [1.0]))
    rows[1]["note"] = 'a "note", with a comma'
    return rows


def test_a_row_says_what_was_measured_and_where():
    row = some_rows()[0]
    assert (row["median_s"], row["low_s"], row["high_s"], row["repeats"]) == (0.2, 0.1, 0.3, 3)
    assert (row["device"], row["batch_size"], row["seq_len"]) == ("cpu", 1, 256)
    assert row["machine"] == gpt2.describe_device("cpu")
    assert torch.__version__ in row["versions"] and row["threads"] == torch.get_num_threads()


def test_saved_rows_come_back(tmp_path):
    path = tmp_path / "mine.csv"
    gpt2.save_timings(path, some_rows())
    assert gpt2.read_timings(path) == some_rows()
    assert gpt2.read_timings(path, path) == some_rows() * 2
    gpt2.save_timings(path, some_rows()[:1])  # a second run replaces the first
    assert len(gpt2.read_timings(path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv"]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "mine.csv"
    gpt2.save_timings(path, some_rows())
    before = path.read_bytes()
    for wrong in ({"median_s": -1.0}, {"experiment": ""}, {"date": "2026-13-01"}):
        with pytest.raises(ValueError, match="line 2"):
            gpt2.save_timings(path, [some_rows()[0] | wrong])
    with pytest.raises(KeyError):
        gpt2.save_timings(path, [{}])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv"]


def test_a_foreign_file_is_not_replaced(tmp_path):
    path = tmp_path / "thesis.csv"
    path.write_text("years of work\n")
    with pytest.raises(ValueError, match=r"thesis\.csv, line 1"):
        gpt2.save_timings(path, some_rows())
    assert path.read_text() == "years of work\n"


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
        ("", "0 values"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, complaint):
    path = tmp_path / "class.csv"
    header = ",".join(gpt2.TIMING_COLUMNS)
    path.write_text(f"{header}\n{GOOD}\n")
    assert len(gpt2.read_timings(path)) == 1
    path.write_text(f"{header}\n{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(ValueError, match=r"class\.csv, line 3: .*" + complaint):
        gpt2.read_timings(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"a,b\n1,2\n", b"\xff\xfe\x00"])
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


def test_a_figure_has_one_mark_per_row():
    rows = gpt2.read_timings(REFERENCE)
    fig = gpt2.draw_timings([*rows, *some_rows()])
    shown = [r for r in [*rows, *some_rows()] if r["experiment"] in gpt2.THE_THREE]
    assert len(fig.axes[0].get_yticks()) == len(shown)
    marks = [line for line in fig.axes[0].lines if line.get_marker() != "None"]
    assert len(marks) == len(shown)
    # 1 x 256 is scaled to 8 x 1024, by the FLOPs.
    scale = gpt2.forward_flops(CONFIG, 8, 1024) / gpt2.forward_flops(CONFIG, 1, 256)
    assert any(abs(mark.get_xdata()[0] - 0.2 * scale) < 1e-9 for mark in marks)
    plt.close(fig)


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
    for size, larger in zip(gpt2.SIZES, gpt2.SIZES[1:], strict=False):
        with_memory(needs(*size) / 0.75 + 1)
        chosen, why = gpt2.choose_batch(CONFIG, "cpu", 1e15)
        assert chosen == size
        assert why.startswith(f"{larger[0]} x {larger[1]} needs {needs(*larger) / 1e9:.1f} GB")


def test_the_batch_shrinks_to_fit_the_time_and_says_so(with_memory):
    with_memory(1e12)
    flops = gpt2.forward_flops(CONFIG, 1, 256)
    chosen, why = gpt2.choose_batch(CONFIG, "cpu", 10 * flops, seconds=1.01, passes=10)
    assert chosen == (1, 256) and "1 x 512 would take about 2 s of the 1 s" in why
    assert gpt2.choose_batch(CONFIG, "cpu", 1.0, seconds=1)[0] == gpt2.SIZES[0]  # however slow


def test_a_device_that_may_store_scores_gets_less(with_memory):
    with_memory(needs(8, 1024) / 0.5)
    assert gpt2.choose_batch(CONFIG, "cuda", 1e15)[0] == (8, 1024)
    assert gpt2.choose_batch(CONFIG, "mps", 1e15)[0] == (4, 1024)


def test_too_little_memory_is_an_error_in_words(with_memory):
    with_memory(1e9)
    with pytest.raises(MemoryError, match="too little free memory to train even 1 x 64"):
        gpt2.choose_batch(CONFIG, "cpu", 1e15)


def test_free_memory_of_this_machine():
    assert 1e8 < gpt2.free_memory("cpu") < 1e14


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
    for sheet in gpt2.DATA_SHEETS.values():
        assert sheet["float32"] < max(sheet.get("bfloat16", 0), sheet["float16"])
        assert 0.1 < sheet["memory"] < 10  # TB/s


def test_matrix_peak_is_work_by_time(monkeypatch):
    """A product that takes 2 s, and one by oneDNN that takes 1 s: the faster one counts."""
    times = iter([[2.0, 3.0], [4.0, 1.0]])
    monkeypatch.setattr(
        gpt2, "measure", lambda product, device, repeats: product() is None or next(times)
    )
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert gpt2.matrix_peak("cpu", size=50) == 2 * 50**3 / 1.0
    times = iter([[2.0, 3.0]])
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert gpt2.matrix_peak("cpu", size=50) == 2 * 50**3 / 2.0


def test_matrix_peak_of_this_machine():
    assert 1e8 < gpt2.matrix_peak("cpu", size=256, repeats=2) < 1e15
