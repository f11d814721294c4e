"""The command line as the kernel reads it: each form of a CPU list, quotes, flags, spelling."""

from __future__ import annotations

import pytest

from evenkeel.verify.doctor import commandline

LAST = 15


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("3", {3}),
        ("2-4,8", {2, 3, 4, 8}),
        ("12-N", {12, 13, 14, 15}),
        ("N", {15}),
        ("all", set(range(16))),
        ("0-7:1/2", {0, 2, 4, 6}),
        ("0-7:2/4", {0, 1, 4, 5}),
        ("all:1/8", {0, 8}),
    ],
)
def test_lists_as_the_kernel_reads_them(text: str, cpus: set[int]) -> None:
    assert commandline.parse(text, LAST) == cpus


@pytest.mark.parametrize("text", ["0x3", "", "3-2", "a-b", "0-7:2/0", "0-7:5/4", "1;2", "0-99999999"])
def test_lists_that_the_kernel_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"no CPU list|no range|beyond"):
        commandline.parse(text, LAST)


def test_words() -> None:
    found = commandline.words('quiet nohz-full=2-3 dyndbg="file a.c +p; b" -- isolcpus=4')
    assert [(word.key, word.value) for word in found] == [
        ("quiet", None),
        ("nohz_full", "2-3"),
        ("dyndbg", "file a.c +p; b"),
    ]


def test_flags_of_isolcpus() -> None:
    assert commandline.isolcpus("managed_irq,domain,2-3,5") == (frozenset({"managed_irq", "domain"}), "2-3,5")
    assert commandline.isolcpus("2-3") == (frozenset({"domain"}), "2-3")
    assert commandline.isolcpus("managed_irq,2") == (frozenset({"managed_irq"}), "2")


@pytest.mark.parametrize("text", ["4-N", "all", "0-7:1/2"])
def test_forms_that_others_misread(text: str) -> None:
    assert commandline.strange(text)


def test_a_plain_list_is_not_strange() -> None:
    assert commandline.strange("0-3,8") is None


def test_what_counts_as_tuning() -> None:
    line = "root=UUID=x ro quiet nohz-full=2-3 rcutree.kthread_prio=11 hugepages=1:128 console=ttyS0"
    assert commandline.tuning(line) == ("nohz-full=2-3", "rcutree.kthread_prio=11", "hugepages=1:128")
