"""What `video.transcode` is made of, in the order of the work.

- `plan`: what travels between its parts: the facts of a source, the ladder, the chunks
- `probe`: reads a source's packets and finds where it may be cut
- `ffmpeg`: the commands, and running one so that it never outlives its attempt
- `join`: segments into one file without a seam, then HLS

Rule 1: times are integers, counted in the source's own ticks; nothing is rounded on the way from a
frame of the source to the frame of a rendition. Rule 2: neither `av` nor `ffmpeg` is imported
before it is needed. Rule 3: whatever opens a source opens files only, and of known formats only: a
playlist or a script that names other files is no video here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.outcome import Discard

__all__ = ["FORMATS", "READ_ONLY_FILES", "needs_video"]

#: Containers that hold their own frames and times. Left out: lists of other files (hls, concat,
#: dash), pictures, text, and raw streams, which know no times.
FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf,nut,gif,ivf,yuv4mpegpipe"
#: Options for whatever opens a source.
READ_ONLY_FILES = {"protocol_whitelist": "file,pipe", "format_whitelist": FORMATS}


@contextmanager
def needs_video() -> Iterator[None]:
    """Turn the lack of a library into a refusal that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Discard(
            f'{error.name!r} is not installed on this worker: pip install "drayman[video]"'
        ) from error
