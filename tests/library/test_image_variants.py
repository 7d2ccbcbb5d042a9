"""`image.variants` on real photos and on whatever else people upload."""

import hashlib
import io
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import skimage
from PIL import ExifTags, Image, ImageCms
from pydantic import ValidationError

from jobs import Discard, StopRequested
from jobs.library.image.frame import Frame, frame_of
from jobs.library.image.spec import Variant
from jobs.library.image_variants import image_variants
from jobs.testing import Finished, run, run_chunk

PHOTOS = Path(skimage.__file__).parent / "data"
ROCKET = str(PHOTOS / "rocket.jpg")  # 640 x 427
THUMB: dict[str, Any] = {"name": "thumb", "width": 64, "height": 64}


def make(*sources: str | Path, variants: list[dict[str, Any]] | None = None, **params: Any) -> Any:
    asked = {"sources": [str(s) for s in sources], "variants": variants or [THUMB], **params}
    finished = run(image_variants, asked)
    assert finished.error is None, finished.error
    return finished


def index_of(finished: Finished) -> list[dict[str, Any]]:
    photos: list[dict[str, Any]] = json.loads(finished.files["index.json"])["photos"]
    return photos


def files_of(finished: Finished) -> dict[str, bytes]:
    return {name: data for chunk in finished.chunks for name, data in chunk.files.items()}


def picture_of(finished: Finished, name: str = "000000-thumb.jpg") -> Image.Image:
    return Image.open(io.BytesIO(files_of(finished)[name]))


def facts_of(finished: Finished, index: int = 0) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(files_of(finished)[f"{index:06d}.json"])
    return facts


def refusal(source: str | Path, **params: Any) -> str:
    finished = make(source, **params)
    assert files_of(finished) == {}
    assert finished.result["photos"] == 0
    (refused,) = finished.result["refused"]
    assert refused["source"] == str(source)
    reason: str = refused["reason"]
    return reason


def near(colour: Any, wanted: tuple[int, ...], by: int = 6) -> bool:
    return all(abs(a - b) <= by for a, b in zip(colour, wanted, strict=True))


def with_exif(path: Path, orientation: int = 1, place: bool = True) -> Path:
    """A photo of 40 x 20: red on its left, blue on its right, as the sensor saw it."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Maker"
    exif[ExifTags.Base.ImageWidth] = 40
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.DateTimeOriginal] = "2024:05:06 07:08:09"
    details[ExifTags.Base.FNumber] = 2.8
    details[ExifTags.IFD.MakerNote] = b"secret of the maker"
    if place:
        gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
        gps[ExifTags.GPS.GPSLatitudeRef], gps[ExifTags.GPS.GPSLatitude] = "N", (52.0, 30.0, 0.0)
        gps[ExifTags.GPS.GPSLongitudeRef], gps[ExifTags.GPS.GPSLongitude] = "W", (13.0, 15.0, 36.0)
    image.save(path, quality=95, subsampling=0, exif=exif)
    return path


class TestRealPhotos:
    def test_every_photo_of_a_folder_gets_every_variant(self) -> None:
        variants = [
            {"name": "small", "width": 200, "height": 200, "format": "webp"},
            {"name": "square", "width": 96, "height": 96, "fit": "cover"},
        ]

        finished = make(PHOTOS, variants=variants)

        photos = index_of(finished)
        good = [photo for photo in photos if "refused" not in photo]
        bad = {Path(p["source"]).name: p["refused"] for p in photos if "refused" in p}
        assert [p["index"] for p in photos] == list(range(len(photos)))
        assert len(good) >= 25
        assert set(bad) == {"multipage.tif", "multipage_rgb.tif", "no_time_for_that_tiny.gif"}
        assert "24 frames" in bad["no_time_for_that_tiny.gif"]
        assert finished.result["variants"] == 2 * len(good)
        assert len(finished.chunks) < len(photos)
        for photo in good:
            small, square = photo["variants"]
            kept = Image.open(io.BytesIO(files_of(finished)[small["uri"].rpartition("/")[2]]))
            assert kept.format == "WEBP"
            assert kept.size == (small["width"], small["height"])
            assert max(kept.size) <= 200
            assert square["width"] == square["height"] <= 96
            assert small["bytes"] > 0

    def test_facts_of_a_photo_are_those_of_its_file(self) -> None:
        facts = facts_of(make(ROCKET))

        assert (facts["format"], facts["mode"]) == ("JPEG", "RGB")
        assert (facts["width"], facts["height"]) == (640, 427)
        assert facts["sha256"] == hashlib.sha256(Path(ROCKET).read_bytes()).hexdigest()
        assert sum(part["share"] for part in facts["dominant"]) == pytest.approx(1, abs=0.01)
        assert len(facts["blurhash"]) == 28
        assert facts["profile"] == "converted"

    def test_colours_are_those_of_the_photo(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (60, 40), (255, 0, 0))
        image.paste((0, 0, 255), (0, 0, 60, 10))
        image.save(tmp_path / "a.png")
        Image.new("RGB", (9, 9)).save(tmp_path / "b.png")

        finished = make(tmp_path)

        two, one = facts_of(finished, 0), facts_of(finished, 1)
        assert near(bytes.fromhex(two["average"][1:]), (191, 0, 64), 1)
        assert two["dominant"][:2] == [
            {"colour": "#ff0000", "share": 0.75},
            {"colour": "#0000ff", "share": 0.25},
        ]
        # 4 x 3 components, no contrast, black, and eleven waves of nothing.
        assert one["blurhash"] == "L00000" + "fQ" * 11
        assert two["blurhash"][2:6] != "0000"

    def test_same_params_give_the_same_bytes(self) -> None:
        variants = [
            {"name": form, "width": 200, "format": form} for form in ("jpeg", "png", "webp", "avif")
        ]

        first, again = (make(ROCKET, variants=variants) for _ in range(2))

        assert files_of(first) == files_of(again)
        assert [picture_of(first, f"000000-{n}").format for n in ("jpeg.jpg", "png.png")] == [
            "JPEG",
            "PNG",
        ]
        assert picture_of(first, "000000-avif.avif").size == (200, 133)

    def test_decoding_it_smaller_shows_the_same_picture(self) -> None:
        finished = make(PHOTOS / "retina.jpg", variants=[{**THUMB, "format": "png"}])
        drafted = picture_of(finished, "000000-thumb.png")
        with Image.open(PHOTOS / "retina.jpg") as photo:
            whole = photo.resize(drafted.size, Image.Resampling.LANCZOS)

        pairs = zip(drafted.tobytes(), whole.tobytes(), strict=True)
        assert sum(abs(a - b) for a, b in pairs) / len(whole.tobytes()) < 3

    def test_uploads_are_fetched_and_big_photos_have_chunks_of_their_own(self) -> None:
        data = Path(ROCKET).read_bytes()
        files = {"upload:a": data, "upload:b": data}

        finished = run(image_variants, {"sources": list(files), "variants": [THUMB]}, files=files)

        assert len(finished.chunks) == 2
        assert finished.result["photos"] == 2
        first = index_of(finished)[0]
        assert first["variants"][0]["uri"] == "output:job-1/0/000000-thumb.jpg"
        assert first["metadata"] == "output:job-1/0/000000.json"


class TestFrames:
    @pytest.mark.parametrize(
        ("asked", "size"),
        [
            ({"width": 320}, (320, 214)),
            ({"height": 100}, (150, 100)),
            ({"width": 100, "height": 100}, (100, 67)),
            ({"width": 2000, "height": 2000}, (640, 427)),
            ({"width": 1280, "enlarge": True}, (1280, 854)),
            ({"width": 50, "height": 100, "fit": "cover"}, (50, 100)),
            ({"width": 1000, "height": 1000, "fit": "cover"}, (427, 427)),
            ({"width": 1000, "height": 1000, "fit": "cover", "enlarge": True}, (1000, 1000)),
            ({"width": 100, "height": 100, "fit": "exact"}, (100, 100)),
            ({"width": 1280, "height": 640, "fit": "exact"}, (640, 320)),
            ({}, (640, 427)),
        ],
    )
    def test_size(self, asked: dict[str, Any], size: tuple[int, int]) -> None:
        assert picture_of(make(ROCKET, variants=[{"name": "thumb", **asked}])).size == size

    @pytest.mark.parametrize(
        ("gravity", "part"),
        [
            ("west", (0, 0, 0.5, 1)),
            ("center", (0.25, 0, 0.75, 1)),
            ("southeast", (0.5, 0, 1, 1)),
        ],
    )
    def test_gravity_says_what_is_kept(
        self, gravity: Any, part: tuple[float, float, float, float]
    ) -> None:
        variant = Variant(name="v", width=10, height=10, fit="cover", gravity=gravity)

        assert frame_of(200, 100, variant) == Frame(10, 10, part)

    def test_a_line_of_pixels_keeps_one(self) -> None:
        assert frame_of(10_000, 1, Variant(name="v", width=10)) == Frame(10, 1)


class TestWhatItShows:
    @pytest.mark.parametrize(
        ("orientation", "size", "corner"),
        [
            (1, (40, 20), "red"),
            (2, (40, 20), "blue"),
            (3, (40, 20), "blue"),
            (6, (20, 40), "red"),
            (8, (20, 40), "blue"),
        ],
    )
    def test_orientation_is_applied_and_gone(
        self, orientation: int, size: tuple[int, int], corner: str, tmp_path: Path
    ) -> None:
        finished = make(with_exif(tmp_path / "photo.jpg", orientation))

        picture = picture_of(finished).convert("RGB")
        assert picture.size == size
        wanted = {"red": (254, 0, 0), "blue": (0, 0, 254)}[corner]
        assert near(picture.getpixel((2, 2)), wanted, 40)
        assert ExifTags.Base.Orientation not in picture.getexif()
        assert facts_of(finished)["exif"]["orientation"] == orientation
        assert (facts_of(finished)["width"], facts_of(finished)["height"]) == size

    @pytest.mark.parametrize(
        ("kind", "value"),
        [(7, b"\x06\0\0\0"), (2, b"6\0"), (5, struct.pack("<II", 6, 0)), (11, b"\0\0\xc0\x7f")],
    )
    def test_orientation_of_a_wrong_type_turns_nothing(
        self, kind: int, value: bytes, tmp_path: Path
    ) -> None:
        """Bytes, text, a fraction, and NaN."""
        count = len(value) if kind in (2, 7) else 1
        at = value if len(value) <= 4 else struct.pack("<I", 26)
        tag = struct.pack("<HHI", ExifTags.Base.Orientation, kind, count) + at.ljust(4, b"\0")
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + tag + bytes(4) + value
        Image.new("RGB", (40, 20), "red").save(tmp_path / "x.jpg", exif=exif)

        finished = make(tmp_path / "x.jpg")

        assert picture_of(finished).size == (40, 20)
        assert "orientation" not in facts_of(finished)["exif"]

    def test_place_and_makers_notes_are_left_out_unless_asked_for(self, tmp_path: Path) -> None:
        path = with_exif(tmp_path / "photo.jpg")

        without, whole, none = (make(path, metadata=m) for m in ("no_gps", "all", "none"))

        exif = picture_of(without).getexif()
        assert exif[ExifTags.Base.Make] == "Maker"
        assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] == 2.8
        assert not exif.get_ifd(ExifTags.IFD.GPSInfo)
        assert b"secret of the maker" not in files_of(without)["000000-thumb.jpg"]
        assert "latitude" not in facts_of(without)["exif"]
        kept = picture_of(whole).getexif().get_ifd(ExifTags.IFD.GPSInfo)
        assert kept[ExifTags.GPS.GPSLatitude] == (52.0, 30.0, 0.0)
        assert facts_of(whole)["exif"] == {
            "make": "Maker",
            "taken_at": "2024:05:06 07:08:09",
            "f_number": 2.8,
            "orientation": 1,
            "latitude": 52.5,
            "longitude": -13.26,
        }
        assert not picture_of(none).getexif()

    @pytest.mark.parametrize("form", ["png", "webp", "avif"])
    def test_exif_is_kept_in_every_format(self, form: str, tmp_path: Path) -> None:
        path = with_exif(tmp_path / "photo.jpg")

        finished = make(path, variants=[{**THUMB, "format": form}])

        assert picture_of(finished, f"000000-thumb.{form}").getexif()[ExifTags.Base.Make] == "Maker"

    def test_colours_become_srgb(self, tmp_path: Path) -> None:
        # Red and blue trade places: no profile but one that is applied would do that.
        swapped = Image.new("RGB", (20, 20), (200, 30, 30))
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        place = {tag: profile.index(tag, 132) for tag in (b"rXYZ", b"bXYZ")}
        raw = bytearray(profile)
        raw[place[b"rXYZ"] : place[b"rXYZ"] + 4] = b"bXYZ"
        raw[place[b"bXYZ"] : place[b"bXYZ"] + 4] = b"rXYZ"
        raw = bytearray(bytes(raw).replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be")))
        swapped.save(tmp_path / "swapped.png", icc_profile=bytes(raw))

        finished = make(tmp_path / "swapped.png")

        assert facts_of(finished)["profile"] == "converted"
        assert near(picture_of(finished).convert("RGB").getpixel((5, 5)), (30, 30, 200), 8)
        assert "icc_profile" not in picture_of(finished).info

    def test_broken_profile_is_told_and_left_out(self, tmp_path: Path) -> None:
        Image.new("RGB", (20, 20), "green").save(tmp_path / "a.png", icc_profile=b"no profile")

        finished = make(tmp_path / "a.png")

        assert facts_of(finished)["profile"].startswith("unusable: ")
        assert near(picture_of(finished).convert("RGB").getpixel((5, 5)), (0, 128, 0))

    def test_cmyk_is_read(self, tmp_path: Path) -> None:
        Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)

        assert near(picture_of(make(tmp_path / "a.jpg")).getpixel((5, 5)), (255, 0, 0))

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bits_are_scaled_not_cut(self, suffix: str, tmp_path: Path) -> None:
        Image.new("I;16", (20, 20), 128 * 256).save(tmp_path / f"a.{suffix}")

        picture = picture_of(make(tmp_path / f"a.{suffix}"))

        assert picture.mode == "L"
        assert picture.getpixel((5, 5)) == 128

    def test_transparent_palette_stays_transparent_or_gets_the_background(
        self, tmp_path: Path
    ) -> None:
        image = Image.new("P", (20, 20), 0)
        image.putpalette([255, 0, 0, 0, 255, 0])
        image.paste(1, (10, 0, 20, 20))
        image.save(tmp_path / "a.gif", transparency=0)
        variants = [
            {"name": "clear", "format": "png"},
            {"name": "white"},
            {"name": "blue", "format": "png", "background": "#0000ff"},
        ]

        finished = make(tmp_path / "a.gif", variants=variants)

        assert picture_of(finished, "000000-clear.png").getpixel((2, 2))[3] == 0  # type: ignore[index]
        assert near(picture_of(finished, "000000-white.jpg").getpixel((2, 2)), (255, 255, 255))
        assert picture_of(finished, "000000-blue.png").getpixel((2, 2)) == (0, 0, 255)
        assert picture_of(finished, "000000-blue.png").getpixel((15, 2)) == (0, 255, 0)

    def test_filters_do_what_they_say(self) -> None:
        def one(*filters: dict[str, Any]) -> Image.Image:
            variant = {**THUMB, "format": "png", "filters": list(filters)}
            source = PHOTOS / "logo.png"  # transparent around the edges
            return picture_of(make(source, variants=[variant]), "000000-thumb.png")

        plain, grey = one(), one({"kind": "grayscale"})
        dark, soft = one({"kind": "brightness", "amount": 0}), one({"kind": "blur", "amount": 8})
        red, green, blue, alpha = grey.split()
        assert red.tobytes() == green.tobytes() == blue.tobytes()
        assert alpha.tobytes() == plain.getchannel("A").tobytes()
        assert dark.convert("RGB").getextrema() == ((0, 0), (0, 0), (0, 0))
        assert len(set(soft.getchannel("A").tobytes())) > len(set(alpha.tobytes())) / 2
        assert one({"kind": "sharpen", "amount": 300}).tobytes() != plain.tobytes()


class TestBadPhotos:
    def test_one_bad_photo_is_reported_and_the_others_are_made(self, tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_bytes(Path(ROCKET).read_bytes()[:5000])

        finished = make(ROCKET, tmp_path / "bad.jpg", PHOTOS / "coins.png")

        assert (finished.result["photos"], finished.result["refused_count"]) == (2, 1)
        assert [photo["index"] for photo in index_of(finished)] == [0, 1, 2]
        assert "is refused: the file is damaged" in "".join(c.logs for c in finished.chunks)

    def test_one_bad_photo_fails_the_job_if_so_asked(self, tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").touch()

        finished = run(
            image_variants,
            {
                "sources": [ROCKET, str(tmp_path / "bad.jpg")],
                "variants": [THUMB],
                "bad_photos": "fail",
            },
        )

        assert isinstance(finished.error, Discard)
        assert str(finished.error) == (
            f"{tmp_path}/bad.jpg: the file is empty; send it again; "
            "or set params.bad_photos to 'report'"
        )

    def test_torn_file(self, tmp_path: Path) -> None:
        for name in ("rocket.jpg", "coins.png"):
            data = (PHOTOS / name).read_bytes()
            (tmp_path / name).write_bytes(data[: len(data) // 2])

            assert refusal(tmp_path / name).startswith("the file is damaged (")

    def test_file_with_bytes_changed_is_a_picture_or_refused(self, tmp_path: Path) -> None:
        data = (PHOTOS / "chessboard_RGB.png").read_bytes()
        for at in range(0, len(data), 37):
            (tmp_path / f"{at:04d}.png").write_bytes(
                data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
            )

        result = make(tmp_path).result

        assert result["photos"] + result["refused_count"] == len(range(0, len(data), 37))

    def test_no_picture(self, tmp_path: Path) -> None:
        (tmp_path / "photo.jpg").write_text("%PDF-1.7 not a photo")

        assert refusal(tmp_path / "photo.jpg") == (
            "the file is no picture that can be read; give JPEG, PNG, WebP, AVIF, GIF, TIFF or BMP"
        )

    def test_missing_file(self, tmp_path: Path) -> None:
        assert refusal(tmp_path / "none.jpg") == (
            f"no file '{tmp_path}/none.jpg'; correct the source"
        )

    def test_missing_upload(self) -> None:
        assert refusal("upload:gone") == "no file 'upload:gone'; correct the source"

    def test_animation(self, tmp_path: Path) -> None:
        frames = [Image.new("L", (8, 8), shade) for shade in (0, 128, 255)]
        frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])

        assert refusal(tmp_path / "a.webp") == (
            "it has 3 frames; give one of them as a file of its own"
        )

    def test_larger_than_allowed(self) -> None:
        assert refusal(ROCKET, pixels_max=1000) == (
            "it has 273,280 pixels, 1,000 at most; make it smaller or raise params.pixels_max"
        )

    def test_bomb_is_refused_undecoded(self, tmp_path: Path) -> None:
        small = io.BytesIO()
        Image.new("L", (8, 8)).save(small, "PNG")
        data = bytearray(small.getvalue())
        data[16:24] = struct.pack(">II", 50_000, 50_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        (tmp_path / "bomb.png").write_bytes(data)

        assert refusal(tmp_path / "bomb.png").startswith("it has far more pixels, 100,000,000")

    def test_pixels_of_32_bits(self, tmp_path: Path) -> None:
        Image.new("F", (8, 8), 0.5).save(tmp_path / "a.tif")

        assert refusal(tmp_path / "a.tif") == (
            "its pixels are 32-bit fractions; save it with 8 or 16 bits a channel"
        )

    def test_photo_too_large_for_a_format(self, tmp_path: Path) -> None:
        Image.new("L", (17_000, 2)).save(tmp_path / "long.png")

        reason = refusal(tmp_path / "long.png", variants=[{"name": "a", "format": "webp"}])

        assert reason.startswith("variant 'a' of 17000 x 2 pixels cannot be written as webp (")

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
    def test_file_whose_name_is_no_utf8(self, tmp_path: Path) -> None:
        Image.new("RGB", (4, 4)).save(tmp_path / "a\udcff.png")

        finished = run(image_variants, {"sources": [str(tmp_path)], "variants": [THUMB]})

        assert isinstance(finished.error, Discard)
        assert "a\\xff.png' is not UTF-8; rename that file" in str(finished.error)

    def test_folder_without_photos(self, tmp_path: Path) -> None:
        finished = run(image_variants, {"sources": [str(tmp_path)], "variants": [THUMB]})

        assert isinstance(finished.error, Discard)
        assert str(finished.error) == f"sources: no photos at {tmp_path}; correct it"


class TestAsking:
    def test_glob_names_what_matches_in_the_order_of_names(self) -> None:
        finished = make(f"{PHOTOS}/mo*.png", f"file://{PHOTOS}/co[fi]*.png")

        names = [Path(photo["source"]).name for photo in index_of(finished)]
        assert names == [
            "moon.png",
            "motorcycle_left.png",
            "motorcycle_right.png",
            "coffee.png",
            "coins.png",
        ]

    @pytest.mark.parametrize(
        ("params", "word"),
        [
            ({"sources": []}, "sources"),
            ({"variants": []}, "variants"),
            ({"variants": [THUMB, THUMB]}, "stands there twice"),
            ({"variants": [{"name": "a", "fit": "cover", "width": 5}]}, "needs both"),
            ({"variants": [{"name": "../a"}]}, "name"),
            ({"variants": [{"name": "a", "filters": [{"kind": "blur", "amount": 900}]}]}, "blur"),
            ({"colour": "red"}, "colour"),
        ],
    )
    def test_params_are_validated(self, params: dict[str, Any], word: str) -> None:
        with pytest.raises(ValidationError, match=word):
            run(image_variants, {"sources": [ROCKET], "variants": [THUMB], **params})

    @pytest.mark.parametrize("calls", [0, 2])
    def test_stop_is_obeyed(self, calls: int) -> None:
        chunk = {"photos": [{"index": n, "source": ROCKET} for n in range(3)]}

        finished = run_chunk(
            image_variants, {"sources": [ROCKET], "variants": [THUMB]}, chunk, stop_after=calls
        )

        assert isinstance(finished.error, StopRequested)
