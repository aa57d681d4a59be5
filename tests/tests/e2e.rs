//! End to end: real programs in namespaces, the kernel on the other end of a veth.
//!
//! `<test>::kernel` proves the test itself; `<test>::shim` runs the program under test with
//! `LD_PRELOAD=libbypass.so`, and proves by the kernel's counters who carried its datagrams and by
//! a look round that nothing is left. The picture is in `tests/e2e/README.md`.

mod e2e {
    pub mod card;
    pub mod clients;
    pub mod crowds;
    pub mod dpdk;
    pub mod endings;
    pub mod engines;
    pub mod faults;
    pub mod floods;
    pub mod groups;
    pub mod handover;
    pub mod harness;
    pub mod jumbo;
    pub mod languages;
    pub mod links;
    pub mod names;
    pub mod processor;
    pub mod programs;
    pub mod reasons;
    pub mod reloads;
    pub mod restarts;
    pub mod returns;
    pub mod rings;
    pub mod rollback;
    pub mod routers;
    pub mod rubbish;
    pub mod rules;
    pub mod soaks;
    pub mod stores;
    pub mod storms;
    pub mod streams;
    pub mod tool;
    pub mod units;
    pub mod vdevs;
    pub mod web;
}

use e2e::harness::{
    Carried, check, check_card, check_dying, check_full, check_in_place, check_late, check_pair,
    check_port, check_spread, check_stamped, check_stamped_late, check_vdev, check_veth,
};
use e2e::{
    card, clients, crowds, dpdk, endings, engines, faults, floods, groups, handover, jumbo,
    languages, links, names, processor, programs, reasons, reloads, restarts, returns, rings,
    rollback, routers, rubbish, rules, soaks, stores, storms, streams, tool, units, vdevs, web,
};

macro_rules! tests {
    ($check:ident: $( $(#[$attribute:meta])* $module:ident::$name:ident: $carried:ident, )+) => {
        $( mod $name {
            use bypass_tests::program::Column;

            #[test]
            $(#[$attribute])*
            fn kernel() {
                super::$check(Column::Native, super::Carried::$carried, super::$module::$name);
            }

            #[test]
            $(#[$attribute])*
            fn shim() {
                super::$check(Column::Shim, super::Carried::$carried, super::$module::$name);
            }
        } )+
    };
}

/// The same where the kernel's column is another test's.
macro_rules! shim_tests {
    ($check:ident: $( $module:ident::$name:ident: $carried:ident, )+) => {
        $( mod $name {
            use bypass_tests::program::Column;

            #[test]
            fn shim() {
                super::$check(Column::Shim, super::Carried::$carried, super::$module::$name);
            }
        } )+
    };
}

tests! {
    check:
    programs::udp_receiver: Bypass,
    programs::udp_receiver_threads: Bypass,
    programs::udp_sender: Any,
    programs::udp_sender_in_batches: Any,
    programs::udp_sender_threads: Any,
    programs::udp_echo: Bypass,
    programs::udp_echo_epoll: Bypass,
    programs::udp_echo_valgrind: Bypass,
    programs::udp_echo_ipv6: Bypass,
    programs::udp_echo_any_address: Bypass,
    programs::udp_echo_two_interfaces: Any,
    programs::sockperf_ping_pong: Bypass,
    programs::sockperf_throughput: Bypass,
    programs::sockperf_recvfrom: Bypass,
    programs::sockperf_select: Bypass,
    programs::sockperf_poll: Bypass,
    programs::sockperf_epoll: Bypass,
    programs::sockperf_client: Bypass,
    programs::sockperf_without_server: Any,
    programs::memcached: Bypass,
    programs::socat_connected: Bypass,
    programs::socat_receiver: Bypass,
    programs::python_asyncio: Bypass,
    programs::python_socketserver: Bypass,
    streams::redis: Segments,
    streams::redis_large_values: Segments,
    streams::redis_own_address: Segments,
    streams::time_wait_followed: Segments,
    streams::neighbour_moves: Segments,
    routers::small_path: Segments,
    routers::no_way: Any,
    streams::last_words: Any,
    engines::lwip: Segments,
    endings::slow_readers: Any,
    endings::slow_enders: Any,
    endings::sockets_without_a_program: Any,
    crowds::too_many_connections: Any,
    crowds::short_of_memory: Any,
    crowds::more_children_than_places: Any,
    crowds::ten_programs: Any,
    units::hardened: Segments,
    units::chrooted: Segments,
    storms::workers_killed: Any,
    storms::daemons_killed: Any,
    storms::anything_killed: Any,
    groups::listeners_come_and_go: Any,
    streams::nginx_files: Segments,
    streams::nginx_keepalive: Segments,
    streams::nginx_close: Segments,
    streams::memcached_threads: Segments,
    streams::python_http_server: Segments,
    streams::python_asyncio_streams: Segments,
    streams::curl_client: Segments,
    streams::unknown_neighbour: Segments,
    streams::iperf3_stream_in: Segments,
    streams::iperf3_stream_out: Segments,
    streams::iperf3_four_streams: Segments,
    streams::iperf3_both_ways: Segments,
    streams::listener_again: Any,
    streams::refused_connections: Any,
    web::apache_prefork: Any,
    clients::apache_bench: Segments,
    clients::wrk: Segments,
    clients::curl_tls: Segments,
    clients::openssl_server: Segments,
    clients::openssl_client: Segments,
    clients::haproxy: Segments,
    clients::postgres_client: Segments,
    clients::postgres_server: Any,
    clients::socat_fork: Segments,
    clients::socat_client: Segments,
    clients::sockperf_tcp: Segments,
    languages::python_uvloop: Segments,
    languages::node_echo: Segments,
    languages::node_http: Segments,
    languages::node_cluster: Any,
    languages::node_cluster_by_turns: Any,
    handover::passed_in_the_middle: Any,
    handover::passed_in_a_burst: Any,
    handover::both_ends: Any,
    handover::executed: Any,
    handover::python_multiprocessing: Any,
    handover::refused: Any,
    reloads::nginx_reloads: Any,
    reloads::nginx_upgrade: Any,
    reloads::nginx_quits: Any,
    reloads::nginx_killed_workers: Any,
    reloads::nginx_rolled_back: Any,
    reloads::haproxy_reloads: Any,
    reloads::haproxy_rolled_back: Any,
    restarts::haproxy_killed_workers: Any,
    restarts::nginx_restarts: Any,
    restarts::nginx_logs: Segments,
    restarts::apache_restarts: Any,
    reloads::apache_reloads: Any,
    reloads::apache_killed_workers: Any,
    reloads::apache_rolled_back: Any,
    reloads::apache_listeners: Any,
    rings::made_first: Any,
    rings::made_of_bound: Any,
    rings::made_of_used: Any,
    rollback::in_turns: Any,
    rollback::with_both_ends: Any,
    rollback::new_connections: Any,
    rollback::waiting_to_be_accepted: Any,
    rollback::of_a_port: Any,
    rollback::of_a_client: Any,
    rollback::of_a_thousand: Any,
    rollback::between_two: Any,
    rollback::of_forked: Any,
    rollback::datagrams: Any,
    returns::from_every_wait: Any,
    returns::under_way: Any,
    returns::both_ways: Any,
    returns::not_taken: Any,
    languages::java_nio: Segments,
    languages::tokio_echo: Segments,
    languages::gunicorn: Segments,
    stores::redis_publish: Segments,
    stores::redis_big_pipeline: Segments,
    stores::redis_snapshot: Segments,
    stores::redis_master: Segments,
    stores::redis_replica: Segments,
    web::nginx_proxy: Segments,
    web::nginx_upload: Segments,
    web::nginx_gzip: Segments,
    web::nginx_https: Segments,
    web::nginx_http2_streams: Segments,
    web::nginx_as_debian_starts_it: Segments,
    programs::cpython_socket_tests: Any,
    programs::cpython_stream_tests: Any,
    names::dnsperf_knot: Bypass,
    names::dnsperf_nsd: Bypass,
    names::dnsperf_unbound: Bypass,
    names::dnsperf_client: Bypass,
    names::curl_through_unbound: Any,
    faults::program_killed: Any,
    faults::daemon_is_no_child: Any,
    faults::unprivileged_with_daemon: Bypass,
    faults::socket_closed_unseen: Any,
    faults::memory_exhausted: Any,
    faults::small_limits: Any,
    rules::bad_configuration: Any,
    rules::kernel_by_rule: Any,
    rules::programs_of_the_kernel: Any,
    rules::rules_of_interfaces: Any,
    rules::rule_of_a_backend: Any,
    rules::rule_of_a_link: Any,
    faults::own_address: Any,
    faults::broadcast: Any,
    faults::interface_down_and_up: Any,
    faults::mtu_changes: Any,
    faults::address_removed: Any,
    rubbish::bad_frames: Any,
    rubbish::daemon_messages: Any,
    rubbish::image_corrupted: Any,
    tool::stats_again: Any,
}

tests! {
    check_veth:
    faults::daemon_killed: Bypass,
    faults::told_again: Bypass,
    links::link_with_delay: Any,
    links::link_with_loss: Any,
    links::link_with_everything: Any,
    links::link_with_iperf3: Any,
    links::link_with_replicas: Any,
    links::link_to_a_sleeper: Any,
    programs::everything_else_is_unaffected: Any,
    faults::unprivileged_without_daemon: Any,
    faults::two_pid_namespaces: Any,
    faults::no_device: Any,
    faults::no_daemon_wanted: Any,
    faults::two_queues: Any,
    reasons::by_variable: Any,
    reasons::by_daemon: Any,
    reasons::setuid_program: Any,
    units::directives: Any,
    tool::exit_codes: Any,
    tool::doctor: Any,
    jumbo::large_frames: Any,
    jumbo::jumbo_frames: Any,
    jumbo::mtu_beyond_chunks: Any,
    card::vlan: Bypass,
    card::by_itself: Any,
    card::without_library: Any,
    card::unknown_layout: Any,
    dpdk::no_plugin: Any,
    dpdk::no_library: Any,
    dpdk::other_version: Any,
    dpdk::unknown_driver: Any,
    dpdk::no_such_device: Any,
    dpdk::no_vfio: Any,
    dpdk::no_huge_pages: Any,
}

/// Scenes that load both processors or measure time: no other may run beside them.
mod alone {
    use super::{Carried, check, floods, groups, processor, programs, rubbish, soaks};

    tests! {
        check:
        programs::iperf3_to_server: Bypass,
        programs::iperf3_from_server: Bypass,
        programs::idle_uses_no_processor: Any,
        processor::idle_connections: Segments,
        processor::daemon_beside_load: Segments,
        floods::half_open: Any,
        soaks::everything_at_once: Any,
        rubbish::flood_to_unread_socket: Any,
        groups::group_comes_and_goes: Bypass,
        groups::group_on_any_address: Bypass,
    }
}

/// On a card by ef_vi, whose library is a stand-in. All of `check`'s run there too, by
/// `cargo xtask test --card`.
mod ef_vi_card {
    use super::{
        Carried, card, check_card, clients, dpdk, faults, handover, languages, names, programs,
        reloads, rollback, stores, streams, web,
    };

    tests! {
        check_card:
        programs::udp_echo: Bypass,
        programs::udp_echo_ipv6: Bypass,
        programs::sockperf_ping_pong: Bypass,
        streams::redis: Segments,
        streams::nginx_files: Segments,
        streams::curl_client: Segments,
        dpdk::exceptions: Any,
        dpdk::nginx_workers: Any,
        rollback::new_connections: Any,
        rollback::in_turns: Any,
        card::shown: Bypass,
        card::bursts: Bypass,
        card::relay_killed: Any,
        card::left_to_af_xdp: Any,
        card::reuseport_workers: Any,
    }

    shim_tests! {
        check_card:
        names::dnsperf_knot: Bypass,
        names::dnsperf_nsd: Bypass,
        names::dnsperf_unbound: Bypass,
        programs::udp_sender_in_batches: Any,
        programs::iperf3_to_server: Bypass,
        programs::memcached: Bypass,
        streams::memcached_threads: Segments,
        streams::iperf3_both_ways: Segments,
        clients::haproxy: Segments,
        clients::socat_fork: Segments,
        languages::python_uvloop: Segments,
        languages::node_http: Segments,
        languages::node_cluster: Any,
        languages::java_nio: Segments,
        stores::redis_snapshot: Segments,
        web::apache_prefork: Any,
        web::nginx_https: Segments,
        faults::program_killed: Any,
        reloads::nginx_reloads: Any,
        handover::executed: Any,
        rollback::of_forked: Any,
    }
}

/// The same with four queues of the card, of which one dies.
mod ef_vi_spread {
    use super::{Carried, card, check_spread, dpdk};

    tests! {
        check_spread:
        card::spread: Any,
        card::reuseport_workers: Any,
        dpdk::nginx_workers: Any,
    }
}

/// Over the genuine library's own ring code, whose driver and card are the stand-in's:
/// `BYPASS_TEST_LIBCIUL=/path/to/libciul.so.1`. (So are all scenes of cards then.)
mod ef_vi_genuine {
    use super::{Carried, card, check_card};

    tests! {
        check_card:
        card::flights: Bypass,
    }
}

/// The same with two queues.
mod ef_vi_genuine_set {
    use super::{Carried, card, check_pair};

    tests! {
        check_pair:
        card::flights: Bypass,
    }
}

/// On a card by ef_vi, where completions come late and in bundles.
mod ef_vi_late {
    use super::{Carried, card, check_late, programs, streams};

    tests! {
        check_late:
        programs::udp_echo: Bypass,
        streams::redis: Segments,
        streams::nginx_files: Segments,
        card::bursts: Bypass,
    }
}

/// The same, where the card dies three times.
mod ef_vi_dying {
    use super::{Carried, card, check_dying};

    tests! {
        check_dying:
        card::outlived: Segments,
    }
}

/// The same, where the card has no room for a second filter.
mod ef_vi_full {
    use super::{Carried, card, check_full};

    tests! {
        check_full:
        card::full: Any,
    }
}

/// The same, where the card says when frames have come, and have left.
mod ef_vi_stamped {
    use super::{Carried, card, check_stamped};

    tests! {
        check_stamped:
        card::stamps: Bypass,
        card::stream_stamps: Segments,
        card::sent_times: Segments,
    }
}

/// The same, where completions come late.
mod ef_vi_stamped_late {
    use super::{Carried, card, check_stamped_late};

    tests! {
        check_stamped_late:
        card::sent_times: Segments,
    }
}

/// On a DPDK port: scenes of programs as they are, and those of the port itself.
mod dpdk_port {
    use super::{
        Carried, check_port, dpdk, floods, names, programs, rubbish, stores, streams, web,
    };

    tests! {
        check_port:
        programs::udp_echo: Bypass,
        programs::udp_echo_ipv6: Bypass,
        programs::sockperf_ping_pong: Bypass,
        programs::sockperf_epoll: Bypass,
        names::dnsperf_knot: Bypass,
        streams::redis: Segments,
        streams::nginx_files: Segments,
        streams::python_http_server: Segments,
        streams::curl_client: Segments,
        streams::iperf3_both_ways: Segments,
        stores::redis_snapshot: Segments,
        web::nginx_upload: Segments,
        dpdk::exceptions: Any,
        dpdk::shown: Bypass,
        rubbish::bad_frames: Bypass,
        dpdk::nginx_workers: Any,
        dpdk::relay_killed: Any,
        dpdk::daemon_killed: Any,
        dpdk::nobody_left: Any,
        floods::half_open: Any,
        dpdk::nothing_left: Any,
    }

    shim_tests! {
        check_port:
        programs::udp_sender_in_batches: Any,
    }
}

/// A DPDK port on each kind of virtual device that Debian's DPDK has.
mod dpdk_vdevs {
    use bypass_tests::program::Column;
    use bypass_tests::vdev::Vdev;

    use super::{Carried, check_vdev, vdevs};

    macro_rules! vdev_tests {
        ($( $name:ident: $vdev:ident, )+) => {
            $( mod $name {
                use super::{Carried, Column, Vdev, check_vdev, vdevs};

                #[test]
                fn kernel() {
                    check_vdev(Vdev::$vdev, Column::Native, Carried::Any, vdevs::served);
                }

                #[test]
                fn shim() {
                    check_vdev(Vdev::$vdev, Column::Shim, Carried::Any, vdevs::served);
                }
            } )+
        };
    }

    vdev_tests! {
        tap: Tap,
        af_xdp: AfXdp,
        af_packet: AfPacket,
        memif: Memif,
        virtio_user: VirtioUser,
        vhost: Vhost,
    }

    /// Without copies.
    mod in_place {
        use super::{Carried, Column, Vdev, vdevs};
        use crate::check_in_place;

        #[test]
        fn tap() {
            check_in_place(Vdev::Tap, Column::Shim, Carried::Any, vdevs::in_place);
        }

        #[test]
        fn af_packet() {
            check_in_place(Vdev::AfPacket, Column::Shim, Carried::Any, vdevs::in_place);
        }
    }
}

/// The one that has no other end.
mod dpdk_ring {
    use super::{Carried, check_veth, vdevs};

    tests! {
        check_veth:
        vdevs::ring: Any,
    }
}
