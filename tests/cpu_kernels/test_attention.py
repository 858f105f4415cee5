"""Compare fused attention with the plain one and with float64 NumPy: outputs, gradients, dropout, documents."""

import numpy as np
import pytest
from mindspore import Tensor, ops

from src.cpu_kernels.attention import DocumentsOrBias, FusedAttention
from src.nn.attention import SHARED, AttentionBias, CoreAttention
from src.pangu_alpha_config import PanguAlphaConfig


class Case:
    """Inputs for both attentions. `documents` are numbers (B, S)."""

    def __init__(self, library, documents, heads, size, rate=0.0, scale=2.0):
        self.documents, self.heads, self.size, (rows, length) = documents, heads, size, documents.shape
        config = PanguAlphaConfig(100, heads * size, 2, heads, max(2, length), dropout_rate=rate)
        self.plain, self.bias = CoreAttention(config), AttentionBias(config)
        self.plain.dropout.site, self.plain.dropout.part = 3, 1
        self.fused = FusedAttention(config, self.plain, library)
        draw = np.random.default_rng([rows, length, heads, size])
        shape = rows * length, heads * size
        self.arrays = [draw.normal(0, scale, shape).astype(np.float32) for _ in range(4)]
        self.key = Tensor(draw.integers(-(2**31), 2**31, rows, dtype=np.int32)) if rate else None

    def results(self, fused):
        """Return the output and the gradients of q, k and v."""
        documents = Tensor(self.documents)

        def attend(q, k, v):
            return self.fused(q, k, v, documents, self.key) if fused else plain(q, k, v)

        def plain(q, k, v):
            return self.plain(q, k, v, self.bias(documents), self.key)

        *inputs, dout = map(Tensor, self.arrays)
        given = ops.GradOperation(get_all=True, sens_param=True)(attend)(*inputs, dout)
        return [x.asnumpy() for x in (attend(*inputs), *given)]

    def truth(self):
        """Return the same in float64."""
        rows, length = self.documents.shape
        q, k, v, dout = (
            x.astype(np.float64).reshape(rows, length, self.heads, self.size).swapaxes(1, 2) for x in self.arrays
        )
        own = self.documents[:, None, :, None] == self.documents[:, None, None, :]
        seen = (own | (self.documents[:, None, None, :] == SHARED)) & np.tri(length, dtype=bool)
        factor = self.size**-0.5
        scores = np.where(seen, q @ k.swapaxes(2, 3) * factor, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        dweights = dout @ v.swapaxes(2, 3)
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) * factor
        found = weights @ v, dscores @ k, dscores.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ dout
        return [x.swapaxes(1, 2).reshape(rows * length, -1) for x in found]


def one_document(rows, length):
    return np.zeros((rows, length), np.int32)


def several_documents(rows, length, shared=0):
    documents = np.sort(np.random.default_rng(length).integers(0, 5, (rows, length)).astype(np.int32), axis=1)
    documents[:, :shared] = SHARED
    return documents


@pytest.mark.parametrize(
    "documents, heads, size",
    [
        (one_document(2, 1), 2, 16),
        (one_document(2, 16), 2, 8),
        (one_document(1, 300), 2, 64),
        (one_document(2, 129), 3, 20),  # heads that are no whole vectors
        (several_documents(2, 300), 2, 16),
        (several_documents(3, 300, shared=140), 2, 16),
        (np.arange(200, dtype=np.int32)[None], 2, 8),  # every token sees itself only
    ],
)
def test_it_equals_float64(library, documents, heads, size):
    case = Case(library, documents, heads, size)
    for ours, truth in zip(case.results(True), case.truth(), strict=True):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=1e-5 * max(1.0, np.abs(truth).max()))


@pytest.mark.parametrize("documents", [one_document(2, 130), several_documents(2, 200, shared=30)])
def test_it_drops_the_weights_that_the_plain_attention_drops(library, documents):
    case = Case(library, documents, 3, 16, rate=0.3)
    for ours, plain in zip(case.results(True), case.results(False), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=5e-6 * np.abs(plain).max())


def test_large_scores_do_not_overflow(library):
    case = Case(library, one_document(1, 150), 1, 16, scale=60.0)
    for ours, truth in zip(case.results(True), case.truth(), strict=True):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=2e-4 * np.abs(truth).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(library, bad):
    case = Case(library, one_document(1, 150), 1, 16)
    case.arrays[1][140, 3] = bad
    output, *gradients = case.results(True)
    assert np.isfinite(output[:140]).all() and not np.isfinite(output[140:]).all()
    assert not all(np.isfinite(x).all() for x in gradients)


def test_a_mask_gets_the_plain_attention(library):
    case = Case(library, one_document(2, 20), 2, 8)
    take = DocumentsOrBias(case.bias)
    mask = Tensor(np.tile(np.tri(20, dtype=np.int8), (2, 1, 1)))
    *inputs, _ = map(Tensor, case.arrays)
    by_mask, by_documents = (case.fused(*inputs, take(x)).asnumpy() for x in (mask, Tensor(case.documents)))
    assert take(Tensor(case.documents)).shape == (2, 20) and take(mask).shape == (2, 1, 20, 20)
    np.testing.assert_allclose(by_mask, by_documents, rtol=0, atol=1e-5)
    assert (by_mask == case.plain(*inputs, case.bias(mask)).asnumpy()).all()
