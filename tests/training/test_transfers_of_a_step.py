"""What a step sends to other workers, and that its host does not wait for the device: counted on fake tensors.

Reading a fake tensor raises, so a step that completes has read nothing; fake transfers go to seven workers that are not
there.
"""

import contextlib
import dataclasses
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from brewclip import distributed
from brewclip.benchmarks.steps import Unattended
from brewclip.training import loop
from brewclip.training.state import TrainState
from tests.training.tiny import EMBED_DIM, build_tiny, tiny_batch, tiny_config

NUM_WORKERS, ROWS, STEPS = 8, 4, 3
CPU = torch.device("cpu")


class Operations(TorchDispatchMode):
    """Lists all operations in their order, with the bytes of the tensor that a collective is given."""

    def __init__(self):
        super().__init__()
        self.names, self.collectives = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        if function.namespace == "c10d":
            tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.collectives.append((function._schema.name.strip("c10d:_"), tensors[-1].nbytes))
        return function(*args, **(kwargs or {}))


class EndOfTest(Exception):
    """Ends the loop between two steps."""


def iter_batches(num_tokens):
    for _ in range(STEPS + 1):
        batch, positions = tiny_batch(ROWS)
        yield dataclasses.replace(batch, num_tokens=num_tokens), positions
    raise EndOfTest


@pytest.fixture
def flags_read(monkeypatch):
    """A group of eight workers, of which this process is one; returns how often the flags were read.

    Two waits of the host are left out, since they are once in a run, before its first step.
    """
    monkeypatch.setattr(distributed, "_all_counts", lambda num_rows, device: [num_rows] * NUM_WORKERS)
    monkeypatch.setattr(loop, "agree_on_problem", lambda problem: problem)
    counts = Counter()

    def anyone_raised(shared):
        counts["flags"] += 1
        return False

    monkeypatch.setattr(distributed.SharedNumbers, "anyone_raised", anyone_raised)
    dist.init_process_group("fake", rank=3, world_size=NUM_WORKERS, store=FakeStore())
    yield counts
    dist.destroy_process_group()


def train_fake(variant="brewclip", num_tokens=7):
    """Take steps as on a GPU, with the fused Adam; return the sizes of the gradients' groups, and what was done."""
    config = tiny_config(NUM_WORKERS * ROWS, variant)
    model = build_tiny(config)
    groups = [sum(parameter.numel() for parameter in group) for group in model.gradient_groups()]
    optimizer = torch.optim.Adam([{"params": list(model.trained_parameters().values()), "lr_scale": 1.0}], fused=True)
    with Operations() as operations, contextlib.suppress(EndOfTest):
        loop.train(config, model, optimizer, iter_batches(num_tokens), TrainState(), Unattended(config, CPU))
    return groups, operations


@pytest.mark.parametrize(("variant", "num_features"), [("brewclip", 4), ("acoustic", 3), ("pipeline", 3)])
def test_a_step_is_four_or_five_transfers_and_no_wait(flags_read, variant, num_features):
    """Ids with the flag, features, their gradients, and one transfer for each group of gradients."""
    with FakeTensorMode():
        groups, operations = train_fake(variant)
    features_bytes = ROWS * num_features * EMBED_DIM * 4
    one_step = [
        ("allgather_base", (ROWS + 1) * 8),
        ("allgather_base", features_bytes),
        ("reduce_scatter_base", NUM_WORKERS * features_bytes),
        *[("allreduce", 4 * size) for size in groups],
    ]
    assert operations.collectives == STEPS * one_step
    assert flags_read["flags"] == STEPS


def test_gradients_are_summed_while_the_towers_run_backward(flags_read):
    """Of five blocks of both towers, none has its backward before the acoustic layer's gradients are on their way."""
    with FakeTensorMode():
        groups, operations = train_fake()
    assert len(groups) == 2
    first, second = [n for n, name in enumerate(operations.names) if name == "c10d::allreduce_"][:2]
    backward = [
        n for n, name in enumerate(operations.names) if name.startswith("aten::_scaled_dot") and "backward" in name
    ]
    assert sum(first < n < second for n in backward) == 5
    assert min(backward) > first


def test_a_wait_is_found(flags_read):
    """A batch that does not say how long its texts are makes the model read it from the device."""
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        train_fake(num_tokens=0)
