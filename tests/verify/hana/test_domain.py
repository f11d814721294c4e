"""Reading a definition: lines, units, and what is no definition."""

from __future__ import annotations

import pytest

from evenkeel.errors import WrongInput
from evenkeel.verify.hana.domain import parse_domain, size_of
from evenkeel.verify.hana.subject import Guest

TEXT = """\
<!-- written by libvirt -->
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>g</name>
  <vcpu>4</vcpu>
  <cputune>
    <vcpupin vcpu='0' cpuset='0-3,^2'/>
    <vcpupin vcpu='1'
             cpuset='x'/>
  </cputune>
  <qemu:commandline/>
</domain>
"""


def test_each_element_knows_its_place() -> None:
    domain = parse_domain(TEXT, "g.xml")
    assert str(domain.where) == "g.xml:2:1"
    assert [str(pin.where) for pin in domain.all("cputune/vcpupin")] == ["g.xml:6:5", "g.xml:7:5"]
    assert domain.nearest("cputune/nothing/at/all").where.line == 5
    assert domain.nearest("numatune/memory") is domain


def test_what_cannot_be_read_is_not_said() -> None:
    guest = Guest("g", parse_domain(TEXT, "g.xml"))
    assert guest.pins == {0: frozenset({0, 1, 3})} and guest.vcpus == 4
    assert guest.topology == {} and guest.cells == () and guest.memory is None


@pytest.mark.parametrize(
    ("attributes", "number", "size"),
    [
        ("", "4", 4096),
        ("unit='bytes'", "4", 4),
        ("unit='b'", "4", 4),
        ("unit='KB'", "4", 4000),
        ("unit='KiB'", "4", 4096),
        ("unit='k'", "4", 4096),
        ("unit='MB'", "4", 4_000_000),
        ("unit='M'", "4", 4 << 20),
        ("unit='GiB'", " 4 ", 4 << 30),
        ("unit='T'", "4", 4 << 40),
        ("unit='parsec'", "4", None),
        ("", "-4", None),
        ("", "", None),
        ("", "²", None),
    ],
)
def test_sizes_as_libvirt_reads_them(attributes: str, number: str, size: int | None) -> None:
    domain = parse_domain(f"<domain><memory {attributes}>{number}</memory></domain>", "g.xml")
    assert size_of(domain.all("memory")[0]) == size


def test_the_domain_in_libvirts_status_file() -> None:
    status = f"<domstatus state='running'>{TEXT.partition('-->')[2]}</domstatus>"
    assert parse_domain(status, "g.xml").tag == "domain"


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", "g.xml:1:1", "not XML: no element found"),
        ("<domain>\n  <name>\n</domain>", "g.xml:3:3", "not XML: mismatched tag"),
        ("version: 1", "g.xml:1:1", "not XML"),
        ("<network/>", "g.xml:1:1", "this is a <network>, not the definition of a domain"),
        ("<!DOCTYPE domain [<!ENTITY a 'b'>]>\n<domain>&a;</domain>", "g.xml:1:18", "a domain has no DOCTYPE"),
        ("<a>" * 100, "g.xml:1:181", "nested more deeply"),
        ("<domain>\x00</domain>", "g.xml:1:9", "not XML"),
        ("<domain a='1' a='2'/>", "g.xml:1:15", "not XML: duplicate attribute"),
        ("x" * (5 << 20), "g.xml", "too large"),
    ],
)
def test_what_is_no_definition(text: str, place: str, message: str) -> None:
    with pytest.raises(WrongInput) as refused:
        parse_domain(text, "g.xml")
    assert message in refused.value.message
    assert str(refused.value.where) == place
