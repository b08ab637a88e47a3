"""Options of a network that are one of a few values, checked where it is made."""

from collections.abc import Collection, Mapping

from flax import linen as nn


def check_choices(model: nn.Module, choices: Mapping[str, Collection]) -> None:
    """Raise ValueError for a field of `model` whose value is not one of its choices, {field: values}."""
    for name, values in choices.items():
        if getattr(model, name) not in values:
            raise ValueError(f"{name} {getattr(model, name)!r}: there are {', '.join(map(repr, values))}")
