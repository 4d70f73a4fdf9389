# make install   .venv with pinned versions and the CPU build of torch (TORCH=cuda: the CUDA build, also from then on)
# make sweep     install, then a real sweep: SmolLM2 on four newsgroup topics
# make dev       install, and what the targets below need (each makes it by itself)
# make check     lint, format, types, import contracts
# make test      the default tests;  make test-all adds those marked heavy
# make audit     known vulnerabilities and licences of what is installed, and its bill of materials, dist/lorasweep.cdx.json
# make mutants   small mistakes in a module: do its tests notice?  BENCH="--changed main": in changed lines (see --help)
# make bench-sweep, bench-pack, bench-overhead, bench-search, bench-elastic, bench-quality, bench-bucket, bench-groups, bench-claims, bench-generate   what BENCHMARKS.md reports (BENCH="--setting short": see each --help)
# make gpu-day   all that is to be measured on a GPU, without an install;  make gpu-day-bundle what it needs carried along
PYTHON ?= python3
# the build of torch: the one that is installed, or else the CPU's
TORCH ?= $(or $(patsubst $(VENV)/installed-%,%,$(firstword $(wildcard $(VENV)/installed-*))),cpu)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# with the hashes of the CPU build: for one of your own make, a list of your own
TORCH_CPU_LIST ?= requirements/torch-cpu.txt
# test processes side by side, each with one thread
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --retries 5
# Lists name every package with the hashes of its files. What they hold as source is built by what is there already.
HASHED := --quiet --require-hashes --no-deps --no-build-isolation --requirement

# Ray's clusters ask for a token: from 2.61 on by default, in the tests already
test test-all: export RAY_AUTH_MODE := token

.PHONY: install dev sweep check format test test-all clean
.DELETE_ON_ERROR:

install: $(VENV)/installed-$(TORCH)
dev: $(VENV)/dev-$(TORCH)

$(VENV)/installed-$(TORCH): pyproject.toml $(addprefix requirements/,build.txt run.txt torch-cpu.txt torch-cuda.txt)
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else f"lorasweep needs Python 3.11 to 3.13, $(PYTHON) is {sys.version.split()[0]}: make install PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/installed-* $(VENV)/dev-*
	$(PIP) install $(HASHED) requirements/build.txt
	$(MAKE) --no-print-directory torch-$(TORCH)
	$(PIP) install $(HASHED) requirements/run.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(PIP) check
	$(BIN)/python -m compileall -q analysis conf sweeps trainer # else the first command and Ray's workers do
	touch $@

$(VENV)/dev-$(TORCH): $(VENV)/installed-$(TORCH) requirements/dev.txt
	$(PIP) install $(HASHED) requirements/dev.txt
	$(PIP) check
	touch $@

.PHONY: extra-mlflow extra-wandb-report
extra-mlflow extra-wandb-report: extra-%: install
	$(PIP) install $(HASHED) requirements/$*.txt

# A mirror's or a local CPU build first, then PyTorch's own index: whose file it is, its hash says. macOS has but one build.
.PHONY: torch-cpu torch-cuda
torch-cpu:
	@if [ "$$(uname)" = Darwin ]; then $(PIP) install $(HASHED) requirements/torch-cuda.txt; \
	elif ! told=$$($(PIP) install $(HASHED) $(TORCH_CPU_LIST) 2>&1); then \
	case "$$told" in *'DO NOT MATCH THE HASHES'*) echo "$$told" >&2; \
	echo 'A CPU build of your own? Give a list with its hash: make install TORCH_CPU_LIST=FILE' >&2; exit 1;; esac; \
	$(PIP) install --index-url $(TORCH_CPU_INDEX) $(HASHED) $(TORCH_CPU_LIST); fi
torch-cuda: # pip takes an installed CPU build of the same version for it
	@if $(PIP) show torch 2>/dev/null | grep -q '^Version:.*+cpu'; then $(PIP) uninstall --quiet --yes torch; fi
	$(PIP) install $(HASHED) requirements/torch-cuda.txt

# the lists of requirements/ with their hashes, from constraints.txt: after a change of it or of pyproject.toml
.PHONY: requirements
requirements:
	requirements/compile.sh $(BIN)/uv

# the image's versions with their hashes, those of constraints.txt and CUDA's: after a change of either
cluster/requirements.txt: dev
	$(BIN)/uv pip compile pyproject.toml --constraint constraints.txt --generate-hashes --python-version 3.12 \
	  --python-platform x86_64-manylinux_2_28 --no-annotate --quiet --output-file $@ \
	  --custom-compile-command 'make cluster/requirements.txt'

sweep: install
	$(BIN)/lorasweep run experiment=quickstart

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: mutants
mutants: dev
	$(BIN)/python tests/benchmarks/mutants.py $(BENCH)

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: dev
	$(BIN)/python -m pytest -m 'not heavy' -n $(JOBS) --dist loadfile --durations 25

test-all: dev
	$(BIN)/python -m pytest -m 'not heavy' -n $(JOBS) --dist loadfile
	$(BIN)/python -m pytest -m heavy

.PHONY: audit
AUDIT_TOOLS := .audit
audit: install $(AUDIT_TOOLS)/installed # vulnerabilities, licences and the bill of materials of what .venv holds
	@$(AUDIT_TOOLS)/bin/python requirements/audit.py --python $(BIN)/python --to dist/lorasweep.cdx.json $(AUDIT)
$(AUDIT_TOOLS)/installed: requirements/audit.txt
	$(PYTHON) -m venv $(AUDIT_TOOLS)
	$(AUDIT_TOOLS)/bin/python -m pip --disable-pip-version-check --retries 5 install $(HASHED) requirements/audit.txt
	touch $@

.PHONY: gpu-day gpu-day-bundle
# neither installs anything: on the GPU's machine there may be no package index
GPU_DAY_PYTHON := $(or $(wildcard $(BIN)/python),$(PYTHON))
gpu-day: # half an hour with a GPU, BENCH="--part 1 2 3"; BENCH=--dry: tiny shapes, on a CPU
	$(GPU_DAY_PYTHON) tests/benchmarks/gpu_day $(BENCH)
gpu-day-bundle: # what its parts 4 to 6 need on a machine that has PyTorch, transformers and PEFT alone
	$(GPU_DAY_PYTHON) tests/benchmarks/gpu_day --bundle $(or $(BUNDLE),.whl/gpu-day-site.tar.xz)

.PHONY: bench-sweep bench-scale bench-elastic bench-pack bench-overhead bench-search bench-quality bench-bucket bench-groups bench-claims bench-generate
bench-sweep: dev
	PYTHONPATH=. $(BIN)/python tests/benchmarks/sweep.py $(BENCH)
bench-pack: dev
	PYTHONPATH=. $(BIN)/python tests/benchmarks/pack.py $(BENCH)
bench-overhead: dev
	PYTHONPATH=. $(BIN)/python tests/benchmarks/overhead.py $(BENCH)
bench-search: dev
	$(BIN)/python -m tests.benchmarks.search_grid $(or $(BENCH),grid)
bench-quality: dev # the default command on eight real tasks: up to two hours
	$(BIN)/python -m tests.benchmarks.quality $(BENCH)
bench-scale: dev # what a trial costs the driver, up to 2,000 of them: some minutes
	$(BIN)/python tests/benchmarks/scale.py $(BENCH)
bench-claims: dev # do a ranking's intervals cover, and is the best corrected to the truth
	$(BIN)/python -m tests.benchmarks.claims $(BENCH)
bench-generate: dev # answers of four slots together, each alone, and by PEFT: some minutes
	PYTHONPATH=. $(BIN)/python tests/benchmarks/generation.py $(BENCH)
bench-bucket: dev # `lorasweep rank s3://…` of 100 trials: a minute
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bucket.py $(BENCH)
bench-groups: dev # gaps between groups where the truth is known: twenty minutes
	$(BIN)/python -m tests.benchmarks.group_gaps $(BENCH)
bench-elastic: dev # 1,000 trials on 64 devices that come and go: a quarter of an hour, 12 GB
	$(BIN)/python -m tests.benchmarks.elastic $(BENCH)

clean:
	rm -rf $(VENV) $(AUDIT_TOOLS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
