"""The miniature's words: a real CLIP tokenizer and two tiny CLIP text encoders.

Every word of the prompt grammar is one token, and any other word is spelled letter by letter, so
that the letters of an unseen OCR word are all known tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from miniature.prompts import TAGS, all_rows

MAX_TOKENS = 14
HIDDEN = 48
_EXTRA_WORDS = ("the", "word")


def grammar_words() -> list[str]:
    """Every word of the grammar, longest first; OCR targets are not among them."""
    prompts = (row["prompt"] for tag in TAGS for row in all_rows(tag))
    words = dict.fromkeys(word for prompt in prompts for word in re.findall(r"[a-z]+", prompt))
    # Longest first: a merge of a short word must not break a longer one that contains its letters.
    return sorted([*words, *_EXTRA_WORDS], key=lambda word: (-len(word), word))


def build_tokenizer(
    words: Sequence[str] | None = None, max_tokens: int = MAX_TOKENS
) -> CLIPTokenizer:
    """A CLIP byte-level BPE tokenizer whose merges are written down, not trained.

    Each grammar word of k letters is assembled left to right by k - 1 merges. Intermediate pieces
    can also occur at the start of other words; `prompts.WORDS` holds none of those (tested).

    Args:
        words: of the grammar, longest first; None: those of the prompts.
        max_tokens: how long a prompt may be, the two marks at its ends included.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*alphabet, *(c + "</w>" for c in alphabet)])}
    merges: list[tuple[str, str]] = []
    for word in grammar_words() if words is None else words:
        symbols = [*word[:-1], word[-1] + "</w>"]
        piece = symbols[0]
        for symbol in symbols[1:]:
            if (piece, symbol) not in merges:
                merges.append((piece, symbol))
            piece += symbol
            vocab.setdefault(piece, len(vocab))
    # CLIP pools at the end token; transformers looks for its id unless that id is 2, and older
    # versions take the largest id: the last id is right for both.
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens)  # pyright: ignore


def build_text_encoder(tokenizer: CLIPTokenizer, activation: str) -> CLIPTextModelWithProjection:
    """A randomly initialised CLIP text model; SD3 reads its next-to-last layer and pooled output.

    Args:
        tokenizer: gives the vocabulary size and special ids.
        activation: "quick_gelu" for CLIP-L's place in SD3, "gelu" for CLIP-G's.
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=HIDDEN,
        hidden_act=activation,
        bos_token_id=_single(tokenizer.bos_token_id),
        eos_token_id=_single(tokenizer.eos_token_id),
        pad_token_id=_single(tokenizer.pad_token_id),
    )
    model = CLIPTextModelWithProjection(config)
    # transformers starts embeddings at 0.02: for two layers trained from scratch, unit scale after
    # the layer norm is reached sooner from a larger start.
    torch.nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=0.3)
    return model


def _single(token_id: object) -> int:
    """A special token's id; transformers types it as wide as can be."""
    assert isinstance(token_id, int)
    return token_id
