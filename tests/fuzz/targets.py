"""Every parser that sees bytes from outside; a new one is one entry in `TARGETS`."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import PIL.Image
from google.protobuf import json_format
from starlette.requests import Request

from reward_client import Encoding, Image, InvalidArgument, Item, codec
from reward_client._validation import check_request
from reward_client._wire import convert
from reward_client.codec import DecodeLimits
from reward_client.geneval_spec import parse as parse_spec
from reward_client.types import ScoreRequest, ScorerSelector
from reward_server._pb.inference.v2 import inference_pb2
from reward_server.api.bodies import parse_form, parse_json, parse_protobuf
from reward_server.api.dialects import flow_factory, oip, oip_grpc, oip_http, unirl
from reward_server.limits import RequestLimits, item_limit_problem
from reward_server.scheduling.admission import Admission
from reward_server.scheduling.arrival import Arrival
from reward_server.scheduling.threads import FairThreads
from reward_server.security.access import Caller
from tests.fuzz.harness import Target
from tests.fuzz.pickles import PICKLE

_LIMITS = DecodeLimits(max_bytes=1 << 16, max_pixels=1 << 14, max_side_px=1 << 9)
_JPEG = ScorerSelector("jpeg", "1", "raw")
_REQUEST_LIMITS = RequestLimits.model_construct(
    max_items=16, max_frames=8, max_values=5000, max_message_bytes=1 << 16
)
_ROW = {
    "tag": "position",
    "include": [
        {"class": "star", "count": 1},
        {"class": "disc", "count": 2, "color": "red", "position": ["left of", 0]},
    ],
    "exclude": [{"class": "cube", "count": 3}],
}


def _pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def _pictures(encoding: Encoding) -> Sequence[bytes]:
    found = [
        bytes(codec.encode(_pixels(h, w), encoding).data) for h, w in ((1, 1), (9, 7), (24, 16))
    ]
    flat = np.full((40, 30, 3), 77, np.uint8)
    found.append(bytes(codec.encode(flat, encoding).data))
    variants: dict[Encoding, list[tuple[str, dict[str, object]]]] = {
        Encoding.PNG: [("P", {}), ("L", {}), ("RGBA", {}), ("1", {})],
        Encoding.JPEG: [("L", {}), ("RGB", {"progressive": True}), ("CMYK", {})],
        Encoding.WEBP: [("RGB", {"lossless": False}), ("RGBA", {"lossless": True})],
    }
    for mode, options in variants.get(encoding, []):
        buffer = io.BytesIO()
        picture = PIL.Image.fromarray(_pixels(9, 11)).convert(mode)
        picture.save(buffer, encoding.value, **options)  # pyright: ignore[reportArgumentType]
        found.append(buffer.getvalue())
    return found


def _image(encoding: Encoding, tokens: tuple[bytes, ...]) -> Target:
    def run(data: bytes) -> None:
        pixels = codec.decode(Image(data, encoding), _LIMITS)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[0] * pixels.shape[1] <= _LIMITS.max_pixels

    return Target(run, lambda: _pictures(encoding), (InvalidArgument,), tokens)


def _sized(encoding: Encoding) -> Target:
    """Raw encodings have their size beside the data: here in the first four bytes."""

    def run(data: bytes) -> None:
        width, height = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
        pixels = codec.decode(Image(data[4:], encoding, width, height), _LIMITS)
        assert pixels.shape == (height, width, 3)

    def seeds() -> Sequence[bytes]:
        return [
            w.to_bytes(2, "little")
            + h.to_bytes(2, "little")
            + codec.encode(_pixels(h, w), encoding).data
            for h, w in ((1, 1), (9, 7), (24, 16))
        ]

    return Target(run, seeds, (InvalidArgument,), (b"\x28\xb5\x2f\xfd",))


def _checked(request: ScoreRequest) -> None:
    """What the service does with a request before it decodes."""
    for item in request.items:
        item_limit_problem(item, _REQUEST_LIMITS)
    check_request(request)
    for item in request.items:
        for image in (*item.images, *item.references):
            codec.checked_size(image, _LIMITS)


def _requests() -> list[ScoreRequest]:
    picture = Image(codec.encode(_pixels(4, 4), Encoding.PNG).data, Encoding.PNG)
    raw = codec.encode(_pixels(2, 3), Encoding.RAW_U8_RGB_HWC)
    plain = Item("a", "a red star", (picture, raw), (raw,))
    rows = Item("b", "p", (picture,), (), _ROW, "geneval")
    text = Item("c", 'a sign "STOP"', (picture,), (), {"target": "STOP"}, "ocr")
    free = Item("d", "", (raw,), (), {"a": [1, {"b": None}], "c": "d"}, "metadata")
    return [
        ScoreRequest("r", (_JPEG,), (plain, rows)),
        ScoreRequest("r", (_JPEG,), (text, free), include_details=True),
    ]


def _protobuf(data: bytes) -> None:
    _checked(parse_protobuf(data, _REQUEST_LIMITS))


def _json(data: bytes) -> None:
    _checked(parse_json(data, _REQUEST_LIMITS))


def _json_seeds() -> Sequence[bytes]:
    messages = [convert.request_to_proto(request) for request in _requests()]
    return [
        json_format.MessageToJson(m, preserving_proto_field_name=True).encode() for m in messages
    ]


def _form(loop: asyncio.AbstractEventLoop) -> Callable[[bytes], None]:
    admission, threads = Admission(1, 1 << 30), FairThreads(1, "fuzz")

    def run(data: bytes) -> None:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": data, "more_body": False}

        headers = [(b"content-type", b"multipart/form-data; boundary=bound")]
        scope = {"type": "http", "method": "POST", "headers": headers, "path": "/"}
        request = Request(scope, receive)  # pyright: ignore[reportArgumentType]
        arrival = Arrival(admission, threads, Caller("fuzz"))
        _checked(loop.run_until_complete(parse_form(request, _REQUEST_LIMITS, arrival)))

    return run


def _tensors(data: bytes) -> None:
    oip.items_from(oip_http.parse(data, None, _REQUEST_LIMITS).tensors)


def _tensor_seeds() -> Sequence[bytes]:
    image = base64.b64encode(_pictures(Encoding.PNG)[0]).decode()
    inputs = [
        {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [image]},
        {"name": "PROMPT", "datatype": "BYTES", "shape": [1], "data": ["a sign"]},
        {"name": "METADATA", "datatype": "BYTES", "shape": [1], "data": [json.dumps({})]},
    ]
    pixels = {"name": "IMAGE", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}
    return [json.dumps({"id": "x", "inputs": one}).encode() for one in (inputs, [pixels])]


def _tensor_message(data: bytes) -> None:
    oip_grpc.parse(data, _REQUEST_LIMITS)


def _tensor_message_seeds() -> Sequence[bytes]:
    raw = inference_pb2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(3)])
    raw.inputs.add(name="IMAGE", datatype="UINT8", shape=[1, 1, 1, 3])
    listed = inference_pb2.ModelInferRequest(model_name="m")
    image = listed.inputs.add(name="IMAGE", datatype="BYTES", shape=[1])
    image.contents.bytes_contents.append(_pictures(Encoding.PNG)[0])
    return [raw.SerializeToString(), listed.SerializeToString()]


def _flow_factory(data: bytes) -> None:
    _checked(ScoreRequest("r", (_JPEG,), flow_factory.parse(data, _REQUEST_LIMITS)))


def _flow_factory_seeds() -> Sequence[bytes]:
    image = base64.b64encode(_pictures(Encoding.PNG)[0]).decode()
    messages = (
        {"prompt": ["a", "b"], "image": [image] * 2, "condition_images": [[image], []]},
        {"prompt": ["a"], "video": [[image] * 2], "image": None, "kwargs": {"x": 1}},
    )
    return [json.dumps(message).encode() for message in messages]


def _unirl(data: bytes) -> None:
    entries = unirl.parse(data, _REQUEST_LIMITS)
    items = [entry.item for entry in entries if isinstance(entry.item, Item)]
    if items:
        _checked(ScoreRequest("r", (_JPEG,), tuple(items)))


def _unirl_seeds() -> Sequence[bytes]:
    turn = {"text": "p", "image_b64": base64.b64encode(_pictures(Encoding.PNG)[0]).decode()}
    row = {"history": [turn], "required_rewards": ["a", "b"], "metadata": _ROW, "group_id": "g"}
    entries = (
        row,
        {"history": [turn, turn], "required_rewards": ["a"], "metadata": {"target": "STOP"}},
        {"history": [{"text": "p", "video_path": "/x"}], "required_rewards": ["a"]},
    )
    message = {"protocol_version": "1", "requests": entries}
    return [json.dumps(message).encode(), json.dumps({"requests": [row]}).encode()]


def _form_seeds() -> Sequence[bytes]:
    def part(name: str, content: bytes, extra: str = "") -> bytes:
        head = f'--bound\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
        return head.encode() + content + b"\r\n"

    png = bytes(codec.encode(_pixels(4, 4), Encoding.PNG).data)
    spec = json.dumps({"geneval": _ROW}).encode()
    image = part("images", png, '; filename="a.png"')
    end = b"--bound--\r\n"
    return [
        image + part("scorers", b"jpeg,ocr") + part("prompt", b"p") + part("spec", spec) + end,
        image * 2 + part("scorers", b"jpeg") + part("priority", b"EVAL") + end,
    ]


def _spec(data: bytes) -> None:
    row = json.loads(data)
    if isinstance(row, dict):
        parse_spec(row, ("star", "disc", "cube"), ("red", "blue"))


_JSON_TOKENS = (
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"1e999",
    b"-1",
    b"\\ud800",
    b"[",
    b'{"a":',
    b"NaN",
    b'"id"',
)
_PNG_TOKENS = (b"IHDR", b"IDAT", b"IEND", b"acTL", b"iCCP", b"zTXt", b"PLTE", b"tRNS", b"eXIf")
_JPEG_TOKENS = tuple(
    b"\xff" + bytes([code]) for code in (0xC0, 0xC2, 0xC4, 0xD9, 0xDA, 0xDB, 0xE1, 0xE2)
)

TARGETS: Mapping[str, Target] = {
    "png": _image(Encoding.PNG, _PNG_TOKENS),
    "jpeg": _image(Encoding.JPEG, (*_JPEG_TOKENS, b"MPF\0", b"Exif\0\0")),
    "webp": _image(Encoding.WEBP, (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"RIFF")),
    "qoi": _image(Encoding.QOI, (b"qoif", b"\xfe", b"\xff", b"\xfd", b"\0" * 7 + b"\1")),
    "raw": _sized(Encoding.RAW_U8_RGB_HWC),
    "zstd": _sized(Encoding.RAW_U8_RGB_HWC_ZSTD),
    "protobuf": Target(
        _protobuf,
        lambda: [convert.request_to_proto(request).SerializeToString() for request in _requests()],
        (InvalidArgument,),
        (b"\x1a\x00", b"\x0a\x00", b"\xff" * 9 + b"\x01", b"\x62\x00"),
    ),
    "json": Target(_json, _json_seeds, (InvalidArgument,), _JSON_TOKENS),
    "multipart": Target(
        _form(asyncio.new_event_loop()),
        _form_seeds,
        (InvalidArgument,),
        (b"--bound\r\n", b"--bound--", b"\r\n", b'name="', b'filename="', b"Content-Type: a/b\r\n"),
    ),
    "flow_factory": Target(
        _flow_factory,
        _flow_factory_seeds,
        (InvalidArgument,),
        (*_JSON_TOKENS, b'"video":', b'"condition_videos":', b'"prompt":'),
    ),
    "unirl": Target(
        _unirl,
        _unirl_seeds,
        (InvalidArgument,),
        (*_JSON_TOKENS, b'"history":', b'"metadata":', b'"scorer_version":'),
    ),
    "oip_http": Target(_tensors, _tensor_seeds, (InvalidArgument,), _JSON_TOKENS),
    "oip_grpc": Target(
        _tensor_message,
        _tensor_message_seeds,
        (InvalidArgument,),
        (b"\x2a\x00", b"\x3a\x00", b"\xff" * 9 + b"\x01"),
    ),
    "pickle": PICKLE,
    "geneval_spec": Target(
        _spec, lambda: [json.dumps(_ROW).encode()], (ValueError, RecursionError), _JSON_TOKENS
    ),
}
