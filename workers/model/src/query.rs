//! Attribute queries as a model takes them.

use likeness_contract::settings::QueryEncoding;

/// The vector (A) that asks for the attributes `with` and against the attributes `without`.
///
/// Three-state and log-probabilities: +1, −1, and 0 for what is not said. Multi-hot: 1 for what is asked for; it can't tell "has not"
/// from "not said", so `without` leaves no trace.
///
/// # Panics
/// When a position is not below `vocabulary_len`: positions come from the vocabulary.
pub fn encode_query(encoding: QueryEncoding, vocabulary_len: usize, with: &[usize], without: &[usize]) -> Vec<f32> {
    let mut vector = vec![0.0; vocabulary_len];
    with.iter().for_each(|&i| vector[i] = 1.0);
    if encoding != QueryEncoding::MultiHot {
        without.iter().for_each(|&i| vector[i] = -1.0);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_asked_and_nothing_else() {
        let encode = |encoding| encode_query(encoding, 4, &[2], &[0]);
        assert_eq!(encode(QueryEncoding::ThreeState), [-1.0, 0.0, 1.0, 0.0]);
        assert_eq!(encode(QueryEncoding::LogProbability), [-1.0, 0.0, 1.0, 0.0]);
        assert_eq!(encode(QueryEncoding::MultiHot), [0.0, 0.0, 1.0, 0.0]);
    }
}
