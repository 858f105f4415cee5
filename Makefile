# Names for the project's chores. The scripts make the environment .venv first, if it is missing or out of date.
.PHONY: help setup test slow lint imports style types shell kernels format docs quickstart

help:  ## List the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup:  ## Make the environment .venv
	bash scripts/setup_env.sh

test:  ## Run the tests that are not slow (about 20 minutes)
	bash scripts/run_tests.sh

slow:  ## Run the slow tests
	bash scripts/run_tests.sh -m slow

lint:  ## Run all checks: imports, style, types, shell, kernels
	bash scripts/run_checks.sh

imports style types shell kernels:
	bash scripts/run_checks.sh $@

format: setup  ## Sort the imports and format the Python files and the kernels
	.venv/bin/ruff check --select I --fix .
	.venv/bin/ruff format .
	.venv/bin/clang-format -i src/cpu_kernels/*.cpp src/cpu_kernels/*.h

docs:  ## Build the documentation's site into site/
	bash scripts/build_docs.sh

quickstart:  ## Train a small model on this CPU and ask it questions (some minutes)
	bash scripts/run_quickstart.sh
