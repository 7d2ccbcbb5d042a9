"""What a chunk of `table.export` reads; apart from `parquet.py`, which needs pyarrow at once."""

from pydantic import BaseModel

__all__ = ["Piece"]


class Piece(BaseModel):
    """Consecutive row groups of one file."""

    #: A path or URI that Arrow or `ctx.files` opens.
    uri: str
    first: int
    #: Row groups from `first` on.
    groups: int
    rows: int
    #: Rows of the whole file: another number later means it was replaced.
    file_rows: int
