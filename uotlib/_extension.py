"""The compiled extension `uotlib._C`, or the sentence why it cannot be used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        return import_module("uotlib._C"), None
    except ModuleNotFoundError as error:
        if error.name != "uotlib._C":
            return None, f"the compiled extension uotlib._C failed to import ({error})"
        return None, ("the compiled extension uotlib._C is not installed (it is built at installation where a C++ "
                      "compiler is found: install one, then uotlib again)")
    except ImportError as error:
        return None, f"the compiled extension uotlib._C failed to import ({error})"


#: The module, or None; and why it is None.
extension, missing = _load()
