//! Which algorithm a layer takes.

use super::{ConvShape, Dims, Isa};

/// A way to convolve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Matrix product over gathered windows: any shape, error about 5e-7 of the largest output.
    Gemm,
    /// Winograd F(2×2, 3×3): 2.25 times fewer products, error about 6e-7.
    WinogradF2,
    /// Winograd F(4×4, 3×3): 4 times fewer products, error about 5e-6.
    WinogradF4,
    /// The same for pictures of at most 2×2 pixels, each one tile: 4 times fewer products, error as of the first.
    WinogradTwo,
}

impl Algorithm {
    /// Whether this way can do `shape` over an input of sizes `dims`.
    pub fn supports(self, shape: &ConvShape, dims: Dims) -> bool {
        let fits = self != Self::WinogradTwo || dims.h.max(dims.w) <= 2;
        fits && self.or_gemm(shape) == self
    }

    /// Itself where it can do `shape`, else the way that can do any.
    pub(super) fn or_gemm(self, shape: &ConvShape) -> Self {
        let ConvShape { c_in, c_out, kernel, stride, padding } = *shape;
        let winograd = kernel == 3 && stride == 1 && c_in.is_multiple_of(16) && c_out.is_multiple_of(16);
        let pads = if self == Self::WinogradTwo { padding == 1 } else { padding < 3 };
        if winograd && pads { self } else { Self::Gemm }
    }
}

/// The ways of one layer's three products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Of the output.
    pub forward: Algorithm,
    /// Of the gradient of the input.
    pub input: Algorithm,
    /// Of the gradient of the weights.
    pub weight: Algorithm,
}

/// Fewest tiles for whose sake transformed weights, which are up to four times as many, are read.
const FORWARD: usize = 12;
/// Fewest tiles for F(4×4) where the weights are transformed before every use, as in training.
const INPUT: usize = 48;
/// Fewest tiles, the depth of the product here, for either way.
const WEIGHT: usize = 48;

/// The table's entry for a convolution over an input of sizes `dims`; without `winograd` always the matrix product.
///
/// F(4×4) is taken over F(2×2) where it saves a quarter of the products, tiles cut off at the border counted whole:
/// from 7 pixels on, and at 3 and 4. Made from runs of `benches/operations.rs` on an AMD EPYC (Zen 4: family 25,
/// model 17), two threads, peak 235 GFLOP/s; median rates with AVX-512 as a direct convolution's,
/// GEMM / F(2×2) / F(4×4). With AVX2 most are a tenth to a third lower, in the same order:
///
/// | 3×3, stride 1 | batch | forward | gradient of the input | of the weights |
/// |---|---|---|---|---|
/// | 64 channels at 56 | 8 | 197 / 392 / **566** | 205 / 403 / **577** | 187 / 304 / **465** |
/// | 128 at 28 | 8 | 198 / 387 / **632** | 208 / 393 / **649** | 206 / 380 / **605** |
/// | 256 at 14 | 8 | 200 / 420 / **509** | 211 / 421 / **563** | 208 / 392 / **425** |
/// | 512 at 7 | 8 | 206 / 331 / **460** | 206 / **321** / 449 | 189 / **259** / 267 |
/// | 64 at 16 | 64 | 193 / 392 / **639** | 202 / 410 / **634** | 186 / 299 / **458** |
/// | 128 at 8 | 64 | 203 / 397 / **629** | 208 / 395 / **633** | 198 / 363 / **573** |
/// | 256 at 4 | 64 | 207 / 447 / **710** | 213 / 440 / **648** | 202 / 364 / **536** |
/// | 512 at 2 | 64 | 215 / **382** / 167 | 204 / **390** / 163 | 186 / **268** / 118 |
///
/// Pictures of at most 2×2 pixels are one tile each and take nine products for four outputs, with no more weights than
/// the convolution has: for 512 channels at 2, batch 64, the gradient of the weights went at 441–489 in runs in which
/// F(2×2) reached 240–269.
///
/// The gradient of the input of 512 channels at 7 takes F(2×2) because transforming the weights counts, which takes
/// F(4×4) about three times as long.
pub fn choose(shape: &ConvShape, dims: Dims, isa: Isa, winograd: bool) -> Choice {
    let out = shape.out(dims);
    let all = |way: Algorithm| Choice { forward: way, input: way, weight: way };
    if isa == Isa::Portable || !winograd || !Algorithm::WinogradF2.supports(shape, dims) || out.h.min(out.w) < 2 {
        return all(Algorithm::Gemm);
    }
    if Algorithm::WinogradTwo.supports(shape, dims) {
        return all(Algorithm::WinogradTwo);
    }
    let tiles = |d: Dims, side: usize| d.n * d.h.div_ceil(side) * d.w.div_ceil(side);
    let pick = |d: Dims, least_f4: usize, least: usize| {
        let (f2, f4) = (tiles(d, 2), tiles(d, 4));
        let saves = 4 * 36 * f4 <= 3 * 16 * f2;
        match () {
            () if saves && f4 >= least_f4 => Algorithm::WinogradF4,
            () if f2 >= least => Algorithm::WinogradF2,
            () => Algorithm::Gemm,
        }
    };
    Choice {
        forward: pick(out, FORWARD, FORWARD),
        input: pick(dims, INPUT, FORWARD),
        weight: pick(out, WEIGHT, WEIGHT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ConvShape = ConvShape { c_in: 64, c_out: 64, kernel: 3, stride: 1, padding: 1 };

    fn at(n: usize, side: usize) -> Choice {
        choose(&SHAPE, Dims { n, h: side, w: side, c: 64 }, Isa::Avx2Fma, true)
    }

    #[test]
    fn larger_tiles_are_taken_where_they_save_products() {
        let (gemm, f2, f4) = (Algorithm::Gemm, Algorithm::WinogradF2, Algorithm::WinogradF4);
        assert_eq!(at(8, 56), Choice { forward: f4, input: f4, weight: f4 });
        assert_eq!(at(8, 7), Choice { forward: f4, input: f2, weight: f2 });
        assert_eq!(at(64, 2).forward, Algorithm::WinogradTwo);
        assert_eq!(at(64, 5).forward, f2);
        assert_eq!(at(64, 1), Choice { forward: gemm, input: gemm, weight: gemm });
        assert_eq!(at(1, 3), Choice { forward: gemm, input: gemm, weight: gemm });
    }

    #[test]
    fn the_matrix_product_is_taken_where_winograd_is_not_wanted_or_can_not_be() {
        let dims = Dims { n: 8, h: 56, w: 56, c: 64 };
        let gemm = Choice { forward: Algorithm::Gemm, input: Algorithm::Gemm, weight: Algorithm::Gemm };
        assert_eq!(choose(&SHAPE, dims, Isa::Avx2Fma, false), gemm);
        assert_eq!(choose(&SHAPE, dims, Isa::Portable, true), gemm);
        for shape in
            [ConvShape { stride: 2, ..SHAPE }, ConvShape { kernel: 1, ..SHAPE }, ConvShape { c_out: 40, ..SHAPE }]
        {
            assert_eq!(choose(&shape, dims, Isa::Avx2Fma, true), gemm);
        }
    }
}
