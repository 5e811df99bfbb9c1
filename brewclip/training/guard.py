"""Optimiser steps that end at the first gradient that is not finite, without a wait for the device."""

import torch
from torch import Tensor


class StepGuard:
    """Takes optimiser steps until a gradient is not finite, and none from then on.

    Whether it is finite is decided where it was computed: the fused Adam skips such a step on the device. The host
    learns of it when it asks; parameters and moments are then those before the first such gradient, however many steps
    followed. Without the fused Adam, which is for GPUs, the host decides, as reading from a CPU costs nothing.

    Args:
        optimizer: Adam.
        device: of its parameters.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer, self._is_fused = optimizer, bool(optimizer.defaults.get("fused"))
        self._halted = torch.zeros((), device=device)  # 1 from the first gradient on that is not finite
        self._norm = torch.zeros((), device=device)
        self._num_taken = torch.zeros((), dtype=torch.int64, device=device)

    def step(self, grad_norm: Tensor) -> None:
        """Take a step unless this gradient or an earlier one is not finite.

        Args:
            grad_norm: of all gradients, a scalar on the device.
        """
        self._norm = torch.where(self._halted > 0, self._norm, grad_norm.float())
        self._halted = torch.maximum(self._halted, (~torch.isfinite(grad_norm)).float())
        self._num_taken += (self._halted == 0).long()
        if self._is_fused:
            self._optimizer.found_inf = self._halted  # type: ignore[attr-defined]  # read by torch's fused kernels
            self._optimizer.step()
        elif not self._halted.item():
            self._optimizer.step()

    def first_bad(self) -> tuple[int, float] | None:
        """Return the number of steps taken before the first gradient that is not finite, and its norm; None if all are.

        Waits for the device.
        """
        if not self._halted.item():
            return None
        return int(self._num_taken.item()), self._norm.item()
