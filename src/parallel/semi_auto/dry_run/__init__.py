"""Compiling a run without its devices: nothing else of the project imports this package but on --dry_run."""
