# `make demo` trains and grows a model on this machine's CPU, `make test` runs the tests; CONTRIBUTING.md has the others.

PYTHON ?= python3
RUN ?= runs/demo
RANKS ?= 2
BIN := .venv/bin
# Each rank computes in one thread: two ranks fill two cores.
CPU_RANKS := env PATH="$(CURDIR)/$(BIN):$(PATH)" DS_ACCELERATOR=cpu OMP_NUM_THREADS=1

.PHONY: demo test test-quick test-slow test-gpu bench slurm lint docs install

demo: install
	$(BIN)/growclip data scenes data/scenes --samples 6000 --subsets 3 --size 64
	$(CPU_RANKS) deepspeed --log_level error --num_accelerators $(RANKS) train.py \
		--deepspeed_config ds_configs/cpu.json --config configs/demo.yaml --output-dir $(RUN)

test: install
	$(CPU_RANKS) python -m pytest

# Tests of single parts, in one process.
test-quick: install
	$(CPU_RANKS) python -m pytest -m "not slow and not whole"

test-slow: install
	$(CPU_RANKS) python -m pytest -m slow

# The kernels compiled, on this machine's GPU.
test-gpu: install
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/kernels

# Speed and memory beside other libraries', on this machine's GPU, or small on the CPU where there is none.
bench: install
	for name in attention contrastive optimizer rebuilds; do $(BIN)/python benchmarks/$$name.py || exit; done
	$(BIN)/python benchmarks/train_step.py --profile

# The scripts for clusters, on a Slurm of two nodes that is started on this machine.
slurm: install
	$(CPU_RANKS) python -m pytest tests/slurm

# As pre-commit does before every commit.
lint: install
	$(CPU_RANKS) pre-commit run --all-files

# The page that is made from the code.
docs: install
	$(CPU_RANKS) python docs/write_configuration.py

install: .venv/installed

.venv/installed: requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "GrowCLIP-DS needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@
