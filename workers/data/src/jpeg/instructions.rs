//! Which instructions the decoder runs with, found out once at run time. The code is the same; AVX2's registers hold eight
//! numbers, and it has a way of its own to turn rows into columns. Results are equal bit for bit.

use super::Decoder;
use super::header::Header;

/// [`Decoder::run`] with the best instructions that this processor has.
pub(super) fn draw(decoder: &mut Decoder, header: &Header, out: &mut [u8]) -> Option<()> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { avx2::draw(decoder, header, out) };
    }
    portable(decoder, header, out)
}

/// [`Decoder::read_through`] with the best instructions that this processor has.
pub(super) fn read_through(decoder: &Decoder, header: &Header) -> Option<()> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { avx2::read_through(decoder, header) };
    }
    decoder.read_through(header)
}

/// [`Decoder::run`] anywhere.
pub(super) fn portable(decoder: &mut Decoder, header: &Header, out: &mut [u8]) -> Option<()> {
    decoder.run(header, out, super::idct::transpose)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm256_permute2f128_ps, _mm256_setr_ps, _mm256_shuffle_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    use super::super::idct::Lanes;
    use super::{Decoder, Header};

    #[target_feature(enable = "avx2,bmi2")]
    pub fn draw(decoder: &mut Decoder, header: &Header, out: &mut [u8]) -> Option<()> {
        decoder.run(header, out, |rows: &[Lanes; 8]| transpose(rows))
    }

    #[target_feature(enable = "avx2,bmi2")]
    pub fn read_through(decoder: &Decoder, header: &Header) -> Option<()> {
        decoder.read_through(header)
    }

    #[target_feature(enable = "avx2")]
    fn transpose(rows: &[Lanes; 8]) -> [Lanes; 8] {
        let [a, b, c, d, e, f, g, h] = rows;
        let upper = fours(register(a), register(b), register(c), register(d));
        let lower = fours(register(e), register(f), register(g), register(h));
        let mut columns = [[0.0; 8]; 8];
        for i in 0..4 {
            columns[i] = lanes(_mm256_permute2f128_ps::<0x20>(upper[i], lower[i]));
            columns[i + 4] = lanes(_mm256_permute2f128_ps::<0x31>(upper[i], lower[i]));
        }
        columns
    }

    /// Four rows interleaved, within the halves of the registers.
    #[target_feature(enable = "avx2")]
    fn fours(a: __m256, b: __m256, c: __m256, d: __m256) -> [__m256; 4] {
        let (ab, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (cd, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0x44>(ab, cd),
            _mm256_shuffle_ps::<0xEE>(ab, cd),
            _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
            _mm256_shuffle_ps::<0xEE>(ab_high, cd_high),
        ]
    }

    #[target_feature(enable = "avx2")]
    fn register(r: &Lanes) -> __m256 {
        _mm256_setr_ps(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7])
    }

    #[target_feature(enable = "avx2")]
    fn lanes(register: __m256) -> Lanes {
        // SAFETY: both are eight f32, and any bits are a number.
        unsafe { std::mem::transmute::<__m256, Lanes>(register) }
    }
}
