"""Programs that measure this project beside a peer and print a table and a ratio: `python -m benchmarks.NAME`.

They import src; nothing imports them. What they measured is in docs/benchmarks.md. The peers need
requirements-benchmark.txt.
"""
