//! The space of log-probabilities, in which the nearest neighbours of a query are the images that most likely satisfy it.
//!
//! ```text
//! image  e = [γ log σ(z₁) … γ log σ(z_A), γ log σ(−z₁) … γ log σ(−z_A), √(1 − ‖the rest‖²)]
//! query  q = [1 where an attribute is asked for, …, 1 where one is asked against, …, 0] / √n     for n of them
//! ```
//! Both are unit vectors, so ‖q − e‖² = 2 − 2 q·e = 2 − 2 γ/√n Σ log σ(±z): nearest first *is* most likely first, by the
//! classifier whose logits z the head gives. The last dimension is 0 in every query.
//!
//! γ is the same for all models of A attributes. So that no norm can pass 1, logits are bent softly into ±[`LOGIT_LIMIT`]
//! before all else, in the loss too: σ(10) is 0.99995, and the order of an attribute's logits stays.

use candle_core::Tensor;

use likeness_contract::settings::{LOGIT_LIMIT, log_probability_scale};

use crate::error::Result;

/// What rounding may take from 1 − ‖·‖² without a square root of less than 0.
const LEAST_REST: f64 = 0.0;

/// Outputs of the head `(B, A)` → logits `(B, A)` within ±[`LOGIT_LIMIT`].
pub(crate) fn logits(outputs: &Tensor) -> Result<Tensor> {
    Ok(((outputs / LOGIT_LIMIT)?.tanh()? * LOGIT_LIMIT)?)
}

/// Logits `(B, A)` → images in the space `(B, 2A + 1)`, rows of unit length.
pub(crate) fn embed(logits: &Tensor) -> Result<Tensor> {
    let scale = log_probability_scale(logits.dim(1)?);
    // log σ(z) = −softplus(−z)
    let has = (softplus(&logits.neg()?)? * -scale)?;
    let has_not = (softplus(logits)? * -scale)?;
    let likely = Tensor::cat(&[has, has_not], 1)?;
    let rest = (1.0 - likely.sqr()?.sum_keepdim(1)?)?.maximum(LEAST_REST)?.sqrt()?;
    Ok(Tensor::cat(&[likely, rest], 1)?)
}

/// Three-state queries `(B, A)` → their places `(B, 2A + 1)`, rows of unit length; one that asks nothing is 0.
pub(crate) fn embed_queries(words: &Tensor) -> Result<Tensor> {
    let (has, has_not) = (words.relu()?, words.neg()?.relu()?);
    let nothing = has.narrow(1, 0, 1)?.zeros_like()?;
    crate::towers::unit(&Tensor::cat(&[has, has_not, nothing], 1)?)
}

/// `log(1 + eˣ)`, whatever the size of x.
pub(crate) fn softplus(x: &Tensor) -> Result<Tensor> {
    Ok((x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Outputs that look random, from small to far beyond the limit.
    fn outputs(rows: usize, attributes: usize) -> Vec<Vec<f32>> {
        let value = |i: usize| ((i * 7_919 + 13) % 1_009) as f32 / 504.5 - 1.0;
        (0..rows)
            .map(|r| (0..attributes).map(|a| value(r * attributes + a) * 3.0f32.powi(r as i32 % 4)).collect())
            .collect()
    }

    fn log_probability(output: f32, wanted: bool) -> f64 {
        let z = LOGIT_LIMIT * (f64::from(output) / LOGIT_LIMIT).tanh();
        let z = if wanted { z } else { -z };
        -(-z).exp().ln_1p()
    }

    fn places(outputs: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let flat: Vec<f32> = outputs.concat();
        let tensor = Tensor::from_vec(flat, (outputs.len(), outputs[0].len()), &Device::Cpu).unwrap();
        embed(&logits(&tensor).unwrap()).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn the_order_of_distances_is_that_of_summed_log_probabilities() {
        let (rows, attributes) = (60, 7);
        let outputs = outputs(rows, attributes);
        let places = places(&outputs);
        for asked in
            [vec![(0, true)], vec![(3, false)], vec![(1, true), (6, false)], vec![(0, false), (2, true), (5, true)]]
        {
            let mut words = vec![0.0f32; attributes];
            asked.iter().for_each(|(a, wanted)| words[*a] = if *wanted { 1.0 } else { -1.0 });
            let words = Tensor::from_vec(words, (1, attributes), &Device::Cpu).unwrap();
            let query: Vec<f32> = embed_queries(&words).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let distance = |row: usize| -> f64 {
                query.iter().zip(&places[row]).map(|(q, e)| (f64::from(*q) - f64::from(*e)).powi(2)).sum()
            };
            let likely =
                |row: usize| -> f64 { asked.iter().map(|(a, has)| log_probability(outputs[row][*a], *has)).sum() };
            let mut nearest: Vec<usize> = (0..rows).collect();
            nearest.sort_by(|a, b| distance(*a).total_cmp(&distance(*b)));
            for pair in nearest.windows(2) {
                assert!(likely(pair[0]) >= likely(pair[1]) - 1e-5, "{asked:?}: {pair:?}");
            }
            let shrunk =
                2.0 - 2.0 * log_probability_scale(attributes) / (asked.len() as f64).sqrt() * likely(nearest[0]);
            assert!((distance(nearest[0]) - shrunk).abs() < 1e-6, "{asked:?}");
        }
    }

    #[test]
    fn every_image_has_unit_length_however_sure_the_head_is() {
        let mut outputs = outputs(8, 5);
        outputs.push(vec![1e6; 5]);
        outputs.push(vec![-1e6; 5]);
        outputs.push(vec![0.0; 5]);
        for place in places(&outputs) {
            let norm: f64 = place.iter().map(|v| f64::from(*v).powi(2)).sum();
            assert!((norm - 1.0).abs() < 1e-6 && place.iter().all(|v| v.is_finite()), "{place:?}");
        }
    }

    #[test]
    fn a_query_is_the_normalised_indicator_of_what_it_asks() {
        let words = Tensor::new(&[[1.0f32, 0.0, -1.0], [0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let half = 0.5f32.sqrt();
        let places = embed_queries(&words).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(places, [[half, 0.0, 0.0, 0.0, 0.0, half, 0.0], [0.0; 7]]);
    }
}
