//! Messages as the kernel sends them.

use bypass_backends::netlink::{attribute, messages, request};
use bypass_stack::IpAddress;
use bypass_stack::cplane::{Route, route_type};

use crate::source::rtnetlink::{
    LinkInfo, RouteInfo, default_rule, dump_request, kind, parse_address, parse_neighbour,
    parse_route, use_request,
};

/// A message: type, fixed part, attributes.
fn message(kind: u16, fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let attributes = attributes
        .iter()
        .flat_map(|(kind, value)| attribute(*kind, value));
    let body: Vec<u8> = fixed.iter().copied().chain(attributes).collect();
    request(kind, 0, 0, &body)
}

fn body(bytes: &[u8]) -> &[u8] {
    messages(bytes).next().expect("message").body
}

#[test]
fn a_request_to_use_a_neighbour_reads_as_one() {
    for target in ["198.18.0.9", "fd00::9"] {
        let target: IpAddress = target.parse::<std::net::IpAddr>().expect(target).into();
        let bytes = use_request(target, 7, 5);
        let message = messages(&bytes).next().expect("whole");
        assert_eq!((message.kind, message.sequence), (kind::NEW_NEIGHBOUR, 5));
        let read = parse_neighbour(message.body).expect("a neighbour");
        assert_eq!((read.ip, read.ifindex), (target, 7));
    }
}

/// `ip link show` of a veth, as captured.
fn veth() -> Vec<u8> {
    let mut fixed = vec![0, 0, 1, 0];
    fixed.extend_from_slice(&7_u32.to_ne_bytes());
    fixed.extend_from_slice(&0x0001_1043_u32.to_ne_bytes());
    fixed.extend_from_slice(&[0; 4]);
    let info = [9, 0, 1, 0, b'v', b'e', b't', b'h', 0, 0, 0, 0];
    let xdp = [5, 0, 2, 0, 1, 0, 0, 0, 8, 0, 4, 0, 42, 0, 0, 0];
    message(
        kind::NEW_LINK,
        &fixed,
        &[
            (3, b"byp-s\0"),
            (4, &1500_u32.to_ne_bytes()),
            (1, &[2, 0, 0, 0, 0, 1]),
            (18, &info),
            (32, &4_u32.to_ne_bytes()),
            // With the nested flag, as the kernel sets it on some.
            (43 | 0x8000, &xdp),
            (999, b"unknown"),
        ],
    )
}

fn routes() -> Vec<(Vec<u8>, Option<RouteInfo>)> {
    let v4 = |dst_len, table, kind| [2, dst_len, 0, 0, table, 2, 0, kind, 0, 0, 0, 0];
    let oif = 7_u32.to_ne_bytes();
    let gateway = Route::v4([0; 4], 0, [198, 18, 0, 254], 7);
    let connected = Route {
        metric: 5,
        ..Route::v4([198, 18, 0, 0], 24, [0; 4], 7)
    };
    let metric = 5_u32.to_ne_bytes();
    let several = Route {
        flags: Route::MULTIPATH,
        ..Route::v4([10, 0, 0, 0], 8, [0; 4], 0)
    };
    let route =
        |fixed: [u8; 12], attributes: &[(u16, &[u8])]| message(kind::NEW_ROUTE, &fixed, attributes);
    vec![
        (
            route(v4(0, 254, 1), &[(5, &[198, 18, 0, 254]), (4, &oif)]),
            Some(RouteInfo::Use(gateway)),
        ),
        (
            route(
                v4(24, 254, 1),
                &[(1, &[198, 18, 0, 0]), (4, &oif), (6, &metric)],
            ),
            Some(RouteInfo::Use(connected)),
        ),
        (
            route(v4(8, 254, 1), &[(1, &[10, 0, 0, 0]), (9, &[0; 16])]),
            Some(RouteInfo::Use(several)),
        ),
        // Another table, also when its number needs the attribute.
        (
            route(v4(24, 100, 1), &[(1, &[10, 0, 0, 0])]),
            Some(RouteInfo::Skip),
        ),
        (
            route(v4(24, 254, 1), &[(15, &1000_u32.to_ne_bytes())]),
            Some(RouteInfo::Skip),
        ),
        // A local prefix comes before everything in the main table.
        (
            route(v4(8, 255, 2), &[(1, &[10, 0, 0, 0]), (4, &oif)]),
            Some(RouteInfo::Inexpressible),
        ),
        (
            route([2, 24, 0, 16, 254, 2, 0, 1, 0, 0, 0, 0], &[]),
            Some(RouteInfo::Inexpressible),
        ),
        (route([2, 33, 0, 0, 254, 2, 0, 1, 0, 0, 0, 0], &[]), None),
        (route([7, 24, 0, 0, 254, 2, 0, 1, 0, 0, 0, 0], &[]), None),
    ]
}

#[test]
fn links() {
    let bytes = veth();
    let link = LinkInfo::parse(body(&bytes)).expect("link");
    assert_eq!(
        (link.ifindex, link.mtu, link.rx_queues, link.xdp_program),
        (7, 1500, 4, 42)
    );
    assert_eq!((link.name.as_str(), link.kind.as_str()), ("byp-s", "veth"));
    assert_eq!(link.mac, [2, 0, 0, 0, 0, 1]);
    assert!(link.is_up() && !link.is_loopback());
}

#[test]
fn addresses() {
    let fixed = [2, 24, 0x80, 0, 7, 0, 0, 0];
    let plain = message(
        kind::NEW_ADDRESS,
        &fixed,
        &[(1, &[198, 18, 0, 1]), (2, &[198, 18, 0, 1])],
    );
    let address = parse_address(body(&plain)).expect("address");
    assert_eq!(address.ip, IpAddress::from_v4([198, 18, 0, 1]));
    assert_eq!(
        (address.ifindex, address.prefix_len, address.not_a_source),
        (7, 120, 0)
    );
    let peer = message(
        kind::NEW_ADDRESS,
        &fixed,
        &[(1, &[198, 18, 0, 2]), (2, &[198, 18, 0, 1])],
    );
    assert_eq!(parse_address(body(&peer)).expect("address").prefix_len, 128);
    let tentative = message(
        kind::NEW_ADDRESS,
        &[10, 64, 0, 0, 7, 0, 0, 0],
        &[(1, &[0xfd; 16]), (8, &0x40_u32.to_ne_bytes())],
    );
    assert_eq!(
        parse_address(body(&tentative))
            .expect("address")
            .not_a_source,
        1
    );
}

#[test]
fn routes_of_the_tables_that_count() {
    for (bytes, expected) in routes() {
        assert_eq!(parse_route(body(&bytes)), expected, "{bytes:?}");
    }
    let link_local = message(
        kind::NEW_ROUTE,
        &[10, 8, 0, 0, 255, 2, 0, route_type::MULTICAST, 0, 0, 0, 0],
        &[(1, &[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])],
    );
    assert!(matches!(
        parse_route(body(&link_local)),
        Some(RouteInfo::Use(_))
    ));
}

#[test]
fn rules() {
    let main = [2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0];
    let number = |value: u32| value.to_ne_bytes();
    let rule = |fixed: [u8; 12], attributes: &[(u16, &[u8])]| {
        default_rule(body(&message(kind::NEW_RULE, &fixed, attributes)))
    };
    let priority = number(32766);
    let none = number(u32::MAX);
    assert_eq!(
        rule(main, &[(15, &number(254)), (6, &priority), (14, &none)]),
        Some(2)
    );
    assert_eq!(
        rule(main, &[(6, &priority), (10, &number(1))]),
        None,
        "a mark"
    );
    assert_eq!(rule(main, &[(6, &number(100))]), None, "another priority");
    assert_eq!(
        rule([2, 8, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0], &[(6, &priority)]),
        None,
        "a prefix"
    );
}

#[test]
fn neighbours() {
    let fixed = [2, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 1];
    let bytes = message(
        kind::NEW_NEIGHBOUR,
        &fixed,
        &[(1, &[198, 18, 0, 2]), (2, &[2, 0, 0, 0, 0, 2])],
    );
    let neighbour = parse_neighbour(body(&bytes)).expect("neighbour");
    assert_eq!((neighbour.state, neighbour.ifindex), (2, 7));
    assert_eq!(neighbour.mac, [2, 0, 0, 0, 0, 2]);
    let mut proxy = fixed;
    proxy[10] = 8;
    assert!(parse_neighbour(body(&message(kind::NEW_NEIGHBOUR, &proxy, &[]))).is_none());
}

#[test]
fn requests_are_whole_messages() {
    for kind in [
        kind::GET_LINK,
        kind::GET_ADDRESS,
        kind::GET_ROUTE,
        kind::GET_RULE,
    ] {
        let bytes = dump_request(kind, 9);
        let request = messages(&bytes).next().expect("message");
        assert_eq!(
            (request.kind, request.sequence, request.flags),
            (kind, 9, 0x301)
        );
        assert_eq!(messages(&bytes).count(), 1);
    }
}
