"""Parts of a network by name: which of them learn, and how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lit_seq2seq.types import UserError


def find_part(network: nn.Module, name: str, setting: str) -> nn.Module:
    """Return a part of a network, such as `encoder` or `decoder.embedding`.

    Raises:
        UserError: there is none of this name; `setting` is where it was given.
    """
    whole, part = "the model", network
    for step in name.split("."):
        children = dict(part.named_children())
        if step not in children:
            has = f"the parts of {whole} are {', '.join(children)}" if children else f"{whole} has no parts"
            raise UserError(f"expected parts of the model, but there is no '{name}': {has}: check {setting}")
        whole, part = step, children[step]
    return part


def parameter_groups(network: nn.Module, factors: Mapping[str, float] | float) -> list[dict[str, Any]]:
    """Group the parameters of a network by the factor of their learning rate.

    Args:
        network: an encoder-decoder.
        factors: of parts; the longest name that a parameter is under counts, and 1 where there is none. A number d
            below 1 stands for layer-wise decay in the encoder (Howard & Ruder 2018, section 3.2): its last block has
            the factor d, the one under it d^2, and so on to what lies under all blocks. A weight that parts share has
            the least of its factors.

    Returns:
        Dictionaries with `params` and `factor`, the largest factor first.

    Raises:
        UserError: a part that is not there, or a factor that is not above 0.

    Example:
        >>> network = nn.ModuleDict({"encoder": nn.Linear(2, 3), "decoder": nn.Linear(3, 2)})
        >>> [(group["factor"], len(group["params"])) for group in parameter_groups(network, {"encoder": 0.1})]
        [(1.0, 2), (0.1, 2)]
    """
    chosen = factors if isinstance(factors, Mapping) else _decayed(network, factors)
    for name, factor in chosen.items():
        if not factor > 0:
            raise UserError(f"lr_factors must be above 0, but that of {name} is {factor}: freeze what must not learn")
        if isinstance(factors, Mapping):
            find_part(network, name, "lr_factors")
    least: dict[nn.Parameter, float] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        steps = name.split(".")
        above = [".".join(steps[:end]) for end in range(len(steps), 0, -1)]
        factor = float(next((chosen[part] for part in above if part in chosen), 1.0))
        least[parameter] = min(factor, least.get(parameter, factor))
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter, factor in least.items():
        groups.setdefault(factor, []).append(parameter)
    return [{"params": groups[factor], "factor": factor} for factor in sorted(groups, reverse=True)]


def _decayed(network: nn.Module, decay: float) -> dict[str, float]:
    """Give each parameter of the encoder its factor, by how far its block is from the last."""
    encoder = find_part(network, "encoder", "lr_factors")
    blocks = longest_list(encoder)
    depth = {id(p): len(blocks) - index for index, block in enumerate(blocks) for p in block.parameters()}
    factors: dict[str, float] = {}
    under = bool(blocks)
    for name, parameter in encoder.named_parameters():
        under = under and id(parameter) not in depth
        factors[f"encoder.{name}"] = decay ** (len(blocks) + 1 if under else depth.get(id(parameter), 0))
    return factors


def longest_list(model: nn.Module) -> Sequence[nn.Module]:
    """Return the blocks of a model: the members of its longest list of modules, or else of its longest sequence."""
    for kind in (nn.ModuleList, nn.Sequential):
        found = [list(module) for module in model.modules() if isinstance(module, kind)]
        if found:
            return max(found, key=len)
    return []
