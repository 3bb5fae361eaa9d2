"""What a decoder may attend to of an encoder."""

MEMORIES = ("pooled", "states", "both")


def check_memory(memory: str) -> None:
    """Raises unless a memory is one of MEMORIES.

    Raises:
      ValueError: naming it.
    """
    if memory not in MEMORIES:
        raise ValueError(f"memory of a tower is {memory!r}; expected one of {MEMORIES}")
