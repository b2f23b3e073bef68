"""Image files of every format are decoded as they are stored, or refused in one sentence that names them."""

import io
import struct

import numpy as np
import pytest

from grd_edge.data.headers import read_header
from grd_edge.data.images import file_sha256, image_files, listing, read_image, read_mask
from grd_edge.errors import InputError

cv2 = pytest.importorskip("cv2")
pil = pytest.importorskip("PIL.Image")

H, W = 37, 53
RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (H, W), np.uint8)
GREY16 = RNG.integers(0, 65536, (H, W), np.uint16)
RGB8 = RNG.integers(0, 256, (H, W, 3), np.uint8)
RGB16 = RNG.integers(0, 65536, (H, W, 3), np.uint16)
SMOOTH = np.add.outer(3 * np.arange(H), 2 * np.arange(W)).astype(np.uint8)


def encoded(image, suffix, *parameters):
    """Bytes of a file that OpenCV writes; `image` in RGB order."""
    ok, data = cv2.imencode(suffix, image if image.ndim == 2 else image[:, :, ::-1], list(parameters))
    assert ok
    return data.tobytes()


def saved(image, kind, **options):
    """Bytes of a file that Pillow writes."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(tmp_path, data, name="image.png"):
    (tmp_path / name).write_bytes(data)
    return read_image(tmp_path / name)


def oriented(number):
    exif = pil.Exif()
    exif[274] = number
    return exif


LOSSLESS = [
    (".png", GREY8, ()),
    (".png", GREY16, ()),
    (".png", RGB8, ()),
    (".png", RGB16, ()),
    (".bmp", GREY8, ()),
    (".bmp", RGB8, ()),
    (".tiff", GREY8, ()),
    (".tiff", GREY16, ()),
    (".tiff", RGB8, ()),
    (".tiff", RGB16, ()),
    (".tiff", RGB8, (cv2.IMWRITE_TIFF_COMPRESSION, 1)),
    (".tiff", RGB8, (cv2.IMWRITE_TIFF_COMPRESSION, 8)),
    (".tiff", GREY16, (cv2.IMWRITE_TIFF_ROWSPERSTRIP, 8)),
]
LOSSY = [
    (".jpg", SMOOTH, ()),
    (".jpg", np.dstack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH]), ()),
    (".jpg", SMOOTH, (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
    (".jpg", SMOOTH, (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)),
]


@pytest.mark.parametrize(("suffix", "image", "parameters"), LOSSLESS)
@pytest.mark.parametrize("upper", [False, True])
def test_lossless_formats_give_back_every_bit(tmp_path, suffix, image, parameters, upper):
    name = f"image{suffix.upper() if upper else suffix}"
    read = decoded(tmp_path, encoded(image, suffix, *parameters), name)
    assert read.dtype == image.dtype
    assert np.array_equal(read, image)
    assert image_files(tmp_path) == [tmp_path / name]


@pytest.mark.parametrize("image", [GREY8, GREY16, RGB8, (GREY8 / np.float32(255)).astype(np.float32)])
def test_arrays_are_images_too(tmp_path, image):
    for name, stored in (("a.NPY", image), ("fortran.npy", np.asfortranarray(image))):
        with open(tmp_path / name, "wb") as stream:
            np.save(stream, stored)
        assert np.array_equal(read_image(tmp_path / name), image)
        assert read_header(tmp_path / name)[:2] == (H, W)


@pytest.mark.parametrize(("suffix", "image", "parameters"), LOSSLESS + LOSSY)
def test_headers_tell_what_decoding_gives(tmp_path, suffix, image, parameters):
    path = tmp_path / f"image{suffix}"
    path.write_bytes(encoded(image, suffix, *parameters))
    header, read = read_header(path), read_image(path)
    assert (header.h, header.w) == read.shape[:2] == image.shape[:2]
    assert header.channels == (1 if read.ndim == 2 else 3) == (1 if image.ndim == 2 else 3)
    assert header.dtype == read.dtype.name
    assert np.abs(read.astype(float) - image).mean() < 6


@pytest.mark.parametrize(("suffix", "image", "parameters"), LOSSLESS + LOSSY)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95, 0.999])
def test_truncated_files_are_refused_before_they_are_decoded(tmp_path, monkeypatch, suffix, image, parameters, share):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    data = encoded(image, suffix, *parameters)
    with pytest.raises(InputError, match=r"cut\.[a-z]+ (is truncated|is not an image)") as refused:
        decoded(tmp_path, data[: int(share * len(data))], f"cut{suffix}")
    assert str(refused.value).count("cut.") == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_truncated_arrays_are_refused(tmp_path, share):
    np.save(tmp_path / "a.npy", RGB8)
    data = (tmp_path / "a.npy").read_bytes()
    with pytest.raises(InputError, match=r"cut\.npy"):
        decoded(tmp_path, data[: int(share * len(data))], "cut.npy")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_damage_is_found_where_the_format_has_checksums(tmp_path, kind):
    data = saved(pil.fromarray(GREY8), kind, **({"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}))
    start = data.index(b"IDAT") + 8 if kind == "PNG" else data.index(b"\x78")
    for at in range(start, start + 1500, 50):
        hurt = bytearray(data)
        hurt[at] ^= 0x10
        with pytest.raises(InputError, match=r"hurt is damaged|hurt cannot be decoded"):
            decoded(tmp_path, bytes(hurt), "hurt")


def test_what_follows_the_end_of_a_file_does_no_harm(tmp_path):
    for suffix in (".png", ".jpg"):
        data = encoded(SMOOTH, suffix)
        assert np.array_equal(decoded(tmp_path, data), decoded(tmp_path, data + bytes(5000)))


def test_an_orientation_tag_turns_no_image(tmp_path):
    for kind in ("JPEG", "PNG"):
        upright = decoded(tmp_path, saved(pil.fromarray(SMOOTH), kind))
        for number in (3, 6, 8):
            assert np.array_equal(decoded(tmp_path, saved(pil.fromarray(SMOOTH), kind, exif=oriented(number))), upright)
    # libtiff turns them, in some of its ways of reading.
    with pytest.raises(InputError, match="orientation tag 6"):
        decoded(tmp_path, saved(pil.fromarray(SMOOTH), "TIFF", tiffinfo={274: 6}))


def test_palettes_bits_and_opaque_alpha_become_what_they_show(tmp_path):
    palette = pil.fromarray(RGB8).quantize(16)
    grey, rgb, opaque = pil.fromarray(GREY8), pil.fromarray(RGB8), pil.fromarray(np.full_like(GREY8, 255))
    shown = np.asarray(palette.convert("RGB"))
    for kind in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(decoded(tmp_path, saved(palette, kind)), shown)
        bits = decoded(tmp_path, saved(pil.fromarray(GREY8 > 128), kind))
        assert np.array_equal(bits, np.where(GREY8 > 128, 255, 0))
    assert np.array_equal(decoded(tmp_path, saved(pil.merge("LA", (grey, opaque)), "PNG")), GREY8)
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(decoded(tmp_path, saved(pil.merge("RGBA", (*rgb.split(), opaque)), kind)), RGB8)
    unit = GREY8.astype(np.float32) / 255
    assert np.array_equal(decoded(tmp_path, saved(pil.fromarray(unit), "TIFF")), unit)
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "raw"):
        assert np.array_equal(decoded(tmp_path, saved(grey, "TIFF", compression=compression)), GREY8)


def tiff_with(tag, value, image=GREY16):
    """An uncompressed TIFF of one strip whose short `tag` is set to `value`."""
    data = bytearray(saved(pil.fromarray(image), "TIFF"))
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry) == (tag,):
            struct.pack_into("<HIHH", data, entry + 2, 3, 1, value, 0)
            return bytes(data)
    raise AssertionError(tag)


def refused_files():
    grey, rgb = pil.fromarray(GREY8), pil.fromarray(RGB8)
    pages = io.BytesIO()
    grey.save(pages, "TIFF", save_all=True, append_images=[grey, grey])
    png = bytearray(encoded(GREY8, ".png"))
    png[len(png) // 2] ^= 1
    huge = bytearray(encoded(GREY8, ".png"))
    struct.pack_into(">II", huge, 16, 1 << 20, 1 << 20)
    return {
        "empty": (b"", "0 bytes"),
        "text": (b"hello", "not an image"),
        "gif": (saved(rgb, "GIF"), "expected PNG, JPEG"),
        "webp": (b"RIFF\x10\0\0\0WEBPVP8 ", "expected PNG, JPEG"),
        "cmyk": (saved(rgb.convert("CMYK"), "JPEG"), "4 components"),
        "cmyk tiff": (saved(rgb.convert("CMYK"), "TIFF"), "color space 5"),
        "alpha": (saved(pil.merge("LA", (grey, grey)), "PNG"), "transparent"),
        "alpha colors": (saved(pil.merge("RGBA", (*rgb.split(), grey)), "PNG"), "transparent"),
        "alpha tiff": (saved(pil.merge("RGBA", (*rgb.split(), grey)), "TIFF"), "transparent"),
        "grey alpha tiff": (saved(pil.merge("LA", (grey, grey)), "TIFF"), "2 samples"),
        "transparent palette": (saved(rgb.quantize(16), "PNG", transparency=3), "transparent"),
        "pages": (pages.getvalue(), "3 pages"),
        "int32": (saved(pil.fromarray(GREY8.astype(np.int32)), "TIFF"), "32 bit signed"),
        "float64": (encoded(GREY8.astype(np.float64), ".tiff"), "64 bit float"),
        "white is 0": (tiff_with(262, 0), "color space 0"),
        "planes": (tiff_with(284, 2, RGB8), "one after the other"),
        "12 bit": (tiff_with(258, 12), "12 bit unsigned"),
        "big tiff": (b"II+\0\x08\0\0\0" + bytes(64), "BigTIFF"),
        "flipped bit": (bytes(png), "damaged"),
        "no pixels": (saved(grey, "BMP")[:18] + bytes(8) + saved(grey, "BMP")[26:], "no pixels"),
        "huge": (bytes(huge), "huge"),
        "jpeg head": (b"\xff\xd8\xff\xdb\0\0\0\0\0\0", "damaged header"),
        "npy pickle": (b"\x93NUMPY\x01\x00\x10\x00{'descr': '|O'} ", "damaged header"),
    }


@pytest.mark.parametrize(("name", "data", "words"), [(name, *case) for name, case in refused_files().items()])
def test_what_is_not_taken_is_refused_with_a_reason(tmp_path, name, data, words):
    with pytest.raises(InputError, match=words) as refused:
        decoded(tmp_path, data, f"{name}.png")
    assert str(refused.value).count(f"{name}.png") == 1
    assert "\n" not in str(refused.value)


def test_mutated_headers_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(1)
    files = [encoded(SMOOTH[:9, :9], suffix) for suffix in (".png", ".jpg", ".bmp", ".tiff")]
    np.save(tmp_path / "a.npy", SMOOTH)
    files.append((tmp_path / "a.npy").read_bytes())
    for data in files:
        for _ in range(400):
            mutated = bytearray(data)
            for at in rng.integers(2, len(data), rng.integers(1, 5)):
                mutated[at] = rng.integers(256)
            try:
                read_header(tmp_path / "mutated", bytes(mutated))
            except InputError as error:
                assert "mutated" in str(error)


def test_a_mask_counts_where_it_is_not_0(tmp_path):
    mask = np.zeros((H, W), np.uint8)
    mask[3, 4:9] = 1
    colors = np.dstack([mask, 0 * mask, 0 * mask])
    for name, image in (("grey.png", mask), ("colors.png", colors), ("deep.tiff", mask.astype(np.uint16))):
        (tmp_path / name).write_bytes(encoded(image, f".{name.split('.')[1]}"))
        read = read_mask(tmp_path / name, (H, W))
        assert read.dtype == bool
        assert np.array_equal(read, mask == 1)
    with pytest.raises(InputError, match=r"grey.png is 37x53 px but its image is 53x37 px"):
        read_mask(tmp_path / "grey.png", (W, H))
    (tmp_path / "none.png").write_bytes(encoded(0 * mask, ".png"))
    with pytest.raises(InputError, match=r"none.png is 0 everywhere"):
        read_mask(tmp_path / "none.png", (H, W))
    with pytest.raises(InputError, match=r"missing.png cannot be read"):
        read_mask(tmp_path / "missing.png", (H, W))


def test_folders_are_listed_without_hidden_files_and_dead_links(tmp_path):
    for name in ("b.png", "a.JPG", "._a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    (tmp_path / ".cache").mkdir()
    assert listing(tmp_path) == ([tmp_path / "a.JPG", tmp_path / "b.png"], [tmp_path / "sub.png"])
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"c.png is a link to nothing"):
        listing(tmp_path)
    with pytest.raises(InputError, match=r"c.png cannot be read"):
        file_sha256(tmp_path / "c.png")
