"""The record of a run, for tests to vary."""

from gender_batch.outputs.record import Confidence, RunRecord

NIGHT = RunRecord(
    versions={"python": "3.12.1"},
    model="apparent-gender.onnx",
    model_digest="ab" * 32,
    device="cpu",
    device_reason="as asked for",
    pictures=10_000,
    scored=10_000,
    reused=0,
    statuses={"ok": 9900, "corrupt": 100},
    labels={"female": 4700, "male": 4700, "uncertain": 500},
    confidence=Confidence(0.93, 0.08),
    stages={},
    folders_not_read=0,
    started="2025-01-31T22:00:00+00:00",
    ended="2025-01-31T23:00:00+00:00",
    exit_code=0,
)
