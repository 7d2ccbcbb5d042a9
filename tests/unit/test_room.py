"""Something bounded that tenants share: none takes it all, and what is given back is there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.room import Room
from jobs.errors import Overloaded


def room(most: int = 100) -> Room:
    return Room("the attic", most, "bytes", 2.0)


def filled(place: Room, tenant: str) -> int:
    """Let the tenant take one after the other until it is refused; return how many it has."""
    for count in range(1_000):
        try:
            place.take(tenant, 1)
        except Overloaded:
            return count
    raise AssertionError("it was never refused")


def test_one_alone_has_four_fifths() -> None:
    assert filled(room(), "a") == 80


def test_several_have_equal_parts_and_the_next_finds_some() -> None:
    place = room(900)
    for tenant in "ab" * 400:
        try:
            place.take(tenant, 1)
        except Overloaded:
            break

    assert place.taken == 800  # as much each as four times what is left
    assert filled(place, "c") > 50


def test_a_refusal_says_whose_limit_it_is() -> None:
    place = room()
    place.take("a", 80)

    with pytest.raises(Overloaded, match="its share of bytes") as own:
        place.take("a", 1)
    with pytest.raises(Overloaded, match="the attic: 100 bytes are all") as all_there_is:
        place.take("b", 21)

    assert (own.value.scope, own.value.name) == ("tenant", "a")
    assert (all_there_is.value.scope, all_there_is.value.retry_after_s) == ("system", 2.0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60)), max_size=60))
def test_no_more_is_held_than_there_is_and_all_comes_back(asked: list[tuple[str, int]]) -> None:
    place, held = room(), []
    for tenant, amount in asked:
        try:
            place.take(tenant, amount)
        except Overloaded:
            if held:
                place.give(*held.pop())
        else:
            held.append((tenant, amount))
        assert place.taken == sum(amount for _, amount in held) <= 100

    for one in held:
        place.give(*one)
    assert filled(place, "a") == 80
