"""The feature cache gives back what was written, and never shows an answer that a killed writer left half."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.trainers.made_answers import make_cache, make_features, make_row
from trainers.answers import ANSWERS
from trainers.cache import FEATURES, CacheWriter, FeatureCache
from uqchat.errors import InputError


def test_arrays_come_back_as_written_one_row_per_answer_token(tmp_path: Path) -> None:
    rows = [make_row(0, 3), make_row(1, 5), make_row(2, 1)]
    written = make_cache(tmp_path, rows)
    cache = FeatureCache.open(tmp_path)
    assert cache.answers == rows and cache.num_tokens == 9 and cache.hidden_layers == (1,)
    for name, array in written.items():
        np.testing.assert_array_equal(cache.array(name), array)
        assert cache.array(name).dtype == array.dtype
    np.testing.assert_array_equal(cache.array("token_id")[cache.span(1)], rows[1].answer_ids)
    np.testing.assert_array_equal(cache.answer_of_row, [0, 0, 0, 1, 1, 1, 1, 1, 2])
    with pytest.raises(ValueError, match="read-only"):
        cache.array("entropy")[0] = 1


@pytest.mark.parametrize("cut", ["answers.jsonl", "hidden_1.bin", "token_id.bin"])
def test_whatever_is_cut_off_the_writer_goes_on_to_the_same_files(tmp_path: Path, cut: str) -> None:
    rows = [make_row(i, 2 + i) for i in range(6)]
    written = make_cache(tmp_path / "whole", rows)
    writer = CacheWriter(tmp_path / "cut", {"model": "made"})
    writer.append(rows[:2], [make_features(row) for row in rows[:2]])
    writer.append(rows[2:4], [make_features(row) for row in rows[2:4]])
    path = tmp_path / "cut" / cut if cut == ANSWERS else tmp_path / "cut" / FEATURES / cut
    os.truncate(path, path.stat().st_size - 3)
    again = CacheWriter(tmp_path / "cut", {"model": "made"})
    assert again.done == {row.key for row in rows[:3]}
    left = [row for row in rows if row.key not in again.done]
    again.append(left, [make_features(row) for row in left])
    again.finish()
    cache = FeatureCache.open(tmp_path / "cut")
    assert cache.answers == rows
    for name, array in written.items():
        np.testing.assert_array_equal(cache.array(name), array)


def test_features_without_their_answer_do_not_count(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, {})
    writer.append([make_row()], [make_features(make_row())])
    with (tmp_path / FEATURES / "entropy.bin").open("ab") as file:
        file.write(b"\0" * 10)
    assert FeatureCache.open(tmp_path, allow_partial=True).num_tokens == 3
    CacheWriter(tmp_path, {})
    assert (tmp_path / FEATURES / "entropy.bin").stat().st_size == 3 * 4


def test_a_folder_that_is_not_finished_does_not_look_complete(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, {})
    writer.append([make_row()], [make_features(make_row())])
    with pytest.raises(InputError, match="not complete"):
        FeatureCache.open(tmp_path)
    assert len(FeatureCache.open(tmp_path, allow_partial=True).answers) == 1


def test_a_full_disk_is_told_and_leaves_whole_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CacheWriter(tmp_path, {})
    writer.append([make_row(0)], [make_features(make_row(0))])

    def full(path: Path, content: bytes) -> None:
        if path.name == "top_logprobs.bin":
            raise OSError(28, "No space left on device")
        with path.open("ab") as file:
            file.write(content)

    with monkeypatch.context() as patch:
        patch.setattr("trainers.cache._append", full)
        with pytest.raises(InputError, match="No space left on device. 1 answers are kept"):
            writer.append([make_row(1)], [make_features(make_row(1))])
    writer.append([make_row(2)], [make_features(make_row(2))])
    writer.finish()
    cache = FeatureCache.open(tmp_path)
    assert [row.id for row in cache.answers] == ["made-0000", "made-0002"]
    np.testing.assert_array_equal(cache.array("hidden_1")[3:], make_features(make_row(2))["hidden_1"])


def test_the_cap_on_disk_space_holds_before_anything_is_written(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, {}, max_bytes=300)
    writer.append([make_row(0)], [make_features(make_row(0))])
    with pytest.raises(InputError, match="cap of 0.00 GB; 1 answers are kept"):
        writer.append([make_row(1)], [make_features(make_row(1))])
    assert sum(path.stat().st_size for path in (tmp_path / FEATURES).iterdir()) == writer.num_bytes <= 300


def test_other_settings_or_other_arrays_are_refused(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, {"model": "a", "style": "page"})
    writer.append([make_row(0)], [make_features(make_row(0))])
    with pytest.raises(InputError, match="other settings \\(model\\)"):
        CacheWriter(tmp_path, {"model": "b", "style": "page"})
    with pytest.raises(InputError, match="do not fit"):
        writer.append([make_row(1)], [make_features(make_row(1), width=5)])
    with pytest.raises(InputError, match="do not fit"):
        writer.append([make_row(1)], [make_features(make_row(1, num_tokens=4))])


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no cached features"):
        FeatureCache.open(tmp_path)
    make_cache(tmp_path, [make_row()])
    with pytest.raises(InputError, match="holds no hidden_7; it holds hidden_1"):
        FeatureCache.open(tmp_path).array("hidden_7")
    os.truncate(tmp_path / FEATURES / "entropy.bin", 4)
    with pytest.raises(InputError, match="shorter than its answers need"):
        FeatureCache.open(tmp_path)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        FeatureCache.open(tmp_path)
