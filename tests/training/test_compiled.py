"""Compiled encoders: few lengths are compiled, features and gradients are those of the eager ones."""

import pytest
import torch

from brewclip.benchmarks.steps import forward_and_backward
from brewclip.errors import UserError
from brewclip.training.compiled import compile_encoders, padded_frames, padded_tokens
from tests.training.tiny import build_tiny, tiny_batch, tiny_config

LENGTHS = [(tokens, frames) for tokens in range(3, 36, 4) for frames in (1, 50, 127, 128, 129, 200, 256)]


def gradients_of(model, config, batch):
    model.zero_grad()
    forward_and_backward(config, model, batch)
    return {name: parameter.grad for name, parameter in model.trained_parameters().items()}


def test_lengths_are_few():
    assert sorted({padded_tokens(n) for n in range(1, 78)}) == [16, 32, 48, 64, 80]
    assert sorted({padded_frames(n) for n in range(1, 6001)}) == [128, 256, 512, 1024, 2048, 4096, 8192]
    assert all(padded_frames(n) >= n and padded_tokens(n) >= n for n in range(1, 300))


@pytest.mark.slow
def test_each_length_is_compiled_once():
    """Of 63 pairs of lengths: images once, texts of 16, 32 and 36 tokens, speech of 128 and 256 frames."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model, config = build_tiny(tiny_config(4)), tiny_config(4)
    compile_encoders(model, backend)
    for tokens, frames in LENGTHS:
        forward_and_backward(config, model, tiny_batch(4, tokens, frames)[0])
    assert len(graphs) == 1 + 3 + 2
    with torch.no_grad():
        model.eval().encode_image(tiny_batch(3)[0].images)  # evaluation has batches of any size
    assert len(graphs) == 6


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_eager_encoders(recompute):
    """To 1e-4 of the largest of a parameter: padding changes the order of sums, by 2e-6 on some processors."""
    torch._dynamo.reset()
    config, (batch, _) = tiny_config(4), tiny_batch(4)
    model = build_tiny(config)
    expected = gradients_of(model, config, batch)
    model.clip.recompute = recompute
    compile_encoders(model, "aot_eager")
    for name, gradient in gradients_of(model, config, batch).items():
        largest = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-4 * largest, msg=name)


def test_a_machine_that_cannot_compile_gets_one_line():
    def backend(graph, inputs):
        raise RuntimeError("no compiler\nin many lines")

    torch._dynamo.reset()
    model, config = build_tiny(tiny_config(4)), tiny_config(4)
    compile_encoders(model, backend)
    with pytest.raises(UserError, match=r"--run.compile True: torch.compile fails here \(.*\): train without it$"):
        forward_and_backward(config, model, tiny_batch(4)[0])
