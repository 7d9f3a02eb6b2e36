//! The page of failure cases names tests; they must exist.

use std::collections::BTreeSet;
use std::path::Path;

/// Names of all functions in the Rust files below a folder.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        match path.extension().and_then(|ending| ending.to_str()) {
            _ if path.is_dir() => functions(&path, found),
            Some("rs") => {
                let text = std::fs::read_to_string(&path).unwrap();
                let names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
                found.extend(names.map(ToString::to_string));
            }
            _ => {}
        }
    }
}

#[test]
fn every_failure_case_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("schemas/docs/failures.md")).unwrap();
    let mut there = BTreeSet::new();
    for folder in ["schemas", "coordinator", "workers", "tests"] {
        functions(&root.join(folder), &mut there);
    }
    let rows: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit()).collect();
    assert_eq!(rows.len(), 34);
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[1], (number + 1).to_string());
        let named: Vec<&str> = cells[3].split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty() || cells[3].contains("later"), "{row}");
        for name in named {
            assert!(there.contains(name.rsplit("::").next().unwrap()), "no test `{name}`");
        }
    }
}
