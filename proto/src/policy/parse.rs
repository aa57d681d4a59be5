//! From the text of a configuration file to a [`Policy`], or to one message with line and column.
//!
//! Nothing of a file with an error is used. The reverse is [`Policy::to_toml`].

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{Action, Backend, DaemonPolicy, Device, Policy, Rule};
use crate::options::{self, Setting};

/// Most bytes of a configuration file.
const MAX_BYTES: usize = 1 << 20;

/// What is wrong with a configuration file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// One sentence without the place, on one line.
    pub message: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}, column {}: {}",
            self.line, self.column, self.message
        )
    }
}

impl std::error::Error for PolicyError {}

/// The file as TOML sees it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    rule: Vec<Spanned<Rule>>,
    options: toml::map::Map<String, toml::Value>,
    daemon: Option<Spanned<DaemonPolicy>>,
    device: Vec<Spanned<Device>>,
}

/// The same for writing.
#[derive(Debug, Serialize)]
struct FileOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<toml::map::Map<String, toml::Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<&'a DaemonPolicy>,
    #[serde(skip_serializing_if = "<[Rule]>::is_empty")]
    rule: &'a [Rule],
    #[serde(skip_serializing_if = "<[Device]>::is_empty")]
    device: &'a [Device],
}

impl Policy {
    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// The first error: TOML syntax, an unknown key or word, a bad address or port range, a rule
    /// whose conditions an earlier rule has already (it could never decide), an option value out
    /// of range.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        // Editors of other systems begin a file so; TOML allows it, and it has no column.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.len() > MAX_BYTES {
            return Err(at(text, 0, "the file is larger than 1 MiB".to_owned()));
        }
        let file: File = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            at(text, start, one_line(error.message()))
        })?;
        let mut policy = Self::default();
        for device in file.device {
            let start = device.span().start;
            let device = device.into_inner();
            let checked = device.check(&policy.devices);
            checked.map_err(|message| at(text, start, message))?;
            policy.devices.push(device);
        }
        for rule in file.rule {
            let start = rule.span().start;
            let rule = rule.into_inner();
            check_rule(&rule, &policy).map_err(|message| at(text, start, message))?;
            policy.rules.push(rule);
        }
        for (key, value) in file.options {
            let setting = setting(&key, &value)
                .map_err(|message| at(text, find_key(text, "options", &key), message))?;
            policy.options.push(setting);
        }
        if let Some(daemon) = file.daemon {
            let Range { start, .. } = daemon.span();
            policy.daemon = daemon.into_inner();
            check_daemon(&policy.daemon).map_err(|(key, message)| {
                let key = find_key(text, "daemon", key);
                at(text, if key == 0 { start } else { key }, message)
            })?;
        }
        Ok(policy)
    }

    /// The policy as the text of a configuration file that [`Policy::parse`] reads back.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let options = self.options.iter().map(|setting| {
            (
                setting.key.to_owned(),
                toml::Value::String(setting.value.clone()),
            )
        });
        let file = FileOut {
            options: if self.options.is_empty() {
                None
            } else {
                Some(options.collect())
            },
            daemon: if self.daemon == DaemonPolicy::default() {
                None
            } else {
                Some(&self.daemon)
            },
            rule: &self.rules,
            device: &self.devices,
        };
        // Every type above is a table of strings, numbers and lists: all of them TOML has.
        toml::to_string(&file).unwrap_or_default()
    }
}

/// What is wrong with a rule after what is read of the policy: the devices and the rules before it.
fn check_rule(rule: &Rule, read: &Policy) -> Result<(), String> {
    if rule.backend.is_some() && rule.action == Action::Kernel {
        return Err("backend has no meaning with action = \"kernel\"".to_owned());
    }
    if rule.user.as_ref().is_some_and(String::is_empty) {
        return Err("user is empty".to_owned());
    }
    if let Some(name) = &rule.interface
        && !is_interface_name(name)
    {
        return Err(format!("`{}` is no interface name", name.escape_debug()));
    }
    let is_ambiguous = match rule.backend {
        Some(Backend::AfXdp) => !read.devices.is_empty(),
        Some(backend @ (Backend::Dpdk | Backend::EfVi)) => {
            let devices = read.devices.iter();
            devices.filter(|it| it.backend == backend).count() > 1
        }
        _ => false,
    };
    if is_ambiguous && rule.interface.is_none() {
        return Err("beside [[device]]s a rule with a backend must name its interface".to_owned());
    }
    match read
        .rules
        .iter()
        .position(|other| same_conditions(rule, other))
    {
        Some(index) => Err(format!(
            "duplicate rule: rule {} has the same conditions and decides first",
            index + 1
        )),
        None => Ok(()),
    }
}

/// Whether `later` can never decide because `earlier` has its conditions.
fn same_conditions(later: &Rule, earlier: &Rule) -> bool {
    // With an interface, only an accelerate rule matches sockets whose interface is not known yet.
    let reached = later.interface.is_some()
        && later.action == Action::Accelerate
        && earlier.action == Action::Kernel;
    !reached
        && later.program == earlier.program
        && later.user == earlier.user
        && later.protocol == earlier.protocol
        && later.role == earlier.role
        && later.local == earlier.local
        && later.remote == earlier.remote
        && later.interface == earlier.interface
}

/// As the kernel's `dev_valid_name`: 1 to 15 bytes without `/`, `:` and white space, not a dot.
pub(super) fn is_interface_name(name: &str) -> bool {
    let bad = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0;
    !name.is_empty() && name.len() <= 15 && name != "." && name != ".." && !name.bytes().any(bad)
}

fn setting(key: &str, value: &toml::Value) -> Result<Setting, String> {
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Boolean(flag) => u8::from(*flag).to_string(),
        other => return Err(format!("option `{key}` cannot be a {}", other.type_str())),
    };
    options::setting(key, &text)
}

fn check_daemon(daemon: &DaemonPolicy) -> Result<(), (&'static str, String)> {
    for (name, value, least, most) in daemon.limits() {
        if !(least..=most).contains(&value) {
            return Err((
                name,
                format!("{name} is {value}: expected {least} to {most}"),
            ));
        }
    }
    if daemon.allow.iter().flatten().any(super::Allow::is_empty) {
        return Err((
            "allow",
            "an empty entry in allow would allow everybody".to_owned(),
        ));
    }
    Ok(())
}

/// Byte offset of a key inside a table, for messages; 0 when it is written in some other way.
fn find_key(text: &str, table: &str, key: &str) -> usize {
    let mut offset = 0;
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        let code = line.trim_start();
        if let Some(header) = code.strip_prefix('[') {
            inside = header
                .trim_start()
                .strip_prefix(table)
                .is_some_and(|tail| tail.trim_start().starts_with(']'));
        } else if inside
            && code
                .trim_start_matches(['"', '\''])
                .strip_prefix(key)
                .is_some_and(|tail| {
                    tail.trim_start_matches(['"', '\''])
                        .trim_start()
                        .starts_with('=')
                })
        {
            return offset + line.len() - code.len();
        }
        offset += line.len();
    }
    0
}

/// An error at a byte offset.
fn at(text: &str, offset: usize, message: String) -> PolicyError {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = text.get(..offset).unwrap_or_default();
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(start..).unwrap_or_default().chars().count() + 1;
    PolicyError {
        line,
        column,
        message,
    }
}

fn one_line(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .collect::<Vec<_>>()
        .join("; ")
}
