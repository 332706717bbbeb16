"""A flow model of any family: everything that families have in common."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.base import Conditioning, Decoded, ModelOptions
from trainer.models.family import Family, Inputs, frozen
from trainer.models.network import Network
from trainer.models.precision import mixed_precision


class PromptCache:
    """Encodes prompts and keeps them in main memory: on a GPU, thousands would fill it."""

    def __init__(
        self, encode: Callable[[str], Conditioning], capacity_bytes: int, device: torch.device
    ) -> None:
        """Make an empty cache.

        Args:
            encode: Encodes one prompt to one row.
            capacity_bytes: Memory for encoded prompts, least recently used first out.
            device: Where batches are put.
        """
        self._encode: Callable[[str], Conditioning] | None = encode
        self._capacity_bytes = capacity_bytes
        self._used_bytes = 0
        self._device = device
        self._rows: OrderedDict[str, Conditioning] = OrderedDict()

    def batch(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts; one row each, on the device.

        Raises:
            ValueError: No prompts.
            RuntimeError: A prompt is not cached and encoding has been closed.
        """
        if not prompts:
            raise ValueError("no prompts to encode")
        rows = []
        for prompt in prompts:
            row = self._rows.get(prompt)
            if row is None:
                row = self._row(prompt)
                self._rows[prompt] = row
                self._used_bytes += row.num_bytes
            self._rows.move_to_end(prompt)
            rows.append(row)
            while self._used_bytes > self._capacity_bytes:
                self._used_bytes -= self._rows.popitem(last=False)[1].num_bytes
        return Conditioning.cat(rows).to(self._device)

    def fits(self, prompts: Sequence[str]) -> bool:
        """Whether all these prompts can be kept, judged by the longest of them."""
        longest = self.batch([max(prompts, key=len)])
        return longest.num_bytes * len(set(prompts)) <= self._capacity_bytes

    def close(self) -> None:
        """Encode no more; let go of the encoders."""
        self._encode = None

    @torch.no_grad()
    def _row(self, prompt: str) -> Conditioning:
        # One at a time: rows of a larger batch would depend on it in their last bits, and a
        # resumed run meets prompts in other batches.
        if self._encode is None:
            raise RuntimeError(f"the encoders were dropped before {prompt!r} was encoded")
        return self._encode(prompt).to("cpu")


DECODE_BATCH = 16  # images decoded at once
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


class FlowModel:
    """A flow model of any family.

    Modules stay in eval mode: dropout would break the first ratio of 1.
    """

    def __init__(self, family: Family, options: ModelOptions) -> None:
        """Take over the family's pipeline, loaded in the dtypes of ``trainer.models.loading``."""
        self._family = family
        self._options = options
        self._device = torch.device(options.device)
        pipe = family.pipe
        for name in ("vae", *family.encoders, *family.networks):
            if getattr(pipe, name) is not None:
                parked = options.parked and name in family.networks
                frozen(getattr(pipe, name), torch.device("cpu") if parked else self._device)
        if not any(weight.dim() > 4 for weight in pipe.vae.parameters()):
            # Convolutions of images are faster in this layout, on CPUs by a third.
            pipe.vae.to(memory_format=torch.channels_last)
        self._network = Network(
            {name: getattr(pipe, name) for name in family.networks}, family.lora_targets, options
        )
        self._prompts = PromptCache(family.encode, options.cache_bytes, self._device)

    @property
    def transformer(self) -> nn.Module:
        """The network that is trained; an ``nn.ModuleDict`` where a family has several."""
        return self._network.trained

    def networks(self) -> Sequence[nn.Module]:
        """Every network that predicts, each a model of diffusers; the reference's copies too."""
        return self._network.everything()

    @property
    def device(self) -> torch.device:
        """Where latents and conditioning have to be."""
        return self._device

    def trainable_parameters(self) -> Mapping[str, nn.Parameter]:
        """Parameters that an optimiser may change, by stable name, in a stable order."""
        return self._network.trainable()

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, each only once (cached); rows do not depend on the other prompts."""
        return self._prompts.batch(prompts)

    def can_cache(self, prompts: Sequence[str]) -> bool:
        """Whether all these prompts stay in memory once they are encoded."""
        return self._prompts.fits(prompts)

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Those of which every encoder reads only the beginning; to be asked before they leave.

        Longer ones are encoded like their beginnings: what follows changes nothing.
        """
        found = [getattr(self._family.pipe, name, None) for name in TOKENIZERS]
        tokenizers = [tokenizer for tokenizer in found if tokenizer is not None]
        # A token is a byte at least, so that most prompts need not be looked at.
        left = [prompt for prompt in prompts if len(prompt.encode()) + 2 > self._most(tokenizers)]
        for tokenizer in tokenizers:
            most = self._most([tokenizer])
            left = [prompt for prompt in left if len(tokenizer(prompt)["input_ids"]) > most]
        return left

    def _most(self, tokenizers: Sequence[Any]) -> int:
        """Tokens that one of these encoders reads: CLIP its own number, a language model as set."""
        return max(
            t.model_max_length if "CLIP" in type(t).__name__ else self._options.max_sequence_length
            for t in tokenizers
        )

    def drop_encoders(self) -> None:
        """Free the text encoders; afterwards only cached prompts can be encoded."""
        self._prompts.close()
        for name in self._family.encoders:
            setattr(self._family.pipe, name, None)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def latent_shape(self, height_px: int, width_px: int, num_frames: int = 1) -> tuple[int, ...]:
        """Shape of one image's or video's latents; ValueError names the sizes there are."""
        return self._family.latent_shape(height_px, width_px, num_frames)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None = None) -> Tensor:
        """The pipeline's schedule, (num_steps + 1,) float32 on the CPU, 1 down to 0.

        Raises:
            ValueError: The family shifts by resolution and no latent shape is given.
        """
        return self._family.sigmas(num_steps, latent_shape)

    def velocity(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        guidance_scale: float = 1.0,
        negative: Conditioning | None = None,
    ) -> Tensor:
        """Predict v = eps - x_0.

        Args:
            x: (B, ...) latents.
            sigma: 0-d or (B,).
            cond: B encoded prompts.
            guidance_scale: The family's guidance; see ``family.guides``.
            negative: One or B encoded negative prompts (usually of "").

        Returns:
            (B, ...) float32.

        Raises:
            ValueError: Classifier-free guidance without a negative prompt.
        """
        dtype = self._options.compute_dtype
        training = torch.is_grad_enabled() or self._options.same_graph
        with torch.set_grad_enabled(training), mixed_precision(self._device.type, dtype):
            inputs = Inputs(
                x.to(dtype),
                sigma.float().expand(len(x)),
                cond.to(dtype=dtype),
                guidance_scale,
                None if negative is None else negative.to(dtype=dtype),
            )
            v = self._family.velocity(self._network.active, inputs)
        return v.float() if torch.is_grad_enabled() else v.detach().float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Decoded:
        """Images or videos of final latents (B, ...), post-processed as the pipeline does."""
        dtype = self._family.pipe.vae.dtype
        raw = torch.cat(
            [self._family.decode(part.to(dtype)).float() for part in latents.split(DECODE_BATCH)]
        )
        finite = raw.isfinite().flatten(1).all(1)
        # Videos have their frames behind the channels here, and before them outside.
        unit = (raw.nan_to_num() * 0.5 + 0.5).clamp(0, 1).movedim(1, -3)
        pixels = (unit.movedim(-3, -1).cpu().numpy() * 255).round().astype("uint8")
        return Decoded(unit, pixels, finite.cpu().numpy())

    def reference(self) -> AbstractContextManager[None]:
        """Inside, ``velocity`` is that of the untrained model.

        Raises:
            RuntimeError: Full fine-tuning without ``keep_reference``.
        """
        return self._network.reference()

    def save(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        """Write whole values of all ``trainable_parameters``; see ``Network.save``."""
        self._network.save(path, type(self._family.pipe), weights)
