"""What the fake endpoint says about a picture, and the faults a caption may ask for.

Every judge of this package gets an answer of its form. Brightness b is the mean over pixels and
channels, 0 to 1: "Final Score" and the yes/no probability follow b, the three axes of
UnifiedReward 2.0 follow the mean red, green and blue. Numbers are no judgement of anything.

A caption may ask for a fault (`fault:NAME` anywhere in the text): `refuse` (always HTTP 429),
`refuse-N` (the first N calls about this text), `break` (the connection ends inside the answer),
`slow` (answers after `slow_s`), `malformed`, `no-label`, `out-of-range`, `conflict`, `cut`,
`no-logprobs`, `not-json`, `bad-request`, `echo-key`, `one-number`, `unseen-digit`.

Judges of edits: success follows the edit's brightness, consistency falls with its distance from the
source's, naturalness follows the mean red, freedom from artifacts the mean blue. Three grades
follow red, green and blue; digits the brightness.

Questions of `vqa`: "How many" is answered with numbers (`two` 0.5, `2` 0.2, ` three` 0.1, the rest
is not shown), a text with `Score: 0` with 1 for a bright picture, one with `<score>` with a list of
alternating verdicts as long as its points in square brackets ("[a, b]"), and one that asks to
recognize text with "HELLO brave world".
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

COUNTS = [("two", math.log(0.5)), ("2", math.log(0.2)), (" three", math.log(0.1))]
_FAULT = re.compile(r"fault:([a-z]+(?:-[a-z]+)*)(?:-(\d+))?")


def question_of(body: Mapping[str, Any]) -> tuple[str, list[np.ndarray]]:
    """The text and the decoded pictures (H, W, 3) of the last message, the judged one last."""
    text, pictures = "", []
    for part in body["messages"][-1]["content"]:
        if part["type"] == "text":
            text += part["text"]
        else:
            encoded = part["image_url"]["url"].partition("base64,")[2]
            with Image.open(io.BytesIO(base64.b64decode(encoded))) as opened:
                pictures.append(np.asarray(opened.convert("RGB")))
    if not pictures:
        raise ValueError("no picture in the message")
    return text, pictures


def fault_of(text: str) -> tuple[str, int | None]:
    """The fault that a text asks for, and how often; "" for none."""
    match = _FAULT.search(text)
    return (match[1], int(match[2]) if match[2] else None) if match else ("", None)


def completion(
    body: Mapping[str, Any], text: str, pictures: list[np.ndarray], fault: str
) -> dict[str, Any]:
    """The JSON of a completion."""
    if fault == "malformed":
        return {"object": "chat.completion", "choices": []}
    picture = pictures[-1]
    said = _edit(text, pictures, fault) or _said(text, picture, fault)
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": said},
        "finish_reason": "length" if fault == "cut" or body["max_tokens"] == 1 else "stop",
    }
    if body.get("logprobs") and fault != "no-logprobs":
        mean = float(picture.mean()) / 255.0
        digits = "Directly response the score number" in text
        likely = _digits(mean, fault) if digits else _candidates(mean, fault)
        if digits:
            choice["message"]["content"] = likely[0][0]
        top = COUNTS if "How many" in text else likely
        top = top[: body["top_logprobs"]]
        candidates = [{"token": token, "logprob": value} for token, value in top]
        choice["logprobs"] = {"content": [{**candidates[0], "top_logprobs": candidates}]}
    return {"object": "chat.completion", "model": body["model"], "choices": [choice]}


def _said(text: str, picture: np.ndarray, fault: str) -> str:
    axes = 1.0 + 4.0 * picture.reshape(-1, 3).mean(axis=0) / 255.0
    mean = float(axes.mean())
    if fault == "no-label":
        return f"I would say {mean:.2f}, {mean:.2f} and {mean:.2f}."
    if fault == "out-of-range":
        mean, axes = 10.0, axes + 5.0
    again = fault == "conflict"
    if "Final Score:" in text:
        extra = "\nFinal Score: 1.234" if again else ""
        return f"The picture is bright.\nFinal Score: {mean:.4f}{extra}"
    if "Alignment Score (1-5)" in text:
        names = ("Alignment", "Coherence", "Style")
        lines = [f"{n} Score (1-5): {v!r}" for n, v in zip(names, axes.tolist(), strict=True)]
        return "\n".join(lines + (["Style Score (1-5): 1.5"] if again else []))
    if "<Score>" in text:
        extra = "<Score>1</Score><Score>2</Score>" if again else ""
        return f"<Thought>\nIt is bright.\n</Thought>\n<Score>{round(mean)}</Score>{extra}"
    return _short(text, fault, bright=mean > 3.0)


def _edit(text: str, pictures: list[np.ndarray], fault: str) -> str:
    """What a judge of edits says; "" where none of them is asked."""
    red, green, blue = (float(v) for v in pictures[-1].reshape(-1, 3).mean(axis=0) / 255.0)
    scale = re.search(r"From scale 0 to (\d+)", text)
    if fault == "no-label" or not (scale or "umber from 1 to 5" in text):
        return ""
    if scale is None:
        more = 4.0 if fault == "out-of-range" else 0.0
        lines = [f"Aspect {i}: {round(1 + 4 * v + more)}" for i, v in enumerate((red, green, blue))]
        lines = lines[: 1 if fault == "one-number" else 3] + lines[:1] * (fault == "conflict")
        return "\n".join(["Brief reasoning: colours.", *lines])
    mean = (red + green + blue) / 3.0
    pair = (red, blue)
    if "editing success" in text:
        pair = (mean, 1.0 - abs(mean - float(pictures[0].mean()) / 255.0))
    top = float(scale[1])
    values = [top * v + (top if fault == "out-of-range" else 0.0) for v in pair]
    values = values[: 1 if fault == "one-number" else 2]
    again = '\n"score" : [1, 2]' if fault == "conflict" else ""
    return f'{{\n"reasoning" : "The "sky" is so.",\n"score" : {values!r},\n}}{again}'


def _short(text: str, fault: str, *, bright: bool) -> str:
    if "Score: 0" in text:
        again = fault == "conflict"
        return f"Score: {int(bright)}" + ("\nScore: 0\nScore: 1" if again else "")
    if "<score>" in text:
        points = re.findall(r"\[([^\[\]]+)\]", text)[0].count(",") + 1
        return f"<score>{[place % 2 for place in range(points - (fault == 'conflict'))]}</score>"
    if "Recognize the text" in text:
        return "HELLO brave world"
    return "Yes" if bright else "No"


def _candidates(p_yes: float, fault: str) -> list[tuple[str, float]]:
    """Log-probabilities: 80 % on yes and no in two spellings each, the rest on other words."""
    if fault == "no-label":
        return [("Maybe", math.log(0.9))]
    if fault == "out-of-range":
        return [("Yes", 0.7)]
    shares = {"Yes": 0.7 * p_yes, " yes": 0.1 * p_yes, "No": 0.6 * (1 - p_yes)}
    shares |= {"no": 0.2 * (1 - p_yes), "Well": 0.1, "The": 0.1}
    ranked = sorted(shares.items(), key=lambda entry: -entry[1])
    return [(token, math.log(share) if share > 0 else -9999.0) for token, share in ranked]


def _digits(mean: float, fault: str) -> list[tuple[str, float]]:
    """Log-probabilities whose digits 0 to 5 have the expected value 5 `mean`."""
    if fault == "no-label":
        return [("Maybe", math.log(0.9))]
    if fault == "unseen-digit":
        return [("5", math.log(0.5)), ("I", math.log(0.2)), ("The", math.log(0.1))]
    shares = {str(d): 0.9 * max(0.0, 1.0 - abs(5.0 * mean - d)) for d in range(6)} | {"The": 0.1}
    ranked = sorted(shares.items(), key=lambda entry: -entry[1])
    return [(token, math.log(share) if share > 0 else -9999.0) for token, share in ranked]
