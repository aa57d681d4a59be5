//! Options and policy of this process, read once.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: the auxiliary vector, and the name that execve was given there"
)]

use std::ffi::{CStr, c_char};
use std::os::fd::OwnedFd;

use bypass_proto::options::Options;
use bypass_proto::policy::{Policy, Program, uid_in_passwd};
use once_cell::sync::OnceCell;
use rustix::fs::{FileType, Mode, OFlags};

/// Where the policy is when BYPASS_CONFIG does not say.
const DEFAULT_PATH: &str = "/etc/bypass/bypass.toml";
/// Largest file that is read.
const LARGEST_FILE: usize = 1 << 20;

/// What the environment and the file say.
#[derive(Debug)]
pub struct Config {
    /// BYPASS_* options.
    pub options: Options,
    /// The policy, or what is wrong with it.
    pub policy: Result<Policy, String>,
    /// Path of the running program.
    pub program: String,
    /// Path of what was asked to run: a link to the program, a script, or the program itself.
    pub started_as: String,
    /// What was wrong with BYPASS_* variables.
    pub complaints: Vec<String>,
    /// Effective user when the configuration was read.
    pub uid: u32,
    secure: bool,
}

static CONFIG: OnceCell<Config> = OnceCell::new();

/// The configuration.
pub fn get() -> &'static Config {
    CONFIG.get_or_init(Config::read)
}

impl Config {
    fn read() -> Self {
        // Who starts a privileged program must not name files that it reads with that privilege.
        let secure = is_secure();
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter(|_| !secure)
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let explicit = Options::from_env(variables.iter().map(pair)).0.config;
        let path = explicit.clone().unwrap_or_else(|| DEFAULT_PATH.into());
        let mut policy = match read_file(&path) {
            Ok(text) => Policy::parse(&text).map_err(|error| {
                format!("{path}:{}:{}: {}", error.line, error.column, error.message)
            }),
            Err(rustix::io::Errno::NOENT) if explicit.is_none() => Ok(Policy::default()),
            Err(errno) => Err(format!("{path}: {errno}")),
        };
        if let Ok(policy) = &mut policy
            && policy.names_users()
            && let Ok(passwd) = read_file("/etc/passwd")
        {
            policy.resolve_users(|name| uid_in_passwd(&passwd, name));
        }
        let settings = policy
            .as_ref()
            .map_or(&[][..], |policy| policy.options.as_slice());
        let (options, complaints) = Options::resolve(settings, variables.iter().map(pair));
        Self {
            options,
            policy,
            program: program_name(),
            started_as: started_as(),
            complaints,
            uid: rustix::process::geteuid().as_raw(),
            secure,
        }
    }

    /// Whether this process may start the daemon itself.
    pub fn autostart(&self) -> bool {
        !self.secure && self.options.autostart && rustix::process::geteuid().is_root()
    }

    /// Whether the process runs with raised privilege.
    pub fn is_secure(&self) -> bool {
        self.secure
    }
}

fn pair(variable: &(String, String)) -> (&str, &str) {
    (&variable.0, &variable.1)
}

/// Whether this program is the kernel's whatever the rules say: what it runs is its own affair.
pub fn is_kernels() -> bool {
    let program = Program {
        file: &program_name(),
        started_as: &started_as(),
    };
    is_secure() || program.is_kernels()
}

fn is_secure() -> bool {
    // SAFETY: a plain integer.
    let secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    // Without the flag: a program that has changed its users since.
    secure
        || rustix::process::getuid() != rustix::process::geteuid()
        || rustix::process::getgid() != rustix::process::getegid()
}

fn program_name() -> String {
    rustix::fs::readlink("/proc/self/exe", Vec::new())
        .ok()
        .and_then(|path| path.into_string().ok())
        .unwrap_or_default()
}

/// What execve was given. The kernel wrote it down, so a program that renames itself (argv, comm)
/// does not change it; a path in the folder of that time is made whole.
fn started_as() -> String {
    // libc's copy of the auxiliary vector: rustix checks the vDSO in its own, which valgrind hides.
    // SAFETY: a plain integer.
    let text = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const c_char;
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the kernel has put a string there, above the environment, that nobody frees.
    let name = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    if name.starts_with('/') {
        return name.into_owned();
    }
    let folder = rustix::fs::readlink("/proc/self/cwd", Vec::new());
    let folder = folder.ok().and_then(|path| path.into_string().ok());
    let plain = name.trim_start_matches("./");
    format!("{}/{plain}", folder.unwrap_or_default())
}

fn read_file(path: &str) -> Result<String, rustix::io::Errno> {
    // A FIFO would keep the program waiting until somebody writes.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: OwnedFd = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::Fifo {
        return Err(rustix::io::Errno::SPIPE);
    }
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    loop {
        if length == bytes.len() {
            if length >= LARGEST_FILE {
                return Err(rustix::io::Errno::FBIG);
            }
            bytes.resize(length * 2, 0);
        }
        match rustix::io::read(&file, &mut bytes[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(|_| rustix::io::Errno::ILSEQ)
}
