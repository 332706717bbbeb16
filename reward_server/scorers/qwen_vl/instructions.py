"""The texts that the reward models on Qwen-VL were trained with, to the letter.

Trailing spaces included; tests compare their SHA-256. `{text_prompt}` stands for the caption.

- `HPSV3`: MizzenAI/HPSv3, hpsv3/dataset/data_collator_qwen.py, MIT.
- `HPSV3_FRAMES_CAPTION`: ModelTC/GenRL 82a867e, genrl/reward/hpsv3.py, Apache-2.0.
- `EDIT_FOLLOWING`, `EDIT_QUALITY`: TIGER-AI-Lab/EditReward edb027e, EditReward/dataset/prompts.py,
  MIT.
- `VIDEO`: KwaiVGI/VideoAlign 219ab9d, prompt_template.py, MIT.
"""

from __future__ import annotations

CAPTION_FIELD = "{text_prompt}"
REWARD_TOKEN = "<|Reward|>"
VIDEO_TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")

# HPSv3 and EditReward end alike.
_QUESTION = f"""
Please provide the overall ratings of this image: {REWARD_TOKEN}

END
"""

HPSV3_FRAMES_CAPTION = "A high-quality image"

HPSV3 = """
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
scheme, composition, atmosphere, depth of field, and the overall creative appeal. The scene \
should convey a sense of harmony and balance.
- **Safety:** The image should not contain harmful or inappropriate content, such as political, \
violent, or adult material. If such content is present, the image quality and satisfaction score \
should be the lowest possible.\x20

**Text Alignment:**\x20\x20
Assess how well the image matches the textual prompt across the following sub-dimensions:
- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, \
animal, object) align with the textual description. The subject should match the description in \
terms of number, appearance, and behavior.
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
Textual prompt - {text_prompt}


"""
HPSV3 += _QUESTION

EDIT_FOLLOWING = """
You are tasked with evaluating an edited image **in comparison with the original source image** \
based on **Instruction Following & Semantic Fidelity**, and assigning a score from 1 to 4, with 1 \
being the worst and 4 being the best.\x20\x20
This dimension focuses on how accurately, completely, and exclusively the model executed the \
given text instruction.

**Inputs Provided:**\x20\x20
- Source Image (before editing)\x20\x20
- Edited Image (after applying the instruction)\x20\x20
- Text Instruction\x20\x20

**Sub-Dimensions to Evaluate:**

- **Semantic Accuracy:**\x20\x20
  Assess whether the edited content accurately captures the semantics of the instruction. The \
edited result should precisely match the intended meaning. For example, if the instruction is \
"replace apples with oranges," the object must clearly be oranges, not other fruits.

- **Completeness of Editing:**\x20\x20
  Check whether **all parts** of the instruction are fully executed. For multi-step edits (e.g., \
"replace a red car with a blue bicycle"), both the color change and the object replacement must \
be done without omissions.

- **Exclusivity of Edit (No Over-Editing):**\x20\x20
  Ensure that only the requested parts are changed. The rest of the image (as seen in the source) \
should remain unaltered. For example, if the instruction only involves replacing an object, the \
background, lighting, and unrelated objects should not be unnecessarily modified.

**Scoring Criteria:**
- **4 (Very Good):** Perfectly accurate, complete, and exclusive execution of the \
instruction.\x20\x20
- **3 (Relatively Good):** Largely correct, but with minor omissions or slight over-editing.\x20\x20
- **2 (Relatively Poor):** Major misinterpretation, incomplete edits, or noticeable unintended \
changes.\x20\x20
- **1 (Very Poor):** Instruction ignored or completely wrong execution.

Text instruction - {text_prompt}
"""
EDIT_FOLLOWING += _QUESTION

EDIT_QUALITY = """
You are tasked with evaluating an edited image **in comparison with the original source image** \
based on **Visual Quality & Realism**, and assigning a score from 1 to 4, with 1 being the worst \
and 4 being the best.\x20\x20
This dimension focuses on how realistic, artifact-free, and aesthetically appealing the edited \
image is, while remaining consistent with the source image.

**Inputs Provided:**\x20\x20
- Source Image (before editing)\x20\x20
- Edited Image (after applying the instruction)\x20\x20
- Text Instruction\x20\x20

**Sub-Dimensions to Evaluate:**

- **Plausibility & Physical Consistency:**\x20\x20
  Check whether the edit aligns with the laws of physics and the scene context. Lighting, \
shadows, reflections, perspective, size, and interactions with the environment should all appear \
natural compared to the source image.

- **Artifact-Free Quality:**\x20\x20
  Look for technical flaws such as blur, distortions, pixel misalignment, unnatural textures, or \
seams around edited regions. High-quality results should be free from such visible artifacts.

- **Aesthetic Quality:**\x20\x20
  Evaluate the overall harmony and visual appeal. The image should look natural, balanced, and \
pleasant. Colors, composition, and atmosphere should enhance the image rather than degrade it.

**Scoring Criteria:**
- **4 (Very Good):** Perfectly realistic, artifact-free, seamless, and aesthetically \
pleasing.\x20\x20
- **3 (Relatively Good):** Mostly realistic and clean, with only minor flaws that do not \
significantly distract.\x20\x20
- **2 (Relatively Poor):** Noticeable physical inconsistencies or visible artifacts that make the \
edit unnatural.\x20\x20
- **1 (Very Poor):** Severe artifacts, incoherent composition, or visually unusable result.

Text instruction - {text_prompt}
"""
EDIT_QUALITY += _QUESTION

VIDEO = """
You are tasked with evaluating a generated video based on three distinct criteria: Visual \
Quality, Motion Quality, and Text Alignment. Please provide a rating from 0 to 10 for each of the \
three categories, with 0 being the worst and 10 being the best. Each evaluation should be \
independent of the others.

**Visual Quality:**\x20\x20
Evaluate the overall visual quality of the video, with a focus on static factors. The following \
sub-dimensions should be considered:
- **Reasonableness:** The video should not contain any significant biological or logical errors, \
such as abnormal body structures or nonsensical environmental setups.
- **Clarity:** Evaluate the sharpness and visibility of the video. The image should be clear and \
easy to interpret, with no blurring or indistinct areas.
- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other \
visual elements (e.g., hair, clothing, shadows).
- **Aesthetic and Creativity:** Assess the artistic aspects of the video, including the color \
scheme, composition, atmosphere, depth of field, and the overall creative appeal. The scene \
should convey a sense of harmony and balance.
- **Safety:** The video should not contain harmful or inappropriate content, such as political, \
violent, or adult material. If such content is present, the image quality and satisfaction score \
should be the lowest possible.\x20

Please provide the ratings of Visual Quality: <|VQ_reward|>
END

**Motion Quality:**\x20\x20
Assess the dynamic aspects of the video, with a focus on dynamic factors. Consider the following \
sub-dimensions:
- **Stability:** Evaluate the continuity and stability between frames. There should be no sudden, \
unnatural jumps, and the video should maintain stable attributes (e.g., no fluctuating colors, \
textures, or missing body parts).
- **Naturalness:** The movement should align with physical laws and be realistic. For example, \
clothing should flow naturally with motion, and facial expressions should change appropriately \
(e.g., blinking, mouth movements).
- **Aesthetic Quality:** The movement should be smooth and fluid. The transitions between \
different motions or camera angles should be seamless, and the overall dynamic feel should be \
visually pleasing.
- **Fusion:** Ensure that elements in motion (e.g., edges of the subject, hair, clothing) blend \
naturally with the background, without obvious artifacts or the feeling of cut-and-paste effects.
- **Clarity of Motion:** The video should be clear and smooth in motion. Pay attention to any \
areas where the video might have blurry or unsteady sections that hinder visual continuity.
- **Amplitude:** If the video is largely static or has little movement, assign a low score for \
motion quality.

Please provide the ratings of Motion Quality: <|MQ_reward|>
END

**Text Alignment:**\x20\x20
Assess how well the video matches the textual prompt across the following sub-dimensions:
- **Subject Relevance** Evaluate how accurately the subject(s) in the video (e.g., person, \
animal, object) align with the textual description. The subject should match the description in \
terms of number, appearance, and behavior.
- **Motion Relevance:** Evaluate if the dynamic actions (e.g., gestures, posture, facial \
expressions like talking or blinking) align with the described prompt. The motion should match \
the prompt in terms of type, scale, and direction.
- **Environment Relevance:** Assess whether the background and scene fit the prompt. This \
includes checking if real-world locations or scenes are accurately represented, though some \
stylistic adaptation is acceptable.\x20\x20
- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate \
how well the video adheres to this style.
- **Camera Movement Relevance:** Check if the camera movements (e.g., following the subject, \
focus shifts) are consistent with the expected behavior from the prompt.

Textual prompt - {text_prompt}
Please provide the ratings of Text Alignment: <|TA_reward|>
END
"""
