# The daily commands. `make run` and `make test` set everything up by themselves.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# Idle workers take tests from busy ones, mostly whole modules, whose fixtures are then made once.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal
BUF := npx --yes @bufbuild/buf@1.75.0
MERMAID := docs/assets/mermaid.min.js

.PHONY: run test test-all bench chaos lint format protos docs docs-serve image clean

run: $(INSTALLED)  ## train, export and serve two models, show their streams, serve until Ctrl-C
	@sh deploy/run.sh

test: $(INSTALLED)  ## the tests, in parallel and in random order, without those marked as slow
	$(BIN)/pytest $(PARALLEL)

test-all: $(INSTALLED)  ## all tests, with all examples of every property
	$(BIN)/pytest $(PARALLEL) --all

bench: $(INSTALLED)  ## the server compared with onnxruntime alone: tables, and JSON and charts in benchmarks/results
	$(BIN)/python -m benchmarks serving
	$(BIN)/python -m benchmarks cases
	$(BIN)/python -m benchmarks decoding
	$(BIN)/python -m benchmarks translations
	$(BIN)/python -m benchmarks trees
	$(BIN)/python -m benchmarks sessions
	$(BIN)/python -m docs.generate.figures

chaos: $(INSTALLED)  ## servers are killed while sessions stream: nothing may be lost, doubled or different
	$(BIN)/python -m tests.chaos

lint: $(INSTALLED) docs  ## style, types, the direction of imports, the proto files, the documentation site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BUF) lint

format: $(INSTALLED)  ## bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(INSTALLED)  ## regenerate the stubs in protos/elman_protos from protos/elman
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python protos/generate.py

docs: $(INSTALLED) $(MERMAID)  ## build the documentation site into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

docs-serve: $(INSTALLED) $(MERMAID)  ## serve the site on http://127.0.0.1:8000 and rebuild it after each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --watch client --watch protos --watch server

# What draws the diagrams of the site; where npm is missing, the browser loads it from the network.
$(MERMAID):
	@command -v npm >/dev/null || exit 0; folder=$$(mktemp -d) && cd $$folder \
	  && npm pack --silent mermaid@11.16.0 >/dev/null && tar xzf mermaid-*.tgz package/dist/mermaid.min.js \
	  && mkdir -p $(CURDIR)/$(@D) && mv package/dist/mermaid.min.js $(CURDIR)/$@ && rm -rf $$folder

image:  ## the server's container image
	docker build --target server --tag elman .

clean:  ## forget what was installed, trained and exported here
	rm -rf .venv runs bundles

# Most modules of these packages are never imported: what is imported is compiled then.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "elman needs Python 3.11 or later; for example: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into .venv; the first time this takes some minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[server,training,docs,development]'
	@touch $@
