from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_client import Encoding, Image, InvalidArgument, codec
from reward_client.codec import DecodeLimits, decode, encode, is_lossy
from reward_client.images import sniff

LOSSLESS = [e for e in Encoding if e is not Encoding.JPEG]
COMPRESSED = [Encoding.PNG, Encoding.JPEG, Encoding.WEBP, Encoding.QOI]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def with_pillow(picture: PIL.Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("encoding", LOSSLESS)
@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_lossless_encodings_give_the_same_pixels(
    encoding: Encoding, height: int, width: int, seed: int
) -> None:
    pixels = noise(height, width, seed)
    image = encode(pixels, encoding)
    decoded = decode(image)
    assert (image.width, image.height) == (width, height)
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    assert not is_lossy(image)
    np.testing.assert_array_equal(decoded, pixels)


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 40), width=st.integers(1, 40), level=st.integers(0, 255))
def test_jpeg_is_close_and_says_that_it_is_lossy(height: int, width: int, level: int) -> None:
    pixels = np.full((height, width, 3), level, np.uint8)
    image = encode(pixels, Encoding.JPEG)
    assert is_lossy(image)
    assert np.abs(decode(image).astype(int) - pixels).max() <= 2


def test_encoding_accepts_any_memory_layout() -> None:
    pixels = noise(9, 7)[::-1, ::2]
    for encoding in LOSSLESS:
        np.testing.assert_array_equal(decode(encode(pixels, encoding)), pixels)


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (np.zeros((4, 4, 3), np.float32), "* 255"),
        (np.zeros((3, 8, 8), np.uint8), "transpose"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one image at a time"),
        (np.zeros((4,), np.uint8), "(4,)"),
        (np.zeros((4, 4, 5), np.uint8), "(4, 4, 5)"),
        (np.zeros((0, 4, 3), np.uint8), "(0, 4, 3)"),
        ([[1]], "list"),
    ],
)
def test_wrong_arrays_are_told_what_to_do(array: object, hint: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Image.from_array(array)  # type: ignore[arg-type]  # wrong on purpose
    assert hint in caught.value.message
    assert "uint8 array of shape (height, width, 3)" in caught.value.message


@pytest.mark.parametrize("encoding", list(Encoding))
def test_limits_on_pixels_sides_and_bytes(encoding: Encoding) -> None:
    image = encode(noise(20, 30), encoding)
    decode(image, DecodeLimits(max_pixels=600, max_side_px=30))
    for limits in (
        DecodeLimits(max_pixels=599),
        DecodeLimits(max_side_px=29),
        DecodeLimits(max_bytes=len(image.data) - 1),
    ):
        with pytest.raises(InvalidArgument, match="limit"):
            decode(image, limits)


@pytest.mark.parametrize("encoding", [*COMPRESSED, Encoding.RAW_U8_RGB_HWC_ZSTD])
def test_every_truncation_that_loses_pixels_is_refused(encoding: Encoding) -> None:
    image = encode(noise(16, 16), encoding)
    pixels = decode(image)
    survived = 0
    for length in range(len(image.data)):
        with contextlib.suppress(InvalidArgument):
            # Checksums and end markers may be missing, never a pixel.
            cut = decode(Image(image.data[:length], encoding, 16, 16))
            np.testing.assert_array_equal(cut, pixels)
            survived += 1
    assert survived < 32


@pytest.mark.parametrize("encoding", list(Encoding))
@settings(deadline=None, max_examples=30)
@given(data=st.binary(max_size=200))
def test_garbage_is_refused_or_decoded_but_never_crashes(encoding: Encoding, data: bytes) -> None:
    prefix = bytes(encode(noise(4, 4), encoding).data[:24])
    for candidate in (data, prefix + data):
        with contextlib.suppress(InvalidArgument):
            assert decode(Image(candidate, encoding, 4, 4)).shape == (4, 4, 3)


@pytest.mark.parametrize("length", [0, 1, 47, 49, 4 * 4 * 4])
def test_raw_length_must_match_the_size(length: int) -> None:
    with pytest.raises(InvalidArgument, match=r"48 bytes|got nothing"):
        decode(Image(bytes(length), Encoding.RAW_U8_RGB_HWC, 4, 4))


@pytest.mark.parametrize("encoding", [Encoding.RAW_U8_RGB_HWC, Encoding.RAW_U8_RGB_HWC_ZSTD])
def test_raw_needs_a_size(encoding: Encoding) -> None:
    with pytest.raises(InvalidArgument, match="width and height"):
        decode(Image(b"xxx", encoding))


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_declared_size_is_checked(encoding: Encoding) -> None:
    data = encode(noise(6, 5), encoding).data
    assert decode(Image(data, encoding)).shape == (6, 5, 3)
    with pytest.raises(InvalidArgument, match="declared as 5x7"):
        decode(Image(data, encoding, 5, 7))


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_the_encoding_must_be_the_true_one(encoding: Encoding) -> None:
    for other in COMPRESSED:
        if other is not encoding:
            with pytest.raises(InvalidArgument):
                decode(Image(encode(noise(8, 8), other).data, encoding))


def png_bomb(side_px: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20), 9)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "image",
    [
        Image(png_bomb(5000), Encoding.PNG),
        Image(png_bomb(60_000), Encoding.PNG),
        Image(struct.pack(">4sIIBB", b"qoif", 2**31, 2**31, 3, 0) + bytes(8) + b"\1", Encoding.QOI),
        Image(
            b"RIFF\x3e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xfe\x3f\0" * 2 + bytes(40),
            Encoding.WEBP,
        ),
        Image(b"x", Encoding.RAW_U8_RGB_HWC_ZSTD, 2**16, 2**16),
    ],
    ids=["png 25 MP", "png 3.6 GP", "qoi", "webp canvas", "zstd"],
)
def test_bombs_are_refused_by_their_header(image: Image) -> None:
    with pytest.raises(InvalidArgument, match=r"limit|too many pixels"):
        decode(image)


def test_a_zstd_frame_larger_than_the_image_is_refused() -> None:
    import zstandard

    for compressor in (
        zstandard.ZstdCompressor(),
        zstandard.ZstdCompressor(write_content_size=False),
    ):
        for size in (47, 49, 1 << 24):
            data = compressor.compress(bytes(size))
            with pytest.raises(InvalidArgument):
                decode(Image(data, Encoding.RAW_U8_RGB_HWC_ZSTD, 4, 4))
    extra = zstandard.ZstdCompressor().compress(bytes(48)) + b"more"
    with pytest.raises(InvalidArgument):
        decode(Image(extra, Encoding.RAW_U8_RGB_HWC_ZSTD, 4, 4))


def test_pillow_modes() -> None:
    grey = PIL.Image.fromarray(noise(5, 5)[:, :, 0])
    for mode in ("L", "RGBA", "P", "LA"):
        picture = grey.convert(mode)
        expected = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(decode(Image.from_pil(picture)), expected)
        data = with_pillow(picture, "PNG")
        np.testing.assert_array_equal(decode(Image(data, Encoding.PNG)), expected)
    sixteen_bit = PIL.Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    with pytest.raises(InvalidArgument, match="8 bits"):
        Image.from_pil(sixteen_bit)
    with pytest.raises(InvalidArgument, match="8 bits"):
        decode(Image(with_pillow(sixteen_bit, "PNG"), Encoding.PNG))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_orientation_is_not_applied(name: str) -> None:
    # As in the reference scorers, which open files with Pillow: pixels are scored as they lie.
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    picture = PIL.Image.fromarray(np.full((4, 7, 3), 90, np.uint8))
    data = with_pillow(picture, name, exif=exif)
    found = decode(Image(data, Encoding[name]))
    assert found.shape == (4, 7, 3)


@pytest.mark.parametrize("name", ["PNG", "WEBP"])
def test_animations_are_refused(name: str) -> None:
    first, second = (PIL.Image.fromarray(noise(8, 8, seed)) for seed in (0, 1))
    data = with_pillow(first, name, save_all=True, append_images=[second])
    with pytest.raises(InvalidArgument, match="separate images"):
        decode(Image(data, Encoding[name]))


def test_webp_tells_lossy_from_lossless() -> None:
    picture = PIL.Image.fromarray(noise(16, 16))
    for exif in (b"", b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"):
        for lossless in (True, False):
            data = with_pillow(picture, "WEBP", lossless=lossless, exif=exif)
            image = Image(data, Encoding.WEBP)
            assert decode(image).shape == (16, 16, 3)
            assert is_lossy(image) is not lossless


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_files_are_told_by_their_content(encoding: Encoding, tmp_path) -> None:
    path = tmp_path / "picture.txt"
    encoded = encode(noise(6, 7), encoding)
    path.write_bytes(encoded.data)
    image = Image.from_file(path)
    assert image.encoding is encoding is sniff(bytes(encoded.data))
    np.testing.assert_array_equal(decode(image), decode(encoded))


def test_other_files_are_refused(tmp_path) -> None:
    path = tmp_path / "note.png"
    path.write_text("not an image")
    with pytest.raises(InvalidArgument, match=r"note\.png.*convert"):
        Image.from_file(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_decodes_as_pillow_does_and_broken_ones_fail_alike(monkeypatch, mode, progressive):
    random = np.random.default_rng(0)
    pixels = np.indices((40, 33)).sum(0)[..., None] * np.array([3, 5, 7]) % 256
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(
        buffer, "JPEG", quality=75, progressive=progressive
    )
    whole = buffer.getvalue()
    files = [whole]
    for _ in range(60):
        broken = bytearray(whole)
        for position in random.integers(20, len(whole), 3):
            broken[position] ^= 1 << int(random.integers(8))
        files.append(bytes(broken))
    files += [whole[:end] for end in range(0, len(whole), 60)]
    by_default = [_decoded(data) for data in files]
    monkeypatch.setattr(codec, "_decode_jpeg", lambda *_: None)  # leaves all of them to Pillow
    for ours, theirs in zip(by_default, [_decoded(data) for data in files], strict=True):
        assert type(ours) is type(theirs)
        assert isinstance(ours, str) or np.array_equal(ours, theirs)


def _decoded(data):
    try:
        return codec.decode(Image(data, Encoding.JPEG))
    except InvalidArgument as error:
        return error.message


def test_raw_pixels_decode_to_a_view_unless_they_are_to_be_changed():
    image = Image.from_array(np.full((2, 3, 3), 7, np.uint8))
    view = codec.decode(image, writable=False)
    assert not view.flags.writeable
    assert np.shares_memory(view, np.frombuffer(image.data, np.uint8))
    assert codec.decode(image).flags.writeable


def test_an_image_of_a_view_equals_one_of_a_copy_and_follows_its_array():
    array = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)[::-1]
    view = Image.from_array(np.ascontiguousarray(array), copy=False)
    assert view == Image.from_array(array)
    assert np.array_equal(codec.decode(view), array)
