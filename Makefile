# `make` targets are the interface of the project; `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
VENV_SCORERS ?= .venv-scorers
VENV_PADDLE ?= .venv-paddle
BIN    := $(VENV)/bin
TASK   ?= geneval
MODEL  ?= mini
PROCESSES ?= auto
MINUTES ?= 10
ARGS   ?=
RUNS   ?= 1000000
WORKERS ?= 4
ENGINES ?= slurm kube sky ray
# One thread per process: threads that spin-wait on shared cores cost more than they give.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install scorers test-scorers test-paddle train serve test check lint fmt type test-all protos bench bench-smoke gpu-receipt docs docs-serve lock audit test-containers up down logs ps fuzz mini clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'
	@echo
	@echo "  variables: TASK=geneval|ocr|jpeg|pickscore|edit|i2v  MODEL=mini|sd3.5-medium|flux.1-dev|flux.1-kontext|flux.2-klein|flux.2-dev|qwen-image|qwen-image-edit|wan2.1-1.3b|wan2.2-5b|wan2.2-i2v-a14b  PROCESSES=auto|1|2..  REWARD_URL=grpc://host:port  ARGS='--set ...'"

install: $(VENV)/.installed ## create .venv with everything, versions as tested

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; '$(PYTHON)' is older. Try: make install PYTHON=python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing everything into $(VENV): 150 packages, 2.4 GB on disk (more with a CUDA build of torch); two to six minutes, once"
	@$(BIN)/python scripts/install.py $(VENV) --constraint constraints.txt --editable '.[dev]'
	@touch $@

scorers: $(VENV_SCORERS)/.installed ## create .venv-scorers with the scorers on torch (GenEval, preference)

# An environment of its own, as in deployment: torchvision beside a CPU build of torch breaks the
# trainer's imports, and only these scorers need it.
$(VENV_SCORERS)/.installed: pyproject.toml constraints.txt
	@test -x $(VENV_SCORERS)/bin/python || $(PYTHON) -m venv $(VENV_SCORERS)
	@echo "Installing the scorers on torch into $(VENV_SCORERS): 1.8 GB on disk; two to five minutes, once"
	@$(VENV_SCORERS)/bin/python scripts/install.py $(VENV_SCORERS) --constraint constraints.txt --editable '.[preference,geneval,ocr,server,test]'
	@touch $@

train: install ## train: make train TASK=geneval (starts a local reward service unless REWARD_URL is set)
	@$(BIN)/python scripts/train.py --task $(TASK) --model $(MODEL) --processes $(PROCESSES) $(ARGS)

serve: install ## serve the rewards that need no downloads, on 127.0.0.1:8000 (HTTP) and :50051 (gRPC)
	@$(BIN)/reward-server serve $(ARGS)

# By file, so that tests that share a server stay together; WORKERS=0 runs them in one process.
# Four for two cores: tests of time limits wait for half of their time.
test: install ## run the tests, WORKERS=4 files at a time
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 10 $(ARGS)

# A group names the files it guards; .ci/run runs it if they changed since tests/exhaustive.lock was
# recorded. Commit the lock that this writes.
test-all: install ## every test: `make check`, then the slow groups of tests/exhaustive.toml, recorded
	@$(MAKE) --no-print-directory check
	@$(BIN)/python scripts/exhaustive.py --all --record

test-scorers: scorers ## run the tests of the scorers on torch
	@$(VENV_SCORERS)/bin/python -m pytest tests_scorers $(ARGS)

# paddlex pins numpy and PyYAML, and brings its own opencv-python, which shares its folder with the
# one that RapidOCR asks for: hence an environment of its own, and RapidOCR's wheel without the rest.
$(VENV_PADDLE)/.installed: pyproject.toml
	@test -x $(VENV_PADDLE)/bin/python || $(PYTHON) -m venv $(VENV_PADDLE)
	@echo "Installing PaddleOCR into $(VENV_PADDLE): a minute or two, once"
	@$(VENV_PADDLE)/bin/python scripts/install.py $(VENV_PADDLE) --editable '.[paddle,server,test]'
	@$(VENV_PADDLE)/bin/python scripts/install.py $(VENV_PADDLE) --no-deps rapidocr==3.10.0
	@touch $@

test-paddle: $(VENV_PADDLE)/.installed ## run the tests of PaddleOCR, in .venv-paddle
	@$(VENV_PADDLE)/bin/python -m pytest -rs tests/scorers/test_ocr_paddle.py $(ARGS)

# The types and the tests of the scorers use one core each.
check: lint ## format, lint, types and tests: what CI runs
	@$(MAKE) --no-print-directory -j2 type test-scorers
	@$(MAKE) --no-print-directory test

lint: install ## check format and lint
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

fmt: install ## format, and fix what lint can fix
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

type: install ## check types
	@$(BIN)/pyright --pythonpath $(BIN)/python

protos: ## generate the _pb packages from protos/ (with the pinned generator, in .venv-protos)
	@test -x .venv-protos/bin/python || $(PYTHON) -m venv .venv-protos
	@.venv-protos/bin/python -m pip install -qq 'grpcio-tools==1.62.3' 'setuptools<81'
	@.venv-protos/bin/python scripts/gen_protos.py

bench: install ## measure the wire and the service's overhead; writes docs/operate/performance.md (15 minutes, idle)
	@mkdir -p benchmarks/results
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.serving --json benchmarks/results/wire.json
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.overhead --json benchmarks/results/overhead.json
	@$(BIN)/python -m benchmarks.page

bench-smoke: install ## what the wire costs beside the public servers and a bare echo; fails below recorded ratios
	@$(BIN)/python -m benchmarks.serving --smoke $(ARGS)

# With the python of the machine: it has the GPU's build of torch (benchmarks/gpu/wheels.txt).
gpu-receipt: ## measure one GPU in eight minutes: speed, memory, correctness (docs/operate/performance.md)
	@$(PYTHON) -m benchmarks.gpu.receipt $(ARGS)

soak: install ## steady load with faults for MINUTES=10: percentiles, memory, lost = 0, wrong = 0
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(ARGS)

docs: install ## build the documentation into build/site, strictly; check its code blocks
	@$(BIN)/python -m pytest tests/test_docs.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo "built: build/site; make docs-serve shows it"

docs-serve: install ## show the documentation at http://127.0.0.1:8008 while it is edited
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8008

test-containers: install ## build the images and test the composed service (a running Docker engine, or one it starts)
	@scripts/with_docker.sh $(BIN)/python -m pytest -rs --timeout 1800 tests_containers $(ARGS) \
	  || { status=$$?; [ $$status -eq 77 ] && echo "test-containers: skipped, for the reason above"; }

# Environments of their own: SkyPilot and the packages with schemas are no part of the product.
.venv-kube/.installed: Makefile
	@$(PYTHON) -m venv .venv-kube
	@.venv-kube/bin/python -m pip install -qq $(TEST_TOOLS) kubeflow-trainer-api==2.3.0 cloudcoil-models-keda==2.16.1.0 'kubernetes<33' filelock
	@.venv-kube/bin/python -m pip install -qq --no-deps kserve==0.21.0
	@touch $@

.venv-sky/.installed: Makefile
	@$(PYTHON) -m venv .venv-sky
	@.venv-sky/bin/python -m pip install -qq $(TEST_TOOLS) skypilot==0.14.1
	@touch $@

# Ray in an environment of its own, with what .venv has below it.
.venv-ray/.installed: Makefile $(VENV)/.installed
	@$(BIN)/python -m venv .venv-ray
	@.venv-ray/bin/python -m pip install -qq ray==2.60.0
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$(.venv-ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	@touch $@

TEST_TOOLS := pytest pytest-timeout pytest-asyncio pyyaml
# Two engines at a time: they mostly wait.
.PHONY: test-cluster cluster-slurm cluster-kube cluster-sky cluster-ray
test-cluster: ## cluster/ and docker/k8s: a real Slurm and a real Ray with nodes dying, schemas (ENGINES="slurm kube sky ray")
	@$(MAKE) --no-print-directory -j2 -O $(addprefix cluster-,$(ENGINES))

cluster-slurm: install
	@status=0; scripts/slurm_cluster.sh install || status=$$?; \
	  if [ $$status -eq 77 ]; then echo "cluster-slurm: skipped, for the reason above"; exit 0; fi; \
	  [ $$status -eq 0 ] && $(BIN)/python -m pytest -rs -n 3 --dist loadgroup --durations 5 --timeout 900 tests_cluster/test_slurm.py tests_cluster/test_pod_script.py $(ARGS)

cluster-kube: .venv-kube/.installed
	@.venv-kube/bin/python -m pytest -rs -p no:cacheprovider tests_cluster/test_custom_resources.py $(ARGS)

cluster-sky: .venv-sky/.installed
	@.venv-sky/bin/python -m pytest -rs -p no:cacheprovider tests_cluster/test_sky.py $(ARGS)

cluster-ray: .venv-ray/.installed
	@.venv-ray/bin/python -m pytest -rs -p no:cacheprovider --timeout 900 tests_cluster/test_ray.py $(ARGS)

up: ## the service in containers: what COMPOSE_PROFILES in .env names
	@$(PYTHON) scripts/compose_up.py $(ARGS)

down: ## stop the containers; finishes what is in flight
	@docker compose down $(ARGS)

logs: ## follow the containers' logs
	@docker compose logs --follow --tail 100 $(ARGS)

ps: ## list the containers and their health
	@docker compose ps --all $(ARGS)

lock: ## resolve docker/locks again: versions with hashes (uv, in .venv-lock; needs a package index)
	@test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install -qq uv==0.13.9; }
	@.venv-lock/bin/python scripts/lock.py --uv .venv-lock/bin/uv

audit: ## locks true to pyproject.toml and constraints.txt; known vulnerabilities, where the data are reachable
	@$(PYTHON) scripts/lock.py --check
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install -qq pip-audit==2.10.1; }
	@$(PYTHON) scripts/audit.py .venv-audit/bin/pip-audit

fuzz: install ## feed broken input to every parser: make fuzz RUNS=1000000
	@$(BIN)/python -m tests.fuzz --runs $(RUNS) $(ARGS)

mini: install ## rebuild the miniature's weights (35 to 50 minutes on two cores)
	@$(BIN)/python -m miniature build $(ARGS)

clean: ## remove the environment and caches; runs/ is kept
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
