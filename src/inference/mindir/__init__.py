"""The model as MindIR graphs: `export` writes them, `runtime` runs them.

Public names: `export.export_model`, `export.default_lengths`, `runtime.MindirRuntime`. `src.inference.manifest`
describes an exported folder. MindSpore Serving's environment (Python 3.9) imports `runtime`, so `runtime` may import
only MindSpore, `src.common` and the modules of `src.inference` that know no runtime. `export` may also import the model
and `src.inference.mindspore`.
"""
