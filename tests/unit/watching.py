"""Who is told how a training goes, for tests."""


class Told:
    """A watcher that keeps the notes it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def batch(self, *_: object) -> None: ...

    def epoch(self, *_: object) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)


class Interrupting(Told):
    """Whose user has had enough after some epochs."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.left = epochs

    def epoch(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
