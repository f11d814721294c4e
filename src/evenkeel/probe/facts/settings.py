"""The files that a rule may set or check, with what they hold now.

The list is the catalogue of reference/host-tuning.md §2.3 and §2.4 as paths; a rule about a file that is not here has
nothing to compare with.  Paths are those under which a rule writes: /sys/devices/virtual/workqueue, not the link in
/sys/bus/workqueue/devices.  A path that the machine lacks is left out.
"""

from __future__ import annotations

from evenkeel.probe.facts.root import Root

#: Folder of /proc/sys -> names in it.
_SYSCTLS = {
    "kernel": """
        sched_rt_runtime_us sched_rt_period_us timer_migration numa_balancing sched_autogroup_enabled
        watchdog nmi_watchdog soft_watchdog watchdog_cpumask watchdog_thresh hung_task_timeout_secs
        printk perf_cpu_time_max_percent
    """,
    "vm": """
        stat_interval compaction_proactiveness compact_unevictable_allowed swappiness zone_reclaim_mode
        dirty_ratio dirty_background_ratio nr_hugepages nr_overcommit_hugepages hugetlb_shm_group overcommit_memory
    """,
    "net/core": "rps_default_mask busy_poll busy_read netdev_budget netdev_budget_usecs",
}

_FILES = (
    "/sys/devices/system/cpu/isolated",
    "/sys/devices/system/cpu/nohz_full",
    "/sys/devices/system/cpu/smt/control",
    "/sys/devices/system/cpu/smt/active",
    "/sys/devices/system/cpu/cpufreq/boost",
    "/sys/devices/system/cpu/intel_pstate/status",
    "/sys/devices/system/cpu/intel_pstate/no_turbo",
    "/sys/devices/system/cpu/amd_pstate/status",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "/sys/devices/system/machinecheck/machinecheck0/ignore_ce",  # one value for the machine, shown for each CPU
    "/sys/devices/virtual/workqueue/cpumask",
    "/sys/devices/virtual/workqueue/cpumask_isolated",
    "/sys/devices/virtual/workqueue/cpumask_requested",
    "/sys/devices/virtual/workqueue/writeback/cpumask",
    "/sys/devices/virtual/workqueue/writeback/nice",
    "/sys/fs/resctrl/schemata",
    "/sys/fs/cgroup/cpuset.cpus.isolated",
    "/sys/fs/cgroup/cgroup.subtree_control",
    "/sys/kernel/mm/ksm/run",
    "/sys/kernel/mm/ksm/merge_across_nodes",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/transparent_hugepage/defrag",
    "/proc/irq/default_smp_affinity",
    "/etc/default/grub",
    "/etc/default/irqbalance",
    "/etc/sysconfig/irqbalance",
    "/etc/kernel/cmdline",
    "/etc/tuned/active_profile",
)

#: Modules whose every parameter a rule may look at.
_MODULES = ("kvm", "kvm_intel", "kvm_amd", "rcutree", "rcupdate", "nvme", "nvme_core", "intel_idle", "processor")


def read_settings(root: Root) -> dict[str, str]:
    """Path -> content without the trailing newline."""
    found: dict[str, str] = {}

    def read(path: str) -> None:
        content = root.read(path)
        if content is not None:
            found[path] = content

    for folder, names in _SYSCTLS.items():
        for name in names.split():
            read("/proc/sys/%s/%s" % (folder, name))
    for path in _FILES:
        read(path)
    for name in root.listdir("/etc/default/grub.d"):
        if name.endswith(".cfg"):  # the only ones that grub-mkconfig sources
            read("/etc/default/grub.d/" + name)
    for module in _MODULES:
        folder = "/sys/module/%s/parameters" % module
        for name in root.listdir(folder):
            read("%s/%s" % (folder, name))
    for path in _huge_pages(root) + _per_cpu(root) + _per_queue(root):
        read(path)
    return found


def _huge_pages(root: Root) -> list[str]:
    """The pools of each node, and those of the whole machine, which spread evenly what is written to them."""
    nodes = root.numbered("/sys/devices/system/node", "node")
    paths = []
    for folder in ["/sys/kernel/mm/hugepages"] + ["/sys/devices/system/node/node%d/hugepages" % node for node in nodes]:
        paths += ["%s/%s/nr_hugepages" % (folder, pool) for pool in root.listdir(folder)]
    return paths


def _per_cpu(root: Root) -> list[str]:
    """Two or three files a CPU, no more: a server has hundreds of CPUs."""
    folder = "/sys/devices/system/cpu"
    paths = []
    for cpu in root.numbered(folder, "cpu"):
        paths.append("%s/cpu%d/power/pm_qos_resume_latency_us" % (folder, cpu))
    for policy in root.numbered(folder + "/cpufreq", "policy"):
        here = "%s/cpufreq/policy%d" % (folder, policy)
        paths += [here + "/scaling_governor", here + "/energy_performance_preference"]
    servers = "/sys/kernel/debug/sched/fair_server"  # since 6.12; debugfs, so root only
    for cpu in root.numbered(servers, "cpu"):
        paths += ["%s/cpu%d/runtime" % (servers, cpu), "%s/cpu%d/period" % (servers, cpu)]
    return paths


def _per_queue(root: Root) -> list[str]:
    """Receive and transmit masks of the interfaces that are devices (not of bridges, taps and the like)."""
    paths = []
    for name in root.listdir("/sys/class/net"):
        if root.link_target("/sys/class/net/%s/device" % name) is None:
            continue
        folder = "/sys/class/net/%s/queues" % name
        for queue in root.listdir(folder):
            paths.append("%s/%s/%s" % (folder, queue, "rps_cpus" if queue.startswith("rx-") else "xps_cpus"))
    return paths
