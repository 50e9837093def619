"""What one layer's rows get, from plain tensors."""

from __future__ import annotations

import pytest
import torch

from uqchat.engine.row_deltas import RowDeltas, group_rows
from uqchat.errors import InputError


def test_rows_side_by_side_are_a_slice_and_a_single_change_is_not_copied() -> None:
    change = torch.randn(3, 4)
    group = group_rows([[1, 2]], None, [change])
    assert group.rows == slice(1, 3) and group.b.data_ptr() == change.data_ptr()
    assert group_rows([[0], [2]], None, [change, change]).rows.tolist() == [0, 2]


def test_ranks_are_padded_with_zeros_that_add_nothing() -> None:
    a, b = [torch.randn(1, 4), torch.randn(3, 4)], [torch.randn(2, 1), torch.randn(2, 3)]
    group = group_rows([[0], [1]], a, b)
    assert group.a.shape == (2, 4, 3) and group.b.shape == (2, 3, 2)
    torch.testing.assert_close(group.a @ group.b, torch.stack([(b[i] @ a[i]).T for i in range(2)]))


def test_merged_rows_and_positions_work_only_where_all_rows_share_one_adapter() -> None:
    x, y, change = torch.randn(6, 4), torch.zeros(6, 3), torch.randn(3, 4)
    RowDeltas("layer", 2, [group_rows([[0, 1]], None, [change])]).add_to(x, y)
    torch.testing.assert_close(y, x @ change.T)
    with pytest.raises(InputError, match="'layer' got an input of shape"):
        RowDeltas("layer", 2, [group_rows([[1]], None, [change])]).add_to(x, y)
