"""Steps end at the first gradient that is not finite, decided by the host or by the fused Adam on the device."""

import math

import pytest
import torch

from brewclip.training.guard import StepGuard


@pytest.mark.parametrize("fused", [True, None], ids=["fused", "plain"])
def test_parameters_and_moments_are_those_before_the_first_bad_gradient(fused):
    """Of seven gradients the fourth is infinite; the others after it are finite, and change nothing."""

    def steps(gradients):
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.Adam([parameter], lr=0.1, fused=fused)
        guard = StepGuard(optimizer, parameter.device)
        for gradient in gradients:
            parameter.grad = torch.full((3,), gradient)
            guard.step(parameter.grad.norm())
        return guard, [parameter.detach(), *optimizer.state[parameter].values()]

    whole, expected = steps([1.0, 2.0, 3.0])
    halted, found = steps([1.0, 2.0, 3.0, math.inf, 5.0, math.nan, 7.0])
    assert whole.first_bad() is None
    assert halted.first_bad() == (3, math.inf)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
