//! Reads the repository's own text: the list of hooked functions.

use std::fs;

use crate::{Result, paths};

/// Names in the `hooks!` list of `preload/src/symbols.rs`.
///
/// # Errors
/// When the file cannot be read.
pub fn hooked_names() -> Result<Vec<String>> {
    let path = paths::repository().join("preload/src/symbols.rs");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(parse_hooks(&text))
}

/// The `fn NAME(…) -> …;` and `fn NAME => …;` lines between `hooks! {` or `lists! {` at the start
/// of a line and the closing brace.
fn parse_hooks(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in text.lines() {
        match line {
            "hooks! {" | "lists! {" => inside = true,
            "}" => inside = false,
            _ if inside => {
                let name = line.trim_start().strip_prefix("fn ");
                let name = name.and_then(|rest| rest.split(['(', ' ']).next());
                names.extend(name.map(str::to_owned));
            }
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::parse_hooks;

    #[test]
    fn the_list_is_found_and_nothing_else() {
        let text = "fn other() {}\nhooks! {\n    fn read(fd: c_int) -> ssize_t => io::read;\n\n    \
                    fn __close(fd: c_int) -> c_int => fd::close;\n}\nfn last() {}\n\
                    lists! {\n    fn execl => list::execl;\n}\n";
        assert_eq!(parse_hooks(text), ["read", "__close", "execl"]);
    }
}
