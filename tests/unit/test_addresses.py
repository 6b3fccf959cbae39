"""Which addresses may be connected to, and what is taken for an address."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.adapters.transport import AddressPolicy, host_address
from outrider.api.errors import Stalling

DEFAULT = AddressPolicy()


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:7f00:1", "loopback"),
        ("::127.0.0.1", "loopback"),
        ("::ffff:0:127.0.0.1", "loopback"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", "loopback"),  # Teredo, with 127.0.0.1 turned over at its end
        ("64:ff9b:1::a9fe:a9fe", "translator"),
        ("64:ff9b:1:ffff::1", "translator"),
        ("169.254.0.1", "link-local"),
        ("169.254.170.2", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("febf::1", "link-local"),
        ("0.0.0.0", "unspecified"),  # noqa: S104
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("ff02::1", "multicast"),
        ("::ffff:224.0.0.1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("2002:ffff:ffff::1", "broadcast"),
        ("4000::1", "reserved"),
        ("100::1:2", "reserved"),
        ("169.254.169.254", "metadata"),
        ("::ffff:169.254.169.254", "metadata"),
        ("64:ff9b::a9fe:a9fe", "metadata"),
        ("2002:a9fe:a9fe::", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("fd00:ec2::23", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("192.0.0.192", "metadata"),
        ("::ffff:168.63.129.16", "metadata"),
    ],
)
def test_refused_addresses(address: str, kind: str) -> None:
    assert kind in (DEFAULT.refusal(ip_address(address)) or "")
    with pytest.raises(Stalling) as caught:
        DEFAULT.check_host(address)
    assert caught.value.reason == "AddressNotAllowed"
    assert "OUTRIDER_ALLOWED_SOURCE_ADDRESSES" in caught.value.message
    assert "sources.allowedAddresses" in caught.value.message


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "100.100.100.201",
        "1.1.1.1",
        "192.0.2.1",
        "fd00::1",
        "fc00::1",
        "2606:4700::1111",
        "2001:4860::8888",
        "::ffff:10.0.0.1",
        "64:ff9b::1.1.1.1",
        "2002:0a00:0001::",
    ],
)
def test_allowed_addresses(address: str) -> None:
    assert DEFAULT.refusal(ip_address(address)) is None
    DEFAULT.check_host(address)


@pytest.mark.parametrize(
    ("network", "address", "allowed"),
    [
        ("127.0.0.0/8", "127.0.0.1", True),
        ("127.0.0.0/8", "::ffff:127.0.0.1", True),
        ("127.0.0.0/8", "::1", False),
        ("127.0.0.0/8", "169.254.169.254", False),
        ("169.254.169.254/32", "169.254.169.254", True),
        ("169.254.169.254/32", "169.254.169.253", False),
        ("::1/128", "::1", True),
        ("::/0", "fe80::1", True),
        ("::/0", "127.0.0.1", False),
        ("64:ff9b:1::/48", "64:ff9b:1::1", True),
    ],
)
def test_listed_networks_are_allowed(network: str, address: str, *, allowed: bool) -> None:
    policy = AddressPolicy((ip_network(network),))
    assert (policy.refusal(ip_address(address)) is None) is allowed


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("2130706433.", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0X7F.1", "127.0.0.1"),
        ("0x7f.0x0.0x0.0x1", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("0", "0.0.0.0"),  # noqa: S104
        ("0x", "0.0.0.0"),  # noqa: S104
        ("00000000000000000000000000177.1", "127.0.0.1"),
        ("2852039166", "169.254.169.254"),
        ("0xa9fea9fe", "169.254.169.254"),
        ("169.16689662", "169.254.169.254"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("[::ffff:127.0.0.1]", "::ffff:7f00:1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
        ("fe80::1%25eth0", "fe80::1"),
        ("[::1%lo]", "::1"),
        ("4294967295", "255.255.255.255"),
        ("1.2.3", "1.2.0.3"),
        # Names
        ("", None),
        (".", None),
        ("example.org", None),
        ("4294967296", None),
        ("256.0.0.1", None),
        ("1.2.3.4.5", None),
        ("1..2", None),
        ("127.0.0.1..", None),
        ("08.0.0.1", None),
        ("0x7g", None),
        ("-1", None),
        ("+1", None),
        ("1_0", None),
        ("१२७.0.0.1", None),
        ("①", None),
        ("[::1", "::1"),
        ("::g", None),
        ("9" * 5000, None),
    ],
)
def test_what_is_taken_for_an_address(host: str, address: str | None) -> None:
    assert host_address(host) == (None if address is None else ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "localhost.localdomain",
        "ip6-localhost",
        "metadata.google.internal",
        "Metadata.Google.Internal.",
        "metadata",
        "instance-data",
        "2130706433",
        "0x7f.1",
        "127.0.0.1.",
        "[::ffff:127.0.0.1]",
    ],
)
def test_names_and_spellings_of_refused_addresses(host: str) -> None:
    with pytest.raises(Stalling) as caught:
        DEFAULT.check_host(host)
    assert caught.value.reason == "AddressNotAllowed"


@pytest.mark.parametrize("host", ["example.org", "localhost.example.org", "mylocalhost", "metadata.example.org", ""])
def test_other_names_are_not_judged(host: str) -> None:
    DEFAULT.check_host(host)


def test_the_message_names_the_address() -> None:
    with pytest.raises(Stalling) as caught:
        DEFAULT.choose("files.example.org", (IPv4Address("127.0.0.1"),))
    assert caught.value.message == (
        "files.example.org is at 127.0.0.1, which is a loopback address, and nothing is fetched from there; name "
        "another host, or let the operator's setting sources.allowedAddresses (OUTRIDER_ALLOWED_SOURCE_ADDRESSES) hold "
        "127.0.0.1"
    )


def test_of_several_addresses_the_refused_ones_are_left_out() -> None:
    chosen = DEFAULT.choose("a", (IPv4Address("127.0.0.1"), IPv4Address("10.0.0.1"), IPv6Address("::1")))
    assert chosen == [IPv4Address("10.0.0.1")]


@settings(deadline=None)  # of a machine that does other things, too
@given(st.text(alphabet="0123456789abcdefxX.:[]%", max_size=40) | st.text())
def test_no_host_is_too_strange(host: str) -> None:
    host_address(host)


@settings(deadline=None)  # of a machine that does other things, too
@given(st.ip_addresses(v=4))
def test_clothing_changes_nothing(address: IPv4Address) -> None:
    bits = int(address)
    for dressed in (0xFFFF << 32 | bits, 0x64FF9B << 96 | bits, 0x2002 << 112 | bits << 80):
        assert DEFAULT.refusal(IPv6Address(dressed)) == DEFAULT.refusal(address)
