"""What every room may use: errors and exit codes, checks of settings, command lines, files, tables.

`errors` has the project's exceptions and how a program reports them, `checks` the checks that many settings share,
`cli` makes command lines from dataclasses, `model_sizes` finds the YAML files of `configs/`, `files` writes files that
are whole or absent, `tables` prints text tables. Imports nothing of `src` outside this folder.
"""
