"""Qwen's tokenizer, without its words: bytes and the chat's marks."""

from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer

# Qwen-Image drops the first 34 tokens, those before the prompt. As one token per byte they
# would be more, so most of the instruction is a single one here.
INSTRUCTION = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:"
)
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", INSTRUCTION[:-17])
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Every byte is a token, so prompts of other lengths have other numbers of tokens."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *MARKS]
    tokenizer = Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[],
        additional_special_tokens=list(MARKS[1:]),
    )
    tokenizer.chat_template = CHAT
    return tokenizer
