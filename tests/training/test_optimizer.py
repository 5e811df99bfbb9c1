"""The paper's schedule, and which parameters get which learning rate."""

import pytest
import torch

from brewclip.config import OptimConfig
from brewclip.training.optimizer import build_optimizer, learning_rate, set_learning_rate

PAPER = OptimConfig()


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 1e-4 / 5000), (2_499, 0.5e-4), (4_999, 1e-4), (5_000, 1e-4), (52_500, 0.5e-4), (99_999, 1e-8)],
)
def test_the_schedule_of_the_paper(step, rate):
    assert learning_rate(PAPER, step) == pytest.approx(rate, rel=1e-3)


def test_no_warm_up():
    assert learning_rate(OptimConfig(warmup_steps=0, total_steps=1), 0) == PAPER.peak_lr


def test_groups():
    names = ("prompts.text", "acoustic.cls", "logit_scale", "fusion.weights")
    parameters = {name: torch.nn.Parameter(torch.zeros(1)) for name in names}
    optimizer = build_optimizer(parameters, OptimConfig(prompt_lr_scale=10.0, weight_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    rates = {id(group["params"][0]): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    found = {name: rates[id(parameter)] for name, parameter in parameters.items()}
    expected = {"prompts.text": (1.0, 0.5), "acoustic.cls": (0.1, 0.5), "logit_scale": (0.1, 0.0)}
    assert found == expected | {"fusion.weights": (1.0, 0.0)}
