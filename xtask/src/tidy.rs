//! Rules that no compiler knows: module docs, where unsafe code may be, who may depend on whom,
//! banned words, line width, tests that the process model names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use bypass_tests::{Result, paths};

use crate::build::cargo;

/// Widest line of Rust and C source.
const WIDTH: usize = 100;

/// Files and folders that may hold unsafe code, each by a module-level `expect` with its reason.
const UNSAFE: &[&str] = &[
    "backends/src/",
    // An example that hands a backend bytes of its own.
    "backends/examples/ef_vi_events.rs",
    // A port of memory, whose trait has an unsafe method.
    "backends/examples/relay_path.rs",
    "runtime/src/",
    "preload/src/",
    "ctl/src/",
    // TUNSETIFF of an emulated link.
    "tests/src/tap.rs",
    // A C library for tests.
    "tests/fake-ciul/src/",
    // The same for packetdrill, and a program that calls it.
    "tests/packetdrill/",
    // The system calls of a test that asks the kernel; the crate itself forbids unsafe code.
    "stack/tests/script/kernel/system.rs",
];

/// Words of the glossary that we do not use for what stands beside them.
const BANNED: &[(&str, &str)] = &[
    ("passthrough", "fall-through"),
    ("pass-through", "fall-through"),
    ("offloaded socket", "accelerated socket"),
    ("bypassed socket", "accelerated socket"),
    ("accelerated session", "connection"),
    ("busy loop", "spin"),
    ("busy-loop", "spin"),
    ("arp entry", "neighbour"),
    ("mbuf", "chunk"),
];

/// Crate and the crates of ours that it may depend on.
const DEPENDENCIES: &[(&str, &[&str])] = &[
    ("bypass-stack", &[]),
    ("bypass-proto", &[]),
    ("bypass-backends", &[]),
    (
        "bypass-runtime",
        &["bypass-stack", "bypass-proto", "bypass-backends"],
    ),
    (
        "bypass-preload",
        &[
            "bypass-stack",
            "bypass-proto",
            "bypass-backends",
            "bypass-runtime",
        ],
    ),
    (
        "bypass-ctl",
        &[
            "bypass-stack",
            "bypass-proto",
            "bypass-backends",
            "bypass-runtime",
        ],
    ),
];

/// Checks everything.
///
/// # Errors
/// When something is not tidy; the text has a line for each.
pub(crate) fn run() -> Result<()> {
    let root = paths::repository();
    let mut problems = Vec::new();
    let mut tests = String::new();
    for path in sources(&root)? {
        let name = path.strip_prefix(&root)?.display().to_string();
        let text = fs::read_to_string(&path)?;
        check_file(&name, &text, &mut problems);
        if name.starts_with("stack/tests/") || name.starts_with("tests/tests/") {
            tests.push_str(&text);
        }
    }
    let model = fs::read_to_string(root.join("docs/process-model.md"))?;
    check_process_model(&model, &tests, &mut problems);
    check_dependencies(&mut problems)?;
    if problems.is_empty() {
        return Ok(());
    }
    Err(format!("{} problems:\n  {}", problems.len(), problems.join("\n  ")).into())
}

/// Every Rust and C source of the repository.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" && name != "build" {
                folders.push(path);
            } else if name.ends_with(".rs") || name.ends_with(".c") || name.ends_with(".h") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn check_file(name: &str, text: &str, problems: &mut Vec<String>) {
    let generated = name.contains("vmlinux") || text.starts_with("// @generated");
    let first = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("");
    if name.ends_with(".rs") && !first.starts_with("//!") && !generated {
        problems.push(format!("{name}: no module doc"));
    }
    // This file has the words that it bans.
    let words = !name.ends_with("xtask/src/tidy.rs");
    // One line is one entry of the table of hooks: a C prototype.
    let wide = name.ends_with("preload/src/symbols.rs") || generated;
    for (number, line) in text.lines().enumerate() {
        let at = || format!("{name}:{}", number + 1);
        // A sentence in a table of texts is not broken.
        let text = name.ends_with(".rs") && line.contains('"');
        if !wide && !text && line.chars().count() > WIDTH {
            problems.push(format!("{}: wider than {WIDTH}", at()));
        }
        if line.ends_with(' ') || line.ends_with('\t') {
            problems.push(format!("{}: blanks at the end", at()));
        }
        // DPDK's own names are not ours to choose.
        let lower = line
            .to_lowercase()
            .replace("rte_mbuf", "")
            .replace("total-num-mbufs", "")
            .replace("rte_pktmbuf", "");
        for (word, instead) in BANNED.iter().filter(|_| words) {
            if lower.contains(word) {
                problems.push(format!("{}: \"{word}\": say \"{instead}\"", at()));
            }
        }
    }
    if name.ends_with(".rs") && words {
        check_unsafe(name, text, problems);
    }
}

/// Unsafe code only where it may be, with its reason at the top of the module.
fn check_unsafe(name: &str, text: &str, problems: &mut Vec<String>) {
    let has = text.lines().any(|line| {
        let code = line.split("//").next().unwrap_or("");
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
            .iter()
            .any(|w| code.contains(w))
    });
    if !has {
        return;
    }
    if !UNSAFE.iter().any(|folder| name.starts_with(folder)) {
        problems.push(format!("{name}: unsafe code is not allowed here"));
    }
    if !text.contains("UNSAFETY: ") {
        problems.push(format!("{name}: unsafe code without an UNSAFETY reason"));
    }
}

/// The tests that rows of the process model name are in `tests`, the text of all of them: `c:` a
/// case of conformance, `e:` a scene, `s:` a test of the stack.
fn check_process_model(model: &str, tests: &str, problems: &mut Vec<String>) {
    let words = model.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    for word in words {
        let entry = match word.split_once(':') {
            Some(("c", name)) => format!("\n    {name}: "),
            Some(("e", name)) => format!("::{name}: "),
            Some(("s", name)) => format!("\nfn {name}()"),
            _ => continue,
        };
        let is_legend = word.ends_with(':');
        if !is_legend && !tests.contains(&entry) {
            problems.push(format!("docs/process-model.md: no test {word}"));
        }
    }
}

/// The dependency rule, from `cargo metadata`.
fn check_dependencies(problems: &mut Vec<String>) -> Result<()> {
    let run = cargo()
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .output()?;
    let metadata: Value = serde_json::from_slice(&run.stdout)
        .map_err(|_| String::from_utf8_lossy(&run.stderr).into_owned())?;
    let mut packages: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let needs = package["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            // What only tests need is not in the product.
            .filter(|dependency| dependency["kind"] != "dev")
            .filter_map(|dependency| dependency["name"].as_str())
            .filter(|name| name.starts_with("bypass-"))
            .collect();
        packages.insert(package["name"].as_str().unwrap_or(""), needs);
    }
    for (name, allowed) in DEPENDENCIES {
        let Some(needs) = packages.get(name) else {
            problems.push(format!("no crate {name}"));
            continue;
        };
        for other in needs.iter().filter(|other| !allowed.contains(other)) {
            problems.push(format!("{name} must not depend on {other}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check_file, check_process_model};

    fn problems(name: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        check_file(name, text, &mut found);
        found
    }

    #[test]
    fn module_docs_width_and_words_are_checked() {
        assert!(problems("stack/src/a.rs", "//! Fine.\nfn f() {}\n").is_empty());
        assert_eq!(problems("stack/src/a.rs", "fn f() {}\n").len(), 1);
        assert_eq!(
            problems("a/b.c", &format!("/* {} */\n", "x".repeat(100))).len(),
            1
        );
        assert_eq!(problems("a/b.c", "/* a passthrough */\n").len(), 1);
        assert_eq!(problems("a/b.c", "int x; \n").len(), 1);
    }

    #[test]
    fn unsafe_code_has_its_places_and_a_reason() {
        let block = "//! Doc.\nfn f() { unsafe { g() } }\n";
        assert_eq!(problems("stack/src/a.rs", block).len(), 2);
        assert_eq!(problems("runtime/src/a.rs", block).len(), 1);
        let reason = "//! Doc.\n// UNSAFETY: maps.\nfn f() { unsafe { g() } }\n";
        assert!(problems("runtime/src/a.rs", reason).is_empty());
        assert!(problems("stack/src/a.rs", "//! Doc.\n// unsafe { in a comment }\n").is_empty());
    }

    #[test]
    fn rows_of_the_process_model_name_tests() {
        let tests = "\n    a_case: Mixed,\n    module::a_scene: Any,\nfn a_test() {\n";
        let mut found = Vec::new();
        let model = "Tests: `c:` cases\n| fork | x | c:a_case, e:a_scene; s:a_test |\n";
        check_process_model(model, tests, &mut found);
        assert!(found.is_empty(), "{found:?}");
        let model = "| fork | x | c:a_scene, e:case, s:test |";
        check_process_model(model, tests, &mut found);
        assert_eq!(found.len(), 3);
    }
}
