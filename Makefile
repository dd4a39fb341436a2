# `make demo` and `make test` set everything up by themselves; `make venv` only sets up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := $(wildcard native/*/*.cpp native/*/*.h native/*/*/*.cpp native/*/*/*.h)
CXX_SOURCES = $(shell git ls-files 'native/*.cpp' 'native/*.h' 'src/*.cu' 'src/*.h')
# importing the module rebuilds it only where cmake is found outside $(VENV) too; elsewhere make does
REBUILD := $(if $(shell command -v cmake),true,false)

.PHONY: help venv demo test lint format clean

help:
	@echo "make demo    quantise the embedded language model and write demo/report.html"
	@echo "make test    run the tests"
	@echo "make lint    format check, lint, types, import contracts"
	@echo "make format  format Python and C++ in place"
	@echo "make venv    only prepare the environment in $(VENV)"

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt CMakeLists.txt $(NATIVE)
	@echo ">> preparing $(VENV) (a minute or two the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --constraint constraints.txt pip
	@$(PIP) install --quiet --constraint constraints.txt --group build --group dev
	@$(PIP) install --quiet --constraint constraints.txt --no-build-isolation \
		--config-settings=editable.rebuild=$(REBUILD) --editable '.[all]'
	@touch $@
	@echo ">> $(VENV) is ready"

demo: venv
	$(BIN)/tesseral demo --out demo --overwrite

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/lint-imports
	$(BIN)/mypy

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:
	rm -rf $(VENV) build dist demo
