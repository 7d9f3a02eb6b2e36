//! The kernels as plain loops: what the others must give.

use super::{BLOCK, Dots, FOUR_STEP, GROUP, GROUPS, QueryCodes, SEVEN_STEP, SetRows, TWO_STEP, Test, WIDE};

/// Runs on any processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Dots for Portable {
    #[inline(always)]
    fn four<const Q: usize>(self, block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q] {
        queries.map(|query| {
            let mut sums = [-query.offset; BLOCK];
            let (whole, rest) = block.as_chunks::<{ 4 * BLOCK }>();
            let (steps, rest_codes) = query.codes.as_chunks::<FOUR_STEP>().0.split_at(whole.len());
            for (bytes, codes) in whole.iter().zip(steps) {
                for (sum, row) in sums.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    for i in 0..4 {
                        *sum += i32::from(row[i] & 15) * i32::from(codes[i]);
                        *sum += i32::from(row[i] >> 4) * i32::from(codes[4 + i]);
                    }
                }
            }
            for (row, bytes) in rest.as_chunks::<4>().0.iter().enumerate() {
                for i in 0..4 {
                    sums[row] += i32::from(bytes[i] & 15) * i32::from(rest_codes[0][i]);
                    sums[row + BLOCK / 2] += i32::from(bytes[i] >> 4) * i32::from(rest_codes[0][i]);
                }
            }
            sums
        })
    }

    #[inline(always)]
    fn two<const Q: usize>(self, block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q] {
        queries.map(|query| {
            let mut sums = [0; BLOCK];
            let steps = query.codes.as_chunks::<TWO_STEP>().0.iter();
            for (bytes, codes) in block.as_chunks::<{ 4 * BLOCK }>().0.iter().zip(steps) {
                for (sum, row) in sums.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    for (i, code) in codes.iter().enumerate() {
                        *sum += i32::from(row[i % 4] >> (i / 4 * 2) & 3) * i32::from(*code);
                    }
                }
            }
            sums
        })
    }

    #[inline(always)]
    fn seven(self, groups: &[u8], queries: [&QueryCodes; WIDE]) -> [[[i32; GROUP]; WIDE]; GROUPS] {
        let bytes = groups.len() / GROUPS;
        std::array::from_fn(|group| {
            let group = &groups[group * bytes..][..bytes];
            queries.map(|query| {
                let mut sums = [-query.offset; GROUP];
                let steps = query.codes.as_chunks::<SEVEN_STEP>().0.iter();
                for (bytes, codes) in group.as_chunks::<{ SEVEN_STEP * GROUP }>().0.iter().zip(steps) {
                    for (sum, row) in sums.iter_mut().zip(bytes.as_chunks::<SEVEN_STEP>().0) {
                        for i in 0..SEVEN_STEP {
                            *sum += i32::from(row[i]) * i32::from(codes[i]);
                        }
                    }
                }
                sums
            })
        })
    }

    #[inline(always)]
    fn seven_passing(
        self,
        groups: &[u8],
        queries: [&QueryCodes; WIDE],
        tests: &[Test; WIDE],
        rows: SetRows,
    ) -> [u32; WIDE] {
        let mut passing = [0; WIDE];
        for (group, sums) in self.seven(groups, queries).iter().enumerate() {
            for ((sums, test), passing) in sums.iter().zip(tests).zip(&mut passing) {
                for (i, sum) in sums.iter().enumerate() {
                    let row = group * GROUP + i;
                    let (margin, half) = (rows.epsilon[row] * test.norm, rows.half[row] * test.inverse);
                    *passing |= u32::from(*sum as f32 * rows.scale[row] + margin - half >= test.limit) << row;
                }
            }
        }
        passing
    }

    #[inline(always)]
    fn row(self, row: &[u8], query: &[i16]) -> i32 {
        row.iter().zip(query).fold(0, |sum: i32, (c, p)| sum.wrapping_add(i32::from(*c) * i32::from(*p)))
    }

    #[inline(always)]
    fn above(self, scores: &[f32; BLOCK], limit: f32) -> u16 {
        scores.iter().enumerate().fold(0, |above, (i, score)| above | u16::from(*score > limit) << i)
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &[T]) {}
}
