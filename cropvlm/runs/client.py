"""One prompt asked of an OpenAI-compatible server, with every way in which that may fail.

The official client tries again after rate limits, server errors, timeouts, cut connections and, since `BoundedClient`
reports them as such, replies that cannot be read. It is slow to import: `cropvlm.runs.server` does so when it asks.
"""

import asyncio
import logging
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2  # what the official client sends with
import openai

from cropvlm.errors import UserError
from cropvlm.runs.replies import NoAnswers, Rejected, TimedOut, first_choice, quote, read_completion
from cropvlm.runs.secret import KEY

logger = logging.getLogger(__name__)

RETRIES = 8  # of one request: 40 seconds of back-off in all, or as long as the server asks for; none after 120 s
WAITS = (b"retry-after", b"retry-after-ms")  # headers by which a server asks for that
LARGEST_REPLY = 4 << 20  # bytes, unpacked
CONNECT_TIMEOUT = 5.0  # seconds
# Codes of errors that mean "I will not answer this" (Azure, OpenAI).
REFUSALS = ("content_filter", "content_policy_violation", "invalid_prompt")
RESUME = "finished rows are kept; run the same command again to continue"


class BadReply(httpx2.RequestError):
    """A reply that is not a chat completion, or cannot be read. The official client tries again after such an error."""


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client that reads every reply whole, bounded in seconds and bytes, and follows no redirect.

    It is passed on as UTF-8, and of its headers only those that ask to wait.
    """

    def __init__(self, seconds: float):
        """seconds: for a request and its complete reply."""
        timeout = httpx2.Timeout(seconds, connect=min(seconds / 2, CONNECT_TIMEOUT))
        super().__init__(timeout=timeout, cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])))  # none is kept
        self.seconds = seconds

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """The reply. Raises `httpx2.RequestError` for a missing reply or a `BadReply`."""
        try:
            async with asyncio.timeout(self.seconds):
                response = await super().send(request, stream=True, follow_redirects=False)
                try:
                    body = await _read(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise httpx2.ReadTimeout("", request=request) from None
        except (BadReply, httpx2.TransportError):
            raise
        except Exception as error:  # whatever a decoder may raise
            raise BadReply(f"the reply cannot be read ({type(error).__name__})", request=request) from error
        text = body.decode("utf-8", "replace")
        if response.is_success and first_choice(text) is None:
            raise BadReply(f"the reply is not a chat completion: {quote(text)}", request=request)
        headers = [(name, value) for name, value in response.headers.raw if name.lower() in WAITS]
        return httpx2.Response(response.status_code, headers=headers, text=text, request=request)


async def _read(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():  # of 1 MiB at most, however much a packed reply unpacks to
        body += piece
        if len(body) > LARGEST_REPLY:
            raise BadReply(f"the reply is larger than {LARGEST_REPLY >> 20} MiB", request=response.request)
    return bytes(body)


class ChatClient:
    """The model of a server, asked one prompt at a time or several."""

    def __init__(self, base: str, key: str, model: str, max_new_tokens: int, timeout: float):
        """key: may be empty. timeout: seconds for a request and its complete reply."""
        self.base, self.model, self.max_new_tokens, self.timeout = base, model, max_new_tokens, timeout
        self.client = openai.AsyncOpenAI(
            api_key=key or "none",  # the client insists on one, a server of one's own does not
            base_url=base,
            http_client=BoundedClient(timeout),
            max_retries=RETRIES,
        )

    async def ask(self, messages: list[dict[str, Any]]) -> str:
        """The text, empty for a refusal.

        Raises `Rejected` or `CutOff` for a failure that may be this prompt's own, `UserError` for any other.
        """
        try:
            reply = await self.client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, temperature=0, max_completion_tokens=self.max_new_tokens
            )
        except Exception as error:
            if getattr(error, "code", None) in REFUSALS:
                return ""
            raise self.explain(error) from None  # the client's own words may hold the key
        return read_completion(reply.text)

    def explain(self, error: Exception) -> UserError | Rejected:
        """The error to raise for the user after all retries."""
        if isinstance(error, openai.APIStatusError):
            return self._explain_status(error)
        if not isinstance(error, openai.APIConnectionError):
            logger.debug("the client fails", exc_info=error)
            return Rejected(f"the client fails ({type(error).__name__}: {quote(str(error))})")
        match error.__cause__:
            case BadReply() as cause:
                return Rejected(str(cause))
            case httpx2.ReadTimeout() | httpx2.WriteTimeout() | httpx2.PoolTimeout():
                return TimedOut(f"no complete reply within {self.timeout:g} s in {RETRIES + 1} attempts")
            case httpx2.ReadError() | httpx2.WriteError() | httpx2.RemoteProtocolError() as cause:
                return Rejected(f"the connection broke off ({type(cause).__name__})")
            case cause:
                return NoAnswers(f"{self.base} cannot be reached ({type(cause).__name__}); {RESUME}")

    def _explain_status(self, error: openai.APIStatusError) -> UserError | Rejected:
        status, headers = error.status_code, error.response.headers
        said = error.body.get("message") if isinstance(error.body, dict) else None
        said = f"error {status}, {quote(said if isinstance(said, str) else error.response.text)}"
        if asks_to_wait := "retry-after" in headers:
            said += f" and asks to wait (Retry-After: {quote(headers['retry-after'])})"
        if status == 401:
            return UserError(f"{self.base} refuses the key ({said}); set {KEY} to one that is allowed to ask it")
        if status == 404:
            return NoAnswers(f"{self.base} does not know {self.model} ({said})")
        if 300 <= status < 400:
            return NoAnswers(f"{self.base} redirects to another address (status {status}), which is not followed")
        if status in (402, 429) or (status == 503 and asks_to_wait):
            return UserError(f"{self.base} sends {said}; {RESUME}")
        if status == 403:
            said += f"; see whether the key in {KEY} allows it"
        return Rejected(f"the server sends {said}")

    async def close(self) -> None:
        """Close all connections."""
        await self.client.close()
