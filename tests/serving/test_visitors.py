"""Which names and sites a server answers, and the key, without a server."""

import socket

import pytest

from src.common.errors import InputError
from src.serving.listening import bound
from src.serving.visitors import Visitors, is_preflight, warn_if_open

OWN = {"Host": "127.0.0.1:5000"}


def refusal(headers, visitors=None, method="POST", path="/v1/completions"):
    return (visitors or Visitors()).refusal(method, path, headers.get)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:5000",
        "LOCALHOST.:5000",
        "a.localhost",
        "127.0.0.1:5000",
        "[::1]:5000",
        "192.168.0.7:5000",
    ]
    + [socket.gethostname(), f"{socket.gethostname()}.local:5000"],
)
def test_names_of_this_machine_and_addresses_are_known(host):
    assert refusal({"Host": host}) == ""


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5000", "localhost.evil.example", "127.0.0.1.evil.example", "[", "", "a,b"]
)
def test_other_names_are_not(host):
    """A name of another site that points to this machine: DNS rebinding."""
    assert "--allowed_hosts" in refusal({"Host": host})
    assert refusal({"Host": host}, Visitors(hosts="*")) == ""


def test_a_name_that_is_allowed_is_the_server_s_own():
    visitors = Visitors(hosts="chat.example, other.example")
    assert refusal({"Host": "chat.example:443"}, visitors) == ""
    assert refusal({"Host": "chat.example", "Origin": "https://chat.example"}, visitors) == ""
    # a proxy that speaks to the server by its address
    assert refusal(OWN | {"Origin": "https://chat.example"}, visitors) == ""
    assert refusal(OWN | {"Origin": "https://notchat.example"}, visitors) != ""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "chat.example"])
def test_another_port_of_the_host_that_is_listened_on_is_another_site(host):
    visitors, own = Visitors(listens_on=host), {"Host": f"{host}:5000"}
    assert refusal(own | {"Origin": f"http://{host}:5000"}, visitors) == refusal(own, visitors) == ""
    assert "--allowed_origins" in refusal(own | {"Origin": f"http://{host}:3000"}, visitors)


def test_a_program_sends_no_origin_and_is_answered():
    assert refusal({}) == refusal(OWN) == ""


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:3000", "http://localhost:5000", "127.0.0.1:5000", "//["]
)
def test_pages_of_other_sites_are_refused(origin):
    told = refusal(OWN | {"Origin": origin})
    assert "--allowed_origins" in told and "\n" not in told


def test_the_server_s_own_page_and_allowed_sites_are_answered():
    assert refusal(OWN | {"Origin": "http://127.0.0.1:5000"}) == ""
    assert refusal(OWN | {"Origin": "https://127.0.0.1:5000"}) == ""  # behind a proxy that ends TLS
    for origins in ("https://a.example", "https://b.example, https://A.example/", "*"):
        assert refusal(OWN | {"Origin": "https://a.example"}, Visitors(origins=origins)) == ""
    assert refusal(OWN | {"Origin": "null"}, Visitors(origins="null")) == ""


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_picture_s_address_or_a_frame_of_another_site_is_refused(site):
    """A browser sends no Origin for these, but Sec-Fetch-Site."""
    picture = OWN | {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    link = OWN | {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert refusal(picture, method="GET", path="/query") and refusal(picture, method="GET", path="/")
    assert refusal(link, method="GET", path="/") == "" != refusal(link, method="GET", path="/query")
    assert refusal(link | {"Sec-Fetch-Dest": "iframe"}, method="GET", path="/")
    assert refusal(picture | {"Sec-Fetch-Site": "same-origin"}, method="GET", path="/query") == ""


def test_cors():
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    asked |= {"Access-Control-Request-Headers": "authorization,content-type"}
    told = Visitors(origins="https://a.example").cors(asked.get)
    assert told["Access-Control-Allow-Origin"] == "https://a.example" and told["Vary"] == "Origin"
    assert told["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert Visitors().cors(asked.get) == {}
    assert Visitors(origins="https://b.example").cors(asked.get) == {"Vary": "Origin"}
    assert is_preflight("OPTIONS", asked.get) and not is_preflight("POST", asked.get)
    assert not is_preflight("OPTIONS", {}.get)


def test_the_key():
    visitors = Visitors(api_key="a-key")
    fits = {"Authorization": "Bearer a-key"}, {"Authorization": "a-key"}
    assert all(visitors.key_fits(headers.get) for headers in fits) and Visitors().key_fits({}.get)
    for wrong in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer A-KEY"},
        {"Authorization": "Bearer \udcff"},
    ):
        assert not visitors.key_fits(wrong.get)


@pytest.mark.parametrize("key", ["密钥", "two words", "a\tb", "é"])
def test_a_key_that_could_never_match_is_refused(key):
    with pytest.raises(InputError, match="the API key holds characters"):
        Visitors(api_key=key)


@pytest.mark.parametrize("origin", ["a.example", "https://a.example/path", "ftp://a.example"])
def test_an_origin_that_could_never_match_is_refused(origin):
    with pytest.raises(InputError, match="is no origin such as"):
        Visitors(origins=origin)


def test_an_open_server_is_warned_of(capsys):
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        warn_if_open(host, "", "remedy")
    warn_if_open("0.0.0.0", "key", "remedy")
    assert capsys.readouterr().err == ""
    for host in ("0.0.0.0", "::", "192.168.0.7", "chat.example"):
        warn_if_open(host, "", "remedy")
        told = capsys.readouterr().err
        assert told.startswith("warning: ") and host in told and "remedy" in told and told.count("\n") == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "256.1.1.1", "a" * 300, "a b"])
def test_a_host_that_is_unknown_is_told(host):
    with pytest.raises(InputError, match="is no address of this machine"):
        bound(host, 0, "")


def test_a_port_that_is_taken_is_told():
    with bound("localhost", 0, "") as place:
        place.listen()
        with pytest.raises(InputError, match="another server may be there: PORT chooses another"):
            bound("127.0.0.1", place.getsockname()[1], "PORT chooses another")
