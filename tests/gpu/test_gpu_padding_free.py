"""Attention within each row on a GPU, and as nested tensors, against each row computed alone, forward and backward."""

from itertools import pairwise

import pytest
import torch

from helpers.training.without_padding import within_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
LENGTHS, HEADS, KEY_HEADS, SIZE = (40, 1, 301, 77, 510, 95), 8, 2, 128


def states(dtype):
    draw, tokens = torch.Generator("cuda").manual_seed(0), sum(LENGTHS)
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    made = [torch.randn(1, n, tokens, SIZE, generator=draw, device="cuda") for n in heads]
    return [x.to(dtype).requires_grad_() for x in made]


@pytest.mark.parametrize("kernels", ["t4", "all"])
def test_rows_together_are_each_row_alone_with_their_gradients(kernels):
    bounds = torch.tensor([0, *LENGTHS], dtype=torch.int32, device="cuda").cumsum(0, dtype=torch.int32)
    said = {"cu_seq_lens_q": bounds, "max_length_q": max(LENGTHS), "scaling": SIZE**-0.5, "sliding_window": 4096}
    found, exact = states(torch.float16), states(torch.float64)
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(kernels == "all")
    torch.backends.cuda.enable_cudnn_sdp(kernels == "all")
    try:
        with torch.autocast("cuda", torch.float16), torch.profiler.profile() as seen:
            output = within_rows(None, *found, None, **said)[0]
            weights = torch.randn_like(output)
            output.backward(weights)
        names = " ".join(event.name for event in seen.events())
        assert "_efficient_attention_forward" in names, "a kernel that a T4 has as well"
        assert "_scaled_dot_product_attention_math" not in names
    finally:
        torch.backends.cuda.enable_flash_sdp(before[0])
        torch.backends.cuda.enable_cudnn_sdp(before[1])
    q, k, v = exact[0], *(x.repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in exact[1:])
    alone = []
    for a, b in pairwise(bounds.tolist()):
        scores = q[:, :, a:b] @ k[:, :, a:b].mT * SIZE**-0.5
        later = torch.ones(b - a, b - a, device="cuda", dtype=torch.bool).triu(1)
        alone.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ v[:, :, a:b])
    expected = torch.cat(alone, dim=2).transpose(1, 2)
    expected.backward(weights.double())
    for ours, right in [(output, expected), *((x.grad, y.grad) for x, y in zip(found, exact, strict=True))]:
        assert ((ours.double() - right).norm() / right.norm()) < 5e-3
