"""Checks that every room inherits: give a factory and a batch, get the tests.

* ``NetworkChecks`` for an ``nn.Module``: save and load, determinism, checkpointing, meta device, bfloat16;
* ``TrainingChecks`` for a LightningModule with its data: one process against two (DDP, FSDP2), resume, config;
* ``two_processes`` runs any function on two gloo processes that live as long as the session.
"""

from .network import NetworkChecks
from .processes import WorkerError, two_processes
from .training import Recorder, TrainingChecks, fit, needs_cpu_fsdp2

__all__ = ["NetworkChecks", "Recorder", "TrainingChecks", "WorkerError", "fit", "needs_cpu_fsdp2", "two_processes"]
