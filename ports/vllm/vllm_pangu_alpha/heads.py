"""Sizes of attention heads that the kernels of a platform take."""

from vllm.platforms import current_platform

_ASCEND = [64, 128, 192]  # as vllm-ascend 0.23 documents; heads of 2.6B and 13B have 80 and 128


def padded_head_size(size: int) -> int:
    """Return the smallest size that the platform's kernels take, from `size` upwards.

    Raises:
        ValueError: All sizes that the kernels take are smaller.
    """
    sizes = _supported()
    fitting = [other for other in sizes if other >= size]
    if sizes and not fitting:
        raise ValueError(f"heads of size {size}: the kernels for {current_platform.device_type} take {sizes}")
    return min(fitting, default=size)


def _supported() -> list[int]:
    """List the sizes; empty where the platform itself finds kernels for a size."""
    if current_platform.device_type == "npu":
        return _ASCEND
    if current_platform.is_cpu():
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        return CPUAttentionBackend.get_supported_head_sizes()
    return []
