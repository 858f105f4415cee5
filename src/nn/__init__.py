"""What the model and its train step are built of.

`operators` has the operators with gradients of their own, `dropout` the masks that are equal under every plan, `moe`
the mixture of experts, and `optimizer` the optimizers and the learning rate. `parameters` has the names of parameters,
and does not import MindSpore. It may import src.common and src.pangu_alpha_config.
"""
