# Two commands do everything: `make book` and `make test`. The rest is `make help`.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: book test check measure lab serve release-check clean help

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

book: $(READY) measure  ## set up, measure what no record covers, build the book into _build/html
	$(BIN)/python book/build.py

measure: $(READY)  ## measure what no record covers (python -m taxonomy measure --plan tells the cost)
	$(BIN)/python -m taxonomy measure

test: $(READY)  ## run the tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: $(READY) .venv/.lab  ## open the chapters as notebooks in JupyterLab
	$(BIN)/python book/lab.py

.venv/.lab: requirements-lab.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-lab.txt
	@touch $@

serve: book  ## build, then serve the book at http://localhost:8000
	$(BIN)/python -m http.server --directory _build/html --bind localhost 8000

release-check: $(READY)  ## fail where a technique is not completely measured, or a record is stale
	$(BIN)/python -m taxonomy status --check

clean:  ## remove what was built, not what was measured here
	rm -rf _build .cache/book .pytest_cache .mypy_cache .ruff_cache
