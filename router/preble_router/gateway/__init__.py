"""The HTTP gateway: OpenAI's API in front of a `Dispatcher`.

    app         puts it together
    completions, models, operation    what is served where
    edge        what every request passes: its id, its key, its log line, its count
    body        the bytes of a request, bounded, to a JSON object
    fields      reads typed fields and refuses, by name, all that is left over
    requests    bodies of completions and chats to validated values
    messages    the messages of a chat
    generating  a validated request through the dispatcher, watched for its client to go away
    responses   values to JSON and server-sent events
    errors      errors to OpenAI's error object

It knows neither workers nor placement.
"""

from preble_router.gateway.app import make_app

__all__ = ["make_app"]
