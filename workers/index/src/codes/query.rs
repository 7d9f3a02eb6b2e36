//! A query as the levels take it: its codes, and what they can be wrong by.
//!
//! See the design note in `search` for the bound that [`Level::margin`] computes.

use super::{Codes, Seven, Stats};
use crate::kernels::{Dots, FOUR_SEGMENT, FOUR_STEP, QueryCodes, SEVEN_SEGMENT, SEVEN_STEP};

/// Relative allowance for the f32 roundings of a bound, of which there are fewer than 40 of 2⁻²⁴ each.
const SLACK: f64 = 1e-5;
/// Relative allowance for all f64 roundings: of D ≤ 2¹⁶ additions in eight lanes, and of a frame.
const SLACK64: f64 = 1e-11;
/// Norms between which no f32 product overflows or vanishes; outside, the levels are not used.
pub(super) const NORMS: std::ops::RangeInclusive<f64> = 1e-6..=1e6;
/// Largest value of a 16-bit lane.
const LANE: f64 = i16::MAX as f64;

/// How a level's kernel walks over the dimensions, and what its 16-bit lanes meet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    dim: usize,
    /// Dimensions of a step.
    step: usize,
    /// Dimensions of a segment.
    segment: usize,
    /// The code of 0 in a row.
    zero: i32,
    /// Largest norm of any row's codes in one lane of one segment.
    lane_norm: f64,
}

/// The 4-bit level's shape.
pub(crate) fn four_shape(dim: usize, lane_norm: f64) -> Shape {
    Shape { dim, step: FOUR_STEP, segment: FOUR_SEGMENT * FOUR_STEP, zero: 8, lane_norm }
}

/// The 7-bit level's shape.
pub(crate) fn seven_shape(dim: usize, lane_norm: f64) -> Shape {
    Shape { dim, step: SEVEN_STEP, segment: SEVEN_SEGMENT * SEVEN_STEP, zero: 64, lane_norm }
}

impl Shape {
    /// Segments.
    pub fn segments(&self) -> usize {
        self.dim.div_ceil(self.segment)
    }

    /// Sums of a function of the codes in each lane of each segment.
    fn lanes(&self, codes: &[i8], value: impl Fn(i32) -> i32) -> Vec<[i32; 2]> {
        let mut lanes = vec![[0; 2]; self.segments()];
        for (i, code) in codes.iter().enumerate() {
            lanes[i / self.segment][i % 4 / 2] += value(i32::from(*code));
        }
        lanes
    }
}

/// Largest sum of squares in one lane of one segment of a row's codes.
#[inline(always)]
pub(crate) fn lane_square(codes: &[i32], segment_dims: usize) -> i32 {
    let mut largest = 0;
    for segment in codes.chunks(segment_dims) {
        let mut lanes = [0; 4];
        let (whole, rest) = segment.as_chunks::<4>();
        for quad in whole {
            for i in 0..4 {
                lanes[i] += quad[i] * quad[i];
            }
        }
        for (lane, code) in lanes.iter_mut().zip(rest) {
            *lane += code * code;
        }
        largest = largest.max(lanes[0] + lanes[1]).max(lanes[2] + lanes[3]);
    }
    largest
}

/// Quantises a query for a kernel: its codes, their unit (an f32), and the norm of what they leave over.
///
/// No 16-bit lane can leave its range: with Cauchy–Schwarz |Σ p·c| ≤ ‖p‖·‖c‖ over the lane's dimensions, and
/// the unit is made larger until that is at most 2¹⁵ − 1 for every row. Pairs of products, which the
/// instruction adds before, are at most 2·127·127 < 2¹⁵.
#[inline(always)]
pub(crate) fn query_codes(query: &[f64], shape: Shape) -> (QueryCodes, f32, f64) {
    let largest = query.iter().fold(0f64, |a, v| a.max(v.abs()));
    let mut unit = (largest / 127.0) as f32 * (1.0 + 1e-6);
    let mut codes: Vec<i8>;
    loop {
        let inverse = 1.0 / f64::from(unit);
        codes = query.iter().map(|v| nearest(v * inverse) as i8).collect();
        let norms = shape.lanes(&codes, |p| p * p);
        let largest = norms.as_flattened().iter().fold(0, |a: i32, v| a.max(*v));
        let over = f64::from(largest).sqrt() * shape.lane_norm / LANE;
        if over <= 1.0 {
            break;
        }
        // Most of the way at once; rounding decides about the rest.
        unit *= (over as f32 * 0.99).max(1.02);
    }
    let residual: f64 = query.iter().zip(&codes).map(|(v, p)| (v - f64::from(unit) * f64::from(*p)).powi(2)).sum();
    let sums = shape.lanes(&codes, |p| p);
    let start = sums.iter().map(|sums| {
        let lane = |sum: i32| u32::from((-shape.zero * sum) as i16 as u16);
        (lane(sums[0]) | lane(sums[1]) << 16) as i32
    });
    let start = start.collect();
    let offset = shape.zero * sums.as_flattened().iter().sum::<i32>();
    codes.resize(shape.dim.next_multiple_of(shape.step), 0);
    (QueryCodes { codes, start, offset }, unit, residual.sqrt())
}

/// The integer next to a small number, without a call of the library's rounding; ties go either way.
#[inline(always)]
fn nearest(value: f64) -> i32 {
    /// 1.5·2⁵²: next to it, numbers have no fraction.
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    ((value + WHOLE) - WHOLE) as i32
}

/// What turns an integer dot product into bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Level {
    /// Unit of the query's codes.
    pub unit: f32,
    /// ‖q‖, rounded up.
    pub norm: f32,
    /// ‖q‖², rounded up.
    q2: f32,
    /// What the query's codes leave over, times the largest ‖x̂‖; what the rows' scales are wrong by, times ‖q‖; and the slack.
    eta: f32,
    /// 1 / the largest ‖x̂‖, rounded down; 0 when all x̂ are 0.
    inverse_hat: f32,
    /// The tangent of [`Self::quick_margin`]: its value at y = 0, rounded up, and how it falls, rounded down.
    tangent: (f32, f32),
}

/// Where the tangent touches: near rows have about such a cosine of query and codes; its sine.
const TOUCHES: (f64, f64) = (0.6, 0.8);

impl Level {
    fn new(place: &Place, unit: f32, residual: f64, Stats { hat, along, .. }: Stats) -> Self {
        let up = |v: f64| (v as f32).next_up();
        let norm = place.q2.sqrt();
        let eta = up((residual * hat + norm * along) * (1.0 + 1e-6) + place.slack);
        let inverse_hat = if hat > 0.0 { ((1.0 - 1e-6) / hat) as f32 } else { 0.0 };
        let (cosine, sine) = TOUCHES;
        let falls = cosine / sine * f64::from(inverse_hat);
        Self {
            unit,
            norm: up(norm * (1.0 + 1e-6)),
            q2: up(place.q2 * (1.0 + 1e-6)),
            eta,
            inverse_hat,
            tangent: (up((norm / sine + falls * f64::from(eta)) * (1.0 + 1e-6)), (falls * (1.0 - 1e-6)) as f32),
        }
    }

    /// The part of a margin that all rows have.
    #[inline(always)]
    pub fn eta(&self) -> f32 {
        self.eta
    }

    /// Largest distance of q·x from its estimate `y`, for a row whose codes leave over `epsilon`.
    #[inline(always)]
    pub fn margin(&self, y: f32, epsilon: f32) -> f32 {
        let positive = |v: f32| if v > 0.0 { v } else { 0.0 };
        let along = positive(y.abs() - self.eta) * self.inverse_hat;
        self.eta + epsilon * positive(self.q2 - along * along).sqrt()
    }

    /// Not less than [`Self::margin`], and without a root: √(‖q‖² − w²) is concave in w, so it lies below its tangents,
    /// which fall, and below ‖q‖. Tight for near rows.
    #[inline(always)]
    pub fn quick_margin(&self, y: f32, epsilon: f32) -> f32 {
        let tangent = self.tangent.0 - self.tangent.1 * y;
        self.eta + epsilon * if tangent < self.norm { tangent } else { self.norm }
    }
}

/// A query in a shard's frame, and how scores g = q·x − ‖x‖²/2 there become d².
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// ‖q‖².
    q2: f64,
    /// Slack of a score; part of every [`Level::margin`].
    slack: f64,
    /// Slack of d².
    slack64: f64,
}

impl Place {
    fn new(codes: &Codes, query: &[f64]) -> Option<Self> {
        let q2: f64 = query.iter().map(|v| v * v).sum();
        let (norm, reach) = (q2.sqrt(), codes.reach());
        let slack = SLACK * (norm * reach + reach * reach / 2.0);
        NORMS.contains(&norm).then_some(Self { q2, slack, slack64: SLACK64 * (q2 + reach * reach) })
    }

    /// No canonical d² of a row whose score is at most `score` is below this.
    #[inline(always)]
    pub fn least_d2(&self, score: f32) -> f64 {
        self.q2 - 2.0 * f64::from(score) - self.slack64
    }

    /// No canonical d² of a row whose score is at least `score` is above this.
    #[inline(always)]
    pub fn most_d2(&self, score: f32) -> f64 {
        self.q2 - 2.0 * f64::from(score) + self.slack64
    }

    /// The canonical d² of a row whose score is below this is above `d2`, strictly.
    #[inline(always)]
    pub fn least_score(&self, d2: f64) -> f32 {
        (((self.q2 - d2 - self.slack64) / 2.0) as f32).next_down()
    }
}

/// A query for the 4-bit blocks and for single rows of the 7-bit level.
#[derive(Debug)]
pub(crate) struct Narrow {
    pub place: Place,
    pub four: QueryCodes,
    pub four_level: Level,
    pub row: RowQuery,
}

/// Rows of the 7-bit level whose scores are computed together.
pub(crate) const ROWS: usize = 8;

/// A query for single rows of the 7-bit level: its codes of 16 bits leave hardly anything over.
#[derive(Debug)]
pub(crate) struct RowQuery {
    codes: Vec<i16>,
    /// What the offset of a row's codes adds to its dot product, modulo 2³².
    offset: i32,
    level: Level,
}

impl RowQuery {
    fn new(place: &Place, turned: &[f64], seven: &Seven) -> Self {
        let (codes, unit, residual) = wide_codes(turned, seven.code_bytes());
        let offset = row_offset(&codes);
        Self { codes, offset, level: Level::new(place, unit, residual, seven.stats()) }
    }

    /// Bounds of the scores of up to [`ROWS`] rows, the upper ones first. Of as many as there are: what follows them is of no
    /// meaning.
    #[inline(always)]
    pub fn scores<D: Dots>(&self, dots: D, seven: &Seven, rows: &[u32]) -> [[f32; ROWS]; 2] {
        let (mut sums, mut parts) = ([0; ROWS], [[0f32; ROWS]; 3]);
        for (i, row) in rows.iter().enumerate().take(ROWS) {
            let (codes, scale, epsilon, half) = seven.parts(*row as usize);
            sums[i] = dots.row(codes, &self.codes).wrapping_sub(self.offset);
            (parts[0][i], parts[1][i], parts[2][i]) = (scale, epsilon, half);
        }
        let [scale, epsilon, half] = parts;
        let mut scores = [[0f32; ROWS]; 2];
        for i in 0..ROWS {
            let y = sums[i] as f32 * self.level.unit * scale[i];
            let margin = self.level.margin(y, epsilon[i]);
            scores[0][i] = y + margin - half[i];
            scores[1][i] = y - margin - half[i];
        }
        scores
    }
}

impl Narrow {
    /// `None` where the levels can't be used: the query is extremely far or near in the shard's frame.
    pub fn new(codes: &Codes, query: &[f32]) -> Option<Self> {
        let mut turned = vec![0.0; query.len()];
        codes.frame().apply(query, &mut turned);
        let place = Place::new(codes, &turned)?;
        let (four, unit, residual) = query_codes(&turned, codes.four().shape());
        let four_level = Level::new(&place, unit, residual, codes.four().stats());
        let row = RowQuery::new(&place, &turned, codes.seven());
        Some(Self { place, four, four_level, row })
    }
}

/// 16-bit codes for single rows; no sum of products with 7-bit codes leaves 32 bits.
pub(crate) fn wide_codes(query: &[f64], padded: usize) -> (Vec<i16>, f32, f64) {
    let limit = (i32::MAX / 63 / padded as i32).min(i32::from(i16::MAX));
    let largest = query.iter().fold(0f64, |a, v| a.max(v.abs()));
    let unit = (largest / f64::from(limit)) as f32 * (1.0 + 1e-6);
    let mut codes: Vec<i16> = query.iter().map(|v| nearest(v / f64::from(unit)) as i16).collect();
    let residual: f64 = query.iter().zip(&codes).map(|(v, p)| (v - f64::from(unit) * f64::from(*p)).powi(2)).sum();
    codes.resize(padded, 0);
    (codes, unit, residual.sqrt())
}

/// What the offset of a row's codes adds to its dot product, modulo 2³².
pub(crate) fn row_offset(codes: &[i16]) -> i32 {
    codes.iter().fold(0, |sum: i32, p| sum.wrapping_add(64 * i32::from(*p)))
}

/// A query for the tiles of the 7-bit level.
#[derive(Debug)]
pub(crate) struct Wide {
    pub place: Place,
    pub codes: QueryCodes,
    pub level: Level,
    pub row: RowQuery,
}

impl Wide {
    /// As [`Narrow::new`].
    pub fn new(codes: &Codes, query: &[f32]) -> Option<Self> {
        let mut turned = vec![0.0; query.len()];
        codes.frame().apply(query, &mut turned);
        let place = Place::new(codes, &turned)?;
        let (tile, unit, residual) = query_codes(&turned, codes.seven().shape());
        let level = Level::new(&place, unit, residual, codes.seven().stats());
        Some(Self { place, codes: tile, level, row: RowQuery::new(&place, &turned, codes.seven()) })
    }
}
