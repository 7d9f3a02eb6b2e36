//! The kernels for x86: AVX2, and AVX-512 VNNI, where not said otherwise in 256-bit registers.

use std::arch::x86_64::*;

use super::{
    BLOCK, Dots, FOUR_SEGMENT, FOUR_STEP, GROUP, GROUPS, QueryCodes, SEVEN_SEGMENT, SEVEN_STEP, SetRows, TWO_STEP,
    Test, WIDE, Work,
};

/// Bytes of a register.
const BYTES: usize = 32;
/// Registers of one step of a block.
const HALVES: usize = 2;
/// Bytes that the block kernel asks for ahead: far enough for memory, near enough to stay in the first cache.
const AHEAD: usize = 4096;

/// The codes of one step of a query, in every lane.
///
/// # Safety
/// `codes` has four bytes at `at`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast(codes: &[i8], at: usize) -> __m256i {
    debug_assert!(at + 4 <= codes.len());
    // SAFETY: the caller's promise; an i32 may be read from any address with `read_unaligned`.
    _mm256_set1_epi32(unsafe { codes.as_ptr().add(at).cast::<i32>().read_unaligned() })
}

/// 32 bytes of `bytes` from `at`.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(bytes: &[u8], at: usize) -> __m256i {
    debug_assert!(at + BYTES <= bytes.len());
    // SAFETY: the caller's promise; the load may be unaligned.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn lanes(values: __m256i) -> [i32; GROUP] {
    let mut lanes = [0; GROUP];
    // SAFETY: the array has 32 bytes; the store may be unaligned.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), values) };
    lanes
}

/// One step of every group of a tile.
///
/// # Safety
/// Each group has `steps` steps of 32 bytes, and `step` is one of them.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn column(groups: &[u8], steps: usize, step: usize) -> [__m256i; GROUPS] {
    let mut column = [_mm256_setzero_si256(); GROUPS];
    for (group, column) in column.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *column = unsafe { load(groups, (group * steps + step) * BYTES) };
    }
    column
}

/// The lanes of all registers of a block.
#[inline]
#[target_feature(enable = "avx2")]
fn blocks_of<const Q: usize>(sums: [[__m256i; HALVES]; Q]) -> [[i32; BLOCK]; Q] {
    let mut blocks = [[0; BLOCK]; Q];
    for (block, sums) in blocks.iter_mut().zip(sums) {
        for (rows, sum) in block.as_chunks_mut::<GROUP>().0.iter_mut().zip(sums) {
            *rows = lanes(sum);
        }
    }
    blocks
}

/// The lanes of all registers of a tile.
#[inline]
#[target_feature(enable = "avx2")]
fn groups_of(sums: [[__m256i; WIDE]; GROUPS]) -> [[[i32; GROUP]; WIDE]; GROUPS] {
    let mut groups = [[[0; GROUP]; WIDE]; GROUPS];
    for (queries, sums) in groups.iter_mut().zip(sums) {
        for (rows, sum) in queries.iter_mut().zip(sums) {
            *rows = lanes(sum);
        }
    }
    groups
}

/// What tests compare of a group's rows.
#[inline]
#[target_feature(enable = "avx2")]
fn score(sums: __m256i, test: &Test, rows: SetRows, group: usize) -> __m256 {
    // SAFETY: a group of the rows has eight values, the size of the register; the load may be unaligned.
    let values = |rows: &[f32]| unsafe { _mm256_loadu_ps(rows[group * GROUP..][..GROUP].as_ptr()) };
    let y = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), values(rows.scale));
    let margin = _mm256_mul_ps(values(rows.epsilon), _mm256_set1_ps(test.norm));
    let half = _mm256_mul_ps(values(rows.half), _mm256_set1_ps(test.inverse));
    _mm256_sub_ps(_mm256_add_ps(y, margin), half)
}

/// Transposes squares of eight rows by eight steps.
#[inline]
#[target_feature(enable = "avx2")]
fn group(rows: &[u8], stride: usize, group: &mut [u8]) {
    let (steps, count) = (group.len() / BYTES, rows.len() / stride);
    assert!(
        (1..=GROUP).contains(&count) && stride.is_multiple_of(BYTES) && steps * SEVEN_STEP <= stride,
        "rows of codes"
    );
    for (square, columns) in group.chunks_mut(GROUP * BYTES).enumerate() {
        let mut x = [_mm256_setzero_si256(); GROUP];
        for (i, x) in x.iter_mut().enumerate() {
            // SAFETY: the row is one of those that are there, and its piece begins before the end of its codes, which is a
            // multiple of the register's size away from its start, as is the end of the row.
            *x = unsafe { load(rows, i.min(count - 1) * stride + square * BYTES) };
        }
        for (x, column) in transposed(x).into_iter().zip(columns.chunks_exact_mut(BYTES)) {
            // SAFETY: the column has the size of the register; the store may be unaligned.
            unsafe { _mm256_storeu_si256(column.as_mut_ptr().cast(), x) };
        }
    }
}

/// Of eight rows of eight words.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(x: [__m256i; GROUP]) -> [__m256i; GROUP] {
    let mut pairs = [_mm256_setzero_si256(); GROUP];
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
    // Columns 0 to 3 of the rows' low halves, 4 to 7 of their high halves; of rows 0 to 3, then of rows 4 to 7.
    let mut fours = [_mm256_setzero_si256(); GROUP];
    for half in [0, 4] {
        for i in 0..2 {
            fours[half + 2 * i] = _mm256_unpacklo_epi64(pairs[half + i], pairs[half + 2 + i]);
            fours[half + 2 * i + 1] = _mm256_unpackhi_epi64(pairs[half + i], pairs[half + 2 + i]);
        }
    }
    let mut columns = [_mm256_setzero_si256(); GROUP];
    for i in 0..4 {
        columns[i] = _mm256_permute2x128_si256::<0x20>(fours[i], fours[4 + i]);
        columns[4 + i] = _mm256_permute2x128_si256::<0x31>(fours[i], fours[4 + i]);
    }
    columns
}

#[inline]
#[target_feature(enable = "avx2")]
fn row(row: &[u8], query: &[i16]) -> i32 {
    assert_eq!(row.len(), query.len(), "codes of one dimension");
    let mut sums = [_mm256_setzero_si256(); 2];
    for (i, (c, p)) in row.as_chunks::<16>().0.iter().zip(query.as_chunks::<16>().0).enumerate() {
        // SAFETY: the chunks have 16 and 32 bytes; the loads may be unaligned.
        let (c, p) = unsafe { (_mm_loadu_si128(c.as_ptr().cast()), _mm256_loadu_si256(p.as_ptr().cast())) };
        let sum = &mut sums[i % 2];
        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_cvtepu8_epi16(c), p));
    }
    lanes(_mm256_add_epi32(sums[0], sums[1])).into_iter().fold(0, i32::wrapping_add)
}

/// Works with any address: a prefetch reads nothing that the program could see.
#[inline(always)]
fn prefetch(address: *const i8) {
    // SAFETY: a prefetch never faults, whatever its address; SSE is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
}

#[inline(always)]
fn prefetch_all<T>(values: &[T]) {
    let start = values.as_ptr().cast::<i8>();
    for line in (0..size_of_val(values)).step_by(64) {
        prefetch(start.wrapping_add(line));
    }
}

/// Both sets below need the shapes that the portable kernels only zip over.
#[inline(always)]
fn check_four<const Q: usize>(block: &[u8], queries: &[&QueryCodes; Q]) -> usize {
    let halves = block.len() / BYTES;
    assert!(queries.iter().all(|query| query.codes.len() >= halves * (FOUR_STEP / 2)), "codes of one dimension");
    halves / HALVES
}

#[inline(always)]
fn check_seven(groups: &[u8], queries: &[&QueryCodes; WIDE]) -> usize {
    let steps = groups.len() / (GROUPS * BYTES);
    assert!(queries.iter().all(|query| query.codes.len() >= steps * SEVEN_STEP), "codes of one dimension");
    steps
}

#[inline(always)]
fn check_two<const Q: usize>(block: &[u8], queries: &[&QueryCodes; Q]) -> usize {
    let steps = block.len() / (BYTES * HALVES);
    assert!(queries.iter().all(|query| query.codes.len() >= steps * TWO_STEP), "codes of one dimension");
    steps
}

/// AVX2: products of bytes are added in 16-bit lanes, modulo 2¹⁶; no lane leaves its range.
pub(super) mod avx2 {
    use super::*;

    /// Shows that the processor has AVX2.
    #[derive(Debug, Clone, Copy)]
    struct Avx2(());

    /// Does the work with AVX2.
    #[target_feature(enable = "avx2")]
    pub(in super::super) fn run<W: Work>(work: W) -> W::Output {
        work.call(Avx2(()))
    }

    impl Dots for Avx2 {
        #[inline(always)]
        fn four<const Q: usize>(self, block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q] {
            // SAFETY: `self` shows that the processor has AVX2.
            unsafe { four(block, queries) }
        }
        #[inline(always)]
        fn seven(self, groups: &[u8], queries: [&QueryCodes; WIDE]) -> [[[i32; GROUP]; WIDE]; GROUPS] {
            // SAFETY: as above.
            unsafe { groups_of(seven(groups, queries)) }
        }
        #[inline(always)]
        fn seven_passing(
            self,
            groups: &[u8],
            queries: [&QueryCodes; WIDE],
            tests: &[Test; WIDE],
            rows: SetRows,
        ) -> [u32; WIDE] {
            // SAFETY: as above.
            unsafe { passing(seven(groups, queries), tests, rows) }
        }
        #[inline(always)]
        fn group(self, rows: &[u8], stride: usize, columns: &mut [u8]) {
            // SAFETY: as above.
            unsafe { group(rows, stride, columns) }
        }
        #[inline(always)]
        fn row(self, codes: &[u8], query: &[i16]) -> i32 {
            // SAFETY: as above.
            unsafe { row(codes, query) }
        }
        #[inline(always)]
        fn two<const Q: usize>(self, block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q] {
            // SAFETY: as above.
            unsafe { two(block, queries) }
        }
        #[inline(always)]
        fn above(self, scores: &[f32; BLOCK], limit: f32) -> u16 {
            // SAFETY: as above.
            unsafe { above(scores, limit) }
        }
        #[inline(always)]
        fn prefetch<T>(self, values: &[T]) {
            prefetch_all(values);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn four<const Q: usize>(block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q] {
        let steps = check_four(block, &queries);
        let (mask, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        let mut sums = [[_mm256_setzero_si256(); HALVES]; Q];
        let half_steps = block.len() / BYTES;
        for segment in 0..half_steps.div_ceil(2 * FOUR_SEGMENT) {
            let mut lanes = [[_mm256_setzero_si256(); HALVES]; Q];
            for (lanes, query) in lanes.iter_mut().zip(queries) {
                *lanes = [_mm256_set1_epi32(query.start[segment]); HALVES];
            }
            let first = segment * FOUR_SEGMENT;
            for step in first..steps.min(first + FOUR_SEGMENT) {
                prefetch(block.as_ptr().wrapping_add(step * BYTES * HALVES + AHEAD).cast());
                for half in 0..HALVES {
                    // SAFETY: the block has `steps` steps of this many bytes, every query at least so many codes.
                    let codes = unsafe { load(block, (step * HALVES + half) * BYTES) };
                    let low = _mm256_and_si256(codes, mask);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask);
                    for (lanes, query) in lanes.iter_mut().zip(queries) {
                        let at = step * FOUR_STEP;
                        // SAFETY: as above.
                        let (p, r) = unsafe { (broadcast(&query.codes, at), broadcast(&query.codes, at + 4)) };
                        lanes[half] = _mm256_add_epi16(lanes[half], _mm256_maddubs_epi16(low, p));
                        lanes[half] = _mm256_add_epi16(lanes[half], _mm256_maddubs_epi16(high, r));
                    }
                }
            }
            if half_steps > 2 * steps && steps < first + FOUR_SEGMENT {
                // SAFETY: the block has half a step after its whole ones, every query codes for it.
                let codes = unsafe { load(block, steps * HALVES * BYTES) };
                let halves = [_mm256_and_si256(codes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask)];
                for (lanes, query) in lanes.iter_mut().zip(queries) {
                    // SAFETY: as above.
                    let p = unsafe { broadcast(&query.codes, steps * FOUR_STEP) };
                    for (lanes, codes) in lanes.iter_mut().zip(halves) {
                        *lanes = _mm256_add_epi16(*lanes, _mm256_maddubs_epi16(codes, p));
                    }
                }
            }
            for (sums, lanes) in sums.iter_mut().zip(lanes) {
                for half in 0..HALVES {
                    sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(lanes[half], ones));
                }
            }
        }
        blocks_of(sums)
    }

    /// Steps after which the 16-bit lanes of `two` are emptied: 40 pairs of products of at most 3·127 fit.
    const TWO_SEGMENT: usize = 10;

    #[inline]
    #[target_feature(enable = "avx2")]
    fn two<const Q: usize>(block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q] {
        let steps = check_two(block, &queries);
        let (mask, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi16(1));
        let mut sums = [[_mm256_setzero_si256(); HALVES]; Q];
        for first in (0..steps).step_by(TWO_SEGMENT) {
            let mut lanes = [[_mm256_setzero_si256(); HALVES]; Q];
            for step in first..steps.min(first + TWO_SEGMENT) {
                let mut halves = [[_mm256_setzero_si256(); 4]; HALVES];
                for (half, parts) in halves.iter_mut().enumerate() {
                    // SAFETY: the block has `steps` steps of this many bytes.
                    let codes = unsafe { load(block, (step * HALVES + half) * BYTES) };
                    *parts = [
                        _mm256_and_si256(codes, mask),
                        _mm256_and_si256(_mm256_srli_epi16::<2>(codes), mask),
                        _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask),
                        _mm256_and_si256(_mm256_srli_epi16::<6>(codes), mask),
                    ];
                }
                for (lanes, query) in lanes.iter_mut().zip(queries) {
                    let mut query_codes = [_mm256_setzero_si256(); 4];
                    for (part, codes) in query_codes.iter_mut().enumerate() {
                        // SAFETY: the query has at least as many codes as `steps` steps take.
                        *codes = unsafe { broadcast(&query.codes, step * TWO_STEP + 4 * part) };
                    }
                    for (lane, parts) in lanes.iter_mut().zip(&halves) {
                        for (part, p) in parts.iter().zip(query_codes) {
                            *lane = _mm256_add_epi16(*lane, _mm256_maddubs_epi16(*part, p));
                        }
                    }
                }
            }
            for (sums, lanes) in sums.iter_mut().zip(lanes) {
                for half in 0..HALVES {
                    sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(lanes[half], ones));
                }
            }
        }
        blocks_of(sums)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn above(scores: &[f32; BLOCK], limit: f32) -> u16 {
        let limit = _mm256_set1_ps(limit);
        let (low, high) = scores.split_at(GROUP);
        let mask = |scores: &[f32]| {
            // SAFETY: both parts have eight values; the load may be unaligned.
            let scores = unsafe { _mm256_loadu_ps(scores.as_ptr()) };
            _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(scores, limit)) as u16
        };
        mask(low) | mask(high) << GROUP
    }

    /// For each query a bit for every row that passes its test.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn passing(sums: [[__m256i; WIDE]; GROUPS], tests: &[Test; WIDE], rows: SetRows) -> [u32; WIDE] {
        let mut passing = [0; WIDE];
        for (group, sums) in sums.into_iter().enumerate() {
            for ((passing, sum), test) in passing.iter_mut().zip(sums).zip(tests) {
                let reached = _mm256_cmp_ps::<_CMP_GE_OQ>(score(sum, test, rows, group), _mm256_set1_ps(test.limit));
                *passing |= (_mm256_movemask_ps(reached) as u32) << (group * GROUP);
            }
        }
        passing
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn seven(groups: &[u8], queries: [&QueryCodes; WIDE]) -> [[__m256i; WIDE]; GROUPS] {
        let steps = check_seven(groups, &queries);
        let ones = _mm256_set1_epi16(1);
        let mut sums = [[_mm256_setzero_si256(); WIDE]; GROUPS];
        for (segment, first) in (0..steps).step_by(SEVEN_SEGMENT).enumerate() {
            let mut start = [_mm256_setzero_si256(); WIDE];
            for (start, query) in start.iter_mut().zip(queries) {
                *start = _mm256_set1_epi32(query.start[segment]);
            }
            let mut lanes = [start; GROUPS];
            for step in first..steps.min(first + SEVEN_SEGMENT) {
                // SAFETY: each group has `steps` steps of 32 bytes, every query at least so many codes.
                let x = unsafe { column(groups, steps, step) };
                for (q, query) in queries.iter().enumerate() {
                    // SAFETY: as above.
                    let p = unsafe { broadcast(&query.codes, step * SEVEN_STEP) };
                    for group in 0..GROUPS {
                        lanes[group][q] = _mm256_add_epi16(lanes[group][q], _mm256_maddubs_epi16(x[group], p));
                    }
                }
            }
            for (sums, lanes) in sums.iter_mut().zip(lanes) {
                for (sum, lanes) in sums.iter_mut().zip(lanes) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(lanes, ones));
                }
            }
        }
        sums
    }
}

/// AVX-512 VNNI: four products of bytes are added in a 32-bit lane at once.
pub(super) mod vnni {
    use super::*;

    /// Lines that a block may have after those of its whole steps.
    const TAIL_LINES: usize = 2;
    /// Steps of the tile kernel in one turn of its loop.
    const UNROLLED: usize = 5;

    /// Shows that the processor has AVX2 and AVX-512 F, VL, BW and VNNI.
    #[derive(Debug, Clone, Copy)]
    struct Vnni(());

    /// Does the work with VNNI.
    #[target_feature(enable = "avx2,avx512f,avx512vl,avx512bw,avx512vnni")]
    pub(in super::super) fn run<W: Work>(work: W) -> W::Output {
        work.call(Vnni(()))
    }

    impl Dots for Vnni {
        #[inline(always)]
        fn four<const Q: usize>(self, block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q] {
            // SAFETY: `self` shows that the processor has the features.
            unsafe { four(block, queries) }
        }
        #[inline(always)]
        fn seven(self, groups: &[u8], queries: [&QueryCodes; WIDE]) -> [[[i32; GROUP]; WIDE]; GROUPS] {
            // SAFETY: as above.
            unsafe { groups_of(seven(groups, queries)) }
        }
        #[inline(always)]
        fn seven_passing(
            self,
            groups: &[u8],
            queries: [&QueryCodes; WIDE],
            tests: &[Test; WIDE],
            rows: SetRows,
        ) -> [u32; WIDE] {
            // SAFETY: as above.
            unsafe { passing(seven(groups, queries), tests, rows) }
        }
        #[inline(always)]
        fn group(self, rows: &[u8], stride: usize, columns: &mut [u8]) {
            // SAFETY: as above.
            unsafe { group(rows, stride, columns) }
        }
        #[inline(always)]
        fn row(self, codes: &[u8], query: &[i16]) -> i32 {
            // SAFETY: as above.
            unsafe { row(codes, query) }
        }
        #[inline(always)]
        fn two<const Q: usize>(self, block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q] {
            // SAFETY: as above.
            unsafe { two(block, queries) }
        }
        #[inline(always)]
        fn above(self, scores: &[f32; BLOCK], limit: f32) -> u16 {
            // SAFETY: as above.
            unsafe { above(scores, limit) }
        }
        #[inline(always)]
        fn copy_rows(self, from: &[u8], to: &mut [f32], dim: usize, stride: usize, each: impl FnMut(f32)) {
            // SAFETY: as above.
            unsafe { copy_rows(from, to, dim, stride, each) }
        }
        #[inline(always)]
        fn prefetch<T>(self, values: &[T]) {
            prefetch_all(values);
        }
    }

    /// Past the caches: nobody reads the rows soon, and a plain store would first read what it writes over.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512vl,avx512bw,avx512vnni")]
    fn copy_rows(from: &[u8], to: &mut [f32], dim: usize, stride: usize, mut each: impl FnMut(f32)) {
        const LANES: usize = 16;
        const LINE_BYTES: usize = 64;
        assert!(to.as_ptr().addr().is_multiple_of(LINE_BYTES) && stride.is_multiple_of(LANES), "rows of whole lines");
        for (from, to) in from.chunks_exact(4 * dim).zip(to.chunks_exact_mut(stride)) {
            let (lines, rest) = from.as_chunks::<LINE_BYTES>();
            let mut squares = _mm512_setzero_ps();
            for (bytes, line) in lines.iter().zip(to.as_chunks_mut::<LANES>().0) {
                // SAFETY: both have 64 bytes; the load may be unaligned, and `line` is aligned, since its row starts on a
                // line and it is a whole number of lines further.
                unsafe {
                    let values = _mm512_loadu_ps(bytes.as_ptr().cast());
                    _mm512_stream_ps(line.as_mut_ptr(), values);
                    squares = _mm512_fmadd_ps(values, values, squares);
                }
            }
            let mut sum = _mm512_reduce_add_ps(squares);
            for (slot, bytes) in to[lines.len() * LANES..].iter_mut().zip(rest.as_chunks::<4>().0) {
                *slot = f32::from_le_bytes(*bytes);
                sum += *slot * *slot;
            }
            each(sum);
        }
        // What was streamed is to be seen by whoever sees what follows.
        _mm_sfence();
    }

    /// In 512-bit registers: a step of a block is one of them.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512vl,avx512bw,avx512vnni")]
    fn four<const Q: usize>(block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q] {
        let steps = check_four(block, &queries);
        let mask = _mm512_set1_epi8(15);
        // Sums of the low and of the high halves of bytes: one sum would wait for each addition.
        let mut sums = [[_mm512_setzero_si512(); 2]; Q];
        for (sums, query) in sums.iter_mut().zip(queries) {
            sums[0] = _mm512_set1_epi32(-query.offset);
        }
        for step in 0..steps {
            prefetch(block.as_ptr().wrapping_add(step * BYTES * HALVES + AHEAD).cast());
            // SAFETY: the block has `steps` steps of 64 bytes; the load may be unaligned.
            let codes = unsafe { _mm512_loadu_si512(block.as_ptr().add(step * BYTES * HALVES).cast()) };
            let low = _mm512_and_si512(codes, mask);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask);
            for (sums, query) in sums.iter_mut().zip(queries) {
                let at = step * FOUR_STEP;
                // SAFETY: the query has at least as many codes as `steps` steps take.
                let (p, r) = unsafe { (broadcast512(&query.codes, at), broadcast512(&query.codes, at + 4)) };
                sums[0] = _mm512_dpbusd_epi32(sums[0], low, p);
                sums[1] = _mm512_dpbusd_epi32(sums[1], high, r);
            }
        }
        // The lines after the codes of a block ahead.
        for line in steps..steps + TAIL_LINES {
            prefetch(block.as_ptr().wrapping_add(line * BYTES * HALVES + AHEAD).cast());
        }
        if block.len() / BYTES > HALVES * steps {
            // SAFETY: the block has half a step after its whole ones, every query codes for it.
            let codes = unsafe { load(block, steps * HALVES * BYTES) };
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(codes), _mm256_srli_epi16::<4>(codes));
            let both = _mm512_and_si512(both, mask);
            for (sums, query) in sums.iter_mut().zip(queries) {
                // SAFETY: as above.
                let p = unsafe { broadcast512(&query.codes, steps * FOUR_STEP) };
                sums[1] = _mm512_dpbusd_epi32(sums[1], both, p);
            }
        }
        sums.map(|sums| lanes512(_mm512_add_epi32(sums[0], sums[1])))
    }

    /// The codes of one step of a query, in every lane.
    ///
    /// # Safety
    /// `codes` has four bytes at `at`.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512vl,avx512bw,avx512vnni")]
    unsafe fn broadcast512(codes: &[i8], at: usize) -> __m512i {
        debug_assert!(at + 4 <= codes.len());
        // SAFETY: the caller's promise; an i32 may be read from any address with `read_unaligned`.
        _mm512_set1_epi32(unsafe { codes.as_ptr().add(at).cast::<i32>().read_unaligned() })
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512vl,avx512bw,avx512vnni")]
    fn lanes512(values: __m512i) -> [i32; BLOCK] {
        let mut lanes = [0; BLOCK];
        // SAFETY: the array has 64 bytes; the store may be unaligned.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), values) };
        lanes
    }

    /// In 512-bit registers, like `four`.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512vl,avx512bw,avx512vnni")]
    fn two<const Q: usize>(block: &[u8], queries: [&QueryCodes; Q]) -> [[i32; BLOCK]; Q] {
        let steps = check_two(block, &queries);
        let mask = _mm512_set1_epi8(3);
        // A sum for each part of the bytes: one sum would wait for each addition.
        let mut sums = [[_mm512_setzero_si512(); 4]; Q];
        for step in 0..steps {
            // SAFETY: the block has `steps` steps of 64 bytes; the load may be unaligned.
            let codes = unsafe { _mm512_loadu_si512(block.as_ptr().add(step * BYTES * HALVES).cast()) };
            let parts =
                [codes, _mm512_srli_epi16::<2>(codes), _mm512_srli_epi16::<4>(codes), _mm512_srli_epi16::<6>(codes)];
            for (i, part) in parts.into_iter().enumerate() {
                let part = _mm512_and_si512(part, mask);
                for (sums, query) in sums.iter_mut().zip(queries) {
                    // SAFETY: the query has at least as many codes as `steps` steps take.
                    let p = unsafe { broadcast512(&query.codes, step * TWO_STEP + 4 * i) };
                    sums[i] = _mm512_dpbusd_epi32(sums[i], part, p);
                }
            }
        }
        sums.map(|sums| {
            lanes512(_mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3])))
        })
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512vl,avx512bw,avx512vnni")]
    fn above(scores: &[f32; BLOCK], limit: f32) -> u16 {
        // SAFETY: the array has 16 values; the load may be unaligned.
        let scores = unsafe { _mm512_loadu_ps(scores.as_ptr()) };
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(scores, _mm512_set1_ps(limit))
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512vl,avx512bw,avx512vnni")]
    fn seven(groups: &[u8], queries: [&QueryCodes; WIDE]) -> [[__m256i; WIDE]; GROUPS] {
        let steps = check_seven(groups, &queries);
        let mut start = [_mm256_setzero_si256(); WIDE];
        for (start, query) in start.iter_mut().zip(queries) {
            *start = _mm256_set1_epi32(-query.offset);
        }
        let mut sums = [start; GROUPS];
        let whole = steps - steps % UNROLLED;
        // Few turns of the loop: the processor does not foresee its end when there are many.
        for first in (0..whole).step_by(UNROLLED) {
            for step in first..first + UNROLLED {
                // SAFETY: each group has `steps` steps of 32 bytes, every query at least so many codes.
                unsafe { seven_step(groups, steps, step, queries, &mut sums) };
            }
        }
        for step in whole..steps {
            // SAFETY: as above.
            unsafe { seven_step(groups, steps, step, queries, &mut sums) };
        }
        sums
    }

    /// For each query a bit for every row that passes its test.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512vl,avx512bw,avx512vnni")]
    fn passing(sums: [[__m256i; WIDE]; GROUPS], tests: &[Test; WIDE], rows: SetRows) -> [u32; WIDE] {
        let mut passing = [[0; 4]; WIDE];
        for (group, sums) in sums.into_iter().enumerate() {
            for ((passing, sum), test) in passing.iter_mut().zip(sums).zip(tests) {
                let score = score(sum, test, rows, group);
                passing[group] = _mm256_cmp_ps_mask::<_CMP_GE_OQ>(score, _mm256_set1_ps(test.limit));
            }
        }
        passing.map(u32::from_le_bytes)
    }

    /// Adds one step's products to the sums.
    ///
    /// # Safety
    /// Each group has `steps` steps of 32 bytes, `step` is one of them, and every query has codes for it.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512vl,avx512bw,avx512vnni")]
    unsafe fn seven_step(
        groups: &[u8],
        steps: usize,
        step: usize,
        queries: [&QueryCodes; WIDE],
        sums: &mut [[__m256i; WIDE]; GROUPS],
    ) {
        // SAFETY: the caller's promise.
        let x = unsafe { column(groups, steps, step) };
        for (q, query) in queries.iter().enumerate() {
            // SAFETY: as above.
            let p = unsafe { broadcast(&query.codes, step * SEVEN_STEP) };
            for group in 0..GROUPS {
                sums[group][q] = _mm256_dpbusd_epi32(sums[group][q], x[group], p);
            }
        }
    }
}
