# One way in. Needs nothing but make and Python >= 3.10; everything else is installed into .venv.
# Plain POSIX sh and the GNU make 3.81 that macOS ships.

PYTHON ?= python3
VENV := .venv
ARGS :=
# Processes that share the tests; each computes on one thread.
WORKERS := logical
TORCH := 2.13.0
# Python 3.10 has a list of its own: transformers, numpy, scipy and PyAV have left it behind.
CONSTRAINTS := $(shell "$(PYTHON)" -c 'import sys; print("constraints-py310.txt" if sys.version_info < (3, 11) else "constraints.txt")' 2>/dev/null)

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OURS := $(VENV)/.made-by-make

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format docs lock clean FORCE

help:
	@echo "ASR-Doge: a frozen speech encoder, a small language model, and a 1.57M-parameter adapter between them."
	@echo
	@echo "  make demo      train a small recogniser on synthetic speech and try it: start here"
	@echo "  make venv      install the package, its tests and its linters into $(VENV) (the others do this first)"
	@echo "  make test      run the whole test suite         ARGS='-k adapter -x' chooses among the tests"
	@echo "  make lint      check format, lint and types     (as the gate does: .ci/run)"
	@echo "  make format    mend what can be mended by itself"
	@echo "  make docs      build the documentation as a site in ./site, and check its links"
	@echo "  make lock      resolve the dependencies anew and write the constraints file"
	@echo "  make clean     remove $(VENV) and the tools' caches"
	@echo
	@echo "  PYTHON=python3.12    use that Python (>= 3.10; default python3)"
	@echo "  PIP_EXTRA_INDEX_URL  on Linux, pip brings PyTorch with CUDA, several GB. Set this to the address of PyTorch's CPU"
	@echo "                       wheels for the small build."

venv: $(STAMP)
	@echo "$(VENV) is ready"

demo: $(STAMP)
	@$(VENV)/bin/asr-doge demo $(ARGS)

# Compiled once and kept, also where the environment says otherwise: tests start many Pythons.
test: $(STAMP)
	@env -u PYTHONDONTWRITEBYTECODE $(PY) -m pytest -n $(WORKERS) --dist worksteal --durations 10 $(ARGS)

lint: $(STAMP)
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m mypy

format: $(STAMP)
	$(PY) -m ruff format
	$(PY) -m ruff check --fix

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

# The stamp comes last, so an environment whose making was interrupted is made again. It names this folder, so one that was
# copied along with a checkout, and still points at the original's source, is made again too. An environment made by other
# hands is left alone. `base` is the interpreter behind $(PYTHON), for when that lies in the very environment to be remade.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "There is no '$(PYTHON)' here. Install Python 3.10 or newer, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "ASR-Doge needs Python 3.10 or newer, but '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@if [ -e "$(VENV)" ] && [ ! -e "$(OURS)" ]; then \
		echo "'$(VENV)' exists and was not made by make, so it is left alone. Move it away, or choose another place: make VENV=.venv-make" >&2; exit 1; fi
	@base=$$("$(PYTHON)" -c 'import sys; print(sys._base_executable)') && rm -rf "$(VENV)" && mkdir -p "$(VENV)" && touch "$(OURS)" && \
		echo "Making $(VENV) with $$("$$base" -V). The first time takes some minutes: PyTorch is large." && \
		"$$base" -m venv "$(VENV)" || { \
		echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: sudo apt install python3-venv (or python3.12-venv and the like)" >&2; exit 1; }
	@{ PYTHONUNBUFFERED=1 "$(PY)" -m pip install --disable-pip-version-check --progress-bar off --log "$(VENV)/pip.log" \
		-c $(CONSTRAINTS) -e ".[dev,synthesis]" 2>"$(VENV)/pip.err"; echo "pip exit $$?"; } | $(PIP_DIGEST)
	@echo "$(CURDIR)" > "$(STAMP)"

# pip in brief: a dot for each package, a line for each large download; its complaints only when it fails.
PIP_DIGEST := while read -r line; do case "$$line" in \
	Collecting*|Processing*) printf . ;; \
	*Downloading*" MB)"|*Downloading*" GB)") printf '\n  %s' "$$line" ;; \
	"Installing collected"*) printf '\n  Installing everything ...\n' ;; \
	"pip exit 0") exit 0 ;; \
	"pip exit "*) echo; cat "$(VENV)/pip.err" >&2; printf "pip could not install ASR-Doge's dependencies; the whole story is in $(VENV)/pip.log\n" >&2; exit 1 ;; \
	esac; done

lock:
	@echo "Resolving into a fresh environment; this takes some minutes ..."
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	"$(PYTHON)" -m venv "$$tmp/venv" && \
	"$$tmp/venv/bin/python" -m pip install --disable-pip-version-check --quiet "torch==$(TORCH)" -e ".[dev,synthesis]" && \
	{ echo "# Exact versions the tests pass with. Written by 'make lock'; do not edit."; \
	  echo "# PyTorch's build tag (+cpu, +cu130) is left off, so that any build of the version fits."; \
	  "$$tmp/venv/bin/python" -m pip freeze --disable-pip-version-check --all --exclude pip --exclude-editable; } > "$$tmp/freeze" && \
	sed -E 's/^([^#]*)\+[a-z0-9.]+$$/\1/' "$$tmp/freeze" > $(CONSTRAINTS) && \
	echo "$(CONSTRAINTS): $$(grep -c == $(CONSTRAINTS)) packages"

clean:
	@if [ -e "$(OURS)" ]; then rm -rf "$(VENV)"; fi
	@rm -rf build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -path "./.*" -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
