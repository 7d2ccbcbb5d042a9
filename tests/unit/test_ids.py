import uuid

from cluster.ids import uuid7_maker


def test_ids_are_uuids_of_version_7_that_rise_and_never_repeat() -> None:
    mint = uuid7_maker()

    ids = [mint() for _ in range(10_000)]

    assert ids == sorted(set(ids))
    assert {(uuid.UUID(i).version, uuid.UUID(i).variant) for i in ids} == {(7, uuid.RFC_4122)}


def test_two_makers_share_no_id() -> None:
    first, second = uuid7_maker(), uuid7_maker()

    assert not {first() for _ in range(1000)} & {second() for _ in range(1000)}
