# make test | demo | lint | types | clean | distclean: everything runs in .venv, which the first call sets up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

BUILD_INPUTS := setup.py $(shell find csrc -type f 2>/dev/null)
NO_PACKAGES = { echo; echo "make: pip could not install what uotlib needs (its message is above)."; \
                echo "      A first set-up needs a package index within reach; later calls reuse $(VENV)."; exit 1; } >&2

.DELETE_ON_ERROR:
.PHONY: setup test demo lint types clean distclean

setup: $(VENV)/built.stamp

$(VENV)/torch.stamp: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$$(grep '^torch==' constraints.txt)" || $(NO_PACKAGES)
	@touch $@

# All packages, and uotlib itself as an editable install, built in isolation as any user's pip does ...
$(VENV)/packages.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) install -c constraints.txt -e '.[test,demo,unite]' || $(NO_PACKAGES)
	@touch $@

# ... and again from what is installed where its sources change: ninja compiles those alone, nothing is fetched.
$(VENV)/built.stamp: $(VENV)/packages.stamp $(BUILD_INPUTS)
	$(PIP) install --no-build-isolation --no-deps --no-index -e .
	@touch $@

test: setup
	$(BIN)/python -m pytest -q -n 2 tests benchmarks

demo: setup
	$(BIN)/python -m examples.stereo
	$(BIN)/python -m examples.unite.demo

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf build dist out *.egg-info uotlib/_C*.so uotlib/_C*.dylib .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(VENV)/built.stamp
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
