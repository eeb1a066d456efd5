"""CpuGraph: a replay computes what the step would compute on the current values."""

import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import (
    CaptureError,
    CpuGraph,
    block_decode_attention,
    group_norm_silu,
    rope_append,
    swiglu,
    use_backend,
)

pytestmark = pytest.mark.skipif(
    CpuGraph.unavailable() is not None, reason=str(CpuGraph.unavailable())
)


def _step(x, weight, out):
    """Ops, products, views, functions with and without an out= form, and short-lived results."""
    h = torch.addmm(torch.ones(8), x, weight.t(), out=out)
    for _ in range(5):
        h = h + swiglu(torch.cat([h, h.flip(-1)], dim=-1)).relu_()
        h = F.layer_norm(h, (8,))
    mean, deviation = torch.std_mean(h.unflatten(0, (2, 2)).flatten(0, 1), dim=-1)
    return h, mean, deviation.add_(1)


def test_a_replay_is_the_step_on_new_values():
    x, weight, out = torch.randn(4, 8), torch.randn(8, 8), torch.empty(4, 8)
    graph = CpuGraph()
    results = graph.capture(lambda: _step(x, weight, out))
    for expected, result in zip(_step(x, weight, torch.empty(4, 8)), results, strict=True):
        assert torch.equal(result, expected)
    for _ in range(2):
        x.normal_()
        weight.normal_()
        graph.replay()
        for expected, result in zip(_step(x, weight, torch.empty(4, 8)), results, strict=True):
            assert torch.equal(result, expected)


def test_lengths_are_read_anew():
    k, v = torch.zeros(2, 1, 9, 2, 8).unbind()
    lengths, angles = torch.zeros(1, dtype=torch.int32), torch.randn(9, 4, 2)
    qkv = torch.randn(1, 2, 3 * 16)

    def step(k, v, lengths):
        q = rope_append(qkv, k, v, lengths, angles, num_heads=2)
        out = block_decode_attention(q, k, v, lengths + 2)
        lengths.add_(2)
        return out

    graph, other = CpuGraph(), [t.clone() for t in (k, v, lengths)]
    out = graph.capture(lambda: step(k, v, lengths))
    assert torch.equal(out, step(*other))
    for _ in range(3):
        qkv.normal_()
        graph.replay()
        assert torch.equal(out, step(*other))
    with pytest.raises(IndexError, match="rope_append: index out of range"):
        graph.replay()  # the cache is full


def test_memory_is_used_again_when_nothing_lies_in_it():
    def large(n):
        x = torch.ones(1, 32, 16, 16)
        for _ in range(n):
            x = group_norm_silu(x, 8) + 1
        return x

    def memory(n):
        graph = CpuGraph()
        graph.capture(lambda: large(n))
        return graph.memory_bytes

    assert memory(40) == memory(4)


def test_what_no_graph_can_repeat_is_refused():
    x = torch.ones(4, 8)
    refused = {
        "random numbers": lambda: torch.rand_like(x),
        "value": lambda: x.sum().item(),
        "meta": lambda: x.to("meta") + 1,
        "another": lambda: CpuGraph().capture(lambda: x + 1),
    }
    for words, step in refused.items():
        with pytest.raises(CaptureError, match=words):
            CpuGraph().capture(step)
    q, cache, lengths = torch.ones(1, 2, 2, 8), torch.ones(1, 9, 2, 8), torch.ones(1).int()
    with use_backend("reference"), pytest.raises(CaptureError, match="chooses by values"):
        CpuGraph().capture(lambda: block_decode_attention(q, cache, cache, lengths))
    with pytest.raises(CaptureError, match="neither the reference nor the cpu backend"):
        CpuGraph().capture(lambda: swiglu(x, backend="triton"))
    assert not CpuGraph.capturing()
    graph = CpuGraph()  # nothing of a refused capture is left
    y = graph.capture(lambda: swiglu(x))
    x.zero_()
    graph.replay()
    assert torch.equal(y, torch.zeros(4, 4))


def test_a_graph_captured_in_inference_mode_is_replayed_outside():
    x, graph = torch.ones(2, 4), CpuGraph()
    with torch.inference_mode():
        y = graph.capture(lambda: swiglu(x) * 2)
    assert not y.is_inference()
    x.zero_()
    graph.replay()
    assert not y.any()


def test_replays_ask_for_no_gradient():
    weight, graph = torch.ones(3, 4, requires_grad=True), CpuGraph()
    y = graph.capture(lambda: swiglu(torch.ones(2, 3) @ weight))
    with torch.no_grad():
        weight.fill_(2)
    graph.replay()
    assert not y.requires_grad
    assert torch.equal(y, F.silu(torch.full((2, 2), 6.0)) * 6)
