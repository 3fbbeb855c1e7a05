"""Pictures of every kind must become the pixels that people see, or a line that says why not."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from dqdet.errors import DqdetError
from dqdet.formats.image_files import ORIENTATION, as_rgb, read_image, read_pixels

SIZE = (30, 20)
GREY = np.random.default_rng(1).integers(0, 256, SIZE[::-1], dtype=np.uint8)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
# Row and column of the picture as it is seen that come first in the file (EXIF 2.3, section 4.6.4).
STORED = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.transpose(1, 0, 2),
    6: lambda seen: seen.transpose(1, 0, 2)[::-1],
    7: lambda seen: seen.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda seen: seen.transpose(1, 0, 2)[:, ::-1],
}


def grey_of(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    red, green, blue = np.moveaxis(np.array(image), 2, 0)
    assert (red == green).all()
    assert (green == blue).all()
    return red


def save_turned(picture: Image.Image, file, orientation: int) -> Image.Image:
    """Write a picture in another orientation; returns it as it is stored."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.array(picture))))
    stored.save(file, exif=exif, **({"lossless": True} if file.suffix == ".webp" else {}))
    return stored


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_upright_unless_their_recorded_size_is_as_stored(tmp_path, suffix, orientation):
    file = tmp_path / f"turned{suffix}"
    stored = save_turned(PICTURE, file, orientation)
    doubts = []

    def read(size):
        return np.array(read_image(file, recorded=size, in_doubt=lambda: doubts.append(size)))

    np.testing.assert_array_equal(read(None), PICTURE)
    np.testing.assert_array_equal(read(PICTURE.size), PICTURE)
    if orientation >= 5:
        np.testing.assert_array_equal(read(stored.size), stored)
        assert doubts == []
    else:
        assert doubts == ([] if orientation == 1 else [PICTURE.size])
    with Image.open(file) as image:
        np.testing.assert_array_equal(as_rgb(image), PICTURE)
        image.load()
    assert not read_image(file).getexif()


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", ".png"), ("LA", ".png"), ("1", ".png"), ("RGBA", ".webp"), ("CMYK", ".tif")]
)
def test_modes_of_eight_bits(tmp_path, mode, suffix):
    image = Image.fromarray(GREY).convert("RGB").convert(mode)
    image.save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), image.convert("RGB"))
    np.testing.assert_array_equal(as_rgb(image), image.convert("RGB"))


@pytest.mark.filterwarnings("error::UserWarning")
def test_palettes_with_transparency_keep_their_colours(tmp_path):
    image = Image.fromarray(GREY % 4, "P")
    image.putpalette([200, 10, 20, 30, 210, 40, 50, 60, 220, 7, 8, 9])
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 255]))
    colours = np.array([(200, 10, 20), (30, 210, 40), (50, 60, 220), (7, 8, 9)])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colours[GREY % 4])


def of_sixteen_bits(factor: int):
    return Image.fromarray(GREY.astype(np.uint16) * factor)


@pytest.mark.parametrize(
    "image",
    [
        of_sixteen_bits(257),
        of_sixteen_bits(16),  # 12 bits
        of_sixteen_bits(1),
        Image.fromarray(GREY.astype(np.int32) * 257),
        Image.fromarray(GREY.astype(np.float32) / 255),
        Image.fromarray(GREY.astype(np.float32)),
        Image.fromarray(GREY.astype(np.float32) * 257),
    ],
    ids=["16", "12", "8", "32", "to 1", "to 255", "to 65535"],
)
def test_other_numbers_are_scaled_by_their_range(tmp_path, image):
    image.save(tmp_path / "a.tiff")
    for read in (read_image(tmp_path / "a.tiff"), as_rgb(image)):
        assert abs(grey_of(read).astype(int) - GREY).max() <= 1
    if image.mode == "I;16":
        image.save(tmp_path / "a.png")
        assert abs(grey_of(read_image(tmp_path / "a.png")).astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders(tmp_path, order):
    pixels = (GREY.astype(np.uint16) * 257).astype(f"{order}u2").tobytes()
    fields = {256: 30, 257: 20, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 20, 279: len(pixels)}
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value) for tag, value in fields.items()
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels))
    (tmp_path / "a.tiff").write_bytes(head + pixels + struct.pack(f"{order}H", len(fields)) + entries + bytes(4))
    np.testing.assert_array_equal(grey_of(read_image(tmp_path / "a.tiff")), GREY)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(-1.0, "negative or not finite"), (np.nan, "negative or not finite"), (np.inf, "negative"), (1e6, "up to 1e+06")],
)
def test_numbers_without_a_known_range_are_refused(tmp_path, value, reason):
    values = np.zeros(SIZE[::-1], dtype=np.float32)
    values[3, 4] = value
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(DqdetError) as caught:
        read_image(tmp_path / "a.tiff")
    assert str(caught.value).startswith(f"{tmp_path}/a.tiff: cannot be read as an image (has values")
    assert reason in str(caught.value)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tiff"])
def test_of_several_pages_none_is_taken_for_the_picture(tmp_path, suffix):
    file = tmp_path / f"moving{suffix}"
    others = [PICTURE.rotate(angle) for angle in (90, 180)]
    PICTURE.save(file, save_all=True, append_images=others, duration=50)
    with pytest.raises(DqdetError, match="has 3 frames or pages") as caught:
        read_image(file)
    assert "\n" not in str(caught.value)
    # Whoever opens it in Python has chosen a frame.
    with Image.open(file) as image:
        image.seek(1)
        expected = image.convert("RGB")
        np.testing.assert_array_equal(as_rgb(image), expected)


def test_previews_are_no_pages(tmp_path):
    with TiffImagePlugin.AppendingTiffWriter(tmp_path / "a.tiff", True) as file:
        PICTURE.save(file)
        file.newFrame()
        PICTURE.resize((15, 10)).save(file, tiffinfo={254: 1})
    with Image.open(tmp_path / "a.tiff") as image:
        assert image.n_frames == 2
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), PICTURE)
    PICTURE.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[PICTURE.resize((15, 10))])
    assert read_image(tmp_path / "a.jpg").size == PICTURE.size


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "is a named pipe, no regular file"),
        (os.mkdir, "is a folder, no regular file"),
        (lambda file: os.symlink("/dev/zero", file), "is a device, no regular file"),
        (lambda file: os.symlink("nowhere", file), "no such file"),
        (lambda file: os.symlink(file, file), "cannot be read .*symbolic links"),
    ],
)
def test_only_regular_files_are_read(tmp_path, make, reason):
    make(tmp_path / "a.png")
    with pytest.raises(DqdetError, match=rf"a\.png: {reason}"):
        read_image(tmp_path / "a.png")


def test_over_long_names_are_an_error_of_one_line():
    for name in ("x" * 5000 + ".png", "a\0.png"):
        with pytest.raises(DqdetError, match=r"^[^\n]{1,4000}$") as caught:
            read_image(name)
        assert caught.match("cannot be read|replace or remove the file$")


def unknown_compression(file):
    PICTURE.save(file)
    content = file.read_bytes()
    raw, other = (struct.pack("<HHIHH", 259, 3, 1, number, 0) for number in (1, 34712))
    assert content.count(raw) == 1
    file.write_bytes(content.replace(raw, other))


def damaged_fax(file):
    Image.fromarray(GREY > 99).save(file, compression="group4")
    with Image.open(file) as image:
        ((start, count),) = zip(image.tag_v2[273], image.tag_v2[279], strict=True)
    content = bytearray(file.read_bytes())
    content[start : start + count] = bytes(count)
    file.write_bytes(content)


def bomb(file):
    """Of 3,600 million pixels, as it says."""
    Image.new("1", (8, 8)).save(file)
    header = bytearray(file.read_bytes())
    header[16:24] = struct.pack(">II", 60000, 60000)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    file.write_bytes(header)


@pytest.mark.parametrize(("suffix", "make"), [(".tiff", unknown_compression), (".tiff", damaged_fax), (".png", bomb)])
def test_whatever_a_decoder_raises_is_one_line(tmp_path, suffix, make):
    file = tmp_path / f"bad{suffix}"
    make(file)
    with pytest.raises(DqdetError) as caught:
        read_image(file)
    assert str(caught.value).startswith(f"{file}: cannot be read as an image (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyError(1), IndexError(), struct.error("x\ny"), ZeroDivisionError(), MemoryError()])
def test_every_kind_of_error_of_a_decoder(tmp_path, monkeypatch, error):
    PICTURE.save(tmp_path / "a.png")

    def load(self):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(DqdetError) as caught:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)
    assert "()" not in str(caught.value)


def as_seen(file, **recorded) -> np.ndarray:
    return read_pixels(file, **recorded).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pixels_of_a_jpeg_are_those_of_pillow(tmp_path, orientation, mode):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    smooth = PICTURE.resize((97, 61), Image.Resampling.BICUBIC).convert(mode)
    for number, options in enumerate(({"quality": 30}, {"subsampling": 0}, {"progressive": True, "subsampling": 2})):
        file = tmp_path / f"{number}.jpg"
        smooth.save(file, exif=exif, **options)
        np.testing.assert_array_equal(as_seen(file), read_image(file))
        np.testing.assert_array_equal(as_seen(file, recorded=(97, 61)), read_image(file, recorded=(97, 61)))


def test_what_is_no_plain_jpeg_is_read_by_pillow(tmp_path):
    of_sixteen_bits(257).save(tmp_path / "a.tiff")
    np.testing.assert_array_equal(as_seen(tmp_path / "a.tiff"), read_image(tmp_path / "a.tiff"))
    PICTURE.save(tmp_path / "a.gif", save_all=True, append_images=[PICTURE.rotate(90)])
    with pytest.raises(DqdetError, match="has 2 frames or pages"):
        read_pixels(tmp_path / "a.gif")


@pytest.mark.parametrize("progressive", [True, False])
def test_damaged_jpegs_are_refused_where_pillow_refuses_them(tmp_path, progressive):
    PICTURE.resize((97, 61)).save(tmp_path / "whole.jpg", progressive=progressive)
    whole = (tmp_path / "whole.jpg").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(40):
        (tmp_path / "a.jpg").write_bytes(whole[: random.integers(20, len(whole) - 20)])
        with pytest.raises(DqdetError) as theirs:
            read_image(tmp_path / "a.jpg")
        with pytest.raises(DqdetError) as ours:
            read_pixels(tmp_path / "a.jpg")
        assert str(ours.value) == str(theirs.value)
