PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SPELL := $(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md docs src --skip "*/_build/*,*.svg,*.safetensors,*.png,*.jpg" -L maco,fro
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test test-all check format benchmarks docs gallery release-check clean

demo: $(VENV)/.installed
	@mkdir -p demo
	@$(BIN)/whence explain --out demo/heat.png

test: $(VENV)/.developer check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(VENV)/.developer check
	WHENCE_TEST_ALL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(SPELL)

format: $(VENV)/.developer
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(VENV)/.developer
	$(INSTALL) --group peers
	$(BIN)/python benchmarks/lrp.py
	$(BIN)/python benchmarks/transformers.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/perturbation.py
	$(BIN)/python benchmarks/shapley.py
	$(BIN)/python benchmarks/prototypes.py
	$(BIN)/python benchmarks/prototype_quality.py ../shared/data
	$(BIN)/python benchmarks/neuralize.py ../shared/data
	$(BIN)/python benchmarks/attacks.py ../shared/data
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/many_targets.py ../shared/data
	$(BIN)/python benchmarks/detection.py
	$(BIN)/python benchmarks/sources.py ../shared/data
	$(BIN)/python benchmarks/long_texts.py
	$(BIN)/python benchmarks/quantised.py ../shared/data
	$(BIN)/python benchmarks/which_method.py ../shared/data
	$(BIN)/python benchmarks/dataset.py ../shared/data
	$(BIN)/python benchmarks/inside.py ../shared/data
	$(BIN)/python benchmarks/export.py ../shared/data
	$(BIN)/python benchmarks/serve.py

docs: $(VENV)/.writer
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "the documentation lies in docs/_build/html/index.html"

gallery: $(VENV)/.developer
	$(BIN)/python scripts/pictures.py ../shared/data
	$(BIN)/python scripts/kinds_of_input.py ../shared/data
	$(BIN)/python scripts/digit_outliers.py ../shared/data docs/images
	$(BIN)/python scripts/robust_heatmaps.py docs/images/robust_digits.png
	$(BIN)/python scripts/page_pictures.py
	$(BIN)/python benchmarks/prototype_quality.py ../shared/data

release-check: $(VENV)/.installed
	$(INSTALL) build
	$(BIN)/python scripts/release_check.py

clean:
	rm -rf $(VENV) demo docs/_build

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('whence needs Python 3.11 or newer' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.writer: $(VENV)/.installed
	$(INSTALL) --group docs --editable .
	@touch $@

$(VENV)/.developer: $(VENV)/.installed
	$(INSTALL) --group dev --editable ".[vision,text]"
	$(INSTALL) --no-deps inseq jaxtyping typeguard treescope wadler-lindig  # inseq asks for CUDA libraries, which it does not use
	@scripts/browser.sh $(VENV)
	@touch $@
