//! Tests of decisions and of the configuration file.

use proptest::prelude::*;

use super::*;

fn query<'a>(program: &'a str, local: &str) -> Query<'a> {
    Query {
        program: Program {
            file: program,
            started_as: program,
        },
        user: User {
            uid: 1000,
            name: Some("alice"),
        },
        protocol: Protocol::Udp,
        role: Role::Bind,
        local: Some(local.parse().expect("an address")),
        remote: None,
        interface: None,
    }
}

fn parse(text: &str) -> Policy {
    Policy::parse(text).unwrap_or_else(|error| panic!("{error} in\n{text}"))
}

fn error(text: &str) -> (usize, usize, String) {
    let error = Policy::parse(text).expect_err(text);
    (error.line, error.column, error.message)
}

#[test]
fn the_built_in_part_comes_before_every_rule() {
    let policy = parse("[[rule]]\naction = \"accelerate\"");
    for (program, local, reason) in [
        ("/usr/sbin/sshd", "198.18.0.1:22", FallThrough::Program),
        ("sudo", "198.18.0.1:22", FallThrough::Program),
        ("server", "127.0.0.1:53", FallThrough::Loopback),
        ("server", "[::1]:53", FallThrough::Loopback),
        ("server", "239.1.1.1:53", FallThrough::Multicast),
        ("server", "255.255.255.255:53", FallThrough::Broadcast),
    ] {
        let decision = policy.decide(&query(program, local));
        assert_eq!(decision, Decision::Kernel { reason, rule: None });
    }
    assert_eq!(policy.decide(&query("server", "*:53")).rule(), Some(0));
    let to = Some("224.0.0.251:5353".parse().expect("an address"));
    let decision = policy.decide(&Query {
        remote: to,
        ..query("server", "*:0")
    });
    assert_eq!(decision.reason(), Some(FallThrough::Multicast));
}

#[test]
fn a_program_has_the_name_that_it_was_started_by_too() {
    let policy = parse(
        r#"
        [[rule]]
        program = "redis-server"
        action = "kernel"

        [[rule]]
        program = "/usr/bin/redis-check-rdb"
        action = "accelerate"
        "#,
    );
    let started = |file, started_as| Query {
        program: Program { file, started_as },
        ..query("", "*:6379")
    };
    let redis = started("/usr/bin/redis-check-rdb", "/usr/bin/redis-server");
    assert_eq!(policy.decide(&redis).rule(), Some(0));
    let check = started("/usr/bin/redis-check-rdb", "/usr/bin/redis-check-rdb");
    assert_eq!(policy.decide(&check).rule(), Some(1));
    // What stays with the kernel does so by either name.
    let reason = FallThrough::Program;
    let kernel = Decision::Kernel { reason, rule: None };
    for name in KERNEL_PROGRAMS {
        assert_eq!(policy.decide(&started(name, "/tmp/server")), kernel);
        assert_eq!(policy.decide(&started("/opt/login", name)), kernel);
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let policy = parse(
        r#"
        [[rule]]
        program = "nginx"
        local = "0.0.0.0/0:80-443"
        interface = "eth0"
        action = "accelerate"
        backend = "af_xdp"

        [[rule]]
        user = "1000"
        role = "connect"
        action = "kernel"

        [[rule]]
        user = "bob"
        action = "kernel"
        "#,
    );
    let accelerate = |interface, backend, rule| Decision::Accelerate {
        interface,
        backend,
        rule,
    };
    let decision = policy.decide(&query("/usr/sbin/nginx", "*:80"));
    assert_eq!(decision, accelerate(Some("eth0"), Backend::AfXdp, Some(0)));
    let on_eth1 = Query {
        interface: Some("eth1"),
        ..query("nginx", "*:80")
    };
    assert_eq!(
        policy.decide(&on_eth1),
        accelerate(None, Backend::Auto, None)
    );
    let connect = Query {
        role: Role::Connect,
        ..query("curl", "*:0")
    };
    assert_eq!(policy.decide(&connect).reason(), Some(FallThrough::Rule));
    assert_eq!(policy.decide(&connect).rule(), Some(1));
    let bob = Query {
        user: User {
            uid: 5,
            name: Some("bob"),
        },
        ..connect
    };
    assert_eq!(policy.decide(&bob).rule(), Some(2));
    assert_eq!(
        policy.rules[1].to_string(),
        "user=1000 role=connect -> kernel"
    );
}

#[test]
fn user_names_become_numbers() {
    let rule = |user: &str| format!("[[rule]]\nuser = \"{user}\"\naction = \"kernel\"\n");
    let mut policy = parse(&(rule("alice") + &rule("nobody-here") + &rule("7")));
    let passwd = "root:x:0:0::/:/bin/sh\nshort\nalice:x:1000:1000::/:/bin/sh\nbad:x:y:0\n";
    assert!(policy.names_users());
    policy.resolve_users(|name| uid_in_passwd(passwd, name));
    let users: Vec<_> = policy.rules.iter().flat_map(|rule| &rule.user).collect();
    assert_eq!(users, ["1000", "nobody-here", "7"]);
    let nameless = Query {
        user: User {
            uid: 1000,
            name: None,
        },
        ..query("p", "*:1")
    };
    assert_eq!(policy.decide(&nameless).rule(), Some(0));
    assert_eq!(uid_in_passwd(passwd, "short"), None);
    assert_eq!(uid_in_passwd(passwd, "bad"), None);
}

#[test]
fn a_kernel_rule_needs_its_interface_to_be_known() {
    let policy = parse("[[rule]]\ninterface = \"eth0\"\naction = \"kernel\"");
    assert_eq!(policy.decide(&query("p", "*:1")).rule(), None);
    let on_eth0 = Query {
        interface: Some("eth0"),
        ..query("p", "198.18.0.1:1")
    };
    assert_eq!(policy.decide(&on_eth0).rule(), Some(0));
}

#[test]
fn a_byte_order_mark_is_no_text() {
    let policy = parse("\u{feff}[[rule]]\naction = \"kernel\"");
    assert_eq!(policy.rules.len(), 1);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of errors")]
fn errors_have_line_and_column() {
    for (text, line, column, part) in [
        (
            "[[rule]]\nprogramm = \"x\"\naction = \"kernel\"",
            2,
            1,
            "programm",
        ),
        (
            "[[rule]]\nlocal = \"1.2.3\"\naction = \"kernel\"",
            2,
            9,
            "address",
        ),
        (
            "[[rule]]\n  local = \"1.2.3.4:9-3\"\naction = \"kernel\"",
            2,
            11,
            "ports",
        ),
        ("[[rule]]\naction = \"drop\"", 2, 10, "drop"),
        ("[[rule]]\nprogram = \"x\"", 1, 1, "action"),
        (
            "[[rule]]\naction = \"kernel\"\n\n[[rule]]\naction = \"accelerate\"",
            4,
            1,
            "duplicate",
        ),
        (
            "[[rule]]\naction = \"kernel\"\nbackend = \"dpdk\"",
            1,
            1,
            "backend",
        ),
        (
            "[[rule]]\naction = \"kernel\"\ninterface = \"a b\"",
            1,
            1,
            "interface",
        ),
        (
            "[options]\nlog = \"info\"\nspin_us = 9999999",
            3,
            1,
            "spin_us",
        ),
        ("[options]\nspin = 1", 2, 1, "unknown option"),
        ("[options]\nspin_us = 1.5", 2, 1, "float"),
        ("[options]\nspin_us = 1\nspin_us = 2", 3, 1, "duplicate"),
        ("[daemon]\nchunks = 1", 2, 1, "chunks"),
        ("[daemon]\nchunk = 1", 2, 1, "chunk"),
        ("[daemon]\nallow = [{}]", 2, 1, "allow"),
        ("[daemon]\nclients = -1", 2, 11, ""),
        ("[rules]", 1, 2, "rules"),
        ("rule = 1", 1, 8, ""),
        ("[[rule]\n", 1, 8, ""),
        ("\u{feff}[[rule]]\naction = \"drop\"", 2, 10, "drop"),
        ("\u{feff}[[rule]\n", 1, 8, ""),
        ("# é\n[[rule]]\nprogram = \"é\" x", 3, 15, ""),
    ] {
        let found = error(text);
        assert_eq!((found.0, found.1), (line, column), "{text}: {}", found.2);
        assert!(found.2.contains(part), "{text}: {}", found.2);
        assert!(!found.2.contains('\n'));
    }
}

#[test]
fn an_accelerate_rule_behind_a_kernel_rule_of_one_interface_is_no_duplicate() {
    let rules = "[[rule]]\ninterface = \"a\"\naction = \"kernel\"\n\
                 [[rule]]\ninterface = \"a\"\naction = \"accelerate\"\n";
    assert_eq!(parse(rules).rules.len(), 2);
}

#[test]
fn options_and_daemon_tables_are_read() {
    let policy = parse(
        r#"
        [options]
        spin_us = 50
        accelerate_local = true
        profile = "safe"

        [daemon]
        allow = [{ user = "nobody", program = "nsd*" }, { group = "33" }]
        clients = 8
        interfaces = { include = ["veth*"], exclude = ["veth9"] }
        "#,
    );
    let (options, messages) = crate::options::Options::resolve::<&str, &str>(&policy.options, []);
    assert_eq!(
        (options.spin_us, options.accelerate_local, messages.len()),
        (50, true, 0)
    );
    let daemon = &policy.daemon;
    assert_eq!(
        (daemon.clients, daemon.endpoints),
        (8, DaemonPolicy::default().endpoints)
    );
    let peer = |uid, user, gids, program| Peer {
        uid,
        user,
        gids,
        groups: &[],
        program,
    };
    assert!(daemon.allows(&peer(0, None, &[], "x")));
    assert!(daemon.allows(&peer(9, Some("nobody"), &[], "/usr/sbin/nsd4")));
    assert!(!daemon.allows(&peer(9, Some("nobody"), &[], "/usr/sbin/named")));
    assert!(daemon.allows(&peer(9, None, &[5, 33], "x")));
    assert!(DaemonPolicy::default().allows(&peer(9, None, &[], "x")));
    assert!(daemon.interfaces.takes("veth1") && !daemon.interfaces.takes("veth9"));
    assert!(!daemon.interfaces.takes("eth0") && InterfaceChoice::default().takes("eth0"));
}

#[test]
fn an_empty_file_is_the_default_policy() {
    assert_eq!(parse(""), Policy::default());
    assert_eq!(parse("# nothing\n[daemon]\n"), Policy::default());
    assert_eq!(Policy::default().to_toml(), "");
}

fn pattern() -> impl Strategy<Value = AddressPattern> {
    let ports = prop_oneof![
        Just(String::new()),
        (1..=u16::MAX).prop_map(|port| format!(":{port}")),
        (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| format!(":{}-{}", a.min(b), a.max(b))),
    ];
    let v4 = (any::<u32>(), 0..=32_u32).prop_map(|(ip, bits)| {
        let ip = ip & u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        format!("{}/{bits}", std::net::Ipv4Addr::from(ip))
    });
    let v6 = (any::<u128>(), 0..=128_u32).prop_map(|(ip, bits)| {
        let ip = ip & u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        format!("[{}]/{bits}", std::net::Ipv6Addr::from(ip))
    });
    let prefix = prop_oneof![Just("*".to_owned()), v4, v6];
    (prefix, ports).prop_map(|(prefix, ports)| {
        let text = prefix + &ports;
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let word = |words: &'static [Protocol]| proptest::option::of(proptest::sample::select(words));
    let name = || proptest::option::of("[a-z\"\\\\\\n*?é]{1,9}");
    (
        (name(), name(), word(Protocol::ALL)),
        proptest::option::of(proptest::sample::select(Role::ALL)),
        (
            proptest::option::of(pattern()),
            proptest::option::of(pattern()),
        ),
        proptest::option::of("[a-z0-9.]{3,15}"),
        proptest::option::of(proptest::sample::select(Backend::ALL)),
        any::<bool>(),
    )
        .prop_map(
            |((program, user, protocol), role, (local, remote), interface, backend, on)| Rule {
                program: program.map(|text| Glob::try_from(text).expect("not empty")),
                user,
                protocol,
                role,
                local,
                remote,
                interface,
                action: if on {
                    Action::Accelerate
                } else {
                    Action::Kernel
                },
                backend: backend.filter(|_| on),
            },
        )
}

proptest! {
    #[test]
    fn any_text_is_a_policy_or_an_error_inside_the_text(text in "\\PC{0,200}") {
        if let Err(error) = Policy::parse(&text) {
            prop_assert!(error.line >= 1 && error.line <= text.lines().count() + 1);
            prop_assert!(error.column >= 1);
        }
    }

    #[test]
    fn text_out_of_pieces_never_panics(pieces in proptest::collection::vec(
        proptest::sample::select(vec![
            "[[rule]]", "[options]", "[daemon]", "\n", "=", "action", "local", "\"", "kernel",
            "accelerate", "allow", "{", "}", "[", "]", "1", "-", ":", "/", "::", "fd00", "user",
            "'", "spin_us", " ", ",", "\"\"\"", "é", "interfaces.include", "chunks",
        ]), 0..40,
    )) {
        let _ = Policy::parse(&pieces.concat());
    }

    #[test]
    fn a_policy_survives_being_written_and_read(
        rules in proptest::collection::vec(rule(), 0..6),
        spin in proptest::option::of(0..1_000_000_u32),
        clients in 1..1000_u32,
    ) {
        let options = spin.map(|us| crate::options::setting("spin_us", &us.to_string()).unwrap());
        let daemon = DaemonPolicy {
            clients,
            allow: Some(vec![Allow { user: Some("x".to_owned()), group: None, program: None }]),
            ..DaemonPolicy::default()
        };
        let options = options.into_iter().collect();
        let policy = Policy { rules, options, daemon, devices: Vec::new() };
        match Policy::parse(&policy.to_toml()) {
            Ok(again) => prop_assert_eq!(again, policy),
            Err(error) => prop_assert!(error.message.contains("duplicate rule"), "{}", error),
        }
    }
}

#[test]
fn a_rule_with_a_backend_means_the_interfaces_that_have_it() {
    let device = |name: &str| {
        format!("[[device]]\nname = \"{name}\"\nbackend = \"dpdk\"\ndevargs = \"x\"\n")
    };
    let rule = |more: String| format!("[[rule]]\naction = \"accelerate\"\n{more}\n");
    let (on_eth0, on_vf0) = ("interface = \"eth0\"\n", "interface = \"vf0\"\n");
    let decided = |devices: &[&str], backend: &str, interface: &str| {
        let devices: String = devices.iter().map(|name| device(name)).collect();
        let policy =
            Policy::parse(&(devices + &rule(format!("backend = {backend:?}\n{interface}"))))?;
        Ok::<_, PolicyError>(match policy.decide(&query("nginx", "*:80")) {
            Decision::Accelerate { interface, .. } => Ok(interface.map(str::to_owned)),
            Decision::Kernel { reason, .. } => Err(reason),
        })
    };
    let only = |name: &str| Ok(Some(name.to_owned()));
    let kernel = Err(FallThrough::Backend);
    assert_eq!(decided(&["vf0"], "dpdk", "").unwrap(), only("vf0"));
    assert_eq!(decided(&["vf0"], "dpdk", on_vf0).unwrap(), only("vf0"));
    assert_eq!(decided(&["vf0"], "dpdk", on_eth0).unwrap(), kernel);
    assert_eq!(decided(&[], "dpdk", "").unwrap(), kernel);
    assert_eq!(decided(&[], "af_xdp", "").unwrap(), Ok(None));
    assert_eq!(decided(&["vf0"], "af_xdp", on_eth0).unwrap(), only("eth0"));
    assert_eq!(decided(&["vf0"], "af_xdp", on_vf0).unwrap(), kernel);
    assert_eq!(decided(&["vf0"], "auto", "").unwrap(), Ok(None));
    assert_eq!(decided(&["vf0"], "ef_vi", "").unwrap(), kernel);
    for (devices, backend) in [(&["vf0"][..], "af_xdp"), (&["vf0", "vf1"], "dpdk")] {
        let error = decided(devices, backend, "").unwrap_err();
        assert!(error.message.contains("must name its interface"), "{error}");
    }
}

#[test]
fn devices_are_read_and_checked() {
    let text = "
        [[device]]
        name = \"vf0\"
        backend = \"dpdk\"
        devargs = \"net_tap0,iface=wire0\"
    ";
    let policy = Policy::parse(text).unwrap();
    let [device] = policy.devices.as_slice() else {
        panic!("{policy:?}");
    };
    assert_eq!(
        (device.name.as_str(), device.devargs.as_str()),
        ("vf0", "net_tap0,iface=wire0")
    );
    assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
    let wrong = |change: &str, to: &str| {
        let error = Policy::parse(&text.replace(change, to)).unwrap_err();
        (error.line, error.message)
    };
    assert_eq!(
        wrong("vf0", "a/b"),
        (2, "`a/b` is no interface name".to_owned())
    );
    assert_eq!(
        wrong("dpdk", "auto"),
        (
            2,
            "a device's backend must be dpdk, ef_vi or af_xdp".to_owned()
        )
    );
    assert_eq!(
        wrong("dpdk", "af_xdp"),
        (
            2,
            "with backend = \"af_xdp\" a device has a name, zero_copy and own_queue only"
                .to_owned()
        )
    );
    assert_eq!(
        wrong("net_tap0,iface=wire0", ""),
        (2, "devargs is empty".to_owned())
    );
    let twice = Policy::parse(&text.repeat(2)).unwrap_err();
    assert_eq!(
        (twice.line, twice.message.as_str()),
        (7, "there is a device `vf0` already")
    );
    let copies = |backend: &str| {
        let text = "[[device]]\nname = \"eth2\"\nzero_copy = true\nown_queue = true\nbackend = ";
        Policy::parse(&format!("{text}\"{backend}\"\n"))
    };
    let policy = copies("af_xdp").unwrap();
    assert!(policy.zero_copy("eth2") && !policy.zero_copy("eth3"));
    assert!(policy.own_queue("eth2") && !policy.own_queue("eth3"));
    assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
    let why = copies("ef_vi").unwrap_err().message;
    assert_eq!(
        why,
        "own_queue has a meaning with backend = \"af_xdp\" only"
    );
}

#[test]
fn a_dpdk_device_may_go_without_copies() {
    let text = "[[device]]\nname = \"eth2\"\nzero_copy = true\nbackend = ";
    let dpdk = Policy::parse(&format!("{text}\"dpdk\"\ndevargs = \"net_null0\"\n"));
    assert!(dpdk.unwrap().zero_copy("eth2"));
    let why = Policy::parse(&format!("{text}\"ef_vi\"\n")).unwrap_err();
    assert_eq!(
        why.message,
        "zero_copy has a meaning with backend = \"af_xdp\" or \"dpdk\" only"
    );
}

#[test]
fn a_dpdk_device_may_have_rules_at_its_physical_function() {
    let text = "[[device]]\nname = \"vf0\"\nbackend = \"dpdk\"\ndevargs = \"0000:01:10.0\"\n";
    let policy = Policy::parse(text).unwrap();
    assert!(!policy.devices[0].physical_rules);
    let steered = text.replace("devargs", "physical_rules = true\ndevargs");
    let policy = Policy::parse(&steered).unwrap();
    assert!(policy.devices[0].physical_rules);
    assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
    let why = Policy::parse(&steered.replace("dpdk", "ef_vi")).unwrap_err();
    assert!(
        why.message
            .contains("physical_rules have a meaning with backend = \"dpdk\"")
    );
}

#[test]
fn a_card_has_queues_and_others_have_none() {
    let text = |backend: &str, queues: &str| {
        let more = if backend == "dpdk" {
            "devargs = \"net_tap0\"\n"
        } else {
            ""
        };
        let device = format!("name = \"eth1\"\nbackend = \"{backend}\"\n{more}");
        Policy::parse(&format!("[[device]]\n{device}queues = {queues}\n"))
    };
    let policy = text("ef_vi", "4").unwrap();
    assert_eq!(policy.devices[0].queues, Some(4));
    assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
    for wrong in ["0", "17", "4294967295"] {
        let error = text("ef_vi", wrong).unwrap_err();
        assert_eq!(error.message, "queues must be from 1 to 16");
    }
    assert!(text("ef_vi", "-1").is_err());
    for backend in ["dpdk", "af_xdp"] {
        assert!(text(backend, "4").is_err(), "{backend}");
    }
}
