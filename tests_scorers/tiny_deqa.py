"""A tiny DeQA whose folder brings its own network code, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from reward_server.scorers import deqa_maths

SIDE = 28

CODE = """
import torch
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class TinyConfig(PretrainedConfig):
    model_type = "tiny_deqa"

    def __init__(self, vocab_size=64, hidden_size=16, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**kwargs)


class TinyForCausalLM(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.tokenizer = AutoTokenizer.from_pretrained("zhiyuanyou/DeQA-Score-Mix3")
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.see = nn.Linear(3, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, images):
        seen = self.see(images.flatten(2).mean(-1))
        at = input_ids == -200
        words = self.embed(input_ids.clamp(min=0))
        states = torch.where(at[..., None], seen[:, None], words)
        return CausalLMOutputWithPast(logits=self.lm_head(torch.tanh(states.cumsum(1))))
"""


def _tokenizer() -> PreTrainedTokenizerFast:
    words = deqa_maths.PROMPT.replace("<|image|>", " ").replace("?", " ?").replace(":", " : ")
    names = ["<unk>", "<s>", "</s>", *dict.fromkeys([*words.split(), *deqa_maths.LEVELS])]
    tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write(folder: Path) -> Path:
    """A folder as published, with network code of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modeling_tiny.py").write_text(CODE)
    auto_map = {
        "AutoConfig": "modeling_tiny.TinyConfig",
        "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
    }
    config = {"model_type": "tiny_deqa", "auto_map": auto_map, "vocab_size": 64, "hidden_size": 16}
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))
    _tokenizer().save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shapes = {"embed.weight": (64, 16), "see.weight": (16, 3), "see.bias": (16,)}
    shapes["lm_head.weight"] = (64, 16)
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    torch.save(state, folder / "pytorch_model.bin")
    return folder
