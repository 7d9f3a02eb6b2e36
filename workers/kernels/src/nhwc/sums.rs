//! Sums per channel, what batch statistics are made of.

/// `Σ x` and `Σ x²` of every channel over all pixels of a tensor.
///
/// Made from `f32` sums over parts of fixed size, added in order in `f64`.
#[derive(Clone, Debug, Default)]
pub struct ChannelSums {
    /// `Σ x` (C)
    pub sum: Vec<f64>,
    /// `Σ x²` (C)
    pub square: Vec<f64>,
    /// `(parts, 2, C)`: what each part found, kept so that no step allocates.
    pub(super) partial: Vec<f32>,
}

impl ChannelSums {
    /// Room for `parts` partial sums over `c` channels each; the contents are whatever they were.
    pub(super) fn partial(&mut self, parts: usize, c: usize) -> &mut [f32] {
        let len = parts * 2 * c;
        if self.partial.len() < len {
            self.partial.resize(len, 0.0);
        }
        &mut self.partial[..len]
    }

    /// Adds up the partial sums of `parts` parts.
    pub(super) fn reduce(&mut self, parts: usize, c: usize) {
        let Self { sum, square, partial } = self;
        for (total, at) in [(sum, 0), (square, c)] {
            total.clear();
            total.resize(c, 0.0);
            for part in partial[..parts * 2 * c].chunks_exact(2 * c) {
                total.iter_mut().zip(&part[at..at + c]).for_each(|(t, v)| *t += f64::from(*v));
            }
        }
    }
}
