# Two commands do everything on a fresh machine: `make lab` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=300
COLAB ?= python3.13

.PHONY: lab test test-colab slides bench outputs format publish

lab: .venv/installed  ## open the series in JupyterLab
	$(BIN)/jupyter lab --allow-root --LabApp.default_url=/lab/tree/notebooks/01_embeddings.ipynb

test: .venv/installed  ## the helper, the form of the notebooks, every notebook under strict nbval
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(NBVAL) tests notebooks

test-colab: .venv/installed .venv-colab/installed  ## every notebook alone, in Colab's versions
	.venv-colab/bin/python -m pip uninstall --quiet --yes torchinfo
	COLAB_PYTHON=$(CURDIR)/.venv-colab/bin/python $(BIN)/python -m pytest tests/test_colab.py

slides: .venv/installed  ## a deck for each notebook, in slides/: one file, no network needed
	$(BIN)/python tools/make_slides.py

bench: .venv/installed  ## beside transformers: time, memory, share of the machine's limit
	$(BIN)/python benchmarks/compare.py --save benchmarks/results.md

outputs: .venv/installed  ## execute every notebook and save its outputs
	$(BIN)/python tools/save_outputs.py

format: .venv/installed  ## format code, in notebooks too
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

publish: .venv/installed  ## make publish REPO=owner/name [REV=main]: the address in every notebook
	$(BIN)/python tools/set_repository.py $(REPO) $(REV)

.venv/installed: requirements.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed'"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv-colab/installed: tests/colab.txt
	$(COLAB) -m venv .venv-colab
	.venv-colab/bin/python -m pip install --quiet -r tests/colab.txt
	touch $@
