"""Secrets in configs: what is printed, shown or written for people to read has them masked.

Checkpoints alone keep them, for a run is resumed and loaded with what it was begun with.
"""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_NAME = re.compile(
    r"(^|_)(token|password|passwd|passphrase|secret|credentials?|auth|(api|access|private|secret|account|auth)_?key)$"
    r"|^key$",
    re.IGNORECASE,
)
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")


def masked(value: Any, name: str = "") -> Any:
    """Return a config, or a part of it, with its secrets masked: texts under names such as token, password, secret,
    key or api_key, and the login in addresses (scheme://login@host).
    """
    if isinstance(value, Mapping):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(masked(item, name) for item in value)
    if not isinstance(value, str) or not value:
        return value
    return MASK if _NAME.search(name.rpartition(".")[2]) else _LOGIN.sub(f"{MASK}@", value)
