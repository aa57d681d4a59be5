//! Tests of what is installed: library, configuration, daemon.

use bypass_proto::control::QueryKind;
use bypass_proto::options::Options;
use bypass_proto::policy::{DEFAULT_PATH, Policy};

use super::Findings;
use crate::cmd::run;
use crate::{render, source};

pub(super) fn test(findings: &mut Findings) {
    match run::library() {
        Some(path) => findings.ok(format!("library: {}", path.display())),
        None => findings.fail(
            "library: no libbypass.so",
            "put it beside bypassctl or in ../lib, where bypassctl run looks",
        ),
    }
    configuration(findings);
    daemon(findings);
}

fn configuration(findings: &mut Findings) {
    let variables = || {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
    };
    let (options, messages) = Options::from_env(variables());
    for message in messages {
        findings.warn(format!("environment: {message}"), "correct or unset it");
    }
    let path = options.config.as_deref().unwrap_or(DEFAULT_PATH);
    match std::fs::read_to_string(path) {
        Ok(text) => match Policy::parse(&text) {
            Ok(policy) => findings.ok(format!("policy: {path}: {} rules", policy.rules.len())),
            Err(error) => findings.fail(
                format!("policy: {path}: {error}"),
                "correct it: until then every program runs on the kernel",
            ),
        },
        Err(error) if options.config.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            findings.ok("policy: built-in: accelerate what can be");
        }
        Err(error) => findings.fail(
            format!("policy: {path}: {error}"),
            "make it readable: until then every program runs on the kernel",
        ),
    }
}

fn daemon(findings: &mut Findings) {
    let daemon = match source::query(QueryKind::Daemon) {
        Ok(daemon) => daemon,
        Err(failure) if failure.code == 3 => {
            return if rustix::process::geteuid().is_root() {
                findings.ok("daemon: none yet; the first accelerated program of root starts it");
            } else {
                findings.warn(
                    "daemon: none runs in this network namespace",
                    "have root run bypassctl daemon",
                );
            };
        }
        Err(failure) => {
            return findings.fail(format!("daemon: {}", failure.message), "restart it");
        }
    };
    let cell = |field: &str| render::cell(&daemon[field]);
    findings.ok(format!(
        "daemon: process {}, version {}",
        cell("pid"),
        cell("version")
    ));
    if daemon["version"] != env!("CARGO_PKG_VERSION") {
        findings.warn(
            format!(
                "daemon: another version than bypassctl {}",
                env!("CARGO_PKG_VERSION")
            ),
            "restart it: bypassctl shutdown",
        );
    }
    if !daemon["config_error"].is_null() {
        findings.fail(
            format!("daemon: {}: {}", cell("config"), cell("config_error")),
            "correct the file and restart the daemon: until then it serves nobody",
        );
    }
}
