PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test test-all check format benchmarks clean

demo: $(VENV)/.installed
	@mkdir -p demo
	@$(BIN)/whence explain --out demo/heat.png

test: $(VENV)/.developer check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: $(VENV)/.developer check
	WHENCE_TEST_ALL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

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
	$(BIN)/python benchmarks/which_method.py ../shared/data
	$(BIN)/python benchmarks/dataset.py ../shared/data
	$(BIN)/python benchmarks/inside.py ../shared/data
	$(BIN)/python benchmarks/export.py ../shared/data
	$(BIN)/python benchmarks/serve.py

clean:
	rm -rf $(VENV) demo

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('whence needs Python 3.11 or newer' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.developer: $(VENV)/.installed
	$(INSTALL) --group dev --editable ".[vision,text]"
	@scripts/browser.sh $(VENV)
	@touch $@
