# The project's chores. Each target makes the environment .venv first, which does nothing when it is right.
BIN := .venv/bin
SHELL_SCRIPTS := $(wildcard scripts/*.sh serving_increment/*.sh) .ci/run
KERNELS := $(wildcard src/cpu_kernels/*.cpp src/cpu_kernels/*.h)

.PHONY: help setup test slow lint imports ruff types shell kernels format docs quickstart

help:  ## List the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup:  ## Make the environment .venv
	@bash scripts/setup_env.sh

test:  ## Run the tests, except the slow ones (about 20 minutes)
	bash scripts/run_tests.sh

slow:  ## Run the slow tests
	bash scripts/run_tests.sh -m slow

lint: imports ruff types shell kernels  ## Check imports, style, types, shell scripts and kernels

imports: setup  ## Check that imports between rooms go one way
	$(BIN)/lint-imports --no-logo

ruff: setup  ## Check the style and the format of Python files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## Check the types of src
	$(BIN)/ty check

shell: setup  ## Check the shell scripts
	$(BIN)/shellcheck $(SHELL_SCRIPTS)

kernels: setup  ## Check the format of the C++ kernels
	$(BIN)/clang-format --dry-run --Werror $(KERNELS)

format: setup  ## Sort imports; format Python files and C++ kernels
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(KERNELS)

quickstart:  ## Corpus to answers: train a small model on this CPU
	bash scripts/run_quickstart.sh
