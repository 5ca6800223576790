# make tiny: raise a tiny Llama from web pages.   make test, make check: what CI runs.
#
# An activated virtual environment that has torch is used as it is (on a GPU machine, install your own torch there
# first); otherwise everything goes into .venv, with torch's CPU build where pip finds one.

PYTHON ?= python3
TORCH := 2.13.0
ENV := $(shell "$(VIRTUAL_ENV)/bin/python" -c "import torch" 2>/dev/null && echo "$(VIRTUAL_ENV)" || echo .venv)
PIP := $(ENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: tiny test check format clean help

help:
	@echo "make tiny    raise a tiny Llama, web pages to chat model, in runs/tiny (about 12 minutes on two cores)"
	@echo "make test    run the tests"
	@echo "make check   ruff and pyright"
	@echo "make format  let ruff format the code"
	@echo "make clean   remove .venv and caches; runs/ stays"

tiny: $(ENV)/.puna
	$(ENV)/bin/puna run recipes/tiny.toml

test: $(ENV)/.puna-test
	$(ENV)/bin/python -m pytest

check: $(ENV)/.puna-test
	$(ENV)/bin/ruff check .
	$(ENV)/bin/ruff format --check .
	$(ENV)/bin/pyright --pythonpath $(ENV)/bin/python

format: $(ENV)/.puna-test
	$(ENV)/bin/ruff check --fix .
	$(ENV)/bin/ruff format .

clean:
	rm -rf .venv .pytest_cache .ruff_cache puna.egg-info

$(ENV)/.puna: pyproject.toml $(wildcard puna/*/native/*.[ch] puna/*/*/native/*.[ch]) | $(ENV)/bin/python
	$(ENV)/bin/python -c "import torch" 2>/dev/null || $(PIP) torch==$(TORCH)
	$(PIP) --editable .
	@touch $@

$(ENV)/.puna-test: $(ENV)/.puna
	$(PIP) --editable ".[test]"
	@touch $@

# Debian's python3 comes without the part of venv that brings pip; its wheel can be had without installing anything.
$(ENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
	  || { echo "puna needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(ENV) 2>/dev/null || { rm -rf $(ENV) && $(PYTHON) -m venv --without-pip $(ENV) \
	  && cd $(ENV) && apt-get download python3-pip-whl >/dev/null && dpkg-deb -x python3-pip-whl_*.deb whl \
	  && PYTHONPATH="$$(echo whl/usr/share/python-wheels/pip-*.whl)" bin/python -m pip install --quiet pip; } \
	  || { rm -rf $(ENV); echo "cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
