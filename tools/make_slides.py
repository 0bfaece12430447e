"""Turn notebooks into slides for the lecture hall: one HTML file each, which needs only a browser.

    python tools/make_slides.py [notebook ...]        all but the solutions by default

Each deck is written to slides/, with reveal.js, MathJax, the stored outputs and all figures inside:
no network, no kernel. Notebooks are written to be read, slides to be talked over:

1. Every cell has a `slide_type`, Jupyter's own metadata: `slide` opens a section, `subslide` a
   slide, `fragment` appears on the slide before at the next key, `notes` are for the speaker's view
   (key S), `skip` is left out (set-up, imports, cells that only assert).
2. A Markdown cell is cut where a heading, or a paragraph that begins in bold, opens something new.
   So "Predict first" has a slide of its own, and the answer comes on the next.
3. Lists, tables and formulas are shown whole, prose as far as PROSE characters reach. The speaker's
   view has all of the text.
4. Code and what it shows share a slide if LINES suffice for both; longer code is cut at a blank
   line. The tags `slides-no-code` and `slides-no-output` leave out one or the other.

The page sets each slide as large as its content allows; the tests say when that is too small.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat.v4 import new_markdown_cell, new_notebook
from pygments.formatters import HtmlFormatter
from save_outputs import ROOT, series

SLIDE_TYPES = ("slide", "subslide", "fragment", "notes", "skip")
PROSE = 450  # characters of a slide's prose; its first paragraph is there in any case
LINES = 26  # of code on one slide, or as much of other things
PARAGRAPH_END = re.compile(r"\n{2,}|\n(?=- |\d+\. )")  # the items of a list count as paragraphs
NEW = re.compile(r"#|\*\*[^*]+([.?]\*\*|\*\*$)")  # a heading, or a line or sentence in bold
WHOLE = re.compile(r"#|- |\d+\. |\||\$\$|```|`[^`]*`$")  # headings, lists, tables, formulas, code
PREDICT = "**Predict first.**"
LINK = re.compile(r"\[[^]]*\]\([^)]*\)")
RELATIVE_LINK = re.compile(r"`[^`]*`|\[([^]]*)\]\((?!https?:)([^)]*)\)")  # code is left alone
TEMPLATES = Path(__file__).resolve().parent


def on_slide(source, slide_type):
    """A Markdown cell of the deck."""
    slideshow = {"slide_type": slide_type, "data": {"kind": "predict"} if PREDICT in source else {}}
    return new_markdown_cell(source, metadata={"slideshow": slideshow})


def to_decks(source):
    """Links to other notebooks lead to their decks; of those to other files the text is left."""

    def link(match):
        text, target = match.groups()
        if text is None:
            return match[0]
        return f"[{text}]({target[:-6]}.html)" if target.endswith(".ipynb") else text

    return RELATIVE_LINK.sub(link, source)


def shown(paragraphs):
    """Those that stand on the slide: of the prose, only while there is room."""
    room = PROSE
    for paragraph in paragraphs:
        if WHOLE.match(paragraph):
            yield paragraph
        elif not LINK.fullmatch(paragraph) and (room == PROSE or len(paragraph) <= room):
            room -= len(paragraph)
            yield paragraph


def height(block):
    """How many lines of code would be as high, roughly."""
    if "<img" in block:
        return 20
    if "```" in block:
        return block.count("\n") - 5  # its own lines, without those of `fenced` around them
    if block.startswith("|"):
        return 1.8 * block.count("\n")
    return 5 if block.startswith("$$") else 1 + 1.8 * (len(block) // 75)


def fill(blocks):
    """The blocks, shared out on slides; a heading does not stand alone."""
    slides, room = [], 0
    for block in blocks:
        room -= height(block)
        if not slides or room < 0 and not re.fullmatch("#.*", slides[-1]):
            slides.append(block)
            room = LINES - height(block)
        else:
            slides[-1] += f"\n\n{block}"
    return slides


def text_slides(source, slide_type):
    """The slides of a Markdown cell, with its whole text as notes."""
    pieces = []
    for paragraph in PARAGRAPH_END.split(to_decks(source)):
        heads = pieces and len(pieces[-1]) == 1 and pieces[-1][0].startswith("#")
        if not pieces or NEW.match(paragraph) and not heads:
            pieces.append([])
        pieces[-1].append(paragraph)
    for piece in pieces:
        if piece[0].startswith("#"):
            slide_type = "slide"
        for slide in fill(shown(piece)):
            yield on_slide(slide, slide_type)
            slide_type = "subslide"
        yield on_slide("\n\n".join(piece), "notes")


def fenced(text, kind, language):
    """Code or printed text in blocks of at most LINES, if its blank lines allow it."""
    blocks = [""]
    for part in re.split(r"\n{2,}", text.strip("\n")):
        longer = f"{blocks[-1]}\n\n{part}" if blocks[-1] else part
        if blocks[-1] and longer.count("\n") >= LINES:
            blocks.append(part)
        else:
            blocks[-1] = longer
    return [f'<div class="{kind}">\n\n```{language}\n{block}\n```\n\n</div>' for block in blocks]


def code_slides(cell, slide_type):
    """The slides of a code cell and its outputs."""
    tags = cell.metadata.get("tags", [])
    blocks = [] if "slides-no-code" in tags else fenced(cell.source, "code", "python")
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            blocks.append(f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">')
        elif "text/markdown" in data:
            blocks.append(data["text/markdown"])
        elif "slides-no-output" not in tags:
            blocks += fenced(output.get("text") or data["text/plain"], "output", "text")
    for slide in fill(blocks):
        yield on_slide(slide, slide_type)
        slide_type = "subslide"


def deck(notebook, name):
    """The cells of the deck; ValueError for a cell that does not say where it goes."""
    slides, title = [], ""
    for cell in notebook.cells:
        slide_type = cell.metadata.get("slideshow", {}).get("slide_type")
        if slide_type not in SLIDE_TYPES:
            kinds = ", ".join(SLIDE_TYPES)
            raise ValueError(f"{name}, cell {cell.id}: its slide_type must be one of {kinds}")
        if slide_type == "notes":
            slides.append(on_slide(cell.source, "notes"))
        elif slide_type != "skip" and cell.cell_type == "markdown":
            slides += text_slides(cell.source, slide_type)
        elif slide_type != "skip":
            slides += code_slides(cell, slide_type)
    for cell in slides:
        slide_type = cell.metadata.slideshow.slide_type
        if slide_type == "slide" and (heading := re.match("#+ (.+)", cell.source)):
            title = heading[1]
            cell.source = re.sub("^###+", "##", cell.source)
        elif slide_type == "subslide":
            cell.source = f"### {title}\n\n{cell.source}"
    return new_notebook(cells=slides)


def asset(package, file):
    """The text of a file in an installed package, fit to stand inside a page."""
    spec = find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"{package} is not installed: see requirements.txt")
    text = (Path(spec.origin).parent / file).read_text(encoding="utf-8")
    return text.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def save(path, folder):
    """Write the deck of a notebook, whole or not at all; returns its path."""
    reveal = "_static/revealjs"
    styles = [asset("sphinx_revealjs", f"{reveal}/dist/{name}.css") for name in ("reset", "reveal")]
    styles.append(HtmlFormatter(style="default").get_style_defs(".highlight"))
    styles.append((TEMPLATES / "slides" / "slides.css").read_text(encoding="utf-8"))
    scripts = [asset("sphinx_revealjs", f"{reveal}/dist/reveal.js")]
    scripts.append(asset("sphinx_revealjs", f"{reveal}/plugin/notes/notes.js"))
    scripts.append(asset("mathjax", "static/mathjax/es5/tex-svg.js"))

    exporter = SlidesExporter(template_name="slides", extra_template_basedirs=[str(TEMPLATES)])
    exporter.exclude_anchor_links = True
    notebook = deck(nbformat.read(path, as_version=4), path.stem)
    inside = {"deck": {"title": path.stem, "css": styles, "scripts": scripts}}
    html, _ = exporter.from_notebook_node(notebook, inside)
    folder.mkdir(exist_ok=True)
    target = folder / f"{path.stem}.html"
    partial = folder / f"{path.stem}.html.partial"
    partial.write_text(html, encoding="utf-8")
    partial.replace(target)
    return target


if __name__ == "__main__":
    lessons = [path for path in series() if path.parent.name != "solutions"]
    try:
        for path in [Path(name).resolve() for name in sys.argv[1:]] or lessons:
            print(save(path, ROOT / "slides").relative_to(ROOT))
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(f"{error}")
