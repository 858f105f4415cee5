"""The model as MindIR graphs: what export.py writes, and the runtime that reads it.

`manifest` says what lies in an exported folder and `runtime` runs it; both also run in MindSpore Serving's environment
(Python 3.9), so they import nothing but errors, fingerprints and the configuration. `export` may import all of src.
"""
