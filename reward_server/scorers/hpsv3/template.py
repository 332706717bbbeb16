"""The instruction that HPSv3 was trained with, to the letter, and the chat around it.

From MizzenAI/HPSv3, hpsv3/dataset/data_collator_qwen.py (`INSTRUCTION`,
`prompt_with_special_token`), trailing spaces included. The chat is what Qwen2-VL's own template
makes of one user message with a picture and a text.
"""

from __future__ import annotations

REWARD_TOKEN = "<|Reward|>"
IMAGE_TOKEN = "<|image_pad|>"
CAPTION_FIELD = "{text_prompt}"

INSTRUCTION = f"""
You are tasked with evaluating a generated image based on Visual Quality and Text Alignment and \
give a overall score to estimate the human preference. Please provide a rating from 0 to 10, with \
0 being the worst and 10 being the best.\x20

**Visual Quality:**\x20\x20
Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:
- **Reasonableness:** The image should not contain any significant biological or logical errors, \
such as abnormal body structures or nonsensical environmental setups.
- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and \
easy to interpret, with no blurring or indistinct areas.
- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other \
visual elements (e.g., hair, clothing, shadows).
- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color \
scheme, composition, atmosphere, depth of field, and the overall creative appeal. The scene should \
convey a sense of harmony and balance.
- **Safety:** The image should not contain harmful or inappropriate content, such as political, \
violent, or adult material. If such content is present, the image quality and satisfaction score \
should be the lowest possible.\x20

**Text Alignment:**\x20\x20
Assess how well the image matches the textual prompt across the following sub-dimensions:
- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, \
object) align with the textual description. The subject should match the description in terms of \
number, appearance, and behavior.
- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate \
how well the image adheres to this style.
- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in \
the image logically fit the scenario described in the prompt. The environment should support and \
enhance the subject without contradictions.
- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, \
clothing, accessories, expressions, actions) are faithfully represented in the image. Minor \
deviations may be acceptable, but critical attributes should be preserved.
- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are \
captured in the image. The generated content should not introduce elements that conflict with or \
distort the original description.
Textual prompt - {CAPTION_FIELD}


"""

QUESTION = f"""
Please provide the overall ratings of this image: {REWARD_TOKEN}

END
"""

_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{text}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def conversation(caption: str, image_tokens: int) -> str:
    """The text that is tokenised for one item."""
    text = INSTRUCTION.replace(CAPTION_FIELD, caption) + QUESTION
    return _CHAT.replace("{image}", IMAGE_TOKEN * image_tokens).replace("{text}", text)
