"""The slides, as a lecture hall's browser shows them: without a network, one by one.

With SCREENSHOTS=1 in the environment a picture of each goes to screenshots/slides/.
"""

import os
import re

import make_slides
import nbformat
import pytest
from test_notebooks import ROOT, SERIES

LOOK = """() => {
  const slide = Reveal.getCurrentSlide();
  const parts = [...slide.querySelectorAll('*')].filter(part => part.getClientRects().length);
  const all = what => [...slide.querySelectorAll(what)].filter(part => !part.closest('aside'));
  const scrolls = part => ['auto', 'scroll'].includes(getComputedStyle(part).overflowY)
    && part.scrollHeight > part.clientHeight;
  return {
    words: slide.innerText.trim().replace(/\\s+/g, ' ').slice(0, 70),
    zoom: Number(slide.style.getPropertyValue('--zoom')),
    tall: slide.scrollHeight - slide.clientHeight,
    wide: slide.scrollWidth - slide.clientWidth,
    bottom: Math.max(...parts.map(part => part.getBoundingClientRect().bottom)),
    scrolls: parts.filter(scrolls).map(part => part.tagName),
    pictures: all('img').map(picture => [picture.naturalWidth, picture.naturalHeight,
      picture.getBoundingClientRect().width, picture.getBoundingClientRect().height]),
    formulas: all('mjx-container svg').length,
    twice: slide.querySelectorAll('mjx-assistive-mml').length,  // seen in the speaker's window
    wrong: all('[data-mjx-error]').map(node => node.dataset.mjxError),
    empty: [...slide.children].every(part => ['H1', 'H2', 'H3', 'ASIDE'].includes(part.tagName)),
    notes: [...slide.querySelectorAll('aside.notes')].map(notes => notes.innerText).join(' '),
  };
}"""


@pytest.fixture
def show(browser, tmp_path):
    """A function: all slides of a notebook's deck, as the browser has them."""

    def show(path, pictures=None):
        deck = make_slides.save(path, tmp_path)
        context = browser.new_context(viewport={"width": 1280, "height": 720}, offline=True)
        page, asked, complaints = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(deck.as_uri())
        page.wait_for_function("window.Reveal?.isReady()")
        slides = []
        while True:  # with one key from the first slide to the last, as a lecturer goes
            slides.append(page.evaluate(LOOK))
            while page.evaluate("Reveal.availableFragments().next"):
                page.keyboard.press("ArrowRight")
            if pictures:
                pictures.mkdir(parents=True, exist_ok=True)
                page.wait_for_timeout(250)  # what appears last, appears slowly
                page.screenshot(path=pictures / f"{len(slides):02d}.png")
            if page.evaluate("Reveal.isLastSlide()"):
                break
            page.keyboard.press("ArrowRight")
        assert len(slides) == page.evaluate("Reveal.getTotalSlides()")
        assert complaints == []
        assert [url for url in asked if not url.startswith("data:")] == [deck.as_uri()]
        context.close()
        return slides

    return show


def faults(slides):
    """What is wrong with which slide, in words."""
    for number, slide in enumerate(slides, start=1):
        wrong = [f"a formula: {error}" for error in sorted(set(slide["wrong"]))]
        if slide["tall"] > 0 or slide["wide"] > 0 or slide["bottom"] > 720:
            wrong.append("it does not fit on the screen")
        elif slide["zoom"] < 0.8:
            wrong.append(f"it fits only at {slide['zoom']:.0%} of its size")
        wrong += [f"a scroll bar in {tag}" for tag in slide["scrolls"]]
        for natural_width, natural_height, width, height in slide["pictures"]:
            scale = min(width / (natural_width or 1), height / (natural_height or 1))
            if not natural_width:
                wrong.append("a broken picture")
            elif max(scale * natural_width / 1280, scale * natural_height / 720) < 0.55:
                wrong.append("a picture that is too small to see")
        if slide["empty"]:
            wrong.append("it is empty")
        if slide["twice"]:
            wrong.append("its notes show every formula twice")
        for fault in wrong:
            yield f"slide {number} ({slide['words']}): {fault}"


@pytest.mark.parametrize("path", SERIES, ids=lambda path: path.stem)
def test_every_slide_can_be_seen(path, show):
    pictures = ROOT / "screenshots" / "slides" / path.stem
    slides = show(path, pictures if "SCREENSHOTS" in os.environ else None)
    assert list(faults(slides)) == []
    texts = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
    assert any(slide["formulas"] for slide in slides) or not any("$" in text for text in texts)
    assert sum(bool(slide["notes"]) for slide in slides) > len(slides) / 4


def a_notebook(folder, *cells):
    path = folder / "lesson.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


def a_cell(source, kind="markdown", slide_type="slide"):
    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}[kind]
    return new(source, metadata={"slideshow": {"slide_type": slide_type}} if slide_type else {})


@pytest.mark.parametrize(
    "cell, fault",
    [
        (a_cell("\n".join(f"x = {n}" for n in range(60)), "code"), "only at 5|not fit"),
        (a_cell(f"```\n{300 * 'x'}\n```"), "it does not fit"),
        (a_cell("## Unknown\n\n$\\foo$"), "a formula: Undefined control sequence"),
        (a_cell("## Nothing but a heading"), "it is empty"),
        (a_cell('<img src="data:image/png;base64,AAAA">'), "a broken picture"),
        (a_cell('<div style="height: 30px; overflow: auto">a<br>b<br>c</div>'), "a scroll bar"),
    ],
)
def test_a_slide_that_cannot_be_seen_is_found(cell, fault, show, tmp_path):
    (found,) = faults(show(a_notebook(tmp_path, cell)))
    assert re.search(fault, found)


def test_what_becomes_of_a_notebook(show, tmp_path):
    """The rules at the head of make_slides.py, one by one."""
    long = "\n\n".join(f"def f{n}(X):\n    return blocks[{n}](X)" for n in range(20))
    slides = show(
        a_notebook(
            tmp_path,
            a_cell("# Title\n\nWords.\n\n## 1. Part\n\nFirst.\n\n**Predict first.** How many?"),
            a_cell("skipped = 1", "code", "skip"),
            a_cell("for the speaker only", slide_type="notes"),
            a_cell(long, "code", "subslide"),
            a_cell("at the next key", slide_type="fragment"),
            a_cell("[one](01_x.ipynb), [two](../data/x.txt), `a[0](X)`", slide_type="subslide"),
            a_cell(f"## 2. Prose\n\n{400 * 'a '}\n\n{400 * 'b '}\n\n- c\n- d"),
        )
    )
    words = [slide["words"] for slide in slides]
    assert [text.split()[0] for text in words] == ["Title", *6 * ["1."], "2."]
    assert words[3].startswith("1. Part def f0(X): return blocks[0](X) def f1(X):")
    assert words[6] == "1. Part one, two, a[0](X)"
    assert "How many?" not in words[1] and "How many?" in words[2]
    assert not any("skipped" in text or "speaker" in text for text in words)
    assert any("for the speaker only" in slide["notes"] for slide in slides)
    assert "b b" in slides[-1]["notes"] and "b b" not in slides[-1]["words"]


def test_a_cell_must_say_where_it_goes(tmp_path):
    path = a_notebook(tmp_path, a_cell("# Title"), a_cell("lost", slide_type=None))
    with pytest.raises(ValueError, match="lesson, cell .*: its slide_type must be one of slide, "):
        make_slides.save(path, tmp_path / "slides")
    assert not (tmp_path / "slides").exists()
