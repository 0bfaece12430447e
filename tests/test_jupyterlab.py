"""Every notebook in JupyterLab, in a real browser, as a reader sees it.

nbval runs the notebooks and compares what they show, so here what is stored is opened and looked
at. One short notebook is run from the first cell to the last, to prove that it can; with
RUN_IN_LAB=all, as in `make test-lab`, every one is. The server runs on this machine's loopback in a
copy of the series, in which the notebooks to be run have no outputs. Pictures of the pages go to
screenshots/jupyterlab/.
"""

import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from save_outputs import is_progress_bar
from test_notebooks import NOTEBOOKS, ROOT, code_cells

RUN = NOTEBOOKS if os.environ.get("RUN_IN_LAB") == "all" else NOTEBOOKS[:1]

SETTINGS = {  # no question about news over the pages
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": '{"fetchNews": "false"}',
}
PAGE = {"width": 1100, "height": 1500}

# What the pages are asked, in JavaScript. `jupyterapp` is JupyterLab itself.
OPEN = """async ([path, start]) => {
  const {commands, shell} = window.jupyterapp;
  const kernelPreference = {shouldStart: start, canStart: start, autoStartDefault: start};
  const panel = await commands.execute('docmanager:open', {path, kernelPreference});
  await panel.context.ready;
  await panel.revealed;
}"""
RUN_ALL = """async () => {
  const panel = window.jupyterapp.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  await window.jupyterapp.commands.execute('notebook:run-all-cells');
}"""
CLOSE = """async () => {
  const panel = window.jupyterapp.shell.currentWidget;
  if (panel.sessionContext.session) await panel.sessionContext.shutdown();
  panel.dispose();  // without a question about saving
}"""
CELLS = """() => {
  const {cells} = window.jupyterapp.shell.currentWidget.content.model.sharedModel;
  return cells.map(cell => cell.toJSON());
}"""
PICTURES = """async () => {
  const images = [...document.querySelectorAll('.jp-NotebookPanel img')];
  return Promise.all(images.map(async image => {
    const found = {of: image.src.slice(0, 60), width: image.naturalWidth, coloured: 0};
    if (!found.width) return found;
    await image.decode();
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < pixels.length; i += 4) {
      const [red, green, blue] = pixels.slice(i, i + 3);
      if (Math.max(red, green, blue) - Math.min(red, green, blue) > 40) found.coloured += 1;
    }
    return found;
  }));
}"""
FORMULAS = """() => {
  const cells = [...document.querySelectorAll('.jp-NotebookPanel .jp-MarkdownCell')];
  const wrong = 'mjx-merror, [data-mjx-error], mjx-mtext[style*="red"]';
  return cells.map(cell => ({
    rendered: cell.querySelectorAll('mjx-container').length,
    wrong: [...cell.querySelectorAll(wrong)].map(node => node.textContent),
  }));
}"""
SIZES = "view => [view.clientHeight, view.scrollHeight]"
LINKS = """async () => {
  const links = [...document.querySelectorAll('.jp-NotebookPanel .jp-RenderedMarkdown a[href]')];
  const dead = [];
  for (const link of links) {
    if (link.classList.contains('jp-InternalAnchorLink')) continue;  // the mark beside a heading
    const {origin, pathname, hash} = new URL(link.href);
    if (origin !== window.location.origin) continue;
    const name = decodeURIComponent(hash.slice(1));
    const there = link.getAttribute('href').startsWith('#')
      ? document.querySelector(`[id="${name}"], [data-jupyter-id="${name}"]`)
      : (await fetch(link.href)).ok;
    if (!there) dead.push(pathname + hash);
  }
  return dead;
}"""


@pytest.fixture(scope="module")
def jupyterlab(tmp_path_factory, browser):
    """The page of a JupyterLab of its own, on a copy of the series."""
    home = tmp_path_factory.mktemp("jupyterlab")
    series = home / "series"
    series.mkdir()
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, series)
    for name in ("data", "notebooks"):
        shutil.copytree(ROOT / name, series / name)
    for path in RUN:
        notebook = nbformat.read(path, as_version=4)
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, series / path.relative_to(ROOT))
    for name, text in SETTINGS.items():
        (home / "settings" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "settings" / name).write_text(text)
    folders = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    variables = {f"JUPYTER_{name}": str(home / folder) for name, folder in folders.items()}
    variables["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    variables["JUPYTERLAB_WORKSPACES_DIR"] = str(home / "workspaces")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    options += ["--IdentityProvider.token=", f"--ServerApp.root_dir={series}"]
    options += ["--LabApp.expose_app_in_browser=True"]
    log = home / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=os.environ | variables,
            stdout=output,
            stderr=output,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/api/status", server, log)
        page = browser.new_page(viewport=PAGE)
        page.set_default_timeout(600_000)
        page.goto(f"{address}/lab?reset")
        page.wait_for_function("window.jupyterapp?.restored.then(() => true)")
        page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
        yield page
        page.close()
    finally:
        server.terminate()
        server.wait(30)


def wait_for(address, server, log, seconds=60):
    last = time.monotonic() + seconds
    while time.monotonic() < last and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')}")


def formulas_in(source):
    """How many formulas a Markdown source has, outside code."""
    prose = re.sub(r"(?s)```.*?```|`[^`]*`", "", source)
    return len(re.findall(r"(?s)\$\$.+?\$\$|\$[^$]+?\$", prose))


def take_pictures(page, folder):
    """The whole notebook in pages, as PNG."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    view = page.locator(".jp-NotebookPanel .jp-WindowedPanel-outer")
    step, height = view.evaluate(SIZES)
    for number in itertools.count():
        if number * step >= height:
            return
        view.evaluate(f"view => view.scrollTop = {number * step}")
        page.wait_for_timeout(150)
        view.screenshot(path=folder / f"page_{number + 1:02d}.png")
        step, height = view.evaluate(SIZES)  # it grows while cells come into view


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_seen_in_jupyterlab(path, jupyterlab):
    page = jupyterlab
    page.evaluate(OPEN, [path.relative_to(ROOT).as_posix(), path in RUN])
    if path in RUN:
        page.evaluate(RUN_ALL)
    take_pictures(page, ROOT / "screenshots" / "jupyterlab" / path.stem)

    cells, pictures = page.evaluate(CELLS), page.evaluate(PICTURES)
    formulas_seen, dead_links = page.evaluate(FORMULAS), page.evaluate(LINKS)
    page.evaluate(CLOSE)  # before anything fails: the next notebook needs the page

    code = [cell for cell in cells if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1)), "not every cell was executed"
    figures = 0
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", f"{cell['id']}: {output['evalue']}"
            if not is_progress_bar(output):
                assert output.get("name") != "stderr", f"{cell['id']} prints a warning"
        drawn = sum("image/png" in output.get("data", {}) for output in cell["outputs"])
        assert drawn == cell["source"].count("plt.show()"), f"{cell['id']}: a figure is missing"
        figures += drawn

    assert [picture for picture in pictures if not picture["width"]] == [], "broken images"
    pictures = [picture for picture in pictures if picture["of"].startswith("data:image/png")]
    assert len(pictures) == figures
    for number, picture in enumerate(pictures, start=1):  # axes alone are black and grey
        assert picture["coloured"] >= 500, f"figure {number} draws nothing"

    texts = [cell for cell in cells if cell["cell_type"] == "markdown"]
    for cell, formulas in zip(texts, formulas_seen, strict=True):
        assert formulas["wrong"] == [], f"{cell['id']}: a formula with an error"
        assert formulas["rendered"] == formulas_in(cell["source"]), f"{cell['id']}: not rendered"

    assert dead_links == [], "dead links"
