"""Foundations for every room: errors and exit codes, checks, settings, command lines, files, tables.

`errors` defines the project's exceptions and reports them (`InputError`, `run_program`), `checks` has the checks that
many settings share (`require`, `at_least`), `settings` the groups of a run's settings (`TrainingConfig` and others),
`cli` makes command lines from dataclasses (`parse`), `model_sizes` finds the YAML files of `configs/`, `files` writes
files that are whole or absent (`written_whole`), `reading` reads text and JSON (`read_text`, `read_json`), `tables`
lays out text tables (`table`), `vocabulary` checks that a vocabulary is the model's (`check_vocabulary`), `container`
finds the limits of cores and memory (`count_cores`), `memory` refuses what does not fit (`require_memory`). Imports
nothing of `src` outside this folder.
"""
