"""Set the address of the series in every notebook's setup cell and link, and in the README.

    python tools/set_repository.py owner/name [revision]

The revision, a branch or a tag, is `main` unless given. A malformed address changes nothing.
"""

import re
import sys

import nbformat
from save_outputs import ROOT, series

SETUP = re.compile(r'REPOSITORY = "([^"]+)"\nREVISION = "([^"]+)"')
COLAB = re.compile(r"(colab\.research\.google\.com/github)/([^/]+/[^/]+)/blob/(.+?)/(?=notebooks/)")


def replace_address(text, repository, revision):
    """`text` with every setup line and Colab link naming `repository` at `revision`."""
    text = SETUP.sub(f'REPOSITORY = "{repository}"\nREVISION = "{revision}"', text)
    return COLAB.sub(rf"\g<1>/{repository}/blob/{revision}/", text)


def set_repository(repository, revision="main"):
    """Rewrite all files; raises ValueError, before anything is written, on a malformed address."""
    form = r"[A-Za-z0-9][A-Za-z0-9-]*/(?!\.{1,2}$)(?!.*\.git$)[A-Za-z0-9._-]+"
    if not re.fullmatch(form, repository):
        raise ValueError(f"the repository must look like owner/name, got {repository!r}")
    if not re.fullmatch(r"[A-Za-z0-9._][A-Za-z0-9._/-]*", revision):
        raise ValueError(f"the revision must be a branch or a tag, got {revision!r}")
    for path in series():
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.source = replace_address(cell.source, repository, revision)
        nbformat.write(notebook, path)
    readme = ROOT / "README.md"
    text = replace_address(readme.read_text(encoding="utf-8"), repository, revision)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        set_repository(*sys.argv[1:])
    except (TypeError, ValueError) as error:
        sys.exit(f"{error}\nusage: make publish REPO=owner/name [REV=main]")
