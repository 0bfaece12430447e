"""Set the address of the series in every notebook's setup cell and link, and in the README.

    python tools/set_repository.py owner/name [revision]

The revision, a branch or a tag, is `main` unless given. An address of the wrong form changes
nothing. With a tag, readers keep what they began with, whatever happens on the branch.
"""

import re
import sys

import nbformat
from save_outputs import ROOT, series

SETUP = re.compile(r"(git\+https://github\.com)/([^/\s]+/[^@\s]+)@(\S+)")
COLAB = re.compile(r"(colab\.research\.google\.com/github)/([^/]+/[^/]+)/blob/(.+?)/(?=notebooks/)")


def replace_address(text, repository, revision):
    """`text` with every setup line and Colab link naming `repository` at `revision`."""
    text = SETUP.sub(rf"\g<1>/{repository}@{revision}", text)
    return COLAB.sub(rf"\g<1>/{repository}/blob/{revision}/", text)


def check_address(repository, revision):
    """Raise ValueError unless GitHub could have this repository, and git this branch or tag."""
    owner, name = r"[A-Za-z0-9][A-Za-z0-9_-]{0,38}", r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}"
    if not re.fullmatch(f"{owner}/{name}", repository) or repository.endswith(".git"):
        raise ValueError(f"the repository must look like owner/name, got {repository!r}")
    part = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
    well_formed = re.fullmatch(f"{part}(/{part})*", revision)
    if not well_formed or ".." in revision or revision.endswith((".", ".lock")):
        raise ValueError(f"the revision must be a branch or a tag, got {revision!r}")
    if re.fullmatch(r"(?=.*[a-f])(?=.*\d)[0-9a-f]{7,39}|[0-9a-f]{40}", revision):
        raise ValueError(f"the revision must have a name: give commit {revision} a tag first")


def set_repository(repository, revision="main"):
    """Rewrite all files; raises ValueError, before anything is written, on a wrong address."""
    check_address(repository, revision)
    readme = ROOT / "README.md"
    texts = {readme: replace_address(readme.read_text(encoding="utf-8"), repository, revision)}
    for path in series():
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.source = replace_address(cell.source, repository, revision)
        texts[path] = nbformat.writes(notebook) + "\n"
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    try:
        set_repository(*sys.argv[1:])
    except (TypeError, ValueError) as error:
        sys.exit(f"{error}\nusage: make publish REPO=owner/name [REV=main]")
