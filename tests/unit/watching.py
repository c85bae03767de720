"""Who is told how a training goes, for tests."""

import pytest


class Told:
    """A watcher that keeps the notes it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def reading(self, _: int) -> None: ...

    def batch(self, *_: object) -> None: ...

    def epoch(self, *_: object) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)


class Refusing(Told):
    """Before whom no picture may be read."""

    def reading(self, _: int) -> None:
        pytest.fail("a picture was read")


class Interrupting(Told):
    """Whose user has had enough after some epochs."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.left = epochs

    def epoch(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
