"""What must not be recorded: passwords in addresses, and what the environment holds.

A record keeps the reference to a variable of the environment, never its value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

HIDDEN_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
SHORTEST = 4
"""Characters of a value that is looked for in a text: shorter ones are in too many words."""


def without_password(text: str) -> str:
    """The same text with the passwords of addresses left out.

    A password that is not escaped ends at the last `@` before a blank or a quotation mark.
    """
    text = re.sub(r"(://[^/@:\s\"']*):[^\s\"']*@", r"\1@", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*=)[^&\s\"']*", r"\1", text)


def hide(text: str) -> str:
    """The same text as it may be recorded: no password of an address, none of MLflow's own."""
    for name in HIDDEN_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= SHORTEST:
            text = text.replace(value, f"${{oc.env:{name}}}")
    return without_password(text)


def hide_all(texts: Mapping[str, str]) -> dict[str, str]:
    """The same texts by name, each as it may be recorded."""
    return {name: hide(text) for name, text in texts.items()}


def by_reference(settings: Mapping[str, str], composed: DictConfig) -> dict[str, str]:
    """The same settings, those that were read from the environment as the reference to it.

    Args:
        settings: by dotted name.
        composed: as Hydra composed them, nothing resolved.
    """
    raw: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                walk(f"{prefix}.{number}", inner)
        elif isinstance(value, str) and "${" in value:
            raw[prefix] = value

    walk("", OmegaConf.to_container(composed, resolve=False))
    names = {n for text in raw.values() for n in re.findall(r"\$\{oc\.env:\s*([^,}\s]+)", text)}
    values = {os.environ.get(name.strip("\"'"), "") for name in names} - {""}
    return {
        key: _reference(raw, key) if _reads(raw, key, value, values) else value
        for key, value in settings.items()
    }


def _reads(raw: Mapping[str, str], key: str, value: str, values: set[str]) -> bool:
    """Whether a setting holds a value of the environment by a reference, its own or another's."""
    texts = _texts(raw, key)
    return any("${oc.env:" in text for text in texts) or (
        bool(texts) and any(secret in value for secret in values)
    )


def _reference(raw: Mapping[str, str], key: str) -> str:
    return ", ".join(_texts(raw, key))


def _texts(raw: Mapping[str, str], key: str) -> list[str]:
    """What stands at a key, or below it where that is a list."""
    return [text for name, text in raw.items() if name == key or name.startswith(f"{key}.")]
