"""Turns every error into a status and one line of text, without details of the program."""

import logging

from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from src.common.errors import BackendError, BusyError, InputError, TimeLimitError

logger = logging.getLogger("pangu")
_STATUSES = {InputError: 422, BusyError: 429, BackendError: 503, TimeLimitError: 504}
TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def message_and_status(error: Exception) -> tuple[str, int]:
    """Return message and status for the caller. The details of an unexpected error go to the log only.

    Half a surrogate pair, which a request can hold, is written as an escape.
    """
    message, status = _message_and_status(error)
    return message.encode(errors="backslashreplace").decode(), status


def _message_and_status(error: Exception) -> tuple[str, int]:
    if isinstance(error, RequestEntityTooLarge):
        return "the request is too large for this server; send a shorter text", 413
    if isinstance(error, HTTPException) and error.code:
        return error.description or error.name, error.code
    for kind, status in _STATUSES.items():
        if isinstance(error, kind):
            return " ".join(str(error).split()), status
    logger.error("unexpected error", exc_info=error)
    return "something went wrong inside the server; its log tells what", 500


def error_type(status: int) -> str:
    """Return OpenAI's name for the kind of error."""
    return TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
