//! One-threaded matrix product on strided slices; callers parallelise over independent products.

use gemm::Parallelism;

/// A read-only matrix inside a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mat<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Rows one after the other.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows `row_stride` elements apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    fn fits(&self) -> bool {
        let last = (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride;
        last < self.data.len()
    }
}

/// `out = a · b`, or `out += a · b` if `add`; rows of `out` are `out_stride` elements apart.
///
/// # Panics
/// When a shape does not fit its slice; shapes come from this crate's own checks.
pub(crate) fn matmul(out: &mut [f32], out_stride: usize, a: Mat<'_>, b: Mat<'_>, add: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(a.fits() && b.fits() && b.rows == k, "operands do not fit: {m}x{k} by {}x{n}", b.rows);
    assert!(n <= out_stride && (m - 1) * out_stride + n <= out.len(), "the {m}x{n} product does not fit");
    // SAFETY: the asserts above keep every element that gemm reads or writes inside the three slices, `out` is
    // borrowed mutably, and its rows do not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_and_accumulation_equal_the_plain_loop() {
        let a: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..12).map(|i| (i as f32) - 5.0).collect();
        let mut out = vec![1.0; 2 * 5];
        matmul(&mut out, 5, Mat::new(&a, 3, 2).t(), Mat::new(&b, 3, 4), true);
        for i in 0..2 {
            for j in 0..4 {
                let sum: f32 = (0..3).map(|k| a[k * 2 + i] * b[k * 4 + j]).sum();
                assert_eq!(out[i * 5 + j], 1.0 + sum);
            }
            assert_eq!(out[i * 5 + 4], 1.0);
        }
    }
}
