# One list of verbs. Needs nothing but Python 3.11 or newer, pip and make; everything else goes into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# a module with a .pxd beside it is compiled, where there is a compiler; a .pyx is there in that form alone
TYPES  := $(wildcard src/pglockstep/*/*.pxd)
ONLY   := $(wildcard src/pglockstep/*/*.pyx)
BUILT  := $(VENV)/.built

.PHONY: help demo test soak lint format bench clean

help:           ## list the verbs
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/'

demo: $(BUILT)  ## two throwaway servers, a live workload, a crash, and a wipe of either end
	@$(BIN)/pglockstep demo

test: $(BUILT)  ## the tests, against every PostgreSQL at hand
	@$(BIN)/pytest --numprocesses 3 --dist worksteal

soak: $(BUILT)  ## the long tests: very large, very many, every pair of versions; and all tests without a superuser
	@$(BIN)/pytest --unforked --on-disk -m soak -rP
	@$(BIN)/pytest --unforked --on-disk --plain-roles

lint: $(BUILT)  ## style and strict types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(BUILT) ## put style right
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(BUILT) ## measure beside other tools, everything, an hour or so; figures and report go to docs/
	@$(BIN)/python -m bench all --out docs

clean:          ## remove what make made
	rm -rf $(VENV) build dist $(wildcard src/pglockstep/*/*.so) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BUILT): $(READY) $(TYPES) $(TYPES:.pxd=.py) $(ONLY)
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(READY): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pglockstep needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), the first time takes about a minute …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[embedded,dev]'
	@touch $@
