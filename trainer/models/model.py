"""A flow model of any family: everything that families have in common."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor, nn

from trainer.images import load_reference
from trainer.models.base import Conditioning, Decoded, ModelOptions
from trainer.models.family import Family, Inputs, frozen
from trainer.models.loading import load_pipeline
from trainer.models.network import Network
from trainer.models.precision import mixed_precision
from trainer.types import Prompt, Reference, Request

Key = TypeVar("Key", Request, Reference)


class RowCache(Generic[Key]):
    """Encodes prompts or references once and keeps them in main memory: a GPU would be full."""

    def __init__(
        self, encode: Callable[[Key], Conditioning], capacity_bytes: int, device: torch.device
    ) -> None:
        """Rows come from ``encode``; beyond the capacity, the least recently used goes first."""
        self._encode = encode
        self._capacity_bytes = capacity_bytes
        self._used_bytes = 0
        self._device = device
        self._rows: OrderedDict[Key, Conditioning] = OrderedDict()

    def batch(self, keys: Sequence[Key]) -> Conditioning:
        """One row each, on the device; ValueError for none."""
        if not keys:
            raise ValueError("no prompts to encode")
        rows = []
        for key in keys:
            row = self._rows.get(key)
            if row is None:
                # One at a time: rows of a larger batch would depend on it in their last bits, and a
                # resumed run meets prompts in other batches.
                with torch.no_grad():
                    row = self._encode(key).to("cpu")
                self._rows[key] = row
                self._used_bytes += row.num_bytes
            self._rows.move_to_end(key)
            rows.append(row)
            while self._used_bytes > self._capacity_bytes:
                self._used_bytes -= self._rows.popitem(last=False)[1].num_bytes
        return Conditioning.cat(rows).to(self._device)


DECODE_BATCH = 16  # images decoded at once
REFERENCE_CACHE_BYTES = 10**9  # 2,000 pictures of 512x512 px; encoding one again takes little
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


class FlowModel:
    """A flow model of any family.

    Modules stay in eval mode: dropout would break the first ratio of 1.
    """

    def __init__(self, family: Family, options: ModelOptions) -> None:
        """Take over the family's pipeline, loaded in the dtypes of ``trainer.models.loading``."""
        self._family = family
        # What only the family knows.
        self.latent_shape, self.sigmas = family.latent_shape, family.sigmas
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
        self._dropped = False
        self._cache_bytes = int(options.prompt_cache_gb * 1e9)
        self._prompts = RowCache(self._encode_text, self._cache_bytes, self._device)
        self._references = RowCache(self._encode_reference, REFERENCE_CACHE_BYTES, self._device)

    @staticmethod
    def load(kind: type[Family], path_or_id: str | Path, options: ModelOptions) -> "FlowModel":
        """Load a family's pipeline from a folder or the hub; see ``load_pipeline``."""
        networks = kind.trained(options)
        pipe = load_pipeline(kind.pipeline, path_or_id, options, networks=networks, also=kind.also)
        return FlowModel(kind(pipe, options), options)

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

    def encode_prompts(self, prompts: Sequence[str | Request]) -> Conditioning:
        """Encode prompts, each only once (cached); rows do not depend on the other prompts.

        Raises:
            ValueError: No prompts, or references that the family does not take.
            RuntimeError: A prompt is not cached and the encoders have been dropped.
        """
        requests = [Request(each) if isinstance(each, str) else each for each in prompts]
        cond = self._prompts.batch([self._read(request) for request in requests])
        places = zip(*(request.references for request in requests), strict=True)
        read = [self._references.batch(place) for place in places]
        found = tuple(tensor for one in read for tensor in one.tensors.values())
        return replace(cond, references=found)

    def encode_negative(self, prompts: Sequence[Prompt], text: str | None) -> Conditioning | None:
        """Encode what guidance moves prompts away from, ``text`` unless they say it themselves.

        One row if it is the same for all of them, else one each; None without a text (no guidance).
        """
        if text is None:
            return None
        rows = self._negative(prompts, text)
        return self._prompts.batch(rows[:1] if len(set(rows)) == 1 else rows)

    def fill_cache(self, prompts: Sequence[Prompt], negative: str | None = None) -> bool:
        """Encode all prompts of a run, unless they are too many to be kept together."""
        rows = [self._read(prompt.request) for prompt in prompts]
        rows += [] if negative is None else self._negative(prompts, negative)
        longest = self._prompts.batch([max(rows, key=lambda row: len(row.text))])
        if longest.num_bytes * len(set(rows)) > self._cache_bytes:
            return False
        # One by one: a batch of all of them would be a second copy of the cache, on the device.
        for row in rows:
            self._prompts.batch([row])
        return True

    def _read(self, request: Request) -> Request:
        """What the text encoders read of it."""
        return request if self._family.joint else Request(request.text)

    def _negative(self, prompts: Sequence[Prompt], text: str) -> list[Request]:
        texts = [text if prompt.negative is None else prompt.negative for prompt in prompts]
        pairs = zip(texts, prompts, strict=True)
        return [self._read(Request(own, prompt.references)) for own, prompt in pairs]

    def _encode_text(self, request: Request) -> Conditioning:
        if self._dropped:
            raise RuntimeError(f"the encoders were dropped before {request.text!r} was encoded")
        return self._family.encode(request.text, *map(self._picture, request.references))

    def _encode_reference(self, reference: Reference) -> Conditioning:
        if not self._family.edits:
            raise ValueError("this model draws from text alone: it takes no references")
        found = self._family.encode_reference(self._picture(reference))
        return Conditioning({str(place): tensor for place, tensor in enumerate(found)})

    def _picture(self, reference: Reference) -> Image:
        return load_reference(reference.path, self._options.reference_size)

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Those of which every encoder reads only the beginning; to be asked before they leave.

        Longer ones are encoded like their beginnings: what follows changes nothing. Encoders that
        see pictures read everything.
        """
        if self._family.joint:
            return []
        found = [getattr(self._family.pipe, name, None) for name in TOKENIZERS]
        # FLUX.2 [dev] has a processor, for pictures too.
        tokenizers = [getattr(one, "tokenizer", one) for one in found if one is not None]
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
        self._dropped = True
        for name in self._family.encoders:
            setattr(self._family.pipe, name, None)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

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
            guidance_scale: The family's guidance; see ``trainer.types.guides``.
            negative: One or B encoded negative prompts (usually of "").

        Returns:
            (B, ...) float32.

        Raises:
            ValueError: Classifier-free guidance without a negative prompt.
        """
        dtype = self._options.compute_dtype
        training = torch.is_grad_enabled() or self._options.compile
        with torch.set_grad_enabled(training), mixed_precision(self._device.type, dtype):
            inputs = Inputs(
                x.to(dtype),
                sigma.float().expand(len(x)),
                cond.to(dtype=dtype),
                guidance_scale,
                None if negative is None else negative.beside(cond).to(dtype=dtype),
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
