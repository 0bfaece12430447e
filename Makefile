# Two commands do everything on a fresh machine: `make lab` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --timeout=600
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=300
COLAB ?= python3.13

.PHONY: lab test test-lab test-colab slides bench gpu ablations weights outputs format publish

lab: .venv/installed  ## open the series in JupyterLab
	$(BIN)/jupyter lab --allow-root --LabApp.default_url=/lab/tree/notebooks/01_embeddings.ipynb

test: .venv/installed-dev  ## the style of the code, the modules, the form of the notebooks, every notebook under strict nbval
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(PYTEST) -n auto --maxprocesses=4 --dist=loadfile tests
	$(PYTEST) $(NBVAL) notebooks

test-lab: .venv/installed-dev  ## every notebook from the first cell to the last, in JupyterLab
	RUN_IN_LAB=all $(PYTEST) tests/test_jupyterlab.py

test-colab: .venv/installed-dev .venv-colab/installed  ## every notebook alone, in Colab's versions
	COLAB_PYTHON=$(CURDIR)/.venv-colab/bin/python $(PYTEST) tests/test_colab.py

slides: .venv/installed-dev  ## a deck for each notebook, in slides/: one file, no network needed
	$(BIN)/python tools/make_slides.py

bench: .venv/installed-dev  ## beside transformers: time, memory, share of the machine's limit
	$(BIN)/python benchmarks/compare.py --save benchmarks/README.md

gpu: .venv/installed  ## everything that is measured on a GPU, in one go, to gpu_report/
	$(BIN)/python tools/measure_gpu.py --out gpu_report

ablations: .venv/installed  ## the variants of notebook 7 at full length, three seeds each, to data/ablations.csv
	$(BIN)/python tools/ablations.py

weights: .venv/installed  ## make weights SEED=n: the trained weights that the later notebooks load, to data/
	$(BIN)/python train_gpt2.py --device cpu --steps 5000 --batch 32 --lr 4e-3 --beta2 0.99 --seed $(SEED) --out weights_run
	cp weights_run/checkpoint-0005000/model.safetensors data/telegraph_gpt2.safetensors
	cp weights_run/losses.csv data/telegraph_losses.csv

outputs: .venv/installed-dev  ## execute every notebook and save its outputs
	$(BIN)/python tools/save_outputs.py

format: .venv/installed-dev  ## format code, in notebooks too
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

publish: .venv/installed-dev  ## make publish REPO=owner/name [REV=main]: the address in every notebook
	$(BIN)/python tools/set_repository.py $(REPO) $(REV)

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed'"
	@echo "Making an environment in .venv for the notebooks."
	$(PYTHON) -m venv .venv
	$(BIN)/python tools/install_torch.py
	@echo "Installing JupyterLab and the other packages of requirements.txt."
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	@echo "Installing what tests, slides and benchmarks need on top (requirements-dev.txt)."
	$(BIN)/python -m pip install -r requirements-dev.txt
	@touch $@

.venv-colab/installed: tests/colab.txt
	@echo "Making an environment in .venv-colab with the versions of Colab: a few GB."
	$(COLAB) -m venv .venv-colab
	.venv-colab/bin/python -m pip install -r tests/colab.txt
	@touch $@
