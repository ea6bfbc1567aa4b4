# Answers each line of JSON with one, by PyPI's `stripe`: `{"ok": ...}` or `{"error": ...}`. Ends with its input.
import json
import sys

import stripe


def construct(payload, header, secret, tolerance=stripe.Webhook.DEFAULT_TOLERANCE):
    """What an event's body says, if it is signed as it should be."""
    return stripe.Webhook.construct_event(payload, header, secret, tolerance).to_dict()


ANSWERS = {"construct": construct}

for line in sys.stdin:
    question = json.loads(line)
    try:
        answer = {"ok": ANSWERS[question.pop("ask")](**question)}
    except stripe.StripeError as error:
        answer = {"error": {"type": type(error).__name__, "message": str(error)}}
    print(json.dumps(answer), flush=True)
