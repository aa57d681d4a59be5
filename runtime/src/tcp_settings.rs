//! The host's `net.ipv4.tcp_*` settings, as the engine's defaults
//! (Documentation/networking/ip-sysctl.rst of the kernel).
//!
//! `/proc/sys/net` shows the network namespace of whoever reads it: the program's, which is also
//! the one its stack serves. Where a setting cannot be read, the defaults keep what they have.

use std::ops::RangeInclusive;

use bypass_stack::TcpDefaults;
use bypass_stack::tcp::congestion;
use rustix::fs::{Mode, OFlags};

/// What a setting's up to three numbers change.
type Apply = fn(&mut TcpDefaults, [u32; 3]);

macro_rules! setting {
    ($name:literal) => {
        concat!("/proc/sys/net/ipv4/", $name)
    };
}

/// Every setting of numbers that the stack follows.
const SETTINGS: [(&str, Apply); 25] = [
    (setting!("tcp_rmem"), |to, value| to.rmem = value),
    (setting!("tcp_wmem"), |to, value| to.wmem = value),
    (setting!("tcp_syn_retries"), |to, [value, ..]| {
        to.syn_retries = byte(value);
    }),
    (setting!("tcp_synack_retries"), |to, [value, ..]| {
        to.synack_retries = byte(value);
    }),
    (setting!("tcp_retries2"), |to, [value, ..]| {
        to.retries2 = byte(value);
    }),
    (setting!("tcp_orphan_retries"), |to, [value, ..]| {
        to.orphan_retries = byte(value);
    }),
    (setting!("tcp_syn_linear_timeouts"), |to, [value, ..]| {
        to.syn_linear_timeouts = byte(value);
    }),
    (setting!("tcp_timestamps"), |to, [value, ..]| {
        to.timestamps = u8::from(value != 0);
    }),
    (setting!("tcp_sack"), |to, [value, ..]| {
        to.sack = u8::from(value != 0);
    }),
    (setting!("tcp_window_scaling"), |to, [value, ..]| {
        to.window_scaling = u8::from(value != 0);
    }),
    (setting!("tcp_ecn"), |to, [value, ..]| {
        // 3 to 5 add AccECN, whose classic part is this.
        to.ecn = match value {
            0 => 0,
            1 | 3 | 4 => 1,
            _ => 2,
        };
    }),
    (setting!("tcp_slow_start_after_idle"), |to, [value, ..]| {
        to.slow_start_after_idle = u8::from(value != 0);
    }),
    (setting!("tcp_moderate_rcvbuf"), |to, [value, ..]| {
        to.moderate_rcvbuf = u8::from(value != 0);
    }),
    (setting!("tcp_rfc1337"), |to, [value, ..]| {
        to.rfc1337 = u8::from(value != 0);
    }),
    (setting!("tcp_fin_timeout"), |to, [value, ..]| {
        to.fin_timeout_s = value;
    }),
    (setting!("tcp_max_syn_backlog"), |to, [value, ..]| {
        to.max_syn_backlog = value;
    }),
    (setting!("tcp_syncookies"), |to, [value, ..]| {
        to.syncookies = byte(value);
    }),
    (setting!("tcp_mtu_probing"), |to, [value, ..]| {
        to.mtu_probing = byte(value);
    }),
    (setting!("tcp_base_mss"), |to, [value, ..]| {
        to.base_mss = value;
    }),
    (setting!("tcp_mtu_probe_floor"), |to, [value, ..]| {
        to.mtu_probe_floor = value;
    }),
    (setting!("tcp_probe_interval"), |to, [value, ..]| {
        to.probe_interval_s = value;
    }),
    (setting!("tcp_probe_threshold"), |to, [value, ..]| {
        to.probe_threshold = value;
    }),
    (setting!("tcp_fastopen"), |to, [value, ..]| {
        to.fast_open = value;
    }),
    (setting!("tcp_invalid_ratelimit"), |to, [value, ..]| {
        to.invalid_ratelimit_ms = u16::try_from(value).unwrap_or(u16::MAX);
    }),
    (
        setting!("tcp_fastopen_blackhole_timeout_sec"),
        |to, [value, ..]| {
            to.fast_open_pause_s = value;
        },
    ),
];

fn byte(value: u32) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// Reads the settings as they are now.
pub fn read(settings: &mut TcpDefaults) {
    for (path, apply) in SETTINGS {
        if let Some(value) = numbers(path) {
            apply(settings, value);
        }
    }
    let mut name = [0; 16];
    if let Some(name) = text(setting!("tcp_congestion_control"), &mut name) {
        settings.congestion = congestion::by_name(name.trim_ascii()).unwrap_or(congestion::CUBIC);
    }
    if let Some([value, ..]) = numbers(setting!("tcp_abort_on_overflow")) {
        settings.abort_on_overflow = u8::from(value != 0);
    }
}

/// `net.ipv4.tcp_notsent_lowat`, bytes.
#[must_use]
pub fn notsent_lowat() -> Option<u32> {
    numbers(setting!("tcp_notsent_lowat")).map(|[value, ..]| value)
}

/// `net.ipv4.tcp_fastopen_key`: the keys of Fast Open cookies, the newer first; how many.
pub fn cookie_keys(keys: &mut [[u64; 2]; 2]) -> usize {
    let mut bytes = [0; 80];
    text(setting!("tcp_fastopen_key"), &mut bytes).map_or(0, |text| parse_keys(text, keys))
}

/// A key is four numbers of 32 bits in hexadecimal, which the kernel keeps in its own byte order
/// (net/ipv4/sysctl_net_ipv4.c:proc_tcp_fastopen_key).
fn parse_keys(text: &[u8], keys: &mut [[u64; 2]; 2]) -> usize {
    let text = std::str::from_utf8(text).unwrap_or_default();
    let mut count = 0;
    for (key, text) in keys.iter_mut().zip(text.trim().split(',')) {
        let mut words = [0; 4];
        for (word, digits) in words.iter_mut().zip(text.split('-')) {
            match u32::from_str_radix(digits, 16) {
                Ok(value) => *word = u64::from(value),
                Err(_) => return count,
            }
        }
        let [a, b, c, d] = words;
        // A namespace that has no key yet shows zeros, which would be everybody's key.
        if words == [0; 4] {
            return count;
        }
        *key = [b << 32 | a, d << 32 | c];
        count += 1;
    }
    count
}

/// `net.core.somaxconn`: what the kernel cuts a backlog to.
#[must_use]
pub fn most_backlog() -> u32 {
    numbers("/proc/sys/net/core/somaxconn").map_or(4096, |[most, ..]| most)
}

/// `net.ipv4.ip_local_port_range`: the ports that the kernel chooses from.
#[must_use]
pub fn local_ports() -> RangeInclusive<u16> {
    let range = numbers(setting!("ip_local_port_range"));
    let port = |value| u16::try_from(value).ok().filter(|port| *port != 0);
    range
        .and_then(|[low, high, _]| Some(port(low)?..=port(high)?))
        .unwrap_or(32768..=60999)
}

/// The content of a setting.
fn text<'a>(path: &str, into: &'a mut [u8]) -> Option<&'a [u8]> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let count = rustix::io::read(&file, &mut *into).ok()?;
    into.get(..count)
}

/// A setting of up to three numbers; those that are missing are 0.
fn numbers(path: &str) -> Option<[u32; 3]> {
    let mut bytes = [0; 64];
    parse(text(path, &mut bytes)?)
}

fn parse(text: &[u8]) -> Option<[u32; 3]> {
    let mut values = [0; 3];
    let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    for (value, word) in values.iter_mut().zip(&mut words) {
        *value = word.parse().ok()?;
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_one_or_three_numbers() {
        assert_eq!(
            parse(b"4096\t131072\t6291456\n"),
            Some([4096, 131_072, 6_291_456])
        );
        assert_eq!(parse(b"4294967295\n"), Some([u32::MAX, 0, 0]));
        assert_eq!(parse(b"-1\n"), None);
    }

    #[test]
    fn cookie_keys_are_one_or_two() {
        let mut keys = [[0; 2]; 2];
        let text = b"00000001-00000002-00000003-80000000\n";
        assert_eq!(parse_keys(text, &mut keys), 1);
        assert_eq!(keys[0], [2 << 32 | 1, 1 << 63 | 3]);
        let text = b"1-2-3-4,a1a1a1a1-b2b2b2b2-c3c3c3c3-d4d4d4d4\n";
        assert_eq!(parse_keys(text, &mut keys), 2);
        assert_eq!(keys[1], [0xb2b2_b2b2_a1a1_a1a1, 0xd4d4_d4d4_c3c3_c3c3]);
        assert_eq!(parse_keys(b"\n", &mut keys), 0);
    }

    #[test]
    fn every_setting_has_a_place_in_the_defaults() {
        for (path, apply) in SETTINGS {
            let mut changed = [TcpDefaults::new(), TcpDefaults::new()];
            apply(&mut changed[0], [0, 1, 2]);
            apply(&mut changed[1], [1, 2, 3]);
            assert_ne!(changed[0], changed[1], "{path}");
        }
    }
}
