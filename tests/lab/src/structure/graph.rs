//! Cycles among modules.
//!
//! An edge between two modules is lifted to where their paths part: `pci::bar` naming `irq::line`
//! says that `pci` needs `irq`. A module and its own parts may name each other.

use std::collections::{BTreeMap, BTreeSet};

type Path = Vec<String>;
/// Who needs whom among the modules of one folder.
type Needs = BTreeMap<String, BTreeSet<String>>;

/// Each group of modules that need one another, as `a, b`.
pub(super) fn cycles(edges: &[(Path, Path)]) -> Vec<String> {
    let mut levels: BTreeMap<&[String], Needs> = BTreeMap::new();
    for (from, to) in edges {
        let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        if let (Some(user), Some(used)) = (from.get(common), to.get(common)) {
            let needs = levels.entry(&from[..common]).or_default();
            needs.entry(user.clone()).or_default().insert(used.clone());
        }
    }
    let of_level = |(folder, needs): (&[String], Needs)| {
        let shown = |group: BTreeSet<String>| {
            let names = group.into_iter().map(|name| [folder, &[name]].concat().join("::"));
            names.collect::<Vec<_>>().join(", ")
        };
        groups(&needs).into_iter().map(shown).collect::<Vec<_>>()
    };
    levels.into_iter().flat_map(of_level).collect()
}

/// Sets of modules that reach each other.
fn groups(needs: &Needs) -> BTreeSet<BTreeSet<String>> {
    let reach: BTreeMap<&String, BTreeSet<&String>> =
        needs.keys().map(|module| (module, reachable(needs, module))).collect();
    let mutual = |a: &String, b: &String| {
        let sees = |from, to| reach.get(from).is_some_and(|set| set.contains(to));
        sees(a, b) && sees(b, a)
    };
    needs
        .keys()
        .filter(|module| mutual(module, module))
        .map(|module| needs.keys().filter(|other| mutual(module, other)).cloned().collect())
        .collect()
}

fn reachable<'a>(needs: &'a Needs, start: &String) -> BTreeSet<&'a String> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&String> = needs.get(start).into_iter().flatten().collect();
    while let Some(module) = open.pop() {
        if seen.insert(module) {
            open.extend(needs.get(module).into_iter().flatten());
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        text.split("::").map(str::to_owned).collect()
    }

    #[test]
    fn cycles_are_found_at_their_level() {
        let edges = [("a", "b"), ("b::x", "c"), ("c", "a::y"), ("d", "a"), ("b::x", "b::z")];
        let edges = edges.map(|(from, to)| (path(from), path(to)));
        assert_eq!(cycles(&edges), ["a, b, c"]);
        let inner = [("a::x", "a::y"), ("a::y::deep", "a::x")].map(|(from, to)| (path(from), path(to)));
        assert_eq!(cycles(&inner), ["a::x, a::y"]);
    }

    #[test]
    fn a_module_and_its_parts_are_no_cycle() {
        let edges = [("a", "a::x"), ("a::x", "a")].map(|(from, to)| (path(from), path(to)));
        assert!(cycles(&edges).is_empty());
    }
}
