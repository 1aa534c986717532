"""The compiled extension `uotlib._C`, or the sentence why it cannot be used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        module = import_module("uotlib._C")
        module.simd_level()  # chosen here, once: UOTLIB_SIMD may ask for what this machine has not
        return module, None
    except ModuleNotFoundError as error:
        if error.name != "uotlib._C":
            return None, f"the compiled extension uotlib._C failed to import ({error})"
        return None, ("the compiled extension uotlib._C is not installed (it is built at installation where a C++ "
                      "compiler is found: install one, then uotlib again)")
    except ImportError as error:
        return None, f"the compiled extension uotlib._C failed to import ({error})"
    except ValueError as error:
        return None, f"the compiled extension uotlib._C cannot choose its instructions ({error})"


#: The module, or None; and why it is None.
extension, missing = _load()
