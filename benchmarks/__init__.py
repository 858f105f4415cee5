"""Programs that measure this project beside a peer and print a table with ratios: `python -m benchmarks.NAME`.

`train_step` and `decode` compare with PyTorch (`torch_peer`), `half_gradients` and `half_training` with float32,
`cpu_decode` with llama.cpp (`cpu_models` writes the models), `cpu_accuracy` with the model in float32, `eval_speed`
with the ModelZoo's way to score, `preprocess` and `scaling` with a single process, `serving_load` with one answer at a
time, `vllm_load` with vLLM, `lora_facts` with the model before LoRA. `harness` has the processes that take turns, and
ratios. docs/benchmarks.md has the results. The peers need requirements-benchmark.txt. May import all of `src`; nothing
imports this folder.
"""
