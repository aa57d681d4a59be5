//! The options: one table of `BYPASS_*` variables, and their values of one process.
//!
//! Each option stands once in the table below with type, default and sentence; the environment,
//! the `[options]` table of the configuration file, `bypassctl` and the manual read it. Later
//! sources win: default, profile of the file, file, profile of the environment, environment.
//! A value that is not understood is reported and left as it was; it never stops a program.

/// Prefix of every variable.
pub const PREFIX: &str = "BYPASS_";

/// What values an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `0` or `1` (also `no`/`yes`, `off`/`on`, `false`/`true`; empty = 0).
    Flag,
    /// A decimal number.
    Number {
        /// Unit, as in "µs".
        unit: &'static str,
        /// Smallest value.
        least: u32,
        /// Largest value.
        most: u32,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A path of the file system.
    Path,
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionInfo {
    /// Variable name.
    pub name: &'static str,
    /// Key in the `[options]` table; empty for an option that only the environment sets.
    pub key: &'static str,
    /// Type and range.
    pub kind: Kind,
    /// Default, as text.
    pub default: &'static str,
    /// What it does.
    pub sentence: &'static str,
}

/// One option set by a file: a key of the table and a value that fits it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// [`OptionInfo::key`].
    pub key: &'static str,
    /// The value.
    pub value: String,
}

/// A named set of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Shortest answer times: spins long.
    Latency,
    /// Most packets per second: spins briefly.
    Throughput,
    /// Least CPU time and least surprise: never spins.
    Safe,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 3] = [Self::Latency, Self::Throughput, Self::Safe];

    /// Name, as in `BYPASS_PROFILE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Throughput => "throughput",
            Self::Safe => "safe",
        }
    }

    /// What the profile sets: variable and value.
    #[must_use]
    pub fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Latency => &[("BYPASS_SPIN_US", "100")],
            Self::Throughput => &[("BYPASS_SPIN_US", "10")],
            Self::Safe => &[("BYPASS_SPIN_US", "0")],
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name)
    }
}

/// How much is written to stderr; each level includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Log {
    /// Nothing.
    Off,
    /// What keeps every socket of the process on the kernel, once.
    #[default]
    Error,
    /// Each socket's decision too.
    Info,
    /// Joining the stack and mapping its queues too.
    Debug,
}

impl Log {
    fn from_name(name: &str) -> Option<Self> {
        let levels = [
            ("off", Self::Off),
            ("error", Self::Error),
            ("info", Self::Info),
        ];
        let mut levels = levels.into_iter().chain([("debug", Self::Debug)]);
        levels.find(|level| level.0 == name).map(|level| level.1)
    }
}

/// What a program that makes an io_uring gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rings {
    /// By liburing as [`Self::Kernel`]; by libc's `syscall` as [`Self::Refuse`] once the program
    /// has an accelerated socket, before as [`Self::Kernel`].
    #[default]
    Auto,
    /// The ring; its sockets are the kernel's.
    Kernel,
    /// ENOSYS.
    Refuse,
    /// The ring; its sockets stay accelerated.
    Ignore,
}

impl Rings {
    fn from_name(name: &str) -> Option<Self> {
        let words = [
            ("auto", Self::Auto),
            ("kernel", Self::Kernel),
            ("refuse", Self::Refuse),
            ("ignore", Self::Ignore),
        ];
        words
            .into_iter()
            .find(|word| word.0 == name)
            .map(|word| word.1)
    }
}

/// Declares the table and the values.
macro_rules! options {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident: $type:ty, $name:literal, $key:literal, $kind:expr, $default:expr, $read:expr;
    )+) => {
        /// Every option, in the order of the manual.
        pub const TABLE: &[OptionInfo] = &[ $( OptionInfo {
            name: $name,
            key: $key,
            kind: $kind,
            default: $default,
            sentence: concat!($( $doc ),+).trim_ascii(),
        }, )+ ];

        /// The values of one process.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Options { $( $(#[doc = $doc])+ pub $field: $type, )+ }

        impl Options {
            /// The defaults of the table.
            #[must_use]
            fn defaults() -> Self {
                // The defaults fit their types: a test holds it.
                Self { $( $field: $read($default).unwrap_or_default(), )+ }
            }

            /// Sets the option of this variable; the value has been checked against its kind.
            fn store(&mut self, name: &str, value: &str) {
                match name {
                    $( $name => if let Some(value) = $read(value) { self.$field = value; }, )+
                    _ => {}
                }
            }
        }
    };
}

options! {
    /// Configuration file in place of /etc/bypass/bypass.toml; it must exist.
    config: Option<String>, "BYPASS_CONFIG", "", Kind::Path, "", path;
    /// Leave every socket of the program with the kernel.
    disable: bool, "BYPASS_DISABLE", "", Kind::Flag, "0", flag;
    /// Named set of values; options that are set by themselves win over it.
    profile: Option<Profile>, "BYPASS_PROFILE", "profile",
        Kind::Choice(&["latency", "throughput", "safe"]), "", profile;
    /// Longest time that a waiting call polls the queue before it sleeps; 0 = sleep at once.
    spin_us: u32, "BYPASS_SPIN_US", "spin_us",
        Kind::Number { unit: "µs", least: 0, most: 1_000_000 }, "20", number;
    /// What is written to standard error: once what keeps every socket on the kernel (error), each
    /// socket's decision (info), the stack and queues that are joined (debug).
    log: Log, "BYPASS_LOG", "log",
        Kind::Choice(&["off", "error", "info", "debug"]), "error", Log::from_name;
    /// Whether a privileged program starts the daemon when none answers.
    autostart: bool, "BYPASS_DAEMON", "daemon",
        Kind::Choice(&["auto", "never"]), "auto", autostart;
    /// Also accelerate what is sent to this host's own addresses, between sockets of one stack.
    accelerate_local: bool, "BYPASS_ACCELERATE_LOCAL", "accelerate_local", Kind::Flag, "0", flag;
    /// Accelerate TCP sockets too.
    tcp: bool, "BYPASS_TCP", "tcp", Kind::Flag, "1", flag;
    /// When the program makes an io_uring: its sockets are the kernel's from then on (kernel), it
    /// is refused with ENOSYS (refuse), or nothing happens, for rings that serve files only
    /// (ignore); auto: kernel by liburing, refuse by syscall() once a socket is accelerated, kernel
    /// before.
    io_uring: Rings, "BYPASS_IO_URING", "io_uring",
        Kind::Choice(&["auto", "kernel", "refuse", "ignore"]), "auto", Rings::from_name;
}

impl Default for Options {
    fn default() -> Self {
        Self::defaults()
    }
}

impl Options {
    /// Values from variables alone; variables without the prefix are ignored. The messages name
    /// every unknown `BYPASS_*` variable and every bad value.
    pub fn from_env<N: AsRef<str>, V: AsRef<str>>(
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> (Self, Vec<String>) {
        Self::resolve(&[], variables)
    }

    /// Values from a file's settings and from variables, which win.
    pub fn resolve<N: AsRef<str>, V: AsRef<str>>(
        file: &[Setting],
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> (Self, Vec<String>) {
        let mut messages = Vec::new();
        let mut set = Vec::new();
        for (name, value) in variables {
            match check_variable(name.as_ref(), value.as_ref()) {
                Ok(Some(info)) => set.push((info.name, value)),
                Ok(None) => {}
                Err(message) => messages.push(message),
            }
        }
        let named = |setting: &Setting| by_key(setting.key).map_or("", |info| info.name);
        let mut options = Self::default();
        options.apply(
            file.iter()
                .map(|setting| (named(setting), setting.value.as_str())),
        );
        options.apply(set.iter().map(|(name, value)| (*name, value.as_ref())));
        (options, messages)
    }

    /// One source: its profile first, then what it sets by itself.
    fn apply<'a>(&mut self, layer: impl Iterator<Item = (&'a str, &'a str)> + Clone) {
        let chosen = layer
            .clone()
            .filter(|(name, _)| *name == "BYPASS_PROFILE")
            .last();
        let chosen = chosen.and_then(|(_, value)| Profile::from_name(value));
        for (name, value) in chosen.map(Profile::settings).unwrap_or_default() {
            self.store(name, value);
        }
        for (name, value) in layer {
            self.store(name, value);
        }
    }
}

/// Checks one key and value of an `[options]` table.
///
/// # Errors
/// A sentence: unknown key, or a value that the option does not take.
pub fn setting(key: &str, value: &str) -> Result<Setting, String> {
    let Some(info) = by_key(key) else {
        let keys: Vec<_> = TABLE
            .iter()
            .map(|info| info.key)
            .filter(|key| !key.is_empty())
            .collect();
        return Err(format!(
            "unknown option `{}`, expected one of {}",
            key.escape_debug(),
            keys.join(", ")
        ));
    };
    check(info, value).map_err(|expected| format!("option {}: expected {expected}", info.key))?;
    Ok(Setting {
        key: info.key,
        value: value.to_owned(),
    })
}

/// The entry of this variable.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static OptionInfo> {
    TABLE.iter().find(|info| info.name == name)
}

fn by_key(key: &str) -> Option<&'static OptionInfo> {
    TABLE
        .iter()
        .find(|info| !info.key.is_empty() && info.key == key)
}

/// `Ok(None)` for a variable that is not ours.
fn check_variable(name: &str, value: &str) -> Result<Option<&'static OptionInfo>, String> {
    if !name.starts_with(PREFIX) {
        return Ok(None);
    }
    let Some(info) = by_name(name) else {
        return Err(format!("unknown variable {}: ignored", name.escape_debug()));
    };
    match check(info, value) {
        Ok(()) => Ok(Some(info)),
        Err(expected) => Err(format!(
            "{name}={}: expected {expected}; the default stays",
            value.escape_debug()
        )),
    }
}

/// Whether the value fits; if not, what would.
fn check(info: &OptionInfo, value: &str) -> Result<(), String> {
    match info.kind {
        Kind::Flag if flag(value).is_some() => Ok(()),
        Kind::Flag => Err("0 or 1".to_owned()),
        Kind::Number { unit, least, most } => match number(value) {
            Some(number) if (least..=most).contains(&number) => Ok(()),
            _ => Err(format!("{least} to {most} {unit}")),
        },
        Kind::Choice(words) if words.contains(&value) => Ok(()),
        Kind::Choice(words) => Err(words.join(", ")),
        Kind::Path if path(value).is_some() => Ok(()),
        Kind::Path => Err("a path".to_owned()),
    }
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "1" | "yes" | "on" | "true" => Some(true),
        "0" | "no" | "off" | "false" | "" => Some(false),
        _ => None,
    }
}

fn number(value: &str) -> Option<u32> {
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        value.parse().ok()
    } else {
        None
    }
}

#[expect(
    clippy::option_option,
    reason = "the reader says whether, the value says which"
)]
fn path(value: &str) -> Option<Option<String>> {
    if value.is_empty() || value.contains('\0') {
        None
    } else {
        Some(Some(value.to_owned()))
    }
}

#[expect(
    clippy::option_option,
    reason = "the reader says whether, the value says which"
)]
fn profile(value: &str) -> Option<Option<Profile>> {
    Profile::from_name(value).map(Some)
}

fn autostart(value: &str) -> Option<bool> {
    match value {
        "auto" => Some(true),
        "never" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_fits_its_kind_and_names_are_unique() {
        for (index, info) in TABLE.iter().enumerate() {
            assert!(info.name.starts_with(PREFIX) && info.sentence.ends_with('.'));
            assert!(
                info.default.is_empty() || check(info, info.default).is_ok(),
                "{}",
                info.name
            );
            assert!(TABLE[..index].iter().all(|other| other.name != info.name));
            let key = info.name[PREFIX.len()..].to_lowercase();
            assert!(info.key.is_empty() || info.key == key);
        }
        let options = Options::default();
        assert_eq!((options.spin_us, options.config), (20, None));
        assert_eq!((options.log, options.autostart), (Log::Error, true));
    }

    #[test]
    fn profiles_set_known_options() {
        for (name, value) in Profile::ALL.iter().flat_map(|profile| profile.settings()) {
            assert_eq!(check(by_name(name).expect("in the table"), value), Ok(()));
        }
    }

    #[test]
    fn later_sources_win() {
        let file = [setting("profile", "safe"), setting("spin_us", "7")].map(Result::unwrap);
        let spin = |file: &[Setting], variables: &[(&'static str, &'static str)]| {
            let (options, messages) = Options::resolve(file, variables.iter().copied());
            assert_eq!(messages, Vec::<String>::new());
            options.spin_us
        };
        assert_eq!(spin(&file[..1], &[]), 0);
        assert_eq!(spin(&file, &[]), 7);
        assert_eq!(spin(&file, &[("BYPASS_PROFILE", "latency")]), 100);
        assert_eq!(
            spin(
                &file,
                &[("BYPASS_SPIN_US", "3"), ("BYPASS_PROFILE", "latency")]
            ),
            3
        );
    }

    #[test]
    fn bad_and_unknown_variables_are_reported_and_ignored() {
        let (options, messages) = Options::from_env([
            ("PATH", "/bin"),
            ("BYPASS_SPIN", "1"),
            ("BYPASS_SPIN_US", "1000001"),
            ("BYPASS_LOG", "loud"),
            ("BYPASS_DISABLE", "maybe"),
            ("BYPASS_CONFIG", ""),
            ("BYPASS_DAEMON", "never"),
        ]);
        assert_eq!(messages.len(), 5, "{messages:?}");
        assert_eq!(
            options,
            Options {
                autostart: false,
                ..Options::default()
            }
        );
    }
}
