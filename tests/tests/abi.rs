//! The binary interface of `libbypass.so`: what it exports, needs and how old a glibc may be.

use std::collections::BTreeSet;
use std::process::Command;

use bypass_tests::{paths, sources};

/// Newest symbol version of glibc that the library may need.
const GLIBC_FLOOR: (u32, u32) = (2, 34);
/// Libraries that it may be linked with.
const NEEDED: [&str; 3] = ["libc.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];

/// Output of a binutils program on the library, or nothing when the library is not built.
fn inspect(tool: &str, options: &[&str]) -> Option<String> {
    let library = paths::shim();
    if !library.is_file() {
        assert!(
            std::env::var_os("BYPASS_TEST_REQUIRE_SHIM").is_none(),
            "not built: {}",
            library.display()
        );
        return None;
    }
    let run = Command::new(tool)
        .args(options)
        .arg(&library)
        .output()
        .expect("binutils is there");
    assert!(
        run.status.success(),
        "{tool}: {}",
        String::from_utf8_lossy(&run.stderr)
    );
    Some(String::from_utf8_lossy(&run.stdout).into_owned())
}

#[test]
fn exported_symbols_are_the_hooked_names() {
    let Some(text) = inspect("nm", &["-D", "--defined-only"]) else {
        return;
    };
    let exported: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    let names = sources::hooked_names().expect("the list can be read");
    let hooked: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(hooked.len(), names.len(), "a name is in the list twice");
    assert!(!hooked.is_empty());
    let more: Vec<_> = exported.difference(&hooked).collect();
    let less: Vec<_> = hooked.difference(&exported).collect();
    assert!(
        more.is_empty() && less.is_empty(),
        "too many: {more:?}, missing: {less:?}"
    );
}

#[test]
fn no_vendor_library_is_linked() {
    let Some(text) = inspect("readelf", &["-d"]) else {
        return;
    };
    let needed: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split(['[', ']']).nth(1))
        .collect();
    let strange: Vec<_> = needed
        .iter()
        .filter(|name| !NEEDED.contains(name))
        .collect();
    assert!(strange.is_empty(), "needs {strange:?}");
}

#[test]
fn glibc_floor_is_kept() {
    let Some(text) = inspect("objdump", &["-T"]) else {
        return;
    };
    let newest = text
        .split(['(', ')', ' ', '\n'])
        .filter_map(|word| word.strip_prefix("GLIBC_"))
        .filter_map(|version| {
            let mut parts = version.split('.');
            Some((
                parts.next()?.parse::<u32>().ok()?,
                parts.next()?.parse::<u32>().ok()?,
            ))
        })
        .max()
        .expect("it uses libc");
    assert!(
        newest <= GLIBC_FLOOR,
        "needs GLIBC_{}.{}",
        newest.0,
        newest.1
    );
}

#[test]
fn no_thread_local_has_a_destructor() {
    let Some(text) = inspect("nm", &["-D", "--undefined-only"]) else {
        return;
    };
    // Registering one allocates, which a hook must not do; std itself refers to it weakly.
    let strong = text
        .lines()
        .any(|line| line.contains(" U __cxa_thread_atexit_impl"));
    assert!(!strong, "a strong reference to __cxa_thread_atexit_impl");
}
