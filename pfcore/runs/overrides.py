"""Settings as text: set a field of a configuration by `key=value`."""

import dataclasses
import types
import typing
from collections.abc import Iterable
from typing import Any

from pfcore.runs.problems import PROBLEMS, Problem


def parsed(key: str, text: str, hint: Any, profile: str = "quick") -> Any:
    """`text` converted to the annotated type of the field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text.lower() in ("none", "null"):
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return parsed(key, text, hint, profile)
    if origin is tuple:
        parts = [part for part in text.strip("()[] ").split(",") if part.strip()]
        return tuple(parsed(key, part.strip(), arguments[0], profile) for part in parts)
    if hint is Problem:
        known = PROBLEMS[profile]
        if text not in known:
            raise ValueError(f"unknown problem {text!r}; choose one of {', '.join(known)}")
        return known[text]
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{key} must be true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError as error:
        raise ValueError(f"{key} must be of type {hint.__name__}, got {text!r}") from error


def _replaced(config: Any, key: str, path: list[str], text: str, profile: str) -> Any:
    hints = typing.get_type_hints(type(config))
    name, *rest = path
    if name not in hints:
        prefix = key.removesuffix(".".join(path))
        known = ", ".join(names(config, prefix))
        raise ValueError(f"unknown setting {key!r}; choose one of {known}")
    if not rest:
        value = parsed(key, text, hints[name], profile)
    elif dataclasses.is_dataclass(inner := getattr(config, name)):
        value = _replaced(inner, key, rest, text, profile)
    else:
        raise ValueError(f"{name!r} has no parts, got {key!r}")
    return dataclasses.replace(config, **{name: value})


def names(config: Any, prefix: str = "") -> list[str]:
    """All settings of a configuration, nested ones as `problem.data`."""
    settings = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        settings.append(prefix + field.name)
        if dataclasses.is_dataclass(value):
            settings += names(value, f"{prefix}{field.name}.")
    return settings


def replace(config: Any, settings: Iterable[str], *, profile: str) -> Any:
    """Return a configuration with `key=value` settings applied in order.

    Args:
      config: a frozen dataclass.
      settings: for example `["learning_rate=0.1", "problem=mnist-mlp", "problem.widths=50,50"]`.
      profile: the profile from which named problems are taken.

    Raises:
      ValueError: a setting is unknown or not of its field's type.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"a setting has the form key=value, got {setting!r}")
        config = _replaced(config, key.strip(), key.strip().split("."), text.strip(), profile)
    return config
