//! How much of which samples is in a pixel of the resized picture, along one axis.
//!
//! The filter is Pillow's antialiased bilinear one. Where a component has half the picture's resolution, libjpeg's
//! interpolation (¾ of the nearer sample, ¼ of the next) is worked into the weights; where a block was decoded to means
//! of its samples, a mean gets the weight of all its samples.

/// What an axis is resized from and to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    /// Pixels of the picture.
    pub length: usize,
    /// The part that is kept.
    pub from: f64,
    pub kept: f64,
    /// Pixels that it becomes.
    pub out: usize,
    /// Pixels of the picture per sample of the component, 1 or 2.
    pub sampling: usize,
    /// Samples per mean.
    pub averaged: usize,
}

/// One run of weights per pixel of the result, each of [`Filter::taps`].
#[derive(Debug, Clone)]
pub(super) struct Filter {
    axis: Option<Axis>,
    pub taps: usize,
    /// The sample that the first weight belongs to.
    pub starts: Vec<usize>,
    pub weights: Vec<f32>,
}

impl Filter {
    pub const fn new() -> Self {
        Self { axis: None, taps: 0, starts: Vec::new(), weights: Vec::new() }
    }

    /// Becomes the filter of an axis, unless it is already.
    pub fn set(&mut self, axis: Axis) {
        if self.axis == Some(axis) {
            return;
        }
        self.axis = None;
        let runs: Vec<(usize, Vec<f32>)> = (0..axis.out).map(|pixel| axis.run(pixel)).collect();
        let samples = axis.samples();
        self.taps = runs.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        self.starts.clear();
        self.weights.clear();
        for (start, weights) in runs {
            // The shorter runs are filled up with zeros, before them where there is nothing behind.
            let first = start.min(samples - self.taps);
            self.starts.push(first);
            let begin = self.weights.len() + start - first;
            self.weights.resize(self.weights.len() + self.taps, 0.0);
            self.weights[begin..begin + weights.len()].copy_from_slice(&weights);
        }
        self.axis = Some(axis);
    }

    /// The samples that have a weight.
    pub fn range(&self) -> std::ops::Range<usize> {
        let first = self.starts.iter().min().copied().unwrap_or(0);
        first..self.starts.iter().max().map_or(0, |last| last + self.taps)
    }
}

impl Axis {
    /// Samples or means that cover the axis.
    fn samples(&self) -> usize {
        self.length.div_ceil(self.sampling).div_ceil(self.averaged)
    }

    /// Where the weights of a pixel of the result begin, and they.
    fn run(&self, pixel: usize) -> (usize, Vec<f32>) {
        let (first, weights) = self.triangle(pixel);
        let (first, weights) = if self.sampling == 2 { self.interpolated(first, &weights) } else { (first, weights) };
        let start = first / self.averaged;
        let end = (first + weights.len()).div_ceil(self.averaged);
        let mut sums = vec![0.0; end - start];
        weights.iter().enumerate().for_each(|(i, weight)| sums[(first + i) / self.averaged - start] += *weight);
        (start, sums.into_iter().map(|weight| weight as f32).collect())
    }

    fn triangle(&self, pixel: usize) -> (usize, Vec<f64>) {
        let scale = self.kept / self.out as f64;
        let support = scale.max(1.0);
        let centre = self.from + (pixel as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(self.length);
        let weight = |i: usize| (1.0 - ((i as f64 + 0.5 - centre) / support).abs()).max(0.0);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let total: f64 = weights.iter().sum();
        (first, weights.into_iter().map(|weight| weight / total).collect())
    }

    /// Weights of pixels as weights of samples of twice their width.
    fn interpolated(&self, first: usize, weights: &[f64]) -> (usize, Vec<f64>) {
        let last_sample = self.length.div_ceil(2) - 1;
        let start = first.div_ceil(2).saturating_sub(1);
        let mut sums = vec![0.0; ((first + weights.len()) / 2).min(last_sample) + 1 - start];
        for (i, weight) in (first..).zip(weights) {
            let near = i / 2;
            let next = if i % 2 == 0 { near.saturating_sub(1) } else { (near + 1).min(last_sample) };
            sums[near - start] += 0.75 * weight;
            sums[next - start] += 0.25 * weight;
        }
        (start, sums)
    }
}
