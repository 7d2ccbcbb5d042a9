"""Modules of users, written to a folder and bundled."""

from pathlib import Path

from cluster.bundle import Bundle, make_bundle

__all__ = ["SHOP", "shop"]

SHOP = '''\
from jobs import Context, job
from pydantic import BaseModel, ConfigDict, Field

class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")
    cents: int = Field(ge=1)
    customer: str = "nobody"

@job("shop.invoice", queue="default", max_attempts=5{more})
def invoice(ctx: Context, params: Order) -> str:
    """Write an invoice, as of {word}."""
    return "{word}"
'''


def shop(folder: Path, word: str, more: str = "") -> Bundle:
    """Return a bundle of one module with the type `shop.invoice`; `more` goes to `@job(...)`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shop.py").write_text(SHOP.format(word=word, more=more))
    return make_bundle(["shop"], [str(folder)])
