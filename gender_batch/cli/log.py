"""What a run says on standard error: lines for people, or one JSON object per line for collectors."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from gender_batch.cli.exits import note


class Log:
    """`say` writes `text`, or with `as_json` an object of the time (UTC), the event and the `facts` behind the text."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def say(self, event: str, text: str, **facts: object) -> None:
        if self.as_json:
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            text = json.dumps({"time": time, "event": event, **facts})
        note(text)

    def error(self, message: str) -> None:
        self.say("error", f"gender-batch: {message}", message=message)
