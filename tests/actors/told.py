"""What a reader of events has been told."""

from raydecode.events import OutcomeEvent, TextEvent, TokenEvent


def told(events):
    """Fold events as they are and the joined text, by sample."""
    out = {}
    for event in events:
        fold, text = out.setdefault(event.row.sample, ([], []))
        match event:
            case TokenEvent() | OutcomeEvent():
                fold.append(event)
            case TextEvent(bytes=piece):
                text.append(piece)
    return {sample: (fold, b"".join(text)) for sample, (fold, text) in out.items()}
