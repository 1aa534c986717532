"""Tuning without a GPU: the search with a clock that is known, and tables that are kept, wrong, or not there."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from uotlib.backends import triton as launches
from uotlib.backends.triton import TritonBackend
from uotlib.info import report
from uotlib.kernels import tuned
from uotlib.kernels.tiles import Tile, TileTable
from uotlib.kernels.tune import candidates, search

DEVICE, VERSION = "NVIDIA Test 80GB", "3.9.0"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UOTLIB_CACHE", str(tmp_path / "cache"))
    launches.tile_table.cache_clear()
    yield tmp_path / "cache"
    launches.tile_table.cache_clear()


def faster_with_many_rows(name: str, place: int | None, table: TileTable) -> float:
    tiles = getattr(table, name)
    tile = tiles if place is None else tiles[place]
    return math.inf if tile.warps > 8 else 100 / tile.rows + tile.stages / 100


def test_the_fastest_neighbour_is_taken():
    default, found = TileTable(), search(TileTable(), faster_with_many_rows)
    assert found.row.rows == 2 * default.row.rows
    assert [tile.rows for tile in found.small] == [2 * tile.rows for tile in default.small]
    assert found.slab_rows == default.slab_rows
    assert found.sweep[-1] == default.sweep[-1], "none of its neighbours can be launched"


def test_noise_is_no_reason():
    times = iter(100 - 0.001 * call for call in range(100_000))
    assert search(TileTable(), lambda name, place, table: next(times)) == TileTable()


def test_neighbours_are_tiles():
    for tile in (Tile(1, 32, 1, 1), *TileTable().sweep):
        others = candidates(tile)
        assert tile not in others
        assert len(set(others)) == len(others) > 3
        assert all(other.cols == tile.cols and other.rows >= 1 and 1 <= other.warps <= 32 and other.stages >= 1
                   and other.registers >= 16 for other in others)


def test_what_was_kept_is_used(monkeypatch):
    table = search(TileTable(), faster_with_many_rows)
    path = tuned.save(table, DEVICE, VERSION)
    assert tuned.table_for(DEVICE, VERSION) == (table, f"tuned ({path})")
    assert tuned.table_for("another", VERSION)[0] == TileTable()
    monkeypatch.setattr(launches, "_interpreted", lambda: False)
    monkeypatch.setattr(launches, "_kernels", lambda: (launches, ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: DEVICE)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=VERSION))
    assert TritonBackend().table == table
    assert TritonBackend(TileTable()).table == TileTable()


def test_without_a_file_the_default_table(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table, origin = tuned.table_for(DEVICE, VERSION)
    assert table == TileTable()
    assert origin == f"default ({tuned.table_path(DEVICE, VERSION)} does not exist)"
    assert not folder.exists()


def broken(record: dict, what: str) -> str:
    if what == "cut":
        return json.dumps(record)[:-20]
    if what == "list":
        return "[]"
    tile = dataclasses.asdict(TileTable().row)
    change = {"device": {"device": "another"}, "triton": {"triton": "3.6.0"}, "name": {"tiles": {"rows": tile}},
              "kind": {"tiles": {"sweep": tile}}, "zero": {"tiles": {"row": tile | {"rows": 0}}},
              "odd": {"tiles": {"row": tile | {"cols": 96}}}, "warps": {"tiles": {"row": tile | {"warps": 64}}},
              "field": {"tiles": {"row": tile | {"depth": 2}}}, "text": {"tiles": {"row": "large"}}}
    return json.dumps(record | change[what])


@pytest.mark.parametrize("what", ["cut", "list", "device", "triton", "name", "kind", "zero", "odd", "warps", "field",
                                  "text"])
def test_a_wrong_file_is_named_and_not_used(what):
    path = tuned.save(TileTable(), DEVICE, VERSION)
    path.write_text(broken(json.loads(path.read_text()), what))
    with pytest.warns(RuntimeWarning) as caught:
        table, origin = tuned.table_for(DEVICE, VERSION)
    assert str(path) in str(caught[0].message)
    assert table == TileTable()
    assert origin == f"default ({path} is not valid)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_info_says_which_table():
    assert [line.split(maxsplit=2)[2] for line in report().splitlines() if line.startswith("triton tiles")] == [
        "default (no GPU)"]
