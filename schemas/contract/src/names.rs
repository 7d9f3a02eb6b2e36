//! The nearest names: what a mistake in a name is answered with.

/// Up to three of `known` that are nearest to `wrong` (optimal string alignment, case ignored), best first.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let wrong = wrong.to_lowercase();
    let mut scored: Vec<(usize, &str)> = known
        .into_iter()
        .map(|name| (strsim::osa_distance(&wrong, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 2.max(name.chars().count() / 3))
        .collect();
    scored.sort();
    scored.into_iter().take(3).map(|(_, name)| name.to_string()).collect()
}

/// `; did you mean …?` or nothing.
pub fn hint(nearest: &[String]) -> String {
    if nearest.is_empty() {
        return String::new();
    }
    let quoted: Vec<String> = nearest.iter().map(|name| format!("`{name}`")).collect();
    format!("; did you mean {}?", quoted.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_answered_with_the_name_meant() {
        let known = ["Smiling", "Male", "Eyeglasses"];
        assert_eq!(nearest("smilling", known), ["Smiling"]);
        assert_eq!(nearest("Eyeglases", known), ["Eyeglasses"]);
        assert!(nearest("Zebra", known).is_empty());
        assert_eq!(hint(&nearest("mael", known)), "; did you mean `Male`?");
    }
}
