//! Canonical distances of many rows from one query, on the widest registers that the processor has.
//!
//! Every sum is added up as `canonical_d2` says: eight lanes in the order of the dimensions, a product rounded before it is
//! added, lanes summed pairwise. The instruction sets differ in how many lanes lie in a register, so all of them give the
//! same bits. Some rows are computed together, since the next addition of a lane has to wait for the last.

use std::sync::OnceLock;

/// Lanes of a sum.
const LANES: usize = 8;
/// Rows computed together.
const TOGETHER: usize = 4;

/// An instruction set that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// All that this processor has, the slowest first.
    pub fn all() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") {
                all.push(Self::Avx2);
            }
            if has!("avx2") && has!("avx512f") {
                all.push(Self::Avx512);
            }
        }
        all
    }

    /// The fastest that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| *Self::all().last().expect("the plain loops run everywhere"))
    }

    /// d² of the query and each row, `row(i)` for `to[i]`. A query's values are f32, held as f64.
    ///
    /// Panics when a row is shorter than the query.
    pub fn distances<'a>(self, query: &[f64], row: impl Fn(usize) -> &'a [f32], to: &mut [f64]) {
        match self {
            Self::Portable => plain(query, row, to),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this value is only made after the processor said that it has AVX2.
            Self::Avx2 => unsafe { avx2(query, row, to) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this value is only made after the processor said that it has AVX-512.
            Self::Avx512 => unsafe { avx512(query, row, to) },
        }
    }
}

/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2<'a>(query: &[f64], row: impl Fn(usize) -> &'a [f32], to: &mut [f64]) {
    plain(query, row, to);
}

/// # Safety
/// The processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f")]
unsafe fn avx512<'a>(query: &[f64], row: impl Fn(usize) -> &'a [f32], to: &mut [f64]) {
    plain(query, row, to);
}

#[inline(always)]
fn plain<'a>(query: &[f64], row: impl Fn(usize) -> &'a [f32], to: &mut [f64]) {
    let (groups, rest) = to.as_chunks_mut::<TOGETHER>();
    let first_of_rest = groups.len() * TOGETHER;
    for (group, to) in groups.iter_mut().enumerate() {
        *to = together(query, std::array::from_fn(|i| row(group * TOGETHER + i)));
    }
    for (i, to) in rest.iter_mut().enumerate() {
        [*to] = together(query, [row(first_of_rest + i)]);
    }
}

#[inline(always)]
fn together<const R: usize>(query: &[f64], rows: [&[f32]; R]) -> [f64; R] {
    let (steps, tail) = query.as_chunks::<LANES>();
    let rows = rows.map(|row| row[..query.len()].as_chunks::<LANES>());
    let mut lanes = [[0f64; LANES]; R];
    for (step, query) in steps.iter().enumerate() {
        for (lanes, (row, _)) in lanes.iter_mut().zip(&rows) {
            let row = &row[step];
            for i in 0..LANES {
                let d = query[i] - f64::from(row[i]);
                lanes[i] += d * d;
            }
        }
    }
    for (lanes, (_, row)) in lanes.iter_mut().zip(&rows) {
        for ((lane, query), value) in lanes.iter_mut().zip(tail).zip(*row) {
            let d = query - f64::from(*value);
            *lane += d * d;
        }
    }
    lanes.map(|l| ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7])))
}

#[cfg(test)]
mod tests {
    use likeness_contract::ranking::canonical_d2;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_set_gives_the_bits_of_the_canonical_distance(
            dim in 0usize..40,
            rows in 0usize..11,
            values in proptest::collection::vec(prop_oneof![-1f32..1.0, Just(0.0), -1e30f32..1e30, Just(1e-30)], 440),
        ) {
            let row = |i: usize| &values[i * dim..(i + 1) * dim];
            let query = row(10);
            let expected: Vec<u64> = (0..rows).map(|i| canonical_d2(query, row(i)).to_bits()).collect();
            let wide: Vec<f64> = query.iter().copied().map(f64::from).collect();
            for isa in Isa::all() {
                let mut found = vec![0.0; rows];
                isa.distances(&wide, row, &mut found);
                prop_assert_eq!(&found.iter().map(|d2| d2.to_bits()).collect::<Vec<_>>(), &expected, "{:?}", isa);
            }
        }
    }
}
