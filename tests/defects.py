"""Damage to a data set's folder, and the words that training and `report` have for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from examples.unite.data.report import DataError, Report


def assert_told(defect: tuple[Callable[[Path], object], str], tree: Path, make: Callable[[], object],
                report: Callable[[Path], Report]) -> Report:
    """Damage the folder: training (``make``) refuses with words that match, and the report is not right; its report."""
    damage, message = defect
    damage(tree)
    with pytest.raises(DataError, match=message) as error:
        make()
    assert not report(tree).right
    return error.value.report
