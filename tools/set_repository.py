"""Set the address of the series in every notebook's link, in the setup cell, and in the README.

    python tools/set_repository.py owner/name [revision]

The revision, a branch or a tag, is `main` unless given. An address of the wrong form changes
nothing. With a tag, readers keep what they began with, whatever happens on the branch.

The workflows call it, too: with --if-another a fork's first push sets its address, and with
--refuse a pull request that brings another address along fails.
"""

import argparse
import re
import sys

import nbformat
from save_outputs import ROOT, series

SETUP = re.compile(r"(git\+https://github\.com)/([^/\s]+/[^@\s]+)@([\w./+-]+)")
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
    pages = [ROOT / "README.md", ROOT / "tools" / "setup_cell.ipy"]
    texts = {p: replace_address(p.read_text(encoding="utf-8"), repository, revision) for p in pages}
    for path in series():
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.source = replace_address(cell.source, repository, revision)
        texts[path] = nbformat.writes(notebook) + "\n"
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8", newline="\n")


def repository_of(text):
    """The repository to which the badges of a README lead; ValueError unless there is one."""
    found = {repository for _, repository, _ in COLAB.findall(text)}
    if len(found) != 1:
        raise ValueError(f"the badges should lead to one repository, and lead to {sorted(found)}")
    return found.pop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", help="owner/name")
    parser.add_argument("revision", nargs="?", default="main", help="a branch or a tag")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--if-another", action="store_true", help="keep it where it is set already")
    only.add_argument("--refuse", action="store_true", help="change nothing; fail if it differs")
    options = parser.parse_args()
    here = repository_of((ROOT / "README.md").read_text(encoding="utf-8"))
    if options.refuse and here != options.repository:
        raise ValueError(
            f"the badges lead to {here} here, and should lead to {options.repository}: "
            f"make publish REPO={options.repository}"
        )
    if not options.refuse and not (options.if_another and here == options.repository):
        set_repository(options.repository, options.revision)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"{error}")
