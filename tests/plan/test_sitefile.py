"""Site files: what is read, and that every mistake is told with its place and a cure.

In the wrong texts below the sign ``‸`` stands before the character that the error must point at.
"""

from __future__ import annotations

import typing
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.documents.base import Model
from evenkeel.documents.site import DataPlane, HostWish, Site
from evenkeel.errors import Where, WrongInput
from evenkeel.plan.sitefile import MAX_CHARACTERS, WrongSite, parse_site, parse_site_parts

EXAMPLE = Path(__file__).parents[2] / "examples" / "plc" / "site.yaml"
HEAD = """\
version: 1
hosts:
  cell:
    address: virtual:plc
    housekeeping: 0-1
"""
GUEST = (
    HEAD
    + """\
guests:
  plc:
    goal: realtime
    latency: 100us
    vcpus: 2
    memory: 384MiB
"""
)
HMI = """\
  hmi:
    vcpus: 1
    memory: 256MiB
"""


def split_mark(text: str) -> tuple[str, Where]:
    """The text without its mark, and the place of the mark in the file ``site.yaml``."""
    assert text.count("‸") == 1, "each wrong text has one mark"
    before = text[: text.index("‸")]
    return text.replace("‸", ""), Where("site.yaml", before.count("\n") + 1, len(before) - before.rfind("\n"))


def guest_with(line: str) -> str:
    return GUEST + f"    {line}\n"


def guest_but(old: str, new: str) -> str:
    assert old in GUEST
    return GUEST.replace(old, new)


WRONG = {
    # keys
    "unknown key": (guest_but("memory", "‸memroy"), 'unknown key "memroy"; did you mean "memory"?'),
    "unknown key, dash for underscore": (guest_with("‸page-size: 2MiB"), 'did you mean "page_size"?'),
    "unknown key, nothing near": (guest_with("‸xyzzy: 1"), "known keys here: host, goal, latency"),
    "unknown key at the top": ("‸vms: {}\n" + HEAD, "known keys here: version, hosts, guests"),
    "unknown key in a list": (guest_with("disks:\n      - ‸pth: /a"), 'did you mean "path"?'),
    "kind is no key of a site file": ("‸kind: Site\n" + HEAD, 'unknown key "kind"'),
    "duplicate key": (guest_with("‸vcpus: 3"), 'key "vcpus" stands twice in the same mapping, first in line 10'),
    "duplicate guest": (GUEST + "  ‸plc: {vcpus: 1, memory: 1GiB}\n", 'key "plc" stands twice'),
    "duplicate section": (GUEST + "‸hosts: {}\n", 'key "hosts" stands twice'),
    "key missing": (GUEST + "  ‸hmi:\n    vcpus: 1\n", '"hmi" needs "memory"'),
    "keys missing": (GUEST + "  ‸hmi:\n    goal: flexible\n", '"hmi" needs "vcpus" and "memory"'),
    "key that is a list": (HEAD + "guests:\n  ? ‸[a]\n  : b\n", "a key must be a plain word"),
    "merge of a value": (guest_with("‸<<: 3"), '"<<" must be followed by an alias of a mapping'),
    # sizes and durations
    "size without unit": (guest_but("384MiB", "‸4096"), "'4096' has no unit; units are B, KiB, MiB, GiB, TiB"),
    "size, decimal unit": (guest_but("384MiB", "‸4GB"), "did you mean 4GiB?"),
    "size, wrong unit": (guest_but("384MiB", "‸4us"), "unknown unit 'us'"),
    "size, words": (guest_but("384MiB", "‸lots"), "'lots' is not a size"),
    "size, float": (guest_but("384MiB", "‸1.5"), "'1.5' has no unit"),
    "size, negative": (guest_but("384MiB", "‸-1GiB"), "'-1GiB' is not a size"),
    "size, too many digits": (guest_but("384MiB", "‸" + "9" * 5000 + "GiB"), '"memory": '),
    "size, empty": (guest_but("memory: 384MiB", "‸memory:"), '"memory" has no value'),
    "size, a list": (guest_but("384MiB", "‸[384MiB]"), '"memory" needs one value, not a list'),
    "size, zero": (guest_but("384MiB", "‸0GiB"), "a guest needs memory"),
    "duration without unit": (guest_but("100us", "‸100"), "'100' has no unit; units are ns, us, ms, s, min, h, d"),
    "duration, sexagesimal": (guest_but("100us", "‸1:30"), "'1:30' is not a duration"),
    "duration, zero": (guest_but("100us", "‸0us"), "a deadline of zero cannot be met"),
    "page size without unit": (guest_with("page_size: ‸2097152"), "'2097152' has no unit"),
    "page size, impossible": (guest_with("page_size: ‸3MiB"), "no kernel has pages of 3MiB"),
    "memory in pages": (
        guest_but("384MiB", "‸383MiB") + "    page_size: 2MiB\n",
        "383MiB of memory is not a whole number of 2MiB pages",
    ),
    # CPU lists
    "CPU list with N": (guest_with("cpus: ‸4-N"), "'4-N' is not a CPU or a range of CPUs"),
    "CPU list with a stride": (guest_with("cpus: ‸0-15:2/4"), "is not a CPU or a range of CPUs"),
    "CPU list, all": (guest_with("cpus: ‸all"), "'all' is not a CPU"),
    "CPU list, backwards": (guest_with("cpus: ‸3-2"), "runs backwards"),
    "CPU list, sexagesimal": (guest_with("cpus: ‸1:30"), "'1:30' is not a CPU"),
    "CPU list, underscore": (guest_with("cpus: ‸1_0"), "'1_0' is not a CPU"),
    "CPU list, float": (guest_with("cpus: ‸2.0"), "'2.0' is not a CPU"),
    "CPU list, hexadecimal": (guest_with("cpus: ‸0x3"), "'0x3' is not a CPU"),
    "CPU list, other digits": (guest_with("cpus: ‸٣"), "'٣' is not a CPU"),
    "CPU list, a YAML list": (guest_with("cpus: ‸[2, 3]"), "write the kernel's list format, as in 2-3,6"),
    "CPU list, beyond Linux": (guest_with("cpus: ‸99999"), "CPU 99999 is beyond"),
    "CPU list, in the host": (HEAD.replace("0-1", "‸0..1"), "'0..1' is not a CPU"),
    # numbers, words, truth
    "number, a word": (guest_but("vcpus: 2", "vcpus: ‸two"), "'two' is not a whole number"),
    "number, octal": (guest_but("vcpus: 2", "vcpus: ‸010"), "octal to some readers of YAML"),
    "number, too small": (guest_but("vcpus: 2", "vcpus: ‸0"), '"vcpus" must be at least 1, not 0'),
    "number, too large": (guest_but("vcpus: 2", "vcpus: ‸711"), '"vcpus" must be at most 710, not 711'),
    "number, float": (guest_but("vcpus: 2", "vcpus: ‸2.0"), "'2.0' is not a whole number"),
    "word, near": (guest_but("goal: realtime", "goal: ‸real-time"), 'did you mean "realtime"?'),
    "word, YAML 1.1 truth": (guest_with("trust: ‸no"), "one of yields, spins"),
    "truth": (guest_with("networks: [{user: ‸yes}]"), "'yes' is neither true nor false"),
    # shape
    "list for mapping": ("version: 1\nhosts:\n  ‸- cell\n", '"hosts" needs a mapping, not a list'),
    "nothing for mapping": ("version: 1\nhosts:\n  ‸cell:\n", '"cell" needs a mapping, not nothing'),
    "value for list": (guest_with("disks: ‸/dev/sda"), "\"disks\" needs a list, not the value '/dev/sda'"),
    "not a mapping": ("‸- a\n", "a site is a mapping, this is a list"),
    "no hosts": ("version: 1\n‸hosts: {}\n", "the site has no hosts"),
    "no hosts, all commented out": ("version: 1\n‸hosts:\n#  a:\n", "the site has no hosts"),
    "two documents": (GUEST + "---\n‸version: 1\n", "a second YAML document starts here"),
    "tab": (GUEST.replace("    vcpus", "‸\tvcpus"), "a tab is used to indent; YAML allows only spaces"),
    "tab after spaces": (GUEST.replace("    vcpus", "  ‸\tvcpus"), "a tab is used to indent"),
    "control character": (guest_with("near: a‸\x07"), "a character that YAML does not allow: U+0007"),
    "not YAML": ("version: 1\nhosts:‸ a: b\n".replace("‸ a:", " a‸:"), "not YAML: mapping values are not allowed here"),
    "unclosed quote": ('version: 1\nhosts: "\n‸', "not YAML: found unexpected end of stream"),
    "undefined alias": (guest_with("near: ‸*nothing"), "not YAML: found undefined alias 'nothing'"),
    "unknown tag": (guest_but("384MiB", "‸!gib 4GiB"), "the YAML tag !gib has no meaning in a site"),
    "deep": ("‸".join(["[" * 40, "[" * 40]), "nested more deeply than a site can be"),
    # version
    "no version": (GUEST.replace("version: 1\nhosts", "‸hosts"), "add a line: version: 1"),
    "version of the future": (GUEST.replace("version: 1", "version: ‸2"), "version 2 of the site format is unknown"),
    "version zero": (GUEST.replace("version: 1", "version: ‸0"), "write version: 1"),
    "version, a word": (GUEST.replace("version: 1", "version: ‸one"), "'one' is not a whole number"),
    # names and addresses
    "guest name": (
        GUEST.replace("  plc:\n    goal", "  ‸plc one:\n    goal"),
        "'plc one' cannot be the name of a guest",
    ),
    "guest name, path": (GUEST.replace("  plc:\n    goal", "  ‸../plc:\n    goal"), "cannot be the name of a guest"),
    "guest name, line break": (GUEST.replace("  plc:\n    goal", '  ‸"plc\\n":\n    goal'), "cannot be the name"),
    "host name": (HEAD.replace("  cell", "  ‸-cell"), "'-cell' cannot be the name of a host"),
    "address, misspelt": (HEAD.replace("virtual:plc", "‸virtua:plc"), "did you mean 'virtual:plc'?"),
    "address, no name": (HEAD.replace("virtual:plc", "‸'virtual:'"), "did you mean 'virtual:NAME'?"),
    "address, ssh's own form": (HEAD.replace("virtual:plc", "‸root@cell"), "did you mean 'ssh://root@cell'?"),
    "address, one slash": (HEAD.replace("virtual:plc", "‸ssh:/root@cell"), "did you mean 'ssh://root@cell'?"),
    "address, option for ssh": (HEAD.replace("virtual:plc", "‸ssh://-oProxyCommand=x"), "is not the address"),
    "address, bare name": (HEAD.replace("virtual:plc", "‸cell"), "local, ssh://root@HOST[:PORT] or virtual:NAME"),
    "address twice": (
        HEAD + "  again:\n    address: ‸virtual:plc\n",
        'hosts "cell" and "again" have the same address; the first is at site.yaml:4:14',
    ),
    # what must agree
    "unknown host": (guest_with("host: ‸cel"), 'which is not a host of this site; did you mean "cell"?'),
    "CPUs of which host": (
        HEAD + "  other:\n    address: local\nguests:\n  plc: {vcpus: 1, memory: 1GiB, cpus: ‸3}\n",
        'guest "plc" names CPUs, but no host',
    ),
    "architecture": (guest_with("architecture: ‸amd64"), "did you mean 'x86_64'?"),
    "deadline without promise": (
        guest_but("goal: realtime", "goal: flexible").replace("100us", "‸100us"),
        "it has a deadline of 100us, but the goal flexible promises none",
    ),
    "deadline too tight for the goal": (
        guest_but("goal: realtime", "goal: performance").replace("100us", "‸100us"),
        "the goal performance is meant for deadlines longer than 100us",
    ),
    "real-time vCPU beyond": (
        guest_with("realtime_vcpus: ‸1-2"),
        "vCPU 2 does not exist: the guest has 2 of them, 0-1",
    ),
    "no real-time vCPU": (guest_with("realtime_vcpus: ‸''"), "needs at least one real-time vCPU"),
    "real-time vCPUs without the goal": (
        GUEST + HMI + "    realtime_vcpus: ‸0\n",
        'guest "hmi" names real-time vCPUs, but its goal is flexible',
    ),
    "two guests on one CPU": (
        guest_with("cpus: 2-3") + HMI + "    cpus: ‸3,5\n",
        'guests "plc" and "hmi" both claim CPU 3 of host "cell"; "plc" does at site.yaml:12:11',
    ),
    "guest on a housekeeping CPU": (
        guest_with("cpus: ‸1-2"),
        'CPU 1 is kept for the host by "housekeeping" at site.yaml:5:19',
    ),
    "too few CPUs": (guest_with("cpus: ‸2"), "has 2 vCPUs and the goal realtime, which takes one CPU each"),
    "empty CPU list": (GUEST + HMI + "    cpus: ‸''\n", 'guest "hmi" has an empty list of CPUs'),
    "network of two kinds": (guest_with("networks: [‸{user: true, bridge: br0}]"), "this is bridge and user"),
    "network of no kind": (guest_with("networks: [{user: true}, ‸{}]"), "this is none of them"),
    "override of nothing": (
        HEAD + "    overrides:\n      ‸R-KSM-1: {because: x}\n",
        "has neither a value nor off: true",
    ),
    "override of too much": (
        HEAD + "    overrides:\n      ‸R-KSM-1: {value: 1, off: true, because: x}\n",
        "has both a value and off: true",
    ),
    "override without reason": (HEAD + "    overrides:\n      ‸R-KSM-1: {off: true}\n", '"R-KSM-1" needs "because"'),
}


@pytest.mark.parametrize(("marked", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_told_with_its_place(marked: str, message: str) -> None:
    text, where = split_mark(marked)
    with pytest.raises(WrongInput) as caught:
        parse_site(text, file="site.yaml")
    assert message in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.where == where
    assert not getattr(caught.value, "others", ()), "one mistake, one message"


def test_the_texts_that_the_mistakes_are_made_in_are_right() -> None:
    """Else a message above could come from something else in the text."""
    for text in (HEAD, GUEST, GUEST + HMI):
        assert parse_site(text, file="site.yaml").hosts["cell"].housekeeping == frozenset({0, 1})


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n", "---\n", "~\n", "\ufeff"])
def test_an_empty_file_is_told_what_to_start_with(text: str) -> None:
    with pytest.raises(WrongInput, match="the file is empty") as caught:
        parse_site(text, file="site.yaml")
    assert "examples/plc/site.yaml" in (caught.value.hint or "")


def test_all_mistakes_are_told_at_once_in_their_order() -> None:
    text = GUEST.replace("384MiB", "4GB").replace("goal: realtime", "goal: fast").replace("address", "adress")
    with pytest.raises(WrongInput) as caught:
        parse_site(text, file="site.yaml")
    places = [error.where for error in (caught.value, *getattr(caught.value, "others", ()))]
    assert places == [Where("site.yaml", 4, 5), Where("site.yaml", 8, 11), Where("site.yaml", 11, 13)]


def test_values_are_read_as_their_field_wants_them() -> None:
    site = parse_site(
        HEAD.replace("0-1", "0")
        + """\
    overrides:
      R-RT-1: {value: -1, because: 5}
guests:
  no:              # false to a reader of YAML 1.1
    cpus: 3
    vcpus: 1
    memory: 1.5GiB
    near: 0000:3b:00.0
    networks: [{user: true}]
  8:
    cpus: "4-5,7"
    vcpus: 1
    memory: 1024 KiB
    latency: null
    boot: {kernel: /k, arguments: 1}
""",
        file="site.yaml",
    )
    no, eight = site.guests["no"], site.guests["8"]
    assert site.hosts["cell"].housekeeping == frozenset({0})
    assert site.hosts["cell"].overrides["R-RT-1"].value == "-1"
    assert (no.cpus, no.memory, no.near) == (frozenset({3}), 3 << 29, "0000:3b:00.0")
    assert (eight.cpus, eight.memory, eight.latency) == (frozenset({4, 5, 7}), 1 << 20, None)
    assert eight.boot is not None and eight.boot.arguments == "1"


def test_anchors_aliases_and_merge_keys() -> None:
    with warnings.catch_warnings(action="error"):  # an anchor used again is allowed, so no warning either
        site = parse_site(
            HEAD
            + """\
guests:
  a: &small {vcpus: 1, memory: 1GiB}
  b: *small
  c:
    <<: *small
    vcpus: 3
  d: &small {vcpus: 4, memory: 4GiB}
  e: {<<: [{goal: balanced}, *small]}
""",
            file="site.yaml",
        )
    assert {name: guest.vcpus for name, guest in site.guests.items()} == {"a": 1, "b": 1, "c": 3, "d": 4, "e": 4}
    assert site.guests["e"].goal == "balanced"


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "guests: &g\n  a: *g\n",  # contains itself
        HEAD + "guests: &g\n  a:\n    <<: *g\n",
        # a billion guests in twelve lines
        HEAD
        + "guests:\n"
        + "  a0: &a0 {disks: &d [{path: /a}, {path: /a}]}\n"
        + "".join(f"  a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10)),
    ],
)
def test_aliases_cannot_make_the_reader_run_for_ever(text: str) -> None:
    with pytest.raises(WrongInput):
        parse_site(text, file="site.yaml")


def test_a_text_too_large_for_a_site_is_not_parsed() -> None:
    with pytest.raises(WrongInput, match="too large"):
        parse_site("#" * (MAX_CHARACTERS + 1), file="site.yaml")


# -- folders ------------------------------------------------------------------------------------------------------


def test_files_make_one_site() -> None:
    site = parse_site_parts([("a.yaml", HEAD), ("b.yaml", "version: 1\nguests:\n  g: {vcpus: 1, memory: 1GiB}\n")])
    assert site == parse_site(HEAD + "guests:\n  g: {vcpus: 1, memory: 1GiB}\n", file="site.yaml")


def test_the_same_name_in_two_files_names_both_places() -> None:
    with pytest.raises(WrongInput) as caught:
        parse_site_parts([("a.yaml", GUEST), ("b.yaml", "version: 1\nguests:\n  plc: {vcpus: 1, memory: 1GiB}\n")])
    assert caught.value.message == 'guest "plc" is described twice, first at a.yaml:7:3'
    assert caught.value.where == Where("b.yaml", 3, 3)


def test_each_file_has_its_own_places_and_version() -> None:
    with pytest.raises(WrongInput) as caught:
        parse_site_parts([("a.yaml", GUEST), ("b.yaml", "guests:\n  hmi: {vcpus: 1, memory: 1}\n")])
    assert (caught.value.where, caught.value.hint) == (Where("b.yaml", 1, 1), "add a line: version: 1")
    assert isinstance(caught.value, WrongSite)
    assert [other.where for other in caught.value.others] == [Where("b.yaml", 2, 27)]


def test_a_conflict_between_files_names_both() -> None:
    other = "version: 1\nguests:\n  hmi:\n    {vcpus: 1, memory: 1GiB, cpus: 3}\n"
    with pytest.raises(WrongInput) as caught:
        parse_site_parts([("a.yaml", guest_with("cpus: 2-3")), ("b.yaml", other)])
    assert '"plc" does at a.yaml:12:11' in caught.value.message
    assert caught.value.where == Where("b.yaml", 4, 36)


# -- any text at all ----------------------------------------------------------------------------------------------

PIECES = [
    *("version: 1\n", "hosts:", "guests:", "\n", "  ", "\t", "- ", "&a ", "*a", "<<: *a", "!!int ", "!x ", "!<x> "),
    *("|", "> ", "|-2\n", "? ", ": ", "{", "}", "[", "]", ",", "'", '"', "#", "---\n", "...\n", "%YAML 1.1\n---\n"),
    *("%TAG ! x\n", "vcpus: 1", "cpus: 3", "a", "null", "~", "\ufeff", "\x85", "\u2028", "\r", "@", "`", "0o7", "1e9"),
    *('"\\uD800"', '"\\UFFFFFFFF"', '"\\xZZ"', "9" * 400, "4-N", "-", "%", "!", "&", "*", "\x00", "😀"),
]
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def parses_or_is_refused(text: str) -> None:
    """Any other exception fails the test."""
    try:
        site = parse_site(text, file="site.yaml")
    except WrongInput as error:
        for one in (error, *getattr(error, "others", ())):
            assert one.where is not None and one.where.file == "site.yaml"
            assert (one.where.line or 1) >= 1 and (one.where.column or 1) >= 1
    else:
        assert isinstance(site, Site)


@FUZZ
@given(st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_text_gives_a_site_or_wrong_input(text: str) -> None:
    parses_or_is_refused(text)


@FUZZ
@given(st.data())
def test_a_mutated_site_gives_a_site_or_wrong_input(data: st.DataObject) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 30)))
        text = text[:start] + data.draw(st.sampled_from(PIECES)) + text[end:]
    parses_or_is_refused(text)


# -- the example, and every field ---------------------------------------------------------------------------------


def test_the_example_is_right() -> None:
    site = parse_site(EXAMPLE.read_text(encoding="utf-8"), file=str(EXAMPLE))
    assert site.hosts["cell"].address == "virtual:plc"
    plc, hmi = site.guests["plc"], site.guests["hmi"]
    assert (plc.goal, plc.latency, plc.vcpus, plc.memory, plc.trust) == ("realtime", 100_000, 2, 384 << 20, "yields")
    assert (hmi.goal, hmi.vcpus, hmi.memory) == ("flexible", 1, 256 << 20)
    assert plc.boot == hmi.boot is not None


def test_every_field_of_a_site_can_be_written() -> None:
    """A new field in the models fails here until the reader knows its type and this text uses it."""
    text = """\
version: 1
hosts:
  h:
    address: local
    housekeeping: 0
    data_plane: {near: [eth0], cores: 2}
    overrides:
      R-1: {value: "x", off: false, because: y}
    consents:
      no-audit: {because: z}
  i:
    address: virtual:i
    data_plane:
      cpus: 2,3
    place:
      owner: us
      rack: r1
      networks: [blue]
      features: [avx512f]
      pools: {gpu: ["0000:3b:00.0"]}
      wires: {eth0: blue}
      power_watts: 500
      overcommit: 2
      drain: true
      vfio: bound
placing: {max_hosts: 3, power_watts: 1000, standby: true}
guests:
  g:
    host: h
    place:
      owner: us
      priority: -1
      networks: [blue, red]
      features: [avx512f]
      functions: [{pool: gpu, type: vf, network: blue, count: 2, near: any}]
      apart: [a]
      apart_racks: [b]
      together: [c]
      max_distance: 21
      l3: require
      stay: true
    goal: realtime
    latency: 1ms
    architecture: aarch64
    vcpus: 2
    realtime_vcpus: 1
    memory: 4MiB
    page_size: 2MiB
    numa: 2
    cells: [{vcpus: 1, memory: 2MiB}, {vcpus: 1, memory: 2MiB}]
    l3: 3MiB
    trust: spins
    near: eth0
    cpus: 2-3
    boot: {kernel: /k, initrd: /i, arguments: quiet}
    disks: [{path: /d, format: qcow2}]
    networks: [{bridge: br0, user: false}, {network: default}]
"""
    site = parse_site(text, file="site.yaml")
    models: list[Model | None] = [
        site,
        site.placing,
        site.hosts["i"].place,
        site.guests["g"].place,
        site.guests["g"].place.functions[0],
        site.hosts["h"].overrides["R-1"],
        site.hosts["h"].consents["no-audit"],
        site.guests["g"],
        site.guests["g"].boot,
    ]
    models.append(site.guests["g"].disks[0])
    models.append(site.guests["g"].cells[0])
    hosts = site.hosts.values()
    assert set().union(*(host.model_fields_set for host in hosts)) == set(HostWish.model_fields)
    planes = [host.data_plane for host in site.hosts.values() if host.data_plane]
    assert set().union(*(plane.model_fields_set for plane in planes)) == set(DataPlane.model_fields)
    for model in models:
        assert model is not None
        assert typing.get_type_hints(type(model)).keys() >= model.model_fields_set
        assert set(type(model).model_fields) - model.model_fields_set <= {"kind", "version"}, type(model)
    assert {key for wire in site.guests["g"].networks for key in wire.model_fields_set} == {"bridge", "network", "user"}


def test_limits_of_a_site_may_be_in_any_of_its_files_but_once() -> None:
    one = HEAD + "placing: {max_hosts: 3}\n"
    site = parse_site_parts([("a.yaml", one), ("b.yaml", "version: 1\nplacing: {power_watts: 5}\n")])
    assert (site.placing.max_hosts, site.placing.power_watts) == (3, 5)
    with pytest.raises(WrongInput, match=r'"max_hosts" of placing is said twice, first at a\.yaml:6:11'):
        parse_site_parts([("a.yaml", one), ("b.yaml", "version: 1\nplacing: {max_hosts: 4}\n")])


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        ("numa: 0", 10, "numa is 0; it is a number of nodes, 1 to 64, or auto"),
        ("numa: -2", 10, "numa is -2"),
        ("numa: two", 10, "'two' is not a whole number"),
        ("numa:", 10, None),
        ("numa: 3", 10, "4 vCPUs and 8GiB cannot be cut into 3 equal cells"),
        ("numa: 1000", 10, "1 to 64"),
        ("numa: 2", 10, None),
        ("numa: auto", 10, None),
        ("numa: 3\n    cells: [{vcpus: 2, memory: 4GiB}, {vcpus: 2, memory: 4GiB}]", 10, "there are 2 cells"),
        ("cells: [{vcpus: 3, memory: 6GiB}, {vcpus: 1, memory: 2GiB}]", 10, None),
        ("cells: [{vcpus: 3, memory: 6GiB}, {vcpus: 2, memory: 2GiB}]", 10, "its cells have 5 vCPUs, the guest has 4"),
        ("cells: [{vcpus: 3, memory: 6GiB}, {vcpus: 1, memory: 1GiB}]", 10, "its cells have 7GiB of memory"),
        ("cells: [{vcpus: 4, memory: 8GiB}, {vcpus: 0, memory: 0B}]", 10, '"vcpus" must be at least 1, not 0'),
        ("cells: [{vcpus: 3, memory: 8GiB}, {vcpus: 1, memory: 0B}]", 10, "a cell of 0B"),
        ("cells: [{vcpus: 3}]", 10, '"0" needs "memory"'),
        ("cells: {vcpus: 3}", 10, '"cells" needs a list'),
        ("near: [eth0]", 10, '"near" needs one value'),
    ],
)  # fmt: skip
def test_cells_of_a_guest(lines: str, line: int, message: str | None) -> None:
    text = f"""\
version: 1
hosts:
  h: {{address: local}}
guests:
  g:
    goal: performance
    vcpus: 4
    memory: 8GiB
    disks: [{{path: /d}}]
    {lines}
"""
    if message is None:
        parse_site(text, file="site.yaml")
        return
    with pytest.raises(WrongInput) as caught:
        parse_site(text, file="site.yaml")
    assert message in caught.value.message
    assert caught.value.where is not None and caught.value.where.line == line


@pytest.mark.parametrize("goal", ["flexible", "balanced"])
@pytest.mark.parametrize("key", ["numa: 2", "numa: auto", "cells: [{vcpus: 2, memory: 4GiB}]"])
def test_a_guest_that_floats_has_no_cells(goal: str, key: str) -> None:
    text = f"""\
version: 1
hosts:
  h: {{address: local}}
guests:
  g:
    goal: {goal}
    vcpus: 2
    memory: 4GiB
    disks: [{{path: /d}}]
    {key}
"""
    with pytest.raises(WrongInput, match=f"means nothing with goal {goal}") as caught:
        parse_site(text, file="site.yaml")
    assert caught.value.where == Where("site.yaml", 10, 7 + key.index(":"))


@pytest.mark.parametrize(
    ("plane", "message"),
    [
        ("{}", "needs either near or cpus, and has neither"),
        ("{near: [eth0], cpus: 3}", "needs either near or cpus, and has both"),
        ("{near: [eth0, eth0]}", "names eth0 twice"),
        ("{near: eth0}", '"near" needs a list'),
        ("{near: [eth0], cores: 0}", '"cores" must be at least 1, not 0'),
        ("{cpus: 0}", 'CPU 0 is kept for the host by "housekeeping"'),
        ("{cpus: 4}", 'CPU 4 polls for packets by "data_plane"'),
        ("2-3", '"data_plane" needs a mapping'),
        ("{cpus: 3}", None),
        ("{near: [eth0], cores: 2}", None),
    ],
)
def test_the_data_plane_of_a_host(plane: str, message: str | None) -> None:
    text = f"""\
version: 1
hosts:
  h:
    address: local
    housekeeping: 0-1
    data_plane: {plane}
guests:
  g: {{goal: performance, vcpus: 1, memory: 1GiB, cpus: 4, disks: [{{path: /d}}]}}
"""
    if message is None:
        parse_site(text, file="site.yaml")
        return
    with pytest.raises(WrongInput) as caught:
        parse_site(text, file="site.yaml")
    assert message in caught.value.message
    assert caught.value.where is not None and caught.value.where.line in (6, 8)


def test_a_consent_that_there_is_not() -> None:
    text = """\
version: 1
hosts:
  h:
    address: local
    consents:
      mitigations-off:itlb-multhit: {because: z}
"""
    with pytest.raises(WrongInput, match='did you mean "mitigations-off:itlb-multihit"') as caught:
        parse_site(text, file="site.yaml")
    assert caught.value.where == Where("site.yaml", 6, 7)
    assert "no-audit" in (caught.value.hint or "")
    with pytest.raises(WrongInput, match='"no-audit" needs "because"'):
        parse_site(text.replace("mitigations-off:itlb-multhit: {because: z}", "no-audit: {}"), file="site.yaml")


def test_a_character_in_two_halves_as_json_writes_it_is_one() -> None:
    site = parse_site(
        r'{version: 1, hosts: {cell: {address: local, overrides: {R-WQ-1: {off: true, because: "\ud83d\ude00"}}}}}', "s"
    )
    assert site.hosts["cell"].overrides["R-WQ-1"].because == "\U0001f600"
    assert len(site.sha256()) == 64


def test_half_a_character_is_refused_with_its_place() -> None:
    with pytest.raises(WrongInput, match="half a character") as caught:
        parse_site('version: 1\nhosts:\n  cell:\n    address: "x\\ud83d"\n', "s")
    assert caught.value.where is not None and (caught.value.where.line, caught.value.where.column) == (4, 14)
