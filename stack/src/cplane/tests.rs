//! Tests of the control-plane table: one host with three interfaces.
//!
//! eth0 (2): 198.18.0.1/24, 2001:db8::1/64, fe80::1/64; default by 198.18.0.254; four queue pairs
//! eth1 (3): 198.18.1.1/24; no backend
//! lo (1)

use super::*;
use crate::types::SocketAddress;
use proptest::prelude::*;
use std::boxed::Box;
use std::net::IpAddr;
use std::vec::Vec;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn ip(text: &str) -> IpAddress {
    text.parse::<IpAddr>().unwrap().into()
}

fn empty() -> Box<Table> {
    Box::new(Table::new_zeroed())
}

fn neighbour(address: &str, ifindex: u32, state: u8) -> Neighbour {
    let mut mac = [2; 6];
    mac[5] = state;
    Neighbour {
        ip: ip(address),
        ifindex,
        mac,
        state,
        reserved: 0,
        spare: 0,
        updated_ns: 1,
    }
}

fn v6(text: &str) -> [u8; 16] {
    ip(text).0
}

#[expect(clippy::too_many_lines, reason = "the tables of a host")]
fn host() -> Box<Table> {
    let mut table = empty();
    let up = Link::UP | Link::RUNNING;
    for (ifindex, flags, queue_pairs) in [(1, up | Link::LOOPBACK, 0), (2, up, 4), (3, up, 0)] {
        let link = Link {
            ifindex,
            flags,
            mac: MAC,
            mtu: 1500,
            first_queue_pair: 8,
            queue_pairs,
            reserved: 0,
        };
        assert!(table.insert_link(&link));
    }
    for address in [
        Address::v4([127, 0, 0, 1], 8, 1),
        Address::v4([198, 18, 0, 1], 24, 2),
        Address::v4([198, 18, 1, 1], 24, 3),
        Address::v6(v6("2001:db8::1"), 64, 2),
        Address::v6(v6("fe80::1"), 64, 2),
    ] {
        assert!(table.insert_address(&address));
    }
    let local = Route {
        kind: route_type::LOCAL,
        ..Route::v4([198, 18, 0, 77], 32, [0; 4], 1)
    };
    let blackhole = Route {
        kind: 6,
        ..Route::v4([10, 0, 0, 0], 8, [0; 4], 0)
    };
    let two = Route {
        flags: Route::MULTIPATH,
        ..Route::v4([11, 0, 0, 0], 8, [0; 4], 2)
    };
    let narrow = Route {
        mtu: 1400,
        ..Route::v4([12, 0, 0, 0], 8, [198, 18, 0, 254], 2)
    };
    for route in [
        Route::v4([0; 4], 0, [198, 18, 0, 254], 2),
        Route::v4([198, 18, 0, 0], 24, [0; 4], 2),
        Route::v4([198, 18, 1, 0], 24, [0; 4], 3),
        Route::v6(v6("2001:db8::"), 64, [0; 16], 2),
        Route::v6(v6("fe80::"), 64, [0; 16], 2),
        Route::v6([0; 16], 0, v6("fe80::fe"), 2),
        local,
        blackhole,
        two,
        narrow,
    ] {
        assert!(table.insert_route(&route));
    }
    for (address, state) in [
        ("198.18.0.2", neighbour_state::REACHABLE),
        ("198.18.0.3", neighbour_state::STALE),
        ("198.18.0.4", neighbour_state::FAILED),
        ("198.18.0.5", neighbour_state::INCOMPLETE),
        ("198.18.0.254", neighbour_state::PERMANENT),
        ("2001:db8::2", neighbour_state::DELAY),
        ("fe80::fe", neighbour_state::PROBE),
    ] {
        assert!(table.insert_neighbour(&neighbour(address, 2, state)));
    }
    table
}

fn ask(table: &Table, to: &str) -> Lookup {
    lookup(table, ip(to), IpAddress::UNSPECIFIED, 0, 0)
}

#[track_caller]
fn hop(table: &Table, to: &str) -> NextHop {
    match ask(table, to) {
        Lookup::Via(hop) => hop,
        other => panic!("{to}: {other:?}"),
    }
}

#[track_caller]
fn kernel(table: &Table, to: &str, reason: CplaneReason) {
    assert_eq!(ask(table, to), Lookup::Kernel(reason), "{to}");
}

#[test]
fn direct_gateway_and_ipv6_next_hops() {
    let table = host();
    let direct = hop(&table, "198.18.0.2");
    assert_eq!(
        (direct.mac[5], direct.source),
        (neighbour_state::REACHABLE, ip("198.18.0.1"))
    );
    assert_eq!(
        (direct.ifindex, direct.mtu, direct.source_mac),
        (2, 1500, MAC)
    );
    assert_eq!(
        (direct.queue_pair, direct.generation),
        (8, table.generation)
    );
    assert!(direct.is_confirmed());
    assert!(!hop(&table, "198.18.0.3").is_confirmed());
    assert_eq!(hop(&table, "8.8.8.8").mac[5], neighbour_state::PERMANENT);
    assert_eq!(hop(&table, "12.1.1.1").mtu, 1400);
    let direct = hop(&table, "2001:db8::2");
    assert_eq!(
        (direct.mac[5], direct.source),
        (neighbour_state::DELAY, ip("2001:db8::1"))
    );
    let far = hop(&table, "2001:4860::1");
    assert_eq!(
        (far.mac[5], far.source),
        (neighbour_state::PROBE, ip("2001:db8::1"))
    );
}

#[test]
fn everything_else_is_the_kernels() {
    let table = host();
    kernel(&table, "::", CplaneReason::Unspecified);
    kernel(&table, "127.0.0.1", CplaneReason::Loopback);
    kernel(&table, "::1", CplaneReason::Loopback);
    kernel(&table, "224.0.0.251", CplaneReason::Multicast);
    kernel(&table, "ff02::1", CplaneReason::Multicast);
    kernel(&table, "255.255.255.255", CplaneReason::Broadcast);
    kernel(&table, "198.18.0.255", CplaneReason::Broadcast);
    kernel(&table, "198.18.1.255", CplaneReason::Broadcast);
    kernel(&table, "198.18.0.4", CplaneReason::NeighbourUnusable);
    let missing = |to: &str| unresolved(&table, ip(to), IpAddress::UNSPECIFIED, 0);
    assert_eq!(missing("198.18.0.2"), None);
    for to in ["198.18.0.4", "198.18.0.6"] {
        assert_eq!(missing(to).map(|(target, _)| target), Some(ip(to)));
    }
    kernel(&table, "198.18.0.5", CplaneReason::NeighbourUnusable);
    kernel(&table, "198.18.0.6", CplaneReason::NeighbourMissing);
    kernel(&table, "198.18.1.6", CplaneReason::NoBackend);
    kernel(&table, "10.1.1.1", CplaneReason::RouteType);
    kernel(&table, "11.1.1.1", CplaneReason::Multipath);
    kernel(&table, "fe80::2", CplaneReason::Scope);
    assert_eq!(ask(&table, "198.18.0.1"), Lookup::Local);
    assert_eq!(ask(&table, "198.18.0.77"), Lookup::Local);
    assert_eq!(ask(&table, "fe80::1"), Lookup::Kernel(CplaneReason::Scope));
    kernel(&empty(), "8.8.8.8", CplaneReason::NoRoute);
}

#[test]
fn bound_address_and_interface_are_respected() {
    let table = host();
    let to = ip("198.18.0.2");
    let found = lookup(&table, to, ip("198.18.1.1"), 0, 0);
    assert!(matches!(found, Lookup::Via(hop) if hop.source == ip("198.18.1.1")));
    let found = lookup(&table, to, ip("2001:db8::1"), 0, 0);
    assert_eq!(found, Lookup::Kernel(CplaneReason::Family));
    let found = lookup(&table, to, IpAddress::UNSPECIFIED, 3, 0);
    assert_eq!(found, Lookup::Kernel(CplaneReason::NoRoute));
    let gateway = ip("fe80::fe");
    let found = lookup(&table, gateway, IpAddress::UNSPECIFIED, 2, 0);
    assert!(matches!(found, Lookup::Via(hop) if hop.source == ip("fe80::1")));
}

#[test]
fn flags_and_states_turn_everything_over_to_the_kernel() {
    for (reason, set) in [
        (
            CplaneReason::Overflow,
            (|t| t.overflow = 1) as fn(&mut Table),
        ),
        (CplaneReason::PolicyRules, |t| t.policy_rules = 1),
        (CplaneReason::LinkDown, |t| t.links[1].flags = Link::UP),
        (CplaneReason::NoBackend, |t| t.set_queue_pairs(2, 0, 0)),
        (CplaneReason::NoBackend, |t| t.remove_link(2)),
        (CplaneReason::NeighbourMissing, |t| {
            t.remove_neighbour(&ip("198.18.0.2"), 2)
        }),
        (CplaneReason::NoSource, |t| t.addresses[1].not_a_source = 1),
        (CplaneReason::NoRoute, Table::clear_routes),
    ] {
        let mut table = host();
        let before = table.generation;
        set(&mut table);
        table.bump();
        assert!(table.generation > before);
        kernel(&table, "198.18.0.2", reason);
        assert!(reason.sentence().ends_with('.'));
    }
}

#[test]
fn metric_decides_between_equal_prefixes() {
    let mut table = host();
    let worse = Route {
        metric: 9,
        ..Route::v4([198, 18, 0, 0], 24, [198, 18, 0, 254], 2)
    };
    table.insert_route(&worse);
    assert_eq!(hop(&table, "198.18.0.2").mac[5], neighbour_state::REACHABLE);
}

#[test]
fn flows_spread_over_the_queue_pairs() {
    let table = host();
    let mut counts = [0; 4];
    for port in 1..=4000 {
        let remote = SocketAddress::new(ip("198.18.0.2"), port);
        let hash = flow_hash(&SocketAddress::new(ip("198.18.0.1"), 5000), &remote);
        match lookup(&table, remote.ip, IpAddress::UNSPECIFIED, 0, hash) {
            Lookup::Via(hop) => counts[usize::from(hop.queue_pair) - 8] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(
        counts.iter().all(|count| (800..1200).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn overflow_is_noted_and_neighbours_may_be_replaced() {
    let mut table = empty();
    for number in 0..ROUTES as u32 + 1 {
        let [_, a, b, c] = number.to_be_bytes();
        let stored = table.insert_route(&Route::v4([a, b, c, 0], 24, [0; 4], 1));
        assert_eq!(stored, number < ROUTES as u32);
    }
    assert_eq!(table.overflow, 1);
    table.clear();
    assert_eq!((table.overflow, table.route_count), (0, 0));
    // Forever new neighbours, old ones removed: there is always room again.
    for number in 0..20_000u32 {
        let [a, b, c, d] = number.to_be_bytes();
        let mut entry = neighbour("1.1.1.1", 2, neighbour_state::STALE);
        entry.ip = IpAddress::mapped([a, b, c, d]);
        assert!(table.insert_neighbour(&entry), "{number}");
        assert!(table.neighbour(&entry.ip, 2).is_some());
        if number >= 1000 {
            let [a, b, c, d] = (number - 1000).to_be_bytes();
            table.remove_neighbour(&IpAddress::mapped([a, b, c, d]), 2);
            assert!(
                table
                    .neighbour(&IpAddress::mapped([a, b, c, d]), 2)
                    .is_none()
            );
        }
    }
}

proptest! {
    #[test]
    fn longest_prefix_agrees_with_a_plain_search(
        routes in proptest::collection::vec((any::<u32>(), 0u8..=32, 0u32..4), 1..60),
        targets in proptest::collection::vec(
            (any::<u32>(), any::<proptest::sample::Index>()),
            1..30,
        ),
    ) {
        let mut table = empty();
        for (number, (dst, len, metric)) in (100u32..).zip(&routes) {
            let masked = if *len == 0 { 0 } else { dst >> (32 - len) << (32 - len) };
            let route = Route::v4(masked.to_be_bytes(), *len, [0; 4], number);
            table.insert_route(&Route { metric: *metric, ..route });
        }
        for (noise, pick) in targets {
            // Near a route, so that something matches.
            let (dst, len, _) = routes[pick.index(routes.len())];
            let target = if len == 32 { dst } else { dst & !(u32::MAX >> len) | noise >> len };
            let covers = |(dst, len, _): &(u32, u8, u32)| {
                *len == 0 || dst >> (32 - len) == target >> (32 - len)
            };
            let best = routes.iter().filter(|r| covers(r)).map(|r| (r.1, !r.2)).max().unwrap();
            let address = IpAddress::mapped(target.to_be_bytes());
            let found = table
                .routes()
                .find(|route| address.in_prefix(&route.dst, route.prefix_len))
                .unwrap();
            prop_assert_eq!((found.prefix_len - 96, !found.metric), best);
        }
    }

    #[test]
    fn arbitrary_tables_never_panic(
        seed: u64,
        to in prop_oneof![
            any::<[u8; 16]>().prop_map(IpAddress),
            any::<[u8; 4]>().prop_map(IpAddress::mapped),
        ],
        ifindex in 0u32..3,
        hash: u32,
    ) {
        let mut table = empty();
        let mut word = seed | 1;
        for byte in table.as_mut_bytes() {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            *byte = (word >> 60) as u8;
        }
        let _ = lookup(&table, to, IpAddress::UNSPECIFIED, ifindex, hash);
        (table.overflow, table.policy_rules) = (0, 0);
        let _ = lookup(&table, to, IpAddress::UNSPECIFIED, ifindex, hash);
        let all: Vec<_> = table.routes().chain(table.routes()).copied().take(9).collect();
        all.iter().for_each(|route| { table.insert_route(route); });
        table.insert_address(&Address::v4([1, 2, 3, 4], 24, 1));
        table.insert_neighbour(&neighbour("1.2.3.4", 1, 2));
        table.remove_neighbour(&to, ifindex);
    }
}
