"""Features on the disk: cut anywhere, damaged or foreign, a cache gives back whole rows or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.unite.feature_cache import CacheError, FeatureCache


def unit_rows(count: int, width: int = 24, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def opened(tmp_path: Path, said: list[str], width: int = 24, **settings: object) -> FeatureCache:
    return FeatureCache(tmp_path, settings, width, said.append)


KEYS = [f"{i:032x}" for i in range(6)]


@pytest.mark.parametrize("cut", [1, 30, 47, 48, 49, 100])
def test_a_cache_cut_anywhere_keeps_the_rows_before(tmp_path: Path, cut: int):
    rows, said = unit_rows(6), []
    with opened(tmp_path, said) as cache:
        cache.add(KEYS[:4], rows[:4])
        cache.add(KEYS[4:], rows[4:])
        folder = cache.folder
    for name in ("rows.f16", "index.txt"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-cut])
        with opened(tmp_path, said) as cache:
            kept = [key for key in KEYS if key in cache]
            assert kept == KEYS[:len(kept)]
            assert 0 < len(kept) < 6
            missing = KEYS[len(kept):]
            cache.add(missing, rows[len(kept):])
        with opened(tmp_path, said) as cache:
            np.testing.assert_array_equal(cache.rows()[cache.places(KEYS)], rows)
            assert cache.verify(KEYS) == []


def test_a_damaged_row_is_told_of_and_made_again(tmp_path: Path):
    rows, said = unit_rows(6), []
    with opened(tmp_path, said) as cache:
        cache.add(KEYS, rows)
        folder = cache.folder
    data = bytearray((folder / "rows.f16").read_bytes())
    data[2 * 48 + 5] ^= 1
    (folder / "rows.f16").write_bytes(data)
    with opened(tmp_path, said) as cache:
        assert cache.verify(KEYS) == [KEYS[2]]
        assert KEYS[2] not in cache
        assert "1 of 6 rows are damaged" in said[-1]
        cache.add([KEYS[2]], rows[2:3])
    with opened(tmp_path, said) as cache:
        assert cache.verify(KEYS) == []
        np.testing.assert_array_equal(cache.rows()[cache.places(KEYS)], rows)


def test_a_foreign_index_is_told_of(tmp_path: Path):
    said: list[str] = []
    with opened(tmp_path, said) as cache:
        cache.add(KEYS, unit_rows(6))
        folder = cache.folder
    (folder / "index.txt").write_bytes(b"something else\n")
    with opened(tmp_path, said) as cache:
        assert not any(key in cache for key in KEYS)
        assert cache.rows().shape == (0, 24)
    assert "no index of these features" in said[0]


def test_settings_have_a_cache_each_and_one_process_at_a_time(tmp_path: Path):
    with opened(tmp_path, [], size=64) as cache:
        cache.add(KEYS, unit_rows(6))
        with opened(tmp_path, [], size=128) as other:
            assert KEYS[0] not in other
        with pytest.raises(CacheError, match="in use by another process"):
            opened(tmp_path, [], size=64)
    with opened(tmp_path, [], size=64) as cache:
        assert KEYS[0] in cache
