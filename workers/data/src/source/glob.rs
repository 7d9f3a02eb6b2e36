//! Patterns of paths: `*` and `?` stand for characters of one name, `[a-c]` for one of them, `**` for any folders.

/// Whether a path has a character that makes it a pattern.
pub(super) fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// The folder before the first name with such a character, and the pattern behind it.
pub(super) fn split(pattern: &str) -> (&str, &str) {
    let special = pattern.find(['*', '?', '[']).unwrap_or(pattern.len());
    match pattern[..special].rfind('/') {
        Some(0) => ("/", &pattern[1..]),
        Some(slash) => (&pattern[..slash], &pattern[slash + 1..]),
        None => (".", pattern),
    }
}

/// Whether a path is one of those that the pattern stands for.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    names_match(&pattern, &path)
}

fn names_match(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((&"**", rest)), _) => (0..=path.len()).any(|skipped| names_match(rest, &path[skipped..])),
        (Some((name, rest)), Some((of_path, others))) => {
            let (name, of_path): (Vec<char>, Vec<char>) = (name.chars().collect(), of_path.chars().collect());
            name_matches(&name, &of_path) && names_match(rest, others)
        }
        _ => false,
    }
}

/// One name. A `*` takes as little as it can and is lengthened when the rest does not fit, so the cost is at most the
/// product of the lengths.
fn name_matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while n < name.len() {
        match one(&pattern[p..], name[n]) {
            Some(taken) => (p, n) = (p + taken, n + 1),
            None if pattern.get(p) == Some(&'*') => {
                last_star = Some((p, n));
                p += 1;
            }
            None => match last_star {
                Some((star, from)) => {
                    last_star = Some((star, from + 1));
                    (p, n) = (star + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// How many characters of the pattern stand for this one, if they do. A `[` without its end is itself.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern.first()? {
        '*' => None,
        '?' => Some(1),
        '[' => match pattern.iter().skip(2).position(|c| *c == ']') {
            Some(end) => {
                let inside = &pattern[1..end + 2];
                in_class(inside, c).then_some(end + 3)
            }
            None => (c == '[').then_some(1),
        },
        plain => (*plain == c).then_some(1),
    }
}

fn in_class(inside: &[char], c: char) -> bool {
    let (negated, inside) = match inside {
        ['!' | '^', rest @ ..] if !rest.is_empty() => (true, rest),
        all => (false, all),
    };
    let mut at = 0;
    let mut found = false;
    while at < inside.len() {
        if let [from, '-', to, ..] = inside[at..] {
            found |= (from..=to).contains(&c);
            at += 3;
        } else {
            found |= inside[at] == c;
            at += 1;
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_folders_and_classes_match_as_a_shell_does() {
        for (pattern, path) in [
            ("*.parquet", "train-0.parquet"),
            ("a*b*c", "abxbc"),
            ("train-0000[0-3]-of-?.parquet", "train-00002-of-4.parquet"),
            ("[!v]*", "train"),
            ("**/x.parquet", "x.parquet"),
            ("**/x.parquet", "a/b/x.parquet"),
            ("a/*/x", "a/b/x"),
            ("[", "["),
        ] {
            assert!(matches(pattern, path), "{pattern} is {path}");
        }
        for (pattern, path) in [
            ("*.parquet", "a/b.parquet"),
            ("a*b*c", "abxb"),
            ("train-[0-3]", "train-4"),
            ("[!v]*", "valid"),
            ("a/*/x", "a/b/c/x"),
            ("?", ""),
        ] {
            assert!(!matches(pattern, path), "{pattern} is not {path}");
        }
        let long = "a".repeat(5000);
        assert!(!matches(&"*a".repeat(50).replace("*a", "*a*"), &"b".repeat(5000)));
        assert!(matches("*a*a*a*", &long));
    }

    #[test]
    fn the_folder_before_the_pattern_is_where_to_look() {
        assert_eq!(split("/data/faces/*.parquet"), ("/data/faces", "*.parquet"));
        assert_eq!(split("s3://bucket/faces/**/*.parquet"), ("s3://bucket/faces", "**/*.parquet"));
        assert_eq!(split("/*.parquet"), ("/", "*.parquet"));
        assert_eq!(split("*.parquet"), (".", "*.parquet"));
    }
}
