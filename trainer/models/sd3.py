"""Stable Diffusion 3 and 3.5, and everything in their format (the miniature)."""

import copy
import gc
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from peft import LoraConfig
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import Tensor, nn

from trainer.models.base import Conditioning, Decoded, LoraSpec, ModelOptions
from trainer.models.precision import mixed_precision

ADAPTER = "policy"
# The official targets for SD3.5-M (paper, app. B; train_sd3.py).
LORA_TARGETS: tuple[str, ...] = (
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
)
ENCODERS: tuple[str, ...] = ("text_encoder", "text_encoder_2", "text_encoder_3")


class SD3:
    """Adapter of a ``StableDiffusion3Pipeline``; implements ``FlowModel``."""

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """Take over a loaded ``StableDiffusion3Pipeline``; see ``load``."""
        self._pipe = pipe
        self._options = options
        self._device = torch.device(options.device)
        self._cache: OrderedDict[str, Conditioning] = OrderedDict()
        self._has_encoders = True
        for name in ("vae", "transformer"):
            getattr(pipe, name).requires_grad_(False).eval().to(self._device)
        # Convolutions in this layout are faster, on CPUs by a third.
        pipe.vae.to(memory_format=torch.channels_last)
        for name in ENCODERS:
            if getattr(pipe, name) is not None:
                # transformers keeps the dtype of the file, so the dtype is stated.
                encoder = getattr(pipe, name).requires_grad_(False).eval()
                encoder.to(self._device, options.compute_dtype)
        self._transformer: Any = pipe.transformer
        self._active: Any = self._transformer
        self._frozen: Any = None
        if options.finetune == "lora":
            self._add_adapter(options.lora, options.seed)
        else:
            if options.keep_reference:
                self._frozen = copy.deepcopy(self._transformer)
            self._transformer.requires_grad_(True)

    def _add_adapter(self, lora: LoraSpec, seed: int) -> None:
        for parameter in self._transformer.parameters():
            parameter.data = parameter.data.to(self._options.compute_dtype)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            init_lora_weights="gaussian",
            target_modules=list(lora.targets or LORA_TARGETS),
        )
        # peft draws from the global generator; every process has to draw the same adapter.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._transformer.add_adapter(config, adapter_name=ADAPTER)
        for parameter in self.trainable_parameters().values():
            parameter.data = parameter.data.float()
        self._transformer.eval()

    @property
    def transformer(self) -> nn.Module:
        """The network that is trained."""
        return self._transformer

    @property
    def device(self) -> torch.device:
        """Where latents and conditioning have to be."""
        return self._device

    def trainable_parameters(self) -> Mapping[str, nn.Parameter]:
        """Parameters that an optimiser may change, by stable name, in the network's order."""
        if self._options.finetune == "full":
            return dict(self._transformer.named_parameters())
        return {
            name: parameter
            for name, parameter in self._transformer.named_parameters()
            if f".{ADAPTER}." in name
        }

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, each only once; (B, L, D) and (B, P) on the device.

        Raises:
            ValueError: No prompts.
            RuntimeError: A prompt is not cached and the encoders have been dropped.
        """
        if not prompts:
            raise ValueError("no prompts to encode")
        rows = []
        for prompt in prompts:
            # One at a time: rows of a larger batch would depend on it in their last bits, and a
            # resumed run meets prompts in other batches.
            row = self._cache.get(prompt)
            if row is None:
                row = self._encode(prompt)
                self._cache[prompt] = row
            self._cache.move_to_end(prompt)
            rows.append(row)
            while len(self._cache) > self._options.cache_size:
                self._cache.popitem(last=False)
        return Conditioning.cat(rows).to(self._device)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Conditioning:
        if not self._has_encoders:
            raise RuntimeError(f"the encoders were dropped before {prompt!r} was encoded")
        embeds, _, pooled, _ = self._pipe.encode_prompt(
            prompt=[prompt],
            prompt_2=None,
            prompt_3=None,
            device=self._device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._options.max_sequence_length,
        )
        return Conditioning(embeds, pooled)

    def drop_encoders(self) -> None:
        """Free the text encoders; afterwards only cached prompts can be encoded."""
        for name in ENCODERS:
            setattr(self._pipe, name, None)
        self._has_encoders = False
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def latent_shape(self, height_px: int, width_px: int) -> tuple[int, ...]:
        """(channels, height, width) of one image's latents.

        Raises:
            ValueError: A size that the VAE and the patches do not divide.
        """
        scale = self._pipe.vae_scale_factor
        unit = scale * self._transformer.config.patch_size
        if min(height_px, width_px) <= 0 or height_px % unit or width_px % unit:
            raise ValueError(f"image sides must be multiples of {unit} px: {height_px}x{width_px}")
        return (self._transformer.config.in_channels, height_px // scale, width_px // scale)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None = None) -> Tensor:
        """The pipeline's schedule, (num_steps + 1,) float32 on the CPU, 1 down to 0.

        Raises:
            ValueError: The scheduler shifts by resolution and no latent shape is given.
        """
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(self._pipe.scheduler.config)
        config = scheduler.config
        if not config.use_dynamic_shifting:
            scheduler.set_timesteps(num_steps)
            return scheduler.sigmas.float().cpu()
        if latent_shape is None:
            raise ValueError("this scheduler shifts by resolution: the latent shape is needed")
        tokens = latent_shape[1] * latent_shape[2] / self._transformer.config.patch_size**2
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
        scheduler.set_timesteps(num_steps, mu=mu)
        return scheduler.sigmas.float().cpu()

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
            x: (B, C, h, w) latents.
            sigma: 0-d or (B,).
            cond: B encoded prompts.
            guidance_scale: 1 uses the condition alone; otherwise v_u + g (v_c - v_u).
            negative: One or B encoded negative prompts (usually of "").

        Returns:
            (B, C, h, w) float32.

        Raises:
            ValueError: Guidance without a negative prompt.
        """
        guided = guidance_scale != 1.0
        # diffusers multiplies in float32, so the network sees the very same time.
        time = (sigma.float() * self._pipe.scheduler.config.num_train_timesteps).expand(len(x))
        if guided:
            if negative is None:
                raise ValueError("guidance needs the encoded negative prompt")
            cond = Conditioning.cat([negative.expand(len(x)), cond])
            x, time = torch.cat([x, x]), torch.cat([time, time])
        dtype = self._options.compute_dtype
        with mixed_precision(self._device.type, dtype):
            v = self._active(
                hidden_states=x.to(dtype),
                timestep=time,
                encoder_hidden_states=cond.prompt_embeds.to(dtype),
                pooled_projections=cond.pooled.to(dtype),
                return_dict=False,
            )[0]
        v = v.float()
        if guided:
            unconditional, conditional = v.chunk(2)
            v = unconditional + guidance_scale * (conditional - unconditional)
        return v

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Decoded:
        """Images of final latents (B, C, h, w), post-processed as the pipeline does."""
        vae = self._pipe.vae
        parts = []
        for part in latents.split(self._options.decode_batch):
            scaled = part.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
            parts.append((vae.decode(scaled, return_dict=False)[0] * 0.5 + 0.5).clamp(0, 1).float())
        unit = torch.cat(parts)
        pixels = (unit.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype("uint8")
        return Decoded(unit, pixels)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, ``velocity`` is that of the untrained model.

        Raises:
            RuntimeError: Full fine-tuning without ``keep_reference``.
        """
        if self._options.finetune == "lora":
            self._transformer.disable_adapters()
            try:
                yield
            finally:
                self._transformer.enable_adapters()
            return
        if self._frozen is None:
            raise RuntimeError("no reference copy was kept: load with keep_reference=True")
        self._active = self._frozen
        try:
            yield
        finally:
            self._active = self._transformer

    def save(self, path: Path) -> None:
        """Write the trained weights.

        LoRA: ``path/pytorch_lora_weights.safetensors`` for ``pipe.load_lora_weights(path)``, alpha
        included. Full: ``path/transformer/`` for ``SD3Transformer2DModel.from_pretrained``.
        """
        path.mkdir(parents=True, exist_ok=True)
        if self._options.finetune == "full":
            self._transformer.save_pretrained(path / "transformer")
            return
        layers: dict[str, nn.Module | Tensor] = dict(
            get_peft_model_state_dict(self._transformer, adapter_name=ADAPTER)
        )
        StableDiffusion3Pipeline.save_lora_weights(
            path,
            transformer_lora_layers=layers,
            # Without it the file has no alpha, and loading assumes alpha = rank.
            transformer_lora_adapter_metadata=self._transformer.peft_config[ADAPTER].to_dict(),
        )


def _absent_components(folder: Path) -> list[str]:
    # diffusers saves a pipeline without the third encoder but loads it only when told so.
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return [name for name in ("text_encoder_3", "tokenizer_3") if index.get(name) == [None, None]]


def load(path_or_id: str | Path, options: ModelOptions) -> SD3:
    """Load a pipeline folder (never from the network) or a hub id.

    Raises:
        FileNotFoundError: ``path_or_id`` looks like a path and there is no pipeline.
    """
    folder = Path(path_or_id)
    is_folder = folder.is_dir()
    looks_like_path = isinstance(path_or_id, Path) or str(path_or_id).startswith((".", "/", "~"))
    if (looks_like_path and not is_folder) or (
        is_folder and not (folder / "model_index.json").is_file()
    ):
        raise FileNotFoundError(f"{folder} is not a pipeline folder (no model_index.json)")
    absent: dict[str, Any] = dict.fromkeys(_absent_components(folder) if is_folder else ())
    pipe = StableDiffusion3Pipeline.from_pretrained(
        str(path_or_id), local_files_only=is_folder, **absent
    )
    return SD3(pipe, options)
