//! The module paths that a source text names through `crate::` and `super::`.

/// All such paths in `text`, a file of `module`, as segments below the crate's root.
pub(super) fn named(text: &str, module: &[String]) -> Vec<Vec<String>> {
    let code = without_comments(text);
    let mut paths = Vec::new();
    for (at, keyword) in starts(&code) {
        let mut rest = &code[at + keyword.len()..];
        let mut base = if keyword == "crate" { Vec::new() } else { parent(module) };
        while let Some(after) = rest.strip_prefix("::super") {
            base = parent(&base);
            rest = after;
        }
        if let Some(tree) = rest.strip_prefix("::") {
            expand(tree, &base, &mut paths);
        }
    }
    paths
}

/// Where a path starts: the words `crate` and `super`, unless they continue another path or word.
fn starts(code: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    for keyword in ["crate", "super"] {
        for (at, _) in code.match_indices(keyword) {
            let before = code[..at].chars().next_back();
            let inside = before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
            let path = code[at + keyword.len()..].starts_with("::");
            if path && !inside {
                found.push((at, keyword));
            }
        }
    }
    found
}

fn parent(module: &[String]) -> Vec<String> {
    module[..module.len().saturating_sub(1)].to_vec()
}

/// Adds the paths of `a::b::{c, d::{e, f}}` to `paths`; returns what follows the tree.
fn expand<'a>(mut rest: &'a str, base: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = base.to_vec();
    loop {
        rest = rest.trim_start();
        if let Some(mut group) = rest.strip_prefix('{') {
            loop {
                group = group.trim_start().trim_start_matches(',').trim_start();
                if group.is_empty() {
                    return group;
                }
                if let Some(after) = group.strip_prefix('}') {
                    return after;
                }
                let after = expand(group, &path, paths);
                // A token that is no path (`*`, a stray sign) must not stop the scan.
                group = if after.len() == group.len() { skip_one(group) } else { after };
            }
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        if end == 0 {
            paths.push(path);
            return rest;
        }
        path.push(rest[..end].to_owned());
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(after) => rest = after,
            None => {
                paths.push(path);
                return rest.split_once([',', '}', ';']).map_or(rest, |(skipped, _)| {
                    if skipped.starts_with(" as ") { &rest[skipped.len()..] } else { rest }
                });
            }
        }
    }
}

fn skip_one(text: &str) -> &str {
    let mut chars = text.chars();
    chars.next();
    chars.as_str()
}

fn without_comments(text: &str) -> String {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned() + "\n";
    text.lines().map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<String> {
        let module = ["pci".to_owned(), "bar".to_owned()];
        named(text, &module).iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn groups_nest_and_super_climbs() {
        let text = "use crate::{a::B, c::{self, D as E, *}, f};\nuse super::config::X;\n";
        assert_eq!(of(text), ["a::B", "c::self", "c::D", "c", "f", "pci::config::X"]);
        assert_eq!(of("super::super::irq::Line"), ["irq::Line"]);
    }

    #[test]
    fn comments_and_other_words_are_no_paths() {
        assert!(of("// see crate::a\nlet mycrate::x; std::super::y;").is_empty());
    }

    #[test]
    fn broken_text_ends() {
        of("use crate::{a, {b, :: ; crate::{");
    }
}
