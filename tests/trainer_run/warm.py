"""What a run imports on its way: a process that forks runs imports it once, before."""

import gc
import importlib

MODULES = (
    "diffusers.loaders.lora_pipeline",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "peft",
    "reward_client._transports.grpc",
    "torch.distributed.elastic.agent.server.local_elastic_agent",
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    "transformers",
    "trainer.models.sd3",
    "trainer.report.page",
)


def import_all() -> None:
    """Takes longer than a tiny run.

    The imported objects are left out of garbage collections, which would copy their pages in every
    forked process.
    """
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
