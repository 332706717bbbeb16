"""Limits at the limit and one above, by every door, and the memory of a server under bombs."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import PIL.Image
import pytest
import zstandard
from server_process import Server, grey, items, running

from reward_client import (
    Encoding,
    Image,
    InvalidArgument,
    Item,
    RewardClient,
    ScorerSelector,
    codec,
)
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire import (
    convert,
)
from reward_client.types import ScoreRequest
from reward_server.limits import RequestLimits, check_message, depth_of, load_json

TOML = """
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
log_format = "json"
max_items = 8
max_frames = 3
max_prompt_chars = 50
max_id_chars = 64
max_spec_depth = 4
max_spec_chars = 100
max_values = 2000
max_image_side_px = 1100
max_image_pixels = 1_000_000
max_image_bytes = 700_000
max_message_bytes = 4_000_000
max_queue_bytes = 6_000_000
[scorers.bright]
scorer = "tests.scorers_bad.bad:Mean"
"""
GIB = 1 << 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("limits"), TOML, wait_for=("bright",)) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(params=["grpc", "http"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[RewardClient]:
    url = server.grpc_url if request.param == "grpc" else server.http_url
    with RewardClient(url, attempts=1) as client:
        yield client


def picture(height: int, width: int, encoding: Encoding = Encoding.PNG) -> Image:
    return codec.encode(np.full((height, width, 3), 9, np.uint8), encoding)


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth > 1 else {"a": 1}


ITEM_LIMITS = [
    (lambda n: Item("x" * n, "", (grey(1),)), 64, "id has 65 characters, the limit is 64"),
    (lambda n: Item("x", "p" * n, (grey(1),)), 50, "prompt has 51 characters, the limit is 50"),
    (lambda n: Item("x", "", (grey(1),) * n), 3, "images has 4 pictures, the limit is 3"),
    (
        lambda n: Item("x", "", (grey(1),), (grey(1),) * n),
        3,
        "references has 4 pictures, the limit is 3",
    ),
    (
        lambda n: Item("x", "", (grey(1),), (), nested(n), "metadata"),
        4,
        "spec is nested deeper than 4",
    ),
    (
        lambda n: Item("x", "", (grey(1),), (), {"a": "b" * (n - 3)}, "metadata"),
        100,
        "spec has 101 characters, the limit is 100",
    ),
    (lambda n: Item("x", "", (picture(1, n),)), 1100, "1101x1 px, the limit is"),
    (lambda n: Item("x", "", (picture(n, 1),)), 1100, "1x1101 px, the limit is"),
    (lambda n: Item("x", "", (picture(1000, n),)), 1000, "1001x1000 px, the limit is 1000000"),
    (
        lambda n: Item("x", "", (padded_png(n),)),
        700_000,
        "has 700001 bytes, the limit is 700000",
    ),
]


def padded_png(size: int) -> Image:
    """A PNG of exactly so many bytes: a private chunk fills it up."""
    data = bytes(picture(4, 4).data)
    filler = bytes(size - len(data) - 12)
    chunk = struct.pack(">I", len(filler)) + b"fiLr" + filler
    chunk += struct.pack(">I", zlib.crc32(b"fiLr" + filler))
    return Image(data[:-12] + chunk + data[-12:], Encoding.PNG)


@pytest.mark.parametrize(("make", "limit", "words"), ITEM_LIMITS)
def test_at_the_limit_and_one_above(
    client: RewardClient, make: Any, limit: int, words: str
) -> None:
    good = Item("good", "", (grey(7),))
    found = client.score([make(limit), good], ["bright"]).results["bright"]
    assert found.errors == {}
    found = client.score([make(limit + 1), good], ["bright"]).results["bright"]
    assert set(found.errors) == {0}  # the other item is scored
    message = found.errors[0].message
    assert words in message
    assert "item 'x" in message
    assert "\n" not in message
    with pytest.raises(InvalidArgument) as caught:
        client.score([make(limit + 1)], ["bright"])
    assert words in caught.value.message


def test_items_request_id_and_decoded_bytes(client: RewardClient) -> None:
    # The server says that it takes 8 items, so the client cuts; uncut ones are refused below.
    seen: list[tuple[int, int]] = []
    client.score(items(["a"] * 9), ["bright"], progress=lambda *step: seen.append(step))
    assert (len(seen), seen[-1]) == (2, (9, 9))
    client.score(items(["a"]), ["bright"], request_id="r" * 64)
    with pytest.raises(InvalidArgument, match="request_id has 65 characters, the limit is 64"):
        client.score(items(["a"]), ["bright"], request_id="r" * 65)
    many = [Item(f"i{i}", "", (picture(1000, 1000),)) for i in range(2)]
    assert client.score(many[:1], ["bright"]).results["bright"].errors == {}
    with pytest.raises(InvalidArgument, match="once decoded, the server holds 6000000"):
        client.score([*many, Item("c", "", (picture(100, 10),))], ["bright"])


def post(server: Server, **request: Any) -> httpx.Response:
    return httpx.post(server.http_url + "/v1/score", trust_env=False, timeout=30, **request)


def refusal(server: Server, **request: Any) -> str:
    answer = post(server, **request)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["code"] == "INVALID_ARGUMENT"
    assert "\n" not in error["message"]
    return error["message"]


def body(**item: Any) -> dict[str, Any]:
    data = base64.b64encode(picture(4, 4).data).decode()
    first = {"id": "x", "images": [{"data": data, "encoding": "PNG"}], **item}
    return {"scorers": [{"name": "bright"}], "items": [first]}


def test_json_depth_and_values(server: Server) -> None:
    assert post(server, json=body(metadata=nested(4))).status_code == 200
    assert "nested deeper than 4" in refusal(server, json=body(metadata=nested(5)))
    for text in (b"[" * 100_000, b"[" * 1500 + b"]" * 1500, b'{"a":' * 1900 + b"1" + b"}" * 1900):
        refusal(server, content=text, headers={"content-type": "application/json"})
    many = b"[" + b"{}," * 100_000 + b"{}]"
    assert "JSON values, the limit is 2000" in refusal(
        server, content=many, headers={"content-type": "application/json"}
    )
    too_many = {"scorers": [{"name": "bright"}], "items": [{}] * 9}
    assert "limit of 8" in refusal(server, json=too_many)


def test_multipart_parts(server: Server) -> None:
    png = picture(4, 4).data
    files = [("images", (f"{i}", png)) for i in range(9)]
    assert post(server, files=files[:8], data={"scorers": "bright"}).status_code == 200
    assert "Too many files" in refusal(server, files=files, data={"scorers": "bright"})
    fields = [("prompt", (None, "p"))] * 30
    assert "Too many fields" in refusal(server, files=[*files[:1], *fields])
    large = {"scorers": "bright", "prompt": "p" * 500}
    assert "maximum size" in refusal(server, files=files[:1], data=large)
    assert "spec" in refusal(server, files=files[:1], data={"scorers": "bright", "spec": "[" * 300})


def test_a_body_without_a_length_is_bounded_too(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(80):
            yield bytes(1 << 17)

    for kind in ("multipart/form-data; boundary=x", "application/json", "application/x-protobuf"):
        with httpx.Client(trust_env=False, timeout=30) as http_client:
            try:
                answer = http_client.post(
                    server.http_url + "/v1/score", content=endless(), headers={"content-type": kind}
                )
            except httpx.TransportError:
                continue  # the server hung up while we were still sending
            assert answer.status_code == 413
            assert "limit of 4000000 bytes" in answer.json()["error"]["message"]


def rss_bytes(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def peak_bytes(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def test_bombs_leave_memory_where_it_was(server: Server) -> None:
    with RewardClient(server.grpc_url, attempts=1) as client:
        client.score(items(["a"]), ["bright"])
        before = peak_bytes(server)
        bombs = [
            Image(png_header(1000, 1000), Encoding.PNG),
            Image(png_header(60_000, 60_000), Encoding.PNG),
            Image(png_header(2**31 - 1, 2**31 - 1), Encoding.PNG),
            Image(zstandard.compress(bytes(GIB // 4)), Encoding.RAW_U8_RGB_HWC_ZSTD, 100, 100),
            Image(unsized_zstd(GIB // 4), Encoding.RAW_U8_RGB_HWC_ZSTD, 100, 100),
            Image(
                struct.pack(">4sIIBB", b"qoif", 900, 900, 3, 0) + b"\0" * 7 + b"\1", Encoding.QOI
            ),
            Image(
                struct.pack(">4sIIBB", b"qoif", 2**31, 2, 3, 0) + b"\0" * 7 + b"\1", Encoding.QOI
            ),
        ]
        for bomb in bombs:
            with pytest.raises(InvalidArgument, match=r"item 'x', images\[0\]"):
                client.score([Item("x", "", (bomb,))], ["bright"])
    empty_items = b"\x1a\x00" * 1_900_000  # 3.8 MB that would become two million messages
    for content, kind in (
        (empty_items, "application/x-protobuf"),
        (b"[" + b"{}," * 1_300_000 + b"{}]", "application/json"),
        (b'{"items":[' + b"{}," * 1_300_000 + b"{}]}", "application/json"),
    ):
        refusal(server, content=content, headers={"content-type": kind})
    grown = peak_bytes(server) - before
    assert grown < 96 << 20, f"{grown / 2**20:.0f} MiB"


def test_compressed_grpc_messages_are_not_unpacked(server: Server) -> None:
    before = peak_bytes(server)
    body = pb.ScoreRequest(request_id="a" * (3 << 20)).SerializeToString()
    with grpc.insecure_channel(
        server.grpc_url.removeprefix("grpc://"), compression=grpc.Compression.Gzip
    ) as channel:
        call = channel.unary_unary("/reward.v1.RewardService/Score")
        with pytest.raises(grpc.RpcError) as caught:
            call(body, timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert peak_bytes(server) - before < 32 << 20


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(1 << 19), 9))
        + chunk(b"IEND", b"")
    )


def empty_qoi(width: int, height: int) -> bytes:
    return struct.pack(">4sIIBB", b"qoif", width, height, 3, 0) + b"\0" * 7 + b"\1"


def unsized_zstd(size: int) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size))


# --- no path, no address --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1:PORT/livez",
        "\\\\host\\share\\a.png",
        "data:image/png;base64,AAAA",
    ],
)
def test_no_path_or_address_is_opened(server: Server, text: str) -> None:
    text = text.replace("PORT", str(server.ports["http"]))
    before = server.metric("reward_requests_total", api="http")
    for data in (text, base64.b64encode(text.encode()).decode()):
        request = body(images=[{"data": data, "encoding": "PNG"}])
        message = refusal(server, json=request)
        assert "root:" not in message
    for key in ("url", "path", "image", "image_url", "uri"):
        assert "no field named" in refusal(server, json=body(images=[{key: text}]))
    # Were an address opened, the server would have asked itself.
    after = server.metric("reward_requests_total", api="http")
    assert after - before == 7


def test_shared_memory_is_not_opened(server: Server) -> None:
    media = pb.Media(shm=pb.SharedMemoryRef(name="/dev/shm/x", length_bytes=12), width=2, height=2)
    media.encoding = pb.Media.RAW_U8_RGB_HWC
    request = pb.ScoreRequest(
        scorers=[pb.ScorerSelector(name="bright")], items=[pb.Item(id="x", images=[media])]
    )
    content = request.SerializeToString()
    kind = {"content-type": "application/x-protobuf"}
    assert "shared memory is not accepted" in refusal(server, content=content, headers=kind)


# --- files that are not what they seem ------------------------------------------------------------


def with_pillow(name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    random = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    PIL.Image.fromarray(random).save(buffer, name, **options)
    return buffer.getvalue()


def animated(name: str) -> bytes:
    frames = [PIL.Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (0, 255)]
    return with_frames(name, frames)


def with_frames(name: str, frames: list[PIL.Image.Image]) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, name, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def zipped() -> bytes:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "hello")
    return buffer.getvalue()


SEEMING = {
    "png and zip": (Encoding.PNG, lambda: with_pillow("PNG") + zipped()),
    "jpeg and zip": (Encoding.JPEG, lambda: with_pillow("JPEG") + zipped()),
    "webp and zip": (Encoding.WEBP, lambda: with_pillow("WEBP") + zipped()),
    "two pngs": (Encoding.PNG, lambda: with_pillow("PNG") * 2),
    "gif as png": (Encoding.PNG, lambda: with_pillow("GIF")),
    "bmp as jpeg": (Encoding.JPEG, lambda: with_pillow("BMP")),
    "tiff as png": (Encoding.PNG, lambda: with_pillow("TIFF")),
    "png as webp": (Encoding.WEBP, lambda: with_pillow("PNG")),
    "svg": (Encoding.PNG, lambda: b"<svg xmlns='http://www.w3.org/2000/svg'></svg>"),
    "html in png": (Encoding.PNG, lambda: b"\x89PNG\r\n\x1a\n<script>"),
    "mpo": (Encoding.JPEG, lambda: animated("MPO")),
    "apng": (Encoding.PNG, lambda: animated("PNG")),
    "animated webp": (Encoding.WEBP, lambda: animated("WEBP")),
    "text": (Encoding.PNG, lambda: b"hello"),
}


@pytest.mark.parametrize("case", SEEMING)
def test_what_is_not_one_plain_image_is_refused_by_name(client: RewardClient, case: str) -> None:
    encoding, make = SEEMING[case]
    sent = [Item("good", "", (grey(3),)), Item("odd", "", (Image(make(), encoding),))]
    found = client.score(sent, ["bright"]).results["bright"]
    assert found.scores[0] == 3.0
    assert set(found.errors) == {1}
    assert found.errors[1].code.value == "INVALID_ARGUMENT"
    assert "item 'odd', images[0]" in found.errors[1].message
    assert "\n" not in found.errors[1].message


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    data = with_pillow("JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    scan = data[at:-2]
    codec.decode(Image(data, Encoding.JPEG))
    with pytest.raises(InvalidArgument, match="more than 64 scans"):
        codec.decode(Image(data[:-2] + scan * 1000 + data[-2:], Encoding.JPEG))


def test_qoi_must_hold_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 5, 3), np.uint8)
    data = bytes(codec.encode(pixels, Encoding.QOI).data)
    np.testing.assert_array_equal(codec.decode(Image(data, Encoding.QOI)), pixels)
    for cut in (data[:-12] + data[-8:], data[:14] + data[18:], data[:-8] + b"\xfeabc" + data[-8:]):
        with pytest.raises(InvalidArgument, match="QOI"):
            codec.decode(Image(cut, Encoding.QOI))


# --- the parts by themselves ----------------------------------------------------------------------


def test_the_walk_lets_pass_what_protobuf_reads() -> None:
    request = ScoreRequest("r", (ScorerSelector("bright"),), tuple(items(["a"] * 8)))
    sent = convert.request_to_proto(request).SerializeToString()
    check_message(sent, RequestLimits.model_construct(max_items=8, max_values=100))
    with pytest.raises(InvalidArgument, match="limit of 7"):
        check_message(sent, RequestLimits.model_construct(max_items=7))
    with pytest.raises(InvalidArgument, match="more than 20 fields"):
        check_message(sent, RequestLimits.model_construct(max_items=8, max_values=20))


def test_depth_is_counted_without_recursion() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert depth_of(deep, 32) is None
    assert depth_of([[1]], 2) is not None
    assert depth_of([[1]], 1) is None
    while isinstance(deep, list):  # Python's own destructor may recurse
        deep = deep.pop()


def test_load_json_is_json() -> None:
    value = {"a": [1, 2.5, None, True, "x,[{"], "b": {}}
    assert load_json(json.dumps(value).encode(), RequestLimits.model_construct()) == value
    assert load_json(rb'"\ud83d\ude00"', RequestLimits.model_construct()) == "\U0001f600"
    for text in (rb'"\ud800"', rb'{"\udfff": 1}', rb'[["a\ud83d b"]]'):
        with pytest.raises(InvalidArgument, match="surrogate"):  # found by fuzzing
            load_json(text, RequestLimits.model_construct())


def test_a_number_beyond_all_numbers_is_refused(server: Server) -> None:
    # Found by fuzzing: an infinite whole number was a bug of the server, 500.
    row = '{"tag":"t","include":[{"class":"star","count":1e999}]}'
    text = json.dumps(body(geneval="ROW")).replace('"ROW"', row)
    kind = {"content-type": "application/json"}
    assert "not a ScoreRequest" in refusal(server, content=text.encode(), headers=kind)
