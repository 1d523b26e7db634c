"""Metrics see 8-bit RGB and nothing else."""

from __future__ import annotations

import pytest
import torch

from lightning_gen.data.transforms import signed_to_uint8
from lightning_gen.metrics.images import as_uint8_list, check_uint8


def test_a_batch_and_a_list_of_any_sizes_pass() -> None:
    batch = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    check_uint8(batch)
    pictures = as_uint8_list(batch)
    assert [picture.shape for picture in pictures] == [(3, 4, 5)] * 2
    assert pictures[1].data_ptr() == batch[1].data_ptr()
    check_uint8([torch.zeros(3, 1, 9, dtype=torch.uint8), torch.zeros(3, 7, 2, dtype=torch.uint8)])
    check_uint8(())
    check_uint8(torch.zeros(0, 3, 4, 5, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.int8])
def test_another_dtype_is_refused_with_the_converter_to_use(dtype: torch.dtype) -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=dtype)
    with pytest.raises(ValueError, match=f"{dtype}.*signed_to_uint8.*unit_to_uint8"):
        check_uint8(images)
    with pytest.raises(ValueError, match=r"prediction\[1\]: "):
        check_uint8([images[0].to(torch.uint8), images[0]], "prediction")
    check_uint8(signed_to_uint8(images.float()))


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (1, 4, 4, 4), (1, 4, 4, 3), (3, 4, 4), (1, 3, 0, 4)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        check_uint8(torch.zeros(shape, dtype=torch.uint8))


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images\[0\]: a list"):
        as_uint8_list([[0, 1]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="a str"):
        check_uint8("picture.png")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a dict"):
        check_uint8({})  # type: ignore[arg-type]
