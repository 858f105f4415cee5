from src.common.tables import table


def test_the_first_column_is_aligned_left_and_the_others_right():
    lines = table(["a", "bcd"], [["long", 1], ["b", "1,000"]]).splitlines()
    assert lines == ["| a    |   bcd |", "|:-----|------:|", "| long |     1 |", "| b    | 1,000 |"]


def test_a_title_stands_above_and_rows_may_be_missing():
    assert table(["a", "b"], [], "Sizes").splitlines() == ["Sizes", "| a   | b   |", "|-----|-----|"]
