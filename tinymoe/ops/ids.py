"""Ids say which row of a table, which expert, which column. One outside its range is an error, never the end of the table."""


def check_ids(name, ids, number, rows="allowed are", more=""):
    """Raise IndexError unless all `ids` lie in [0, number). NumPy would count negative ones from the end, and a sum over
    experts would pass over those beyond the last.

    For the message: `name` of the argument; `rows` and `more`, what stands before and behind the allowed range.
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < number:
        raise IndexError(f"{name} span {ids.min()} to {ids.max()}; {rows} 0 to {number - 1}{more}")
