"""What DALI says went wrong, taken out of all that it wraps it in."""


def reason_of(error: RuntimeError) -> str:
    """Return DALI's own words: they stand between the place in our code and a trace through its own."""
    own = str(error).rpartition("encountered:")[2].partition("Current pipeline object")[0]
    return own.partition("C++ context")[0].strip(" :\n")
