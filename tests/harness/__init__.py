"""Checks that every room inherits: give a factory and a batch, get the tests.

* ``NetworkChecks`` for an ``nn.Module``: save and load, determinism, checkpointing, meta device, bfloat16;
* ``TrainingChecks`` for a LightningModule with its data: one process against two (DDP, FSDP2), resume, config;
* ``two_processes`` runs any function on two gloo processes that live as long as the session.
"""

from lightning_gen._lazy import attach

# Imported on first use: the two processes start faster when they need not import Lightning for a job that does without.
__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "NetworkChecks": ".network",
        "Recorder": ".training",
        "TrainingChecks": ".training",
        "WorkerError": ".processes",
        "fit": ".training",
        "needs_cpu_fsdp2": ".training",
        "two_processes": ".processes",
    },
)
