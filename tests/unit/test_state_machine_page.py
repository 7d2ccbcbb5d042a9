from tools.state_machine import PAGE, page


def test_the_page_shows_the_table_that_the_code_uses() -> None:
    assert PAGE.read_text() == page(), "run `make docs`"
