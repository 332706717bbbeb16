"""The trained networks of a pipeline: low-rank adapters over a frozen base, or every weight."""

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from trainer.models.base import ModelOptions

ADAPTER = "policy"


class Network:
    """The networks of a pipeline that are trained, and the untrained ones beside them.

    Attributes:
        trained: The network, or an ``nn.ModuleDict`` of several.
        active: What predicts: the trained one, or inside ``reference()`` the untrained one.
    """

    def __init__(
        self, parts: Mapping[str, nn.Module], targets: Sequence[str], options: ModelOptions
    ) -> None:
        """Make the networks, named as the pipeline's components, trainable in place.

        ``targets`` are the family's layers for adapters, unless the options name others; ValueError
        for targets that are no layers of the network.
        """
        self._parts: Mapping[str, Any] = parts
        self._lora = options.finetune == "lora"
        for part in parts.values():
            part.requires_grad_(False).eval()
        # The dict would not be in eval mode although its members are.
        several = nn.ModuleDict(parts).eval()
        self.trained: Any = several if len(parts) > 1 else next(iter(parts.values()))
        self._frozen: Any = None
        self._adapted: list[BaseTunerLayer] = []
        if self._lora:
            for part in parts.values():
                _add_adapter(part, targets, options)
                # The switch of diffusers looks for them, and for the version of peft, at each call.
                self._adapted += [m for m in part.modules() if isinstance(m, BaseTunerLayer)]
        else:
            if options.keep_reference:
                self._frozen = copy.deepcopy(self.trained)
            _unfreeze(self.trained, options.trained_layers)
        self.active: Any = self.trained

    def everything(self) -> list[nn.Module]:
        """Every network that predicts: the trained ones, and the frozen copies of the reference."""
        frozen = self._frozen
        if frozen is None:
            return list(self._parts.values())
        copies = list(frozen.values()) if isinstance(frozen, nn.ModuleDict) else [frozen]
        return [*self._parts.values(), *copies]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that an optimiser may change, by name, in the network's order."""
        return {
            name: parameter
            for name, parameter in self.trained.named_parameters()
            if (f".{ADAPTER}." in name if self._lora else parameter.requires_grad)
        }

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, ``active`` predicts as the untrained model; needs ``keep_reference``."""
        if self._lora:
            for layer in self._adapted:
                layer.enable_adapters(enabled=False)
            try:
                yield
            finally:
                for layer in self._adapted:
                    layer.enable_adapters(enabled=True)
            return
        if self._frozen is None:
            raise RuntimeError("no reference copy was kept: load with keep_reference=True")
        self.active = self._frozen
        try:
            yield
        finally:
            self.active = self.trained

    def save(self, path: Path, pipeline: Any, weights: Mapping[str, Tensor]) -> None:
        """Write trained weights as diffusers reads them.

        LoRA: ``path/pytorch_lora_weights.safetensors`` for ``pipe.load_lora_weights(path)``; that
        of ``transformer_2`` in ``path/transformer_2``, for ``load_lora_weights`` with
        ``load_into_transformer_2=True``. Its scale alpha / rank is multiplied into B, and the alpha
        written is the rank: loaders that look for alpha elsewhere, or nowhere, apply the same
        update. Full: ``path/<component>/`` for ``from_pretrained``. ``weights`` are whole values of
        all of ``trainable``.
        """
        path.mkdir(parents=True, exist_ok=True)
        if not self._lora:
            for name, part in self._parts.items():
                _whole_copy(part, self._of_part(name, weights)).save_pretrained(path / name)
            return
        for name, part in self._parts.items():
            config = part.peft_config[ADAPTER].to_dict()
            scale = config["lora_alpha"] / config["r"]
            layers = get_peft_model_state_dict(
                part, self._of_part(name, weights), adapter_name=ADAPTER
            )
            pipeline.save_lora_weights(
                path if name == "transformer" else path / name,
                transformer_lora_layers={
                    key: value * scale if ".lora_B." in key else value
                    for key, value in layers.items()
                },
                transformer_lora_adapter_metadata={**config, "lora_alpha": config["r"]},
            )

    def _of_part(self, name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of one of the networks, by their names inside it."""
        prefix = f"{name}." if len(self._parts) > 1 else ""
        return {
            key.removeprefix(prefix): value
            for key, value in weights.items()
            if key.startswith(prefix)
        }


def _whole_copy(part: Any, weights: Mapping[str, Tensor]) -> Any:
    """A plain network with these weights, without a copy of them; its buffers are the part's."""
    # A sharded network has a class of its own in front of that of diffusers.
    plain = next(kind for kind in type(part).__mro__ if not issubclass(kind, FSDPModule))
    with torch.device("meta"):
        copy = plain.from_config(part.config)
    state = {name: weights.get(name, value) for name, value in part.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    return copy


def _unfreeze(network: nn.Module, layers: Sequence[str]) -> None:
    named = dict(network.named_parameters())
    for layer in layers:
        if not any(layer in name for name in named):
            raise ValueError(f"model.trained_layers: no weight has {layer!r} in its name")
    for name, parameter in named.items():
        parameter.requires_grad_(not layers or any(layer in name for layer in layers))


def _add_adapter(part: Any, targets: Sequence[str], options: ModelOptions) -> None:
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        init_lora_weights="gaussian",
        target_modules=list(options.lora_targets or targets),
    )
    # peft draws from the global generator; every process has to draw the same adapter.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        part.add_adapter(config, adapter_name=ADAPTER)
    for name, parameter in part.named_parameters():
        if f".{ADAPTER}." in name:
            parameter.data = parameter.data.float()
    part.eval()


SAMPLES_PER_TENSOR = 1024


def base_fingerprint(networks: Sequence[nn.Module]) -> str:
    """SHA-256 (hex) of the weights that training leaves alone; of all, if it leaves none alone.

    To be called when a model has just been loaded, before it is sharded. Names, shapes and at most
    1,024 values of every tensor count, evenly spread: seconds less than reading all of them, and
    another checkpoint or fine-tune of the same architecture differs everywhere. Values count as
    bfloat16, so that it does not matter in which type they were loaded.
    """
    named = [item for network in networks for item in network.named_parameters()]
    frozen = [(name, value) for name, value in named if not value.requires_grad]
    return sampled_fingerprint(frozen or named)


def sampled_fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (hex) of named tensors, as `base_fingerprint` reads them."""
    sha = hashlib.sha256()
    for name, value in named:
        sha.update(f"{name} {tuple(value.shape)}\n".encode())
        sha.update(_sample(value.detach()).numpy().tobytes())
    return sha.hexdigest()


def _sample(value: Tensor) -> Tensor:
    flat = value.flatten()
    every = -(-flat.numel() // SAMPLES_PER_TENSOR) or 1
    # numpy has no bfloat16.
    return flat[::every].to(torch.bfloat16).cpu().view(torch.int16)
