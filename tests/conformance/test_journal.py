"""What the journal holds on every store: one writer, no gaps, nothing guessed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from cluster.store.identity import open_identity
from cluster.store.journal import Fenced, Journal
from cluster.store.objects import MemoryObjects, Objects
from cluster.store.segment import Rows, SegmentHeader
from jobs.errors import Corrupt, InvalidInput, Unavailable


def a_segment(
    number: int,
    *,
    epoch: int = 1,
    nonce: str = "mine",
    journal_id: str = "j",
    seq: int | None = None,
) -> tuple[SegmentHeader, Rows]:
    """Two events; without gaps when numbers are."""
    first = number * 2 - 1 if seq is None else seq
    header = SegmentHeader(
        number=number, epoch=epoch, nonce=nonce, journal_id=journal_id, first_seq=first, rows=2
    )
    rows = Rows(
        seq=[first, first + 1],
        at=[1700000000.000001, 1700000000.5],
        kind=["JobSubmitted", "TaskLeased"],
        job_id=["job"] * 2,
        task_id=[None, "task"],
        attempt=[None, 1],
        token=[None, 7],
        data=[b'{"params":{}}', b"{}"],
    )
    return header, rows


def fill(objects: Objects, count: int) -> Journal:
    journal = Journal(objects)
    for number in range(1, count + 1):
        journal.append(*a_segment(number))
    return journal


def numbers(journal: Journal, after: int = 0) -> list[int]:
    return [header.number for header, _ in journal.read(after)]


def test_segments_are_read_in_the_order_they_were_appended(objects: Objects) -> None:
    journal = fill(objects, 70)

    read = list(journal.read())

    assert read == [a_segment(number) for number in range(1, 71)]
    assert journal.tail() == 70


def test_reading_starts_after_what_is_known(objects: Objects) -> None:
    journal = fill(objects, 4)

    assert numbers(journal, after=2) == [3, 4]
    assert numbers(journal, after=4) == []
    assert journal.tail(after=4) == 4


def test_new_journal_is_empty(objects: Objects) -> None:
    assert numbers(Journal(objects)) == []
    assert Journal(objects).tail() == 0


def test_append_in_doubt_repeated_with_the_same_bytes_is_success(objects: Objects) -> None:
    journal = Journal(objects)
    prepared = journal.prepare(*a_segment(1))
    journal.commit(prepared)

    journal.commit(prepared)

    assert numbers(journal) == [1]


def test_number_that_another_manager_wrote_fences(objects: Objects) -> None:
    Journal(objects).append(*a_segment(1, epoch=5, nonce="theirs"))

    with pytest.raises(Fenced, match="epoch 5") as raised:
        Journal(objects).append(*a_segment(1))

    assert (raised.value.number, raised.value.epoch_found) == (1, 5)
    assert [header.nonce for header, _ in Journal(objects).read()] == ["theirs"]


def test_of_eight_managers_who_claim_one_number_one_goes_on(objects: Objects) -> None:
    barrier = Barrier(8)

    def claim(manager: int) -> bool:
        journal = Journal(objects)
        prepared = journal.prepare(*a_segment(1, epoch=manager, nonce=str(manager)))
        barrier.wait()
        try:
            journal.commit(prepared)
        except Fenced:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, range(8)))

    assert won.count(True) == 1
    assert [header.epoch for header, _ in Journal(objects).read()] == [won.index(True)]


def test_same_nonce_with_other_bytes_is_corrupt(objects: Objects) -> None:
    journal = Journal(objects)
    journal.append(*a_segment(1))

    with pytest.raises(Corrupt, match="rebuilt"):
        journal.append(*a_segment(1, epoch=2))


def test_torn_segment_that_owns_our_name_is_corrupt_not_fenced(objects: Objects) -> None:
    journal = Journal(objects)
    prepared = journal.prepare(*a_segment(1))
    objects.put(prepared.path, prepared.data[:-100])

    with pytest.raises(Corrupt, match=prepared.path):
        journal.commit(prepared)


def test_gap_is_corrupt_and_named(objects: Objects) -> None:
    journal = fill(objects, 4)
    objects.delete([journal.path(3)])

    with pytest.raises(Corrupt, match=f"{journal.path(3)}: is missing"):
        numbers(journal)
    with pytest.raises(Corrupt, match="is missing"):
        journal.tail()


def test_gap_below_the_snapshot_is_compaction_at_work(objects: Objects) -> None:
    journal = fill(objects, 5)
    objects.delete([journal.path(1), journal.path(3)])

    assert numbers(journal, after=3) == [4, 5]


@pytest.mark.parametrize("name", ["zz.txt", "1.parquet", "00000000000000000003.parquet.bak"])
def test_foreign_file_is_corrupt_and_named(objects: Objects, name: str) -> None:
    journal = fill(objects, 2)
    objects.put(f"journal/{name}", b"?")

    with pytest.raises(Corrupt, match=f"journal/{name}"):
        numbers(journal)


def _misnamed(journal: Journal) -> tuple[int, bytes]:
    return 3, journal.prepare(*a_segment(4)).data


def _of_another_journal(journal: Journal) -> tuple[int, bytes]:
    return 3, journal.prepare(*a_segment(3, journal_id="other")).data


def _with_a_gap_in_events(journal: Journal) -> tuple[int, bytes]:
    return 3, journal.prepare(*a_segment(3, seq=99)).data


def _of_an_older_epoch(journal: Journal) -> tuple[int, bytes]:
    return 3, journal.prepare(*a_segment(3, epoch=0)).data


@pytest.mark.parametrize(
    ("strange", "reason"),
    [
        (_misnamed, "holds segment 4"),
        (_of_another_journal, "belongs to journal other"),
        (_with_a_gap_in_events, "begins with event 99"),
        (_of_an_older_epoch, "epoch 0 after 1"),
    ],
)
def test_segment_that_does_not_follow_is_corrupt(
    objects: Objects, strange: Callable[[Journal], tuple[int, bytes]], reason: str
) -> None:
    journal = fill(objects, 2)
    number, data = strange(journal)
    objects.put(journal.path(number), data)

    with pytest.raises(Corrupt, match=reason):
        numbers(journal)


def test_first_segment_of_another_journal_is_corrupt_when_the_id_is_known(objects: Objects) -> None:
    fill(objects, 1)

    with pytest.raises(Corrupt, match="belongs to journal j, not k"):
        numbers(Journal(objects, journal_id="k"))


def test_two_prefixes_are_two_journals(objects: Objects) -> None:
    fill(objects, 2)
    other = Journal(objects, "other/")

    other.append(*a_segment(1))

    assert (other.tail(), Journal(objects).tail()) == (1, 2)


def test_claim_survives_compaction_so_a_sleeper_is_fenced(objects: Objects) -> None:
    """Hazard: the name a sleeping manager writes next must still be taken when it wakes."""
    sleeper = fill(objects, 2)
    successor = Journal(objects)
    successor.append(*a_segment(3, epoch=3, nonce="claim"))
    successor.append(*a_segment(4, epoch=3, nonce="work"))
    objects.delete([successor.path(number) for number in (1, 2, 4)])

    with pytest.raises(Fenced):
        sleeper.append(*a_segment(3))


def test_segment_deleted_while_its_commit_is_settled_is_repeated() -> None:
    class Vanishing(MemoryObjects):
        """A store where compaction deletes between our create and our read."""

        def put_if_absent(self, path: str, data: bytes) -> bool:
            created = super().put_if_absent(path, data)
            if not created:
                self.delete([path])
            return created

    journal = Journal(Vanishing())
    prepared = journal.prepare(*a_segment(1))
    journal.commit(prepared)

    with pytest.raises(Unavailable, match="repeat"):
        journal.commit(prepared)
    journal.commit(prepared)

    assert numbers(journal) == [1]


def test_new_pair_gets_an_identity_and_keeps_it(objects: Objects) -> None:
    made = open_identity(objects, objects)

    again = open_identity(objects, objects)

    assert again == made
    assert made.store_id != made.journal_id
    assert Journal(objects).tail() == 0


def test_empty_journal_beside_a_known_store_is_refused(objects: Objects) -> None:
    open_identity(objects, objects)

    with pytest.raises(InvalidInput, match="forget its jobs"):
        open_identity(objects, MemoryObjects())


def test_empty_store_beside_a_written_journal_is_refused(objects: Objects) -> None:
    identity = open_identity(MemoryObjects(), objects)
    Journal(objects, journal_id=identity.journal_id).append(*a_segment(1))

    with pytest.raises(InvalidInput, match="set `store` to that one"):
        open_identity(MemoryObjects(), objects)


def test_journal_of_another_store_is_refused(objects: Objects) -> None:
    open_identity(objects, MemoryObjects("memory://fast"))
    other = MemoryObjects("memory://other")
    open_identity(MemoryObjects(), other)

    with pytest.raises(InvalidInput, match="written at memory://fast"):
        open_identity(objects, other)


def test_start_that_died_between_the_two_identities_is_completed(objects: Objects) -> None:
    store = MemoryObjects()
    made = open_identity(store, objects)
    store.delete(["store/identity.json"])

    assert open_identity(store, objects) == made


def test_an_identity_whose_writer_died_before_it_was_durable_is_made_so_by_the_next_start() -> None:
    elsewhere, objects = MemoryObjects(), MemoryObjects()
    open_identity(elsewhere, elsewhere)
    for info in elsewhere.list(""):
        objects.put(info.path, elsewhere.get(info.path), durable=False)

    made = open_identity(objects, objects)
    objects.crash()

    assert open_identity(objects, objects) == made


def test_managers_that_start_together_agree_on_one_identity(objects: Objects) -> None:
    barrier = Barrier(4)

    def start(_: int) -> object:
        barrier.wait()
        return open_identity(objects, objects)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(start, range(4)))) == 1


def test_damaged_identity_is_corrupt(objects: Objects) -> None:
    open_identity(objects, objects)
    objects.put("store/identity.json", b"{")

    with pytest.raises(Corrupt, match=r"store/identity\.json"):
        open_identity(objects, objects)
