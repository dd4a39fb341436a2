# `make demo` and `make test` set everything up by themselves; `make venv` only sets up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := $(wildcard native/*/*.cpp native/*/*.h native/*/*/*.cpp native/*/*/*.h)
CXX_SOURCES = $(shell git ls-files 'native/*.cpp' 'native/*.h' 'src/*.cu' 'src/*.h')
# importing the module rebuilds it only where cmake is found outside $(VENV) too; elsewhere make does
REBUILD := $(if $(shell command -v cmake),true,false)

.PHONY: help venv venv-ascend demo test test-ascend docs wheel changelog lint format clean

help:
	@echo "make demo    run all four systems on what the package ships; writes demo/report.html"
	@echo "make test    run the tests"
	@echo "make docs    build the pages of docs/ into build/docs; warnings are errors"
	@echo "make wheel   build a wheel and a source archive into dist/, and try the wheel"
	@echo "make changelog  show what changes/ says of the next release; VERSION=1.2.3 writes CHANGELOG.md"
	@echo "make test-ascend  lower the Ascend kernels with triton-ascend; no NPU is needed"
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

docs: venv
	@$(PIP) install --quiet --constraint constraints.txt --group docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo ">> open build/docs/index.html"

wheel: venv
	@rm -rf dist
	@$(PIP) install --quiet --constraint constraints.txt --group release
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(PYTHON) -m venv --clear build/light
	@build/light/bin/python -m pip --disable-pip-version-check install --quiet \
		--constraint constraints.txt dist/*.whl pytest
	build/light/bin/python -m pytest -q -p no:cacheprovider tests/contracts/test_base_install.py

# without VERSION it only shows
changelog: venv
	$(BIN)/towncrier build --yes $(if $(VERSION),--version $(VERSION),--draft --version "next release")

# another package named triton, so an environment of its own; it has wheels up to Python 3.11
venv-ascend: $(VENV)-ascend/.ready

$(VENV)-ascend/.ready:
	@$(PYTHON) -m venv $(VENV)-ascend
	@$(VENV)-ascend/bin/python -m pip --disable-pip-version-check install --quiet \
		triton-ascend==3.2.0 pybind11==3.1.0
	@touch $@

test-ascend: venv venv-ascend
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/attention/test_ascend_lowering.py

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/lint-imports
	@$(BIN)/towncrier build --draft --version lint >/dev/null  # refuses other names
	$(BIN)/mypy

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:
	rm -rf $(VENV) $(VENV)-ascend build dist demo
