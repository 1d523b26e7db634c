"""Jobs that try the pair of processes itself; they need torch alone."""

from __future__ import annotations

import os
import time

import torch

__all__ = ["die_on_rank_one", "fail_on_rank_one", "pids", "rank_of_this", "sleep_on_rank_zero"]


def rank_of_this() -> tuple[int, float]:
    value = torch.tensor([float(torch.distributed.get_rank()) + 1.0])
    torch.distributed.all_reduce(value)
    return torch.distributed.get_rank(), value.item()


def fail_on_rank_one() -> None:
    if torch.distributed.get_rank() == 1:
        raise ValueError("rank one has had enough")
    torch.distributed.barrier()


def die_on_rank_one() -> None:
    if torch.distributed.get_rank() == 1:
        os._exit(7)
    torch.distributed.barrier()


def sleep_on_rank_zero() -> None:
    if torch.distributed.get_rank() == 0:
        time.sleep(60)


def pids() -> int:
    return os.getpid()
