"""Who may ask a server of this project: names of the server, other sites, and the API key.

A browser sends a request of any site's page to a server on this machine or in its network. It names the site in Origin
or Sec-Fetch-Site. A site whose name points to this machine (DNS rebinding) is seen by its name in Host. Programs other
than browsers send neither. All servers ask `Visitors` first; MindSpore Serving's front (Python 3.9) imports this too.
"""

from __future__ import annotations

import hmac
import re
import socket
import sys
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from src.common.checks import require

Header = Callable[[str], "str | None"]  # returns a header of a request, or None
EVERY = "*"
_ORIGIN = re.compile(r"https?://[^/\s]+|null|\*", re.IGNORECASE)
_SCRIPTS = " (the start scripts: PANGU_ALLOWED_HOSTS, PANGU_ALLOWED_ORIGINS)"
_LINK = ("navigate", "document")  # how a browser follows a link to a page


class Visitors:
    """Decides which requests are answered.

    Args:
        hosts: Names of the server, with commas between them, besides localhost, the machine's own name and all IP
            addresses; * for every name. A page of one of these names is the server's own.
        origins: Other sites whose pages may ask, such as https://example.org, with commas between them; * for all.
        api_key: Key that callers must send; empty for none.
        listens_on: Host that the server listens on. It is a name of the server too. Other ports of it are other sites.

    Raises:
        InputError: An origin or the key has a wrong form.
    """

    def __init__(self, hosts: str = "", origins: str = "", api_key: str = "", listens_on: str = "") -> None:
        self.hosts, self.origins, self.api_key = _names(hosts), _names(origins), api_key
        self.listens_on = listens_on.lower()
        for origin in self.origins:
            require(
                _ORIGIN.fullmatch(origin),
                f"--allowed_origins: '{origin}' is no origin such as https://example.org, or *",
            )
        require(
            re.fullmatch(r"[!-~]*", api_key),
            "the API key holds characters that no key has, which would never match; take letters, digits and signs "
            "of ASCII",
        )

    def refusal(self, method: str, path: str, header: Header) -> str:
        """Return why a request is refused, or an empty text if it is not. The key is another matter: `key_fits`."""
        host, origin = header("Host"), header("Origin")
        if host is not None and (unknown := self.unknown_host(host)):
            return unknown
        if origin:
            if not (self._is_own(origin, host) or self._allows(origin)):
                return f"pages of {origin[:100]} may not ask this server; --allowed_origins adds a site" + _SCRIPTS
        elif header("Sec-Fetch-Site") in ("cross-site", "same-site"):
            how = header("Sec-Fetch-Mode"), header("Sec-Fetch-Dest")
            if not (how == _LINK and method == "GET" and path == "/"):
                return (
                    "pages of other sites may only link to the page of this server; --allowed_origins adds a site"
                    + _SCRIPTS
                )
        return ""

    def unknown_host(self, host: str) -> str:
        """Return why `name:port` is not this server, or an empty text if it is."""
        if self._is_name(_hostname(host)):
            return ""
        return f"this server does not know itself as '{host[:100]}'; --allowed_hosts adds a name" + _SCRIPTS

    def cors(self, header: Header) -> dict[str, str]:
        """Return the headers of an answer that let an allowed site's page read it."""
        origin = header("Origin")
        told = {"Vary": "Origin"} if self.origins else {}
        if not (origin and self._allows(origin)):
            return told
        told |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "X-Request-Id, Retry-After"}
        if header("Access-Control-Request-Method"):
            told["Access-Control-Allow-Methods"] = "GET, POST"
            told["Access-Control-Allow-Headers"] = header("Access-Control-Request-Headers") or ""
            told["Access-Control-Max-Age"] = "600"
            if header("Access-Control-Request-Private-Network"):
                told["Access-Control-Allow-Private-Network"] = "true"
        return told

    def key_fits(self, header: Header) -> bool:
        """Return whether a request has the key, as `Authorization: Bearer KEY`, or none is needed."""
        given = re.sub("^Bearer ", "", header("Authorization") or "")
        return not self.api_key or hmac.compare_digest(given.encode("utf-8", "replace"), self.api_key.encode())

    def _is_name(self, name: str) -> bool:
        """Return whether a hostname is the server's own. Only a name can be rebound, an IP address can't."""
        if EVERY in self.hosts or name in self.hosts:
            return True
        machine = socket.gethostname().lower()
        own = ("localhost", machine, f"{machine}.local", self.listens_on)
        return bool(name) and (name in own or name.endswith(".localhost") or _is_ip(name))

    def _is_own(self, origin: str, host: str | None) -> bool:
        place = origin.lower().partition("://")[2]
        return bool(place) and (place == (host or "").lower() or _hostname(place) in self.hosts)

    def _allows(self, origin: str) -> bool:
        return EVERY in self.origins or origin.lower() in self.origins


def is_preflight(method: str, header: Header) -> bool:
    """Return whether a browser asks if it may send a request. It sends no key then."""
    return method == "OPTIONS" and bool(header("Origin")) and bool(header("Access-Control-Request-Method"))


def check_root_path(path: str) -> None:
    """Raise InputError if a path at a proxy has a wrong form."""
    require(re.fullmatch(r"(/[\w.~-]+)*", path), f"--root_path is '{path}'; it must look like /pangu")


def warn_if_open(host: str, api_key: str, remedy: str) -> None:
    """Print a warning if a server listens to other machines and asks for no key."""
    name = _hostname(f"[{host}]" if ":" in host else host)
    if not api_key and name != "localhost" and not (_is_ip(name) and ip_address(name).is_loopback):
        print(f"warning: everybody who reaches {host} may use this server, without a key; {remedy}", file=sys.stderr)


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip().lower().rstrip("/") for name in text.split(",") if name.strip())


def _hostname(host: str) -> str:
    """Return the name in `name:port`; empty if it has none."""
    try:
        return (urlsplit("//" + host).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_ip(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
