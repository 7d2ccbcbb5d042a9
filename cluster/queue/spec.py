"""What was asked for: one submitted job, as it travels and as the journal keeps it.

A `JobSpec` is immutable and stays JSON bytes wherever nobody needs to look inside: the gateway
encodes it once, and those bytes go through the manager into the journal and on to the worker.
"""

import msgspec

from jobs.retry import RetryPolicy

__all__ = ["NO_PARAMS", "JobSpec", "SpecHead", "decode_head", "decode_spec", "encode_spec"]

NO_PARAMS = msgspec.Raw(b"{}")


class SpecHead(msgspec.Struct, frozen=True, gc=False):
    """What every decision looks at, out of a JobSpec's bytes: the rest is passed over unread."""

    type: str
    tenant: str = "default"
    queue: str = "default"
    priority: int = 0
    run_at: float | None = None
    expires_at: float | None = None
    key: str | None = None
    key_expires_at: float = 0.0
    fingerprint: str = ""


class JobSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One job as its submitter wants it. Moments are epoch seconds, UTC."""

    type: str
    params: msgspec.Raw = NO_PARAMS
    #: Where params above the inline limit lie in the store; `params` is then empty.
    params_ref: str | None = None
    tenant: str = "default"
    queue: str = "default"
    #: Higher runs first.
    priority: int = 0
    #: Not before this moment.
    run_at: float | None = None
    #: Not after this moment: a job still unstarted then is cancelled, reason `expired`.
    expires_at: float | None = None
    timeout_s: float | None = None
    grace_s: float = 10.0
    max_attempts: int = 3
    retry: RetryPolicy = RetryPolicy()
    labels: dict[str, str] = {}
    #: Hex hash of tenant and idempotency key, or None.
    key: str | None = None
    key_expires_at: float = 0.0
    #: Hash of what makes two requests the same; compared when `key` is seen again.
    fingerprint: str = ""
    #: W3C trace context of the submitter, kept so that later spans join it.
    traceparent: str | None = None


decode_head = msgspec.json.Decoder(SpecHead).decode
decode_spec = msgspec.json.Decoder(JobSpec).decode
encode_spec = msgspec.json.Encoder().encode
