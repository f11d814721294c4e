"""The boot layer: a drop-in that a real shell sources, and what GRUB generated from it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.plan import BootArgument, Phase, Setting
from evenkeel.plan.order import command_line
from evenkeel.probe import write
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.steps import boot
from evenkeel.probe.steps.boot import defaults, grubcfg
from evenkeel.probe.steps.boot.arguments import merge, missing, require_short, same_key, split, words_of

ARGUMENTS: list[dict[str, Any]] = [
    {"key": "isolcpus", "value": "managed_irq,2-3", "after": None},
    {"key": "rcu_nocb_poll", "value": "", "after": None},
    {"key": "skew_tick", "value": "1", "after": None},
    {"key": "nosmt", "value": None, "after": None},
    {"key": "default_hugepagesz", "value": "2M", "after": None},
    {"key": "hugepages", "value": "0:64,1:256", "after": "hugepagesz=2M"},
]
OURS = "isolcpus=managed_irq,2-3 rcu_nocb_poll skew_tick=1 default_hugepagesz=2M hugepagesz=2M hugepages=0:64,1:256"


def source(existing: str, default: str, arguments: list[dict[str, Any]] = ARGUMENTS) -> tuple[str, str]:
    """What sh makes of the two variables."""
    script = defaults.drop_in(arguments) + '\nprintf "%s\\n%s\\n" "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT"'
    environment = {"GRUB_CMDLINE_LINUX": existing, "GRUB_CMDLINE_LINUX_DEFAULT": default, "PATH": "/usr/bin:/bin"}
    # -eu: nothing in it may fail or use what is not set.
    done = subprocess.run(["sh", "-eu", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    first, second = done.stdout.split("\n")[:2]
    return first, second


@pytest.mark.parametrize(
    ("existing", "kept"),
    [
        ("", ""),
        ("quiet splash", "quiet splash"),
        ("isolcpus=1 quiet skew-tick=4 nosmt=force", "quiet"),
        ("isolcpusx=2 xisolcpus=3", "isolcpusx=2 xisolcpus=3"),
        ("rcu-nocb-poll a", "a"),
        ("hugepagesz=1G hugepages=4 a", "hugepagesz=1G hugepages=4 a"),
        ("a hugepagesz=2M hugepages=9 b", "a b"),
        ("hugepages=9 b", "b"),
        ("hugepagesz=2M hugepagesz=2M hugepages=3 c", "hugepagesz=2M c"),
        ("hugepagesz=2M", "hugepagesz=2M"),
        ('dyndbg="file isolcpus=x +p" isolcpus=1 a', 'dyndbg="file isolcpus=x +p" a'),
        ('hugepagesz=2M "a hugepages=3" nosmt="x" b', 'hugepagesz=2M "a hugepages=3" b'),
        ("a=* b=? [c]", "a=* b=? [c]"),  # no file name may come of them
    ],
)
def test_the_drop_in_takes_our_keys_out_and_leaves_the_rest(existing: str, kept: str) -> None:
    plain, default = source(existing, existing)
    assert plain == kept
    assert default == f"{kept} {OURS}".strip()


def test_the_drop_in_says_nothing_that_changes_from_time_to_time() -> None:
    assert defaults.drop_in(ARGUMENTS) == defaults.drop_in([dict(argument) for argument in ARGUMENTS])


@pytest.mark.parametrize(
    "bad",
    [
        {"key": "a", "value": "$(reboot)", "after": None},
        {"key": "a;reboot", "value": "1", "after": None},
        {"key": "a", "value": "1\nreboot", "after": None},
        {"key": "a", "value": "1", "after": "`reboot`"},
        {"key": "a", "value": '"', "after": None},
        {"key": "", "value": "1", "after": None},
        {"key": "*", "value": "1", "after": None},
    ],
)
def test_nothing_that_a_shell_understands_gets_into_the_drop_in(bad: dict[str, Any]) -> None:
    with pytest.raises(StepFailed):
        defaults.drop_in([bad])


PLAIN = ("quiet", "ro", "isolcpus=1", "isolcpus", "nohz_full=2-3", "nohz-full=2", "a=b", "skew_tick=0", "tty=1")
PAGES = ("hugepagesz=2M", "hugepagesz=1G", "hugepages=4", "hugepages=9", "default_hugepagesz=1G")
WORDS = st.sampled_from((*PLAIN, *PAGES))


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=9))
def test_the_shell_and_the_planner_merge_a_command_line_alike(words: list[str]) -> None:
    line = " ".join(words)
    wanted: list[tuple[str, str | None, str | None]] = [("isolcpus", "managed_irq,2-3", None)]
    wanted += [("nohz_full", "2-3", None), ("skew_tick", None, None)]
    wanted += [("default_hugepagesz", "2M", None), ("hugepages", "1:128", "hugepagesz=2M")]
    planned = [_setting(*one) for one in wanted]
    arguments = [{"key": key, "value": value, "after": after} for key, value, after in wanted]
    _, default = source("", line, arguments)
    assert default == command_line(line, planned)
    assert merge(arguments, line, words_of(arguments)).split() == default.split()
    assert missing(arguments, merge(arguments, line)) == []
    assert missing(arguments, default) == []


KEYS = ("isolcpus", "rcu_nocb_poll", "skew_tick", "nosmt", "default_hugepagesz", "hugepages", "hugepagesz")
GAPS = st.sampled_from((" ", "  ", "\t"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(GAPS, st.one_of(WORDS, st.sampled_from(('a="x  nohz_full=1"', '"b\tc"', "--"))))))
def test_words_of_others_keep_their_order_and_every_byte_between_them(line: list[tuple[str, str]]) -> None:
    text = "".join(gap + word for gap, word in line)
    merged = merge(ARGUMENTS, text)
    assert missing(ARGUMENTS, merged) == []
    kept, ours, behind = split(ARGUMENTS, text)
    assert split(ARGUMENTS, merged)[::2] == (kept, behind)
    assert merge(ARGUMENTS, merged) == merged
    words = [word for _, word in line]
    end = words.index("--") if "--" in words else len(words)
    found = re.findall(r'(?:[^\s"]|"[^"]*")+', kept)
    rest = iter(words[:end])
    assert all(word in rest for word in found)  # in this order
    assert len(found) + len(ours) == end
    assert not ours or all(any(same_key(word, key) for key in KEYS) for word in ours)
    # Taken out again, with what stood there before: the same words, ours at the end.
    back = merge(ARGUMENTS, merged, ours)
    assert sorted(back.split()) == sorted(text.split())


def _setting(key: str, value: str | None, after: str | None) -> Setting:
    return Setting(
        id=key,
        rule="H",
        title="",
        target=BootArgument(key=key, after=after),
        old=None,
        new=value,
        status="change",
        phase=Phase.BOOT,
        disturbance="reboot",
        reason="",
        verification="",
        risk="",
        source="",
    )


@pytest.mark.parametrize(
    ("line", "lacking"),
    [
        (OURS, []),
        (f"ro {OURS} quiet", []),
        ("ro quiet", ["isolcpus=managed_irq,2-3", "rcu_nocb_poll", "skew_tick=1", "default_hugepagesz=2M"]),
        (OURS.replace("2-3", "2"), ["isolcpus=managed_irq,2-3"]),
        (f"{OURS} isolcpus=7", ["isolcpus=managed_irq,2-3"]),  # the last one counts for the kernel
        (f"{OURS} nosmt", ["(no nosmt)"]),
        (OURS.replace(" hugepagesz=2M", " hugepagesz=1G"), ["hugepagesz=2M hugepages=0:64,1:256"]),
        (f"{OURS} hugepagesz=1G hugepages=2", []),
    ],
)
def test_missing_names_the_arguments_that_a_line_lacks(line: str, lacking: list[str]) -> None:
    assert missing(ARGUMENTS, line)[: len(lacking) or None] == lacking


GRUB_CFG = """
### BEGIN /etc/grub.d/00_header ###
set default="0"
### END /etc/grub.d/00_header ###
### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-46f7' {
\tlinux\t/boot/vmlinuz-6.12-rt root=UUID=46f7 ro  quiet nohz_full=2
\tinitrd\t/boot/initrd.img-6.12-rt
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-46f7' {
\tmenuentry 'Debian, with Linux 6.12-rt' --class debian $menuentry_id_option 'gnulinux-6.12-rt-advanced-46f7' {
\t\techo\t'Loading Linux 6.12-rt ...'
\t\tlinux\t/boot/vmlinuz-6.12-rt root=UUID=46f7 ro  quiet nohz_full=2
\t}
\tmenuentry 'Debian, with Linux 6.12-rt (recovery mode)' $menuentry_id_option 'gnulinux-6.12-rt-recovery-46f7' {
\t\tlinux\t/boot/vmlinuz-6.12-rt root=UUID=46f7 ro single
\t}
}
### END /etc/grub.d/10_linux ###
### BEGIN /etc/grub.d/40_custom ###
menuentry 'mine' { linux /boot/vmlinuz-old ro }
### END /etc/grub.d/40_custom ###
"""


def test_every_entry_of_ours_is_seen_but_those_for_recovery_and_those_of_others() -> None:
    found = grubcfg.entries(GRUB_CFG)
    assert [entry["id"] for entry in found] == ["simple-46f7", "6.12-rt-advanced-46f7"]
    assert {entry["arguments"] for entry in found} == {"root=UUID=46f7 ro quiet nohz_full=2"}


HEADER = """if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
else
   set default="%s"
fi
"""
RELEASE = "6.12.117+deb12-rt-amd64"


@pytest.mark.parametrize(
    ("default", "kernel"),
    [
        ("0", "6.12-rt"),
        (f"gnulinux-advanced-46f7-ab>gnulinux-{RELEASE}-advanced-46f7-ab", RELEASE),
        ("1>2", None),
        ("${saved_entry}", None),
        ("Debian GNU/Linux", None),
    ],
)
def test_the_kernel_that_the_next_boot_brings(default: str, kernel: str | None) -> None:
    assert grubcfg.default_kernel(HEADER % default + GRUB_CFG.replace('set default="0"\n', "")) == kernel


def test_no_default_at_all() -> None:
    assert grubcfg.default_kernel("") is None


def test_another_boot_loader_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    step = {"kind": "boot", "arguments": ARGUMENTS}
    with pytest.raises(StepFailed, match="no update-grub"):
        write.apply_step(step, "0" * 64, dry_run=True, root=str(tmp_path))
    with pytest.raises(StepFailed, match="no update-grub"):
        write.apply_step(step, "0" * 64, root=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_grub_that_does_not_read_drop_ins_is_refused(tmp_path: Path) -> None:
    (tmp_path / "usr/sbin").mkdir(parents=True)
    (tmp_path / "usr/sbin/update-grub").touch(0o755)
    (tmp_path / "usr/sbin/grub-mkconfig").write_text("#!/bin/sh\n. /etc/default/grub\n")
    with pytest.raises(StepFailed, match=r"no update-grub that reads /etc/default/grub\.d"):
        boot.snapshot({"kind": "boot", "arguments": ARGUMENTS}, str(tmp_path))


def test_on_a_big_machine_with_scattered_siblings_the_plan_is_packed_and_fits_everywhere() -> None:
    """256 CPUs: lists in the shortest form, and all of ours together leave most of GRUB's 1024 bytes to others."""
    from evenkeel.documents.cpuset import format_cpus, parse_cpus
    from evenkeel.plan import make_plan
    from tests.plan.factories import make_facts, make_site

    facts = make_facts(sockets=2, cores=64, threads=2, interleaved=True, node_bytes=64 << 30)
    host = make_plan(make_site(), {"cell": facts}).hosts[0]
    found = [setting for setting in host.settings if isinstance(setting.target, BootArgument) and setting.new]
    lists = 0
    for setting in found:
        assert isinstance(setting.target, BootArgument)
        if setting.target.key in ("isolcpus", "nohz_full", "rcu_nocbs", "irqaffinity"):
            cpus = (setting.new or "").removeprefix("managed_irq,").removeprefix("domain,")
            assert format_cpus(parse_cpus(cpus)) == cpus
            lists += 1
    assert lists >= 3
    line = command_line("", found)
    require_short(line, "/vmlinuz", "this machine")
    assert len(line) < 512
