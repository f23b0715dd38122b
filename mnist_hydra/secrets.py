"""What must not be recorded: passwords in addresses, and what the environment holds.

A record keeps the reference to a variable of the environment, never its value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from mnist_hydra.config import leaves

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
    plain = OmegaConf.to_container(composed, resolve=False)
    raw = {name: str(value) for name, value in leaves(plain) if "${" in str(value)}
    names = re.findall(r"\$\{oc\.env:\s*([^,}\s]+)", " ".join(raw.values()))
    secrets = {os.environ.get(name.strip("\"'"), "") for name in names} - {""}
    recorded = dict(settings)
    for key, value in settings.items():
        for name, text in raw.items():
            is_of_key = f"{key}.".startswith(f"{name}.")  # what stands above it counts, too
            if is_of_key and ("${oc.env:" in text or any(secret in value for secret in secrets)):
                recorded[key] = text
    return recorded
