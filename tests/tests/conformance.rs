//! Conformance: the same programs natively and under the shim, outcomes compared call by call.
//!
//! `<case>::kernel` proves that the case itself is right and deterministic; `<case>::shim` compares
//! the shim with it. See `bypass_tests::conformance` and `tests/conformance/case.h`.

use bypass_tests::conformance::{How, check_native, check_shim, list};
use bypass_tests::program::Column;

macro_rules! cases {
    ($( $name:ident: $how:ident, )+) => {
        /// Names and demands as the tests below know them.
        const CASES: &[(&str, How)] = &[ $( (stringify!($name), How::$how), )+ ];

        $( mod $name {
            #[test]
            fn kernel() {
                super::pass(super::check_native(stringify!($name)));
            }

            #[test]
            fn shim() {
                if super::has_shim() {
                    super::pass(super::check_shim(stringify!($name), super::How::$how));
                }
            }
        } )+
    };
}

cases! {
    udp_echo_server: Accelerated,
    udp_echo_client: Accelerated,
    udp_echo_ipv6: Accelerated,
    udp_connect: Accelerated,
    udp_reconnect: Accelerated,
    udp_connected_hears_its_peer_only: Accelerated,
    udp_demux: Accelerated,
    udp_port_zero: Accelerated,
    udp_zero_length: Accelerated,
    udp_read_nothing: Accelerated,
    udp_peek_trunc: Accelerated,
    udp_shutdown: Accelerated,
    udp_v4mapped: Accelerated,
    udp_v6only: Accelerated,
    udp_wildcard_both: Mixed,
    udp_own_address: Mixed,
    udp_read_write: Accelerated,
    udp_rebind: Accelerated,
    udp_many_sockets: Accelerated,
    sizes_up_to_mtu: Accelerated,
    sizes_fragmented: Mixed,
    sizes_fragments_received: Mixed,
    sizes_too_big: Accelerated,
    sizes_pmtudisc: Accelerated,
    sizes_udp_segment: Accelerated,
    sizes_udp_gro: Accelerated,
    sizes_udp_gro_joined: Accelerated,
    errors_bad_descriptor: Kernel,
    errors_bad_arguments: Accelerated,
    errors_receive_into_nowhere: Accelerated,
    errors_wild_send: Accelerated,
    errors_wild_receive: Accelerated,
    errors_wild_wait: Accelerated,
    errors_short_address: Accelerated,
    errors_addrinuse: Accelerated,
    errors_refused: Accelerated,
    errors_refused_unconnected: Mixed,
    errors_unreachable: Accelerated,
    options_socket_level: Accelerated,
    options_ip_level: Accelerated,
    options_tos_ttl_on_the_wire: Accelerated,
    options_bad_values: Accelerated,
    options_rcvtimeo: Accelerated,
    options_nonblocking: Accelerated,
    options_rcvbuf_asleep: Accelerated,
    options_rcvbuf_keeps: Accelerated,
    options_rcvbuf_others: Accelerated,
    options_rcvbuf_overflow: Accelerated,
    options_bindtodevice: Accelerated,
    options_fionread: Accelerated,
    ancillary_pktinfo: Accelerated,
    ancillary_pktinfo_ipv6: Accelerated,
    ancillary_tos_ttl: Accelerated,
    ancillary_bad: Accelerated,
    ancillary_timestamps: Accelerated,
    vectors_parts: Accelerated,
    vectors_mmsg: Accelerated,
    vectors_mmsg_by_syscall: Accelerated,
    vectors_runs: Accelerated,
    vectors_runs_v6: Accelerated,
    vectors_runs_refused: Accelerated,
    vectors_by_syscall: Accelerated,
    vectors_fortified: Accelerated,
    vectors_all_by_syscall: Accelerated,
    vectors_splice_sendfile: Accelerated,
    wait_poll: Accelerated,
    wait_poll_wakes: Accelerated,
    wait_ppoll: Accelerated,
    wait_select: Accelerated,
    wait_eintr: Accelerated,
    wait_signal_mask: Accelerated,
    wait_blocking: Accelerated,
    wait_two_threads: Accelerated,
    wait_shutdown_wakes: Accelerated,
    epoll_level: Accelerated,
    epoll_comes_and_goes: Accelerated,
    epoll_et: Accelerated,
    epoll_oneshot: Accelerated,
    epoll_mixed: Accelerated,
    epoll_xthread: Accelerated,
    epoll_add_while_waiting: Accelerated,
    epoll_dup: Accelerated,
    epoll_lifetime: Accelerated,
    epoll_nested: Accelerated,
    epoll_dup_in_two_sets: Accelerated,
    epoll_exclusive: Accelerated,
    epoll_error: Mixed,
    epoll_leaves: Mixed,
    epoll_pwait: Accelerated,
    epoll_fairness: Accelerated,
    descriptors_dup: Accelerated,
    descriptors_fcntl_dup: Accelerated,
    descriptors_dup2: Accelerated,
    descriptors_ofl_shared: Accelerated,
    descriptors_reuse: Accelerated,
    descriptors_fclose: Accelerated,
    descriptors_fclose_file: Accelerated,
    descriptors_close_loop: Accelerated,
    descriptors_close_all: Accelerated,
    descriptors_dup2_preclose: Accelerated,
    process_child_serves: Accelerated,
    process_bare_fork: Accelerated,
    process_parent_keeps: Accelerated,
    process_both: Accelerated,
    process_double_fork: Accelerated,
    process_new_sockets: Accelerated,
    process_vfork_closerange: Accelerated,
    process_spawn: Accelerated,
    process_exec: Mixed,
    process_cloexec: Mixed,
    process_scm_rights: Mixed,
    process_scm_self: Mixed,
    process_scm_unread: Mixed,
    process_exec_unread: Mixed,
    groups_reuseport: Accelerated,
    groups_threads: Accelerated,
    groups_processes: Accelerated,
    groups_inherited: Accelerated,
    groups_reuseaddr: Accelerated,
    groups_specific_beats_any: Accelerated,
    kernel_loopback: Kernel,
    kernel_broadcast: Kernel,
    kernel_multicast: Kernel,
    kernel_tcp_beside: Mixed,
    kernel_unix_sockets: Kernel,
    kernel_getaddrinfo: Mixed,
    kernel_io_uring_fallback: Accelerated,
    tcp_echo_server: Accelerated,
    tcp_echo_client: Accelerated,
    tcp_ipv6: Accelerated,
    tcp_v4mapped: Accelerated,
    tcp_bound_client: Accelerated,
    tcp_ports_in_time_wait: Accelerated,
    tcp_bulk_in: Accelerated,
    tcp_bulk_out: Accelerated,
    tcp_refused: Accelerated,
    tcp_nb_connect: Accelerated,
    tcp_vectors: Accelerated,
    tcp_bad_arguments: Accelerated,
    tcp_wild_pointers: Accelerated,
    tcp_halfclose: Accelerated,
    tcp_linger_reset: Accelerated,
    tcp_unread_reset: Accelerated,
    tcp_reset_by_peer: Accelerated,
    tcp_timeouts: Accelerated,
    tcp_interrupted: Accelerated,
    tcp_options: Accelerated,
    tcp_inherited_options: Accelerated,
    tcp_listener_ends: Accelerated,
    tcp_wildcard_both: Mixed,
    tcp_sendfile: Accelerated,
    tcp_splice: Accelerated,
    tcp_dup: Accelerated,
    tcp_by_syscall: Accelerated,
    tcp_fork: Accelerated,
    tcp_fork_again: Accelerated,
    tcp_host_settings: Accelerated,
    tcp_poll: Accelerated,
    tcp_poll_listener: Accelerated,
    tcp_select: Accelerated,
    tcp_epoll_edges: Accelerated,
    tcp_epoll_level: Accelerated,
    tcp_epoll_pressure: Accelerated,
    tcp_epoll_several: Accelerated,
    tcp_epoll_mixed: Accelerated,
    tcp_epoll_threads: Accelerated,
    tcp_epoll_connect: Accelerated,
    tcp_epoll_connect_again: Accelerated,
    tcp_epoll_number_again: Accelerated,
    tcp_epoll_shut_listener: Accelerated,
    tcp_many: Accelerated,
    tcp_urgent_receive: Accelerated,
    tcp_urgent_message: Accelerated,
    tcp_urgent_inline: Accelerated,
    tcp_urgent_send: Accelerated,
    tcp_urgent_wait: Accelerated,
    tcp_clone: Accelerated,
    tcp_exec: Mixed,
    tcp_exec_by_descriptor: Mixed,
    tcp_exec_closes: Mixed,
    tcp_cloexec: Accelerated,
    tcp_scm_rights: Mixed,
    tcp_handover_open: Mixed,
    tcp_handover_close_wait: Mixed,
    tcp_handover_fin_wait: Mixed,
    tcp_handover_client: Mixed,
    tcp_handover_option: Mixed,
    tcp_handover_waiters: Mixed,
    tcp_handover_system: Mixed,
    tcp_table_connected: Accelerated,
    tcp_table_before: Accelerated,
    tcp_table_listener: Accelerated,
    tcp_zerocopy: Kernel,
    tcp_stdio_two: Accelerated,
    tcp_stdio_one: Accelerated,
    tcp_stdio_reset: Accelerated,
    tcp_signals_waits: Accelerated,
    tcp_signals_receive: Accelerated,
    tcp_signals_send: Accelerated,
    tcp_signals_in_traffic: Accelerated,
    tcp_sendfile_end: Accelerated,
    tcp_close_under_recv: Accelerated,
    tcp_close_under_two: Accelerated,
    tcp_close_under_poll: Accelerated,
    tcp_close_under_accept: Accelerated,
    tcp_close_under_send: Accelerated,
    tcp_close_under_epoll: Accelerated,
    tcp_exec_beside_listener: Accelerated,
    tcp_shutdown_under: Accelerated,
    python_sockets: Mixed,
    python_asyncio: Accelerated,
    python_selectors: Accelerated,
}

fn has_shim() -> bool {
    Column::available().contains(&Column::Shim)
}

fn pass(result: bypass_tests::Result<()>) {
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn every_case_of_the_program_has_a_test() {
    let of_program = list().expect("the program lists its cases");
    let here: Vec<(String, How)> = CASES
        .iter()
        .filter(|(name, _)| !name.starts_with("python_"))
        .map(|(name, how)| ((*name).to_owned(), *how))
        .collect();
    assert_eq!(of_program, here);
}
