//! The microkernels: integer dot products of code rows with a quantised query.
//!
//! [`Dots`] is what they compute; [`Portable`] are plain loops, which run everywhere and say what the others must
//! give; the instruction sets of x86 are found once, at run time. [`Isa::run`] compiles a whole piece of work, with the
//! loops around the kernels, for the set that was found, so that kernels are inlined and plain loops are widened.
//!
//! Everything here is exact integer arithmetic: all sets give the same numbers as long as a query's codes obey the
//! limits of `codes::query`, which keep every 16-bit lane inside its range.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use portable::Portable;

/// Rows of a block of 4-bit codes.
pub(crate) const BLOCK: usize = 16;
/// Rows of a group of a tile of 7-bit codes.
pub(crate) const GROUP: usize = 8;
/// Groups that the tile kernel takes at once.
pub(crate) const GROUPS: usize = 3;
/// Queries that the tile kernel takes at once.
pub(crate) const WIDE: usize = 4;
/// Dimensions of one step of the 4-bit kernel: the low, then the high halves of four bytes.
pub(crate) const FOUR_STEP: usize = 8;
/// Steps after which the 16-bit lanes of the 4-bit kernel are emptied.
pub(crate) const FOUR_SEGMENT: usize = 40;
/// Dimensions of one step of the 2-bit kernel: four times four bytes, from the lowest bits to the highest.
pub(crate) const TWO_STEP: usize = 16;
/// Dimensions of one step of the 7-bit kernel: four bytes.
pub(crate) const SEVEN_STEP: usize = 4;
/// Steps after which the 16-bit lanes of the 7-bit kernel are emptied.
pub(crate) const SEVEN_SEGMENT: usize = 20;

/// A query's codes as the block and tile kernels take them.
#[derive(Debug, Clone, Default)]
pub(crate) struct QueryCodes {
    /// One code per dimension, padded with zeros to whole steps.
    pub codes: Vec<i8>,
    /// Per segment the two 16-bit lanes' first values, which take away the offset of the row's codes.
    pub start: Vec<i32>,
    /// The offset of a row's codes times the sum of the query's.
    pub offset: i32,
}

/// What says quickly whether a row may be in a query's answer: sum · scale + epsilon · norm − half · inverse ≥ limit.
///
/// All of it is in the unit of the query's codes, so that the sums need no product with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    pub norm: f32,
    /// 1 / the unit.
    pub inverse: f32,
    /// Above −∞.
    pub limit: f32,
}

/// Rows that the tile kernel takes at once.
pub(crate) const SET_ROWS: usize = GROUP * GROUPS;

/// What a [`Test`] needs of these rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetRows<'a> {
    pub scale: &'a [f32; SET_ROWS],
    pub epsilon: &'a [f32; SET_ROWS],
    pub half: &'a [f32; SET_ROWS],
}

/// Dot products of one instruction set.
pub(crate) trait Dots: Copy {
    /// Σ p·(c − 8) of 16 rows of 4-bit codes c with each of Q queries.
    ///
    /// Per step `block` has four bytes of every row; low halves are the first four dimensions, high halves the next. A half
    /// step may follow, of four dimensions: low halves are of the first eight rows, high halves of the last eight.
    fn four<const Q: usize>(self, block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q];

    /// Σ p·c of 16 rows of 2-bit codes c with each of Q queries, whose codes fill whole steps.
    ///
    /// Per step `block` has four bytes of every row; their lowest two bits are the first four dimensions.
    fn two<const Q: usize>(self, block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q];

    /// Σ p·(c − 64) of three groups of rows of 7-bit codes c with four queries, (group × query × row).
    ///
    /// Per step a group has four bytes of each of its rows; the groups follow each other.
    fn seven(self, groups: &[u8], queries: [&QueryCodes; WIDE]) -> [[[i32; GROUP]; WIDE]; GROUPS];

    /// From the same sums, for each query a bit for every row that passes its test.
    ///
    /// The sums are not given: they would go through memory, and what looks at them by branches makes the processor throw
    /// away products that it has begun.
    fn seven_passing(
        self,
        groups: &[u8],
        queries: [&QueryCodes; WIDE],
        tests: &[Test; WIDE],
        rows: SetRows,
    ) -> [u32; WIDE];

    /// Writes rows of 7-bit codes, which lie `stride` bytes apart, as a group: per step four bytes of each row. `rows` has at
    /// least one row and at most a group; what is written for missing rows is of no meaning.
    #[inline(always)]
    fn group(self, rows: &[u8], stride: usize, group: &mut [u8]) {
        let columns = group.as_chunks_mut::<SEVEN_STEP>().0;
        let steps = columns.len() / GROUP;
        for (i, row) in rows.chunks_exact(stride).enumerate() {
            for (step, codes) in row.as_chunks::<SEVEN_STEP>().0[..steps].iter().enumerate() {
                columns[step * GROUP + i] = *codes;
            }
        }
    }

    /// Σ p·c of one row of 7-bit codes, modulo 2³²; the lengths are equal multiples of 16.
    fn row(self, row: &[u8], query: &[i16]) -> i32;

    /// A bit for each score that is above `limit`; NaN is not.
    fn above(self, scores: &[f32; BLOCK], limit: f32) -> u16;

    /// Copies whole rows of `dim` little-endian f32 into rows that lie `stride` apart. Tells the sum of squares of each
    /// to `each`, in order; it is added up in 16 lanes.
    #[inline(always)]
    fn copy_rows(self, from: &[u8], to: &mut [f32], dim: usize, stride: usize, mut each: impl FnMut(f32)) {
        for (from, to) in from.chunks_exact(4 * dim).zip(to.chunks_exact_mut(stride)) {
            let mut lanes = [0f32; 16];
            for (i, (slot, bytes)) in to.iter_mut().zip(from.as_chunks::<4>().0).enumerate() {
                *slot = f32::from_le_bytes(*bytes);
                lanes[i % 16] += *slot * *slot;
            }
            each(lanes.iter().sum());
        }
    }

    /// Asks for memory that will soon be read.
    fn prefetch<T>(self, values: &[T]);
}

/// Something to compute with any set of kernels. `call` must be `#[inline(always)]`, as must be what it calls.
pub(crate) trait Work {
    type Output;
    fn call<D: Dots>(self, dots: D) -> Self::Output;
}

/// An instruction set that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Isa {
    /// All that this processor has, the slowest first.
    pub fn all() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
        let mut all = vec![Self(Set::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") {
                all.push(Self(Set::Avx2));
            }
            if has!("avx2") && has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512vnni") {
                all.push(Self(Set::Vnni));
            }
        }
        all
    }

    /// The fastest that this processor has.
    pub fn best() -> Self {
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| *Self::all().last().expect("the portable loops run everywhere"))
    }

    /// Does the work, compiled for this set.
    #[inline]
    pub fn run<W: Work>(self, work: W) -> W::Output {
        match self.0 {
            Set::Portable => work.call(Portable),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` is only made by `all`, after the processor said that it has these features.
            Set::Avx2 => unsafe { x86::avx2::run(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Set::Vnni => unsafe { x86::vnni::run(work) },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codes::query::{four_shape, query_codes, seven_shape};

    struct Four<'a>(&'a [u8], &'a [QueryCodes; 4]);
    impl Work for Four<'_> {
        type Output = (Vec<[i32; BLOCK]>, [[i32; BLOCK]; 1]);
        #[inline(always)]
        fn call<D: Dots>(self, dots: D) -> Self::Output {
            let [a, b, c, d] = self.1;
            (dots.four(self.0, [a, b, c, d]).to_vec(), dots.four(self.0, [c]))
        }
    }

    struct Two<'a>(&'a [u8], &'a [QueryCodes; 4]);
    impl Work for Two<'_> {
        type Output = (Vec<[i32; BLOCK]>, [[i32; BLOCK]; 1], u16);
        #[inline(always)]
        fn call<D: Dots>(self, dots: D) -> Self::Output {
            let [a, b, c, d] = self.1;
            let [sums] = dots.two(self.0, [c]);
            let mut scores = sums.map(|sum| sum as f32);
            scores[3] = f32::NAN;
            (dots.two(self.0, [a, b, c, d]).to_vec(), [sums], dots.above(&scores, scores[5]))
        }
    }

    struct Seven<'a>(&'a [u8], &'a [QueryCodes; 4], [Test; WIDE]);
    impl Work for Seven<'_> {
        type Output = ([[[i32; GROUP]; WIDE]; GROUPS], [u32; WIDE]);
        #[inline(always)]
        fn call<D: Dots>(self, dots: D) -> Self::Output {
            let [a, b, c, d] = self.1;
            let value = |i: usize| (i * 29 % 31) as f32 / 31.0;
            let (scale, epsilon) = (std::array::from_fn(value), std::array::from_fn(|i| value(i + 7)));
            let half = std::array::from_fn(|i| if i % 5 == 4 { f32::INFINITY } else { value(i + 3) });
            let rows = SetRows { scale: &scale, epsilon: &epsilon, half: &half };
            (dots.seven(self.0, [a, b, c, d]), dots.seven_passing(self.0, [a, b, c, d], &self.2, rows))
        }
    }

    /// Limits that everything, nothing and some rows reach.
    fn tests(sums: &[[[i32; GROUP]; WIDE]; GROUPS]) -> [Test; WIDE] {
        std::array::from_fn(|query| {
            let largest = sums.iter().flat_map(|sums| sums[query]).max().expect("rows");
            let limit = [f32::MIN, f32::INFINITY, largest as f32 * 0.7, largest as f32 * 0.4][query];
            Test { norm: 0.5, inverse: 1.5, limit }
        })
    }

    struct Group<'a>(&'a [u8], usize, usize);
    impl Work for Group<'_> {
        type Output = Vec<u8>;
        #[inline(always)]
        fn call<D: Dots>(self, dots: D) -> Vec<u8> {
            let Self(rows, stride, steps) = self;
            let mut group = vec![0; steps * SEVEN_STEP * GROUP];
            dots.group(rows, stride, &mut group);
            group
        }
    }

    #[test]
    fn groups_are_written_alike_by_every_set() {
        for dim in [1, 4, 15, 16, 17, 31, 32, 33, 100, 300, 1024] {
            let (stride, steps) = (crate::codes::Seven::row_bytes(dim), dim.div_ceil(SEVEN_STEP));
            for count in 1..=GROUP {
                let rows: Vec<u8> = (0..count * stride).map(|i| (i * 89 % 251) as u8).collect();
                let expected = Group(&rows, stride, steps).call(Portable);
                for isa in Isa::all() {
                    let found = isa.run(Group(&rows, stride, steps));
                    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        let row = at / SEVEN_STEP % GROUP;
                        assert!(row >= count || found == expected, "{isa:?} {dim} {count} {at}");
                    }
                }
            }
        }
    }

    struct Row<'a>(&'a [u8], &'a [i16]);
    impl Work for Row<'_> {
        type Output = i32;
        #[inline(always)]
        fn call<D: Dots>(self, dots: D) -> i32 {
            dots.prefetch(self.0);
            dots.row(self.0, self.1)
        }
    }

    /// Queries from flat to one single direction, so that codes go to their limits.
    fn queries(dim: usize, seed: u64, shape: crate::codes::query::Shape) -> [QueryCodes; 4] {
        std::array::from_fn(|i| {
            let value = |j: usize| {
                let hash = (j as u64 + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                match i {
                    0 => 1.0,
                    1 => {
                        if j == 0 {
                            -1.0
                        } else {
                            0.0
                        }
                    }
                    _ => hash as f64 / f64::from(1 << 23) - 1.0,
                }
            };
            query_codes(&(0..dim).map(value).collect::<Vec<_>>(), shape).0
        })
    }

    struct Rows<'a>(&'a [u8], usize);
    impl Work for Rows<'_> {
        type Output = (Vec<f32>, Vec<f32>);
        #[inline(always)]
        fn call<D: Dots>(self, dots: D) -> Self::Output {
            let (rows, stride) = (self.0.len() / 4 / self.1, self.1.next_multiple_of(16));
            let mut held = crate::buffer::Embeddings::zeroed(rows, self.1).expect("memory");
            let mut sums = Vec::new();
            dots.copy_rows(self.0, held.values_mut(), self.1, stride, |sum| sums.push(sum));
            (held.padded(0, rows).to_vec(), sums)
        }
    }

    #[test]
    fn rows_are_copied_alike_by_every_set() {
        for dim in [1, 15, 16, 17, 100, 300] {
            let values: Vec<f32> = (0..7 * dim).map(|i| (i * 37 % 101) as f32 / 101.0 - 0.5).collect();
            // From an odd address, as pages have them.
            let bytes: Vec<u8> = std::iter::once(0).chain(values.iter().flat_map(|v| v.to_le_bytes())).collect();
            let (expected, sums) = Rows(&bytes[1..], dim).call(Portable);
            assert_eq!(
                expected.chunks(dim.next_multiple_of(16)).flat_map(|row| row[..dim].to_vec()).collect::<Vec<_>>(),
                values
            );
            for isa in Isa::all() {
                let (rows, found) = isa.run(Rows(&bytes[1..], dim));
                assert_eq!(rows, expected, "{isa:?} {dim}");
                assert!(
                    found.len() == 7 && found.iter().zip(&sums).all(|(a, b)| (a - b).abs() < 1e-4 * b),
                    "{isa:?} {dim}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn every_set_gives_the_numbers_of_the_plain_loops(
            dim in prop_oneof![1usize..40, 300usize..340, Just(1024)],
            seed in any::<u64>(),
            extreme in any::<bool>(),
        ) {
            let byte = |i: usize| {
                let hash = ((i as u64 + 7).wrapping_mul(seed | 1).wrapping_mul(0xd134_2543_de82_ef95) >> 56) as u8;
                if extreme { if hash & 1 == 0 { 0 } else { 0xff } } else { hash }
            };
            let four: Vec<u8> = (0..dim.div_ceil(FOUR_STEP / 2) * 32).map(byte).collect();
            let two: Vec<u8> = (0..dim.div_ceil(TWO_STEP) * 64).map(byte).collect();
            let steps = dim.div_ceil(SEVEN_STEP);
            let seven: Vec<u8> = (0..GROUPS * steps * 32).map(|i| byte(i) % 127 + 1).collect();
            let row: Vec<u8> = (0..dim.next_multiple_of(16)).map(|i| byte(i) % 127 + 1).collect();
            let limit = 32_767.min(i32::MAX as usize / 63 / row.len()) as i64;
            let wide: Vec<i16> = (0..row.len()).map(|i| (i as i64).wrapping_mul(seed as i64) % (limit + 1)).map(|p| p as i16).collect();
            // The largest norms that rows of these codes can have.
            let four_queries = queries(dim, seed, four_shape(dim, 8.0 * (FOUR_SEGMENT as f64 * 4.0).sqrt()));
            let seven_queries = queries(dim, seed, seven_shape(dim, 63.0 * (SEVEN_SEGMENT as f64 * 2.0).sqrt()));
            let mut two_queries = four_queries.clone();
            two_queries.iter_mut().for_each(|query| query.codes.resize(dim.next_multiple_of(TWO_STEP), 0));
            let expected = Portable;
            let expected_two = Two(&two, &two_queries).call(expected);
            let none = [Test { norm: 1.0, inverse: 1.0, limit: f32::INFINITY }; WIDE];
            let (sums, nothing) = Seven(&seven, &seven_queries, none).call(expected);
            prop_assert_eq!(nothing, [0; WIDE]);
            let tests = tests(&sums);
            let expected = (
                Four(&four, &four_queries).call(expected),
                Seven(&seven, &seven_queries, tests).call(expected),
                Row(&row, &wide).call(expected),
            );
            for isa in Isa::all() {
                prop_assert_eq!(isa.run(Four(&four, &four_queries)), expected.0.clone(), "{:?}", isa);
                prop_assert_eq!(isa.run(Seven(&seven, &seven_queries, tests)), expected.1, "{:?}", isa);
                prop_assert_eq!(isa.run(Two(&two, &two_queries)), expected_two.clone(), "{:?}", isa);
                prop_assert_eq!(isa.run(Row(&row, &wide)), expected.2, "{:?}", isa);
            }
        }
    }
}
