"""The form of the notebooks: everything the design promises that can be read off the files."""

import ast
import base64
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import save_outputs
import set_repository

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("**/*.ipynb"))
SOLUTIONS = [path for path in NOTEBOOKS if path.parent.name == "solutions"]
SERIES = [path for path in NOTEBOOKS if path not in SOLUTIONS]
LESSONS = [path for path in SERIES if path.stem != "reference"]
IGNORED = "nbval-ignore-output"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def test_the_series_is_complete():
    names = ["01_embeddings", "02_attention", "03_transformer_block", "04_gpt2_model"]
    names += ["05_timing_lab", "06_timing_lab_limits", "07_training", "reference"]
    names += [f"{name}_solutions" for name in names[:-1]]
    assert [path.stem for path in save_outputs.series()] == names


def test_valid_and_canonical(path, notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    again = save_outputs.canonical(nbformat.read(path, as_version=4))
    assert nbformat.writes(again) + "\n" == path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_000_000


def test_cell_ids_are_unique(notebook):
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))


def test_counts_and_outputs(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", f"{cell.id} prints a warning"


def test_every_code_cell_shows_something(notebook):
    assert [cell.id for cell in code_cells(notebook) if not cell.outputs] == ["setup"]


def test_the_first_code_cell_is_the_setup_cell(notebook):
    cell = code_cells(notebook)[0]
    assert cell.id == "setup" and cell.outputs == []


def test_the_readme_has_every_badge_with_the_address_of_the_notebooks():
    setup = code_cells(nbformat.read(NOTEBOOKS[0], as_version=4))[0].source
    _, *address = set_repository.SETUP.search(setup).groups()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = [pair for _, *pair in set_repository.COLAB.findall(readme)]
    assert named == [address] * len(SERIES)


def test_link_to_colab_names_this_notebook(path, notebook):
    setup = set_repository.SETUP.search(code_cells(notebook)[0].source)
    links = re.findall(r"https://colab\.research\S+?\.ipynb", notebook.cells[0].source)
    _, repository, revision = setup.groups()
    base = f"https://colab.research.google.com/github/{repository}/blob/{revision}"
    assert links == [f"{base}/{path.relative_to(ROOT).as_posix()}"]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_shape_of_a_lesson(path, notebook):
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert texts[0].startswith("# ")
    for part in ("**After it you can**", "**You need**", "**Time:**"):
        assert part in texts[0]
    everything = "\n".join(texts)
    assert everything.index("## Recap") < everything.index("### Three quick questions")
    sections = re.findall(r"^## (\d+)\.", everything, re.MULTILINE)
    assert sections == [str(n) for n in range(1, len(sections) + 1)]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_exercises_of_a_lesson(path, notebook):
    """Untouched, each says that it was not attempted yet; in the solutions it is solved."""
    cells = {cell.id: cell for cell in notebook.cells}
    name = f"{path.stem}_solutions"
    assert f"(solutions/{name}.ipynb)" in cells["exercises"].source
    table = re.findall(
        r"^\| (\d) \| (.+) \| (.+) \| (\d+) \| (\w+) \|$", cells["exercises"].source, re.M
    )
    minutes = sum(int(minutes) for *_, minutes, _ in table)
    assert f"and {minutes} for the exercises" in notebook.cells[0].source
    guide = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"\]\({path.name}\) \| \d+ min \| {minutes} min \|", guide)
    solved = nbformat.read(path.parent / "solutions" / f"{name}.ipynb", as_version=4)
    solutions = {cell.id: cell for cell in solved.cells}
    for number, title, _, minutes, difficulty in table:
        text = cells[f"exercise-{number}"].source
        assert text.startswith(
            f"### Exercise {number} · {title}\n\n*{minutes} minutes, {difficulty}.*"
        )
        answer = cells[f"exercise-{number}-answer"]
        assert "not attempted yet" in answer.outputs[0].text
        assert solutions[f"exercise-{number}"].source.startswith(
            f"## Exercise {number} · {title}\n"
        )
        solution = solutions[f"exercise-{number}-answer"]
        assert solution.outputs[0].text.endswith("\nSolved.\n")
        call = re.compile(r"^check\.\w+\(\w+\)$", re.M)
        assert call.findall(answer.source) == call.findall(solution.source) != []
    questions = cells["quick-questions"].source
    assert re.findall(r"^\*\*(\d)\.\*\* ", questions, re.M) == ["1", "2", "3"]
    assert questions.count("<details>\n<summary>Answer</summary>\n\n") == 3


def test_compared_cells_print_no_raw_floats_and_no_addresses(notebook):
    for cell in code_cells(notebook):
        if IGNORED in tags(cell) or cell.id == "setup":
            continue
        for output in cell.outputs:
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            assert " at 0x" not in text and "tensor(" not in text, cell.id
            assert not re.search(r"\d\.\d{6,}", text), f"{cell.id} prints too many decimals"
            assert "-0.00" not in re.sub(r"-0\.00\d*[1-9]", "", text), cell.id


def test_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|Users|root|tmp)/|[A-Z]:\\\\|ipykernel_", text)


def test_relative_links_resolve():
    pages = [ROOT / "README.md", *ROOT.glob("[a-z]*/README.md")]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        texts[path] = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert {"README.md", "benchmarks/README.md", "data/README.md", "notebooks/README.md"} <= {
        page.relative_to(ROOT).as_posix() for page in texts
    }
    for page, text in texts.items():
        prose = re.sub(r"(?s)```.*?```|`[^`]*`(?!\])", "", text)
        for link in re.findall(r"\]\((?!https?://)([^)#\s]+)", prose):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_no_control_characters(notebook):
    """A backslash too few in a tool turns the beginning of a LaTeX command into one."""
    for cell in notebook.cells:
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", cell.source), cell.id


def test_the_setup_cell_alone_has_a_magic(notebook):
    """All other code is plain Python, for any notebook program and for `make gpu`."""
    setup, *others = code_cells(notebook)
    assert "%pip" in setup.source
    for cell in others:
        ast.parse(cell.source)


def test_the_readme_figure_is_the_notebooks():
    """The picture in the README is the stored output of the one cell that draws it."""
    tagged = [
        (path, cell)
        for path in NOTEBOOKS
        for cell in code_cells(nbformat.read(path, as_version=4))
        if "readme" in tags(cell)
    ]
    assert len(tagged) == 1
    path, cell = tagged[0]
    stored = base64.b64decode(cell.outputs[0].data["image/png"])
    assert (ROOT / "data" / f"{path.stem}.png").read_bytes() == stored
    assert f"data/{path.stem}.png" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_minutes_in_the_readme_are_the_notebooks():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in LESSONS:
        text = nbformat.read(path, as_version=4).cells[0].source
        minutes = re.search(r"\*\*Time:\*\* (\d+) minutes", text).group(1)
        row = next(line for line in readme.splitlines() if f"](notebooks/{path.name})" in line)
        assert f"| {minutes} min |" in row, path.name


def test_the_lecturers_guide_has_the_sections_of_the_notebooks():
    """The same sections in the same order, and minutes that add up to at most a lecture."""
    guide = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for path in LESSONS:
        chapter = guide.split(f"\n[{path.name}]({path.name})\n")[1].split("\n## ")[0]
        table = re.findall(r"^\| (.+?) \| (\d+) \|", chapter, re.MULTILINE)
        *rows, (total, minutes) = [(title, int(minutes)) for title, minutes in table]
        texts = [c.source for c in nbformat.read(path, as_version=4).cells]
        titles = re.findall(r"^## (\d+\. .+)$", "\n".join(texts), re.MULTILINE)
        assert [title for title, _ in rows] == [*titles, "Recap"], path.name
        assert total == "Total" and sum(n for _, n in rows) == minutes <= 50, path.name
        assert f"]({path.name}) | {minutes} min |" in guide


def test_numbers_in_the_lecturers_guide_are_the_notebooks():
    """Each is in the notebook's text or in an output that nbval compares, but for questions of the
    guide's own. So no time or rate is among them."""
    guide = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    number = re.compile(r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+|\d+\.\d+)(?!\w)")
    for path in LESSONS:
        chapter = guide.split(f"\n[{path.name}]({path.name})\n")[1].split("\n## ")[0]
        known = ""
        for cell in nbformat.read(path, as_version=4).cells:
            known += cell.source.replace("{,}", ",")
            if cell.cell_type == "code" and IGNORED not in tags(cell):
                known += "".join(
                    o.get("text") or o.data.get("text/plain", "") for o in cell.outputs
                )
        for paragraph in re.split(r"\n\n|\n(?=\d\. |- )", chapter):
            if "*Not in the notebook.*" not in paragraph:
                assert [n for n in number.findall(paragraph) if n not in known] == [], path.name


def test_figures_stand_on_white(notebook):
    """Opaque, so that black text is legible on GitHub's dark pages too."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if picture := output.get("data", {}).get("image/png"):
                pixels = plt.imread(io.BytesIO(base64.b64decode(picture)))  # [height, width, RGBA]
                assert pixels[..., 3:].min(initial=1) == 1, f"{cell.id}: transparent"
                assert (pixels[0, :, :3] == 1).all(), f"{cell.id}: not on white"


# -------------------------------------------------------------------------------- tools


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the files that `make publish` changes."""
    for file in [*NOTEBOOKS, ROOT / "README.md", ROOT / "tools" / "setup_cell.ipy"]:
        target = tmp_path / file.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(file, target)
    monkeypatch.setattr(save_outputs, "ROOT", tmp_path)
    monkeypatch.setattr(set_repository, "ROOT", tmp_path)
    return tmp_path


def files_of(folder):
    return {file: file.read_text(encoding="utf-8") for file in folder.rglob("*") if file.is_file()}


def test_set_repository_changes_every_address(copy):
    before = files_of(copy)
    set_repository.set_repository("someone/a-fork", "v1.0")
    after = files_of(copy)
    for file, text in after.items():
        assert "OWNER/REPOSITORY" not in text and "someone/a-fork" in text, file.name
        assert text.count("\n") == before[file].count("\n")
        for _, repository, revision in set_repository.COLAB.findall(text):
            assert (repository, revision) == ("someone/a-fork", "v1.0")
    set_repository.set_repository("someone/a-fork", "v1.0")
    assert files_of(copy) == after


@pytest.mark.parametrize("revision", ["main", "v1.0", "20261125", "autumn/lecture-2", "decade"])
def test_ordinary_branches_and_tags_are_taken(revision):
    set_repository.check_address("someone/a-fork", revision)


@pytest.mark.parametrize(
    "address",
    [
        ("someone",),
        ("a/b/c",),
        ("https://github.com/a/b",),
        ("a/b.git",),
        ("a/..",),
        ("-a/b",),
        ('a/b"; x="',),
        ("a b/c",),
        ("",),
        ("a/b", ""),
        ("a/b", "-x"),
        ("a/b", "x y"),
        ("a/b", "../x"),
        ("a/b", "x..y"),
        ("a/b", "x/"),
        ("a/b", "x.lock"),
        ("a/b", 'x"'),
        ("a/b", "0123456789abcdef"),
        ("a/b", 40 * "1"),
    ],
)
def test_an_address_of_the_wrong_form_changes_nothing(copy, address):
    before = files_of(copy)
    with pytest.raises(ValueError, match="must "):
        set_repository.set_repository(*address)
    assert files_of(copy) == before


def test_a_damaged_notebook_leaves_every_address_as_it_was(copy):
    (copy / "notebooks" / "99_damaged.ipynb").write_text("{", encoding="utf-8")
    before = files_of(copy)
    with pytest.raises(nbformat.reader.NotJSONError):
        set_repository.set_repository("someone/a-fork")
    assert files_of(copy) == before


def publish(*arguments):
    """Run the tool as `make publish` and the workflows do; returns the process."""
    command = [sys.executable, ROOT / "tools" / "set_repository.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_publish_without_an_address_says_how():
    for arguments, sentence in ([], "usage:"), (["a"], "must look like owner/name"):
        done = publish(*arguments)
        assert done.returncode != 0 and sentence in done.stderr and "Traceback" not in done.stderr


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["set_repository.py", *arguments])
    set_repository.main()


def test_the_first_push_of_a_fork_sets_its_address_and_later_ones_keep_its_tag(copy, monkeypatch):
    run_tool(monkeypatch, "--if-another", "someone/a-fork")
    readme = copy / "README.md"
    assert "github/someone/a-fork/blob/main/" in readme.read_text(encoding="utf-8")
    run_tool(monkeypatch, "someone/a-fork", "v1.0")
    before = files_of(copy)
    run_tool(monkeypatch, "--if-another", "someone/a-fork")
    assert files_of(copy) == before


def test_a_pull_request_with_another_address_is_refused(copy, monkeypatch):
    set_repository.set_repository("someone/a-fork", "v1.0")
    before = files_of(copy)
    run_tool(monkeypatch, "--refuse", "someone/a-fork")
    with pytest.raises(
        ValueError, match="lead to someone/a-fork here, and should lead to up/stream"
    ):
        run_tool(monkeypatch, "--refuse", "up/stream")
    assert files_of(copy) == before


def git(folder, *arguments):
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


def test_saving_outputs_twice_changes_nothing(tmp_path):
    """Times stay as they were while nothing else changes, and are renewed when something does."""
    path = tmp_path / "lesson.ipynb"
    cells = [
        nbformat.v4.new_code_cell("import time; time.perf_counter_ns()", id="time"),
        nbformat.v4.new_code_cell("1 + 1", id="sum"),
    ]
    cells[0].metadata["tags"] = [IGNORED]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    git(tmp_path, "init", "-q")
    save_outputs.save(path)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    first = path.read_bytes()
    save_outputs.save(path)
    assert path.read_bytes() == first

    # A compared output that comes out otherwise (another version of a library, say) renews all.
    path.write_bytes(first.replace(b'"2"', b'"3"'))
    git(tmp_path, "commit", "-qam", "second")
    save_outputs.save(path)
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[1].outputs[0].data["text/plain"] == "2"
    assert (
        notebook.cells[0].outputs != nbformat.reads(first.decode(), as_version=4).cells[0].outputs
    )


def test_a_progress_bar_is_not_saved_and_hides_no_warning():
    streams = {
        "a bar": "100%|██████████| 9/9 [00:01<00:00, 9.00step/s]\n",
        "a bar and a warning": "100%|███| 9/9 [00:01<00:00]\nUserWarning: look here\n",
        "a number": "0.75\n",
    }
    outputs = [nbformat.v4.new_output("stream", name="stderr", text=s) for s in streams.values()]
    cell = nbformat.v4.new_code_cell("1", id="run", outputs=outputs)
    saved = save_outputs.canonical(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert [output.text for output in saved] == [*streams.values()][1:]
