"""The six scenes that placing must master, from the NFV pair to hosts of three generations."""

from __future__ import annotations

from typing import Any

from bench import fleets

from evenkeel.documents.fleet import CellRequest, FleetHost, FunctionRequest, Request
from evenkeel.plan.fleet.site import place_all
from tests.plan.fleet.test_moves import board, checked, isolated, seated

GIB = 1 << 30


def test_an_nfv_pair_is_apart_and_each_has_both_wires() -> None:
    wires = (FunctionRequest(type="vf", network="blue"), FunctionRequest(type="vf", network="red"))
    pair = [isolated(name, 8, 8, apart=("upf",), apart_racks=("upf",), functions=wires) for name in ("upf-a", "upf-b")]
    hosts = [fleets.host(index, hosts_per_rack=2) for index in range(4)]
    plan = checked(place_all(board(hosts, pair)))
    racks = {host.name: host.rack for host in hosts}
    assert len({racks[seat.host] for seat in plan.seats}) == 2
    functions = {one.address: one for one in hosts[0].functions}
    for seat in plan.seats:
        assert {functions[address].network for address in seat.functions} == {"blue", "red"}
        assert {functions[address].node for address in seat.functions} == set(seat.nodes)


def test_sap_hana_takes_four_sockets_with_all_their_memory() -> None:
    nodes = tuple(fleets.node(n, first=n * 28, cores=28, nodes=4, sockets=4, memory_bytes=1500 * GIB) for n in range(4))
    host = FleetHost(name="hana", features=("smt",), nodes=nodes)
    cells = (CellRequest(vcpus=54, memory_bytes=1400 * GIB),) * 4
    hana = Request(name="hdb", cells=cells, threads="whole", pages=GIB)
    plan = checked(place_all(board([*fleets.fleet(2), host], [hana])))
    (seat,) = plan.seats
    assert (seat.host, sorted(seat.nodes)) == ("hana", [0, 1, 2, 3])
    assert all(len(cpus) == 54 for cpus in seat.cpus)
    refused = checked(place_all(board(list(fleets.fleet(2)), [hana]))).refused[0]
    assert any("1400GiB" in one for one in refused.reasons + tuple(cut.reason for cut in refused.cuts))


def test_forty_plc_guests_have_a_core_each() -> None:
    plan = checked(place_all(board(list(fleets.fleet(1)), [isolated(f"plc{n:02}", 1) for n in range(40)])))
    cores = {core for node in plan.hosts[0].nodes for core in node.cores}
    taken = [next(core for core in cores if seat.cpus[0][0] in core) for seat in plan.seats]
    assert len(set(taken)) == 40
    assert all(seat.idle == core - {seat.cpus[0][0]} for seat, core in zip(plan.seats, taken, strict=True))


def test_a_gpu_on_the_far_node_draws_its_guest_there() -> None:
    wanted: dict[str, Any] = {"functions": (FunctionRequest(pool="gpu"),)}
    near = checked(place_all(board(list(fleets.fleet(1)), [isolated("near", 4, **wanted)])))
    assert near.seats[0].nodes == (1,)
    # Node 1 is full: only a guest that prefers to be near still has a place.
    soft = isolated("soft", 4, functions=(FunctionRequest(pool="gpu", near="preferred"),))
    hosts = [host.model_copy(update={"nodes": (host.nodes[0], _without_cores(host))}) for host in fleets.fleet(1)]
    plan = checked(place_all(board(hosts, [soft, isolated("hard", 4, **wanted)])))
    assert [(seat.name, seat.nodes) for seat in plan.seats] == [("soft", (0,))]
    assert plan.refused[0].name == "hard"
    assert "at the same time" in plan.refused[0].reasons[0]


def _without_cores(host: FleetHost) -> Any:
    node = host.nodes[1]
    return node.model_copy(update={"busy": node.cpus - node.housekeeping})


def test_a_half_full_fleet_survives_the_loss_of_a_host() -> None:
    hosts = [fleets.host(index) for index in range(4)]
    guests = [guest for guest in fleets.demand(34, 3) if guest.name.split("-")[1] != "gpu"]
    first = checked(place_all(board(hosts, guests)))
    assert not first.refused
    lost = [host.model_copy(update={"drained": host.name == "h00002"}) for host in hosts]
    after = checked(place_all(board(lost, seated(first))))
    assert not after.refused
    assert {move.name for move in after.moves} == {seat.name for seat in first.seats if seat.host == "h00002"}
    before = {seat.name: (seat.host, seat.cpus) for seat in first.seats}
    moved = {move.name for move in after.moves}
    assert all((seat.host, seat.cpus) == before[seat.name] for seat in after.seats if seat.name not in moved)


def test_hosts_of_three_generations_take_what_suits_them() -> None:
    old = FleetHost(
        name="old",
        nodes=(fleets.node(0, first=0, cores=8, threads=1, nodes=1, pages={fleets.HUGE: 32 * GIB}),),
    )
    clustered = FleetHost(  # two sockets, each cut into two nodes, an L3 for every four cores
        name="new",
        features=("avx512f", "smt"),
        nodes=tuple(fleets.node(n, first=n * 16, cores=16, nodes=4, sockets=2, l3_cores=4) for n in range(4)),
    )
    arm = FleetHost(name="arm", architecture="aarch64", nodes=(fleets.node(0, first=0, cores=64, threads=1, nodes=1),))
    guests = [
        isolated("plain", 4, pages="huge-largest"),
        isolated("vector", 3, features=("avx512f",), l3="require"),
        isolated("arm", 40, architecture="aarch64"),
        isolated("wide", 1, cells=[{"vcpus": 8, "memory_bytes": 8 * GIB}] * 2, max_distance=12, features=("smt",)),
    ]
    plan = checked(place_all(board([old, clustered, arm], guests)))
    where = {seat.name: seat.host for seat in plan.seats}
    assert (where["vector"], where["arm"], where["wide"]) == ("new", "arm", "new")
    assert set(where) == {"plain", "vector", "arm", "wide"}
    pages = {seat.name: seat.page_bytes for seat in plan.seats}
    assert pages["plain"] == (fleets.HUGE if where["plain"] == "old" else GIB)
    assert sorted(next(seat.nodes for seat in plan.seats if seat.name == "wide")) in ([0, 1], [2, 3])
