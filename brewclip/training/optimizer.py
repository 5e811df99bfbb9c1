"""Adam with the paper's schedule: linear warm-up, linear decay (appendix A)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from brewclip.config import OptimConfig


def learning_rate(config: OptimConfig, step: int) -> float:
    """Return the learning rate of optimiser step `step` (0-based).

    It rises linearly to `peak_lr` at the end of the warm-up and falls linearly to `final_lr` at the last step.
    """
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    length = max(1, config.total_steps - config.warmup_steps - 1)
    done = min(1.0, (step - config.warmup_steps) / length)
    return config.peak_lr + (config.final_lr - config.peak_lr) * done


# By the first part of a parameter's name; all others are the rest.
_GROUPS = {"prompts": "prompts", "clip": "prompts", "logit_scale": "scale", "fusion": "gate"}


def build_optimizer(parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> torch.optim.Adam:
    """Build Adam over what is trained; prompts and adapter have their own learning rate, scale and gate no decay.

    The two weights of a gate have ten times the learning rate, so that those that dev chooses without one (1 to 2) are
    in reach: a step of Adam is about as long as the rate, and 600 of 1e-3 that fall to 0 add up to 0.3.

    On a GPU it is the fused one: a single kernel for all parameters, which can skip a step on the device.
    """
    groups: dict[str, list[nn.Parameter]] = {"prompts": [], "scale": [], "gate": [], "rest": []}
    for name, parameter in parameters.items():
        groups[_GROUPS.get(name.partition(".")[0], "rest")].append(parameter)
    settings = {
        "prompts": {"lr_scale": config.prompt_lr_scale, "weight_decay": config.weight_decay},
        "scale": {"lr_scale": 1.0, "weight_decay": 0.0},
        "gate": {"lr_scale": 10.0, "weight_decay": 0.0},
        "rest": {"lr_scale": 1.0, "weight_decay": config.weight_decay},
    }
    used = [{"params": members, **settings[kind]} for kind, members in groups.items() if members]
    on_gpu = all(parameter.is_cuda for parameter in parameters.values())
    return torch.optim.Adam(used, lr=config.peak_lr, fused=on_gpu or None)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def optimizer_state(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return Adam's moments and step counts by parameter name, `name|exp_avg` and so on, on the CPU."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}|{key}"] = value.detach().cpu().clone().contiguous()
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, names: list[str], state: dict[str, Tensor]) -> None:
    """Give Adam back what `optimizer_state` returned."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        prefix = f"{name}|"
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if own:
            # Only the fused Adam keeps its step count on the device.
            on_host = not optimizer.defaults["fused"]
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" and on_host else value.to(parameter.device).clone()
                for key, value in own.items()
            }
