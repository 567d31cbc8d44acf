"""Files that a killed process leaves behind."""


def cut(file, keep: float | None) -> None:
    """Leave so large a part of a file, from its beginning; None takes it away."""
    if keep is None:
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[: int(keep * len(content))])
