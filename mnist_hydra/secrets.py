"""What must not be recorded: passwords in addresses, and what the environment holds.

A record keeps the reference to a variable of the environment, never its value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
SHORTEST = 4
"""Characters of a value that is looked for in a text: shorter ones are in too many words."""
LONG = 8
"""Characters of MLflow's own password from which on it is looked for within words, too: a shorter
one may be a part of a fingerprint.
"""
OF_ENVIRONMENT = r"\$\{\s*oc\.env\s*:\s*"
"""How a reference to a variable of the environment begins."""
READ: set[str] = set()
"""The variables of the environment that this process's configuration reads, by name."""


def without_password(text: str) -> str:
    """The same text with the passwords of addresses left out.

    A password that is not escaped ends at the last `@` before a blank or a quotation mark.
    """
    text = re.sub(r"(://[^/@:\s\"']*):[^\s\"']*@", r"\1@", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*=)[^&\s\"']*", r"\1", text)


def address_without_password(uri: str) -> str:
    """The same for a text that is an address and nothing else, whatever its password holds."""
    return without_password(re.sub(r"(?s)(://[^/@:]*):.*@", r"\1@", uri))


def remember_variables(composed: Any) -> None:
    """Have `hide_in_error` leave out the values of all variables that a configuration reads.

    Args:
        composed: the configuration, its interpolations as they are written.
    """
    READ.update(_variables(str(composed)))


def hide_in_error(text: str) -> str:
    """An error, or what a failed training printed, as it may be shown and recorded.

    It has the reference in place of whatever was read from the environment, too.
    """
    values = {name: os.environ.get(name, "") for name in READ}
    # A path is no secret, and has to stay whole in a command that is printed to be pasted.
    secret = [name for name, value in values.items() if not os.path.isabs(value)]
    # The longest first: another may be a part of it.
    names = sorted(secret, key=lambda name: -len(values[name]))
    return _without_values(hide(text), names, within_words=True)


def hide(text: str) -> str:
    """The same text as it may be recorded: no password of an address, none of MLflow's own, and no
    character that a store cannot hold, such as a file's name may have.
    """
    return storable(without_password(_without_values(text, HIDDEN_VARIABLES)))


def storable(text: str) -> str:
    """The same text; what is no Unicode, and NUL, which PostgreSQL refuses, as escape sequences."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _without_values(text: str, variables: Iterable[str], within_words: bool = False) -> str:
    for name in variables:
        value = os.environ.get(name, "")
        if len(value) < SHORTEST:
            continue
        for form in (value, " ".join(value.split())):  # the second as an error's line has it
            found = re.escape(form)
            if len(form) < LONG and not within_words:
                found = rf"(?<![0-9A-Za-z]){found}(?![0-9A-Za-z])"
            text = re.sub(found, f"${{oc.env:{name}}}", text)
    return text


def hide_all(texts: Mapping[str, str]) -> dict[str, str]:
    """The same texts by name, each as it may be recorded."""
    return {name: hide(text) for name, text in texts.items()}


def by_reference(settings: Mapping[str, str], composed: Mapping[str, str]) -> dict[str, str]:
    """The same settings, those that were read from the environment as the reference to it.

    Args:
        settings: by dotted name.
        composed: the same as Hydra composed them, nothing resolved.
    """
    raw = {name: text for name, text in composed.items() if "${" in text}
    secrets = {os.environ.get(name, "") for name in _variables(" ".join(raw.values()))} - {""}
    recorded = dict(settings)
    for key, value in settings.items():
        for name, text in raw.items():
            is_of_key = f"{key}.".startswith(f"{name}.")  # what stands above it counts, too
            read = re.search(OF_ENVIRONMENT, text) or any(secret in value for secret in secrets)
            if is_of_key and read:
                recorded[key] = text
    return recorded


def _variables(text: str) -> list[str]:
    """The variables of the environment that a text refers to."""
    names = re.findall(OF_ENVIRONMENT + r"([^,}\s]+)", text)
    return [name.strip("\"'") for name in names]
