//! Small pieces of inline SVG: a frame with linear axes and marks in it. Colours come from the page's style
//! sheet by class, so that plots follow light and dark.

use std::fmt::Write as _;

use super::page::escape;

/// Room around the plotting area, in pixels.
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 34.0;

/// A plot under construction.
pub struct Plot {
    width: f64,
    height: f64,
    x: (f64, f64),
    y: (f64, f64),
    body: String,
}

impl Plot {
    /// A frame of `width`×`height` pixels with a title over the ranges `x` and `y`.
    pub fn new(width: f64, height: f64, title: &str, x: (f64, f64), y: (f64, f64)) -> Self {
        let mut plot = Self { width, height, x, y, body: String::new() };
        plot.put(&format!(r#"<text class="title" x="{LEFT}" y="14">{}</text>"#, escape(title)));
        plot
    }

    fn put(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    /// Pixel of an abscissa.
    pub fn px(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (self.width - LEFT - RIGHT)
    }

    /// Pixel of an ordinate.
    pub fn py(&self, y: f64) -> f64 {
        self.height - BOTTOM - (y - self.y.0) / (self.y.1 - self.y.0) * (self.height - TOP - BOTTOM)
    }

    /// Horizontal grid lines with labels at the ticks of the ordinate.
    pub fn y_ticks(&mut self, ticks: &[f64], label: impl Fn(f64) -> String) {
        for &tick in ticks {
            let (y, right) = (self.py(tick), self.width - RIGHT);
            self.put(&format!(r#"<line class="grid" x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}"/>"#));
            let (x, y) = (LEFT - 6.0, y + 3.5);
            self.put(&format!(r#"<text class="tick end" x="{x}" y="{y:.1}">{}</text>"#, escape(&label(tick))));
        }
    }

    /// Labels at the ticks of the abscissa.
    pub fn x_ticks(&mut self, ticks: &[f64], label: impl Fn(f64) -> String) {
        for &tick in ticks {
            let (x, y) = (self.px(tick), self.height - BOTTOM + 15.0);
            self.put(&format!(r#"<text class="tick mid" x="{x:.1}" y="{y}">{}</text>"#, escape(&label(tick))));
        }
    }

    /// What the abscissa is.
    pub fn x_name(&mut self, name: &str) {
        let (x, y) = ((LEFT + self.width - RIGHT) / 2.0, self.height - 4.0);
        self.put(&format!(r#"<text class="tick mid" x="{x:.1}" y="{y}">{}</text>"#, escape(name)));
    }

    /// An upright bar from the abscissa to `y`, with a text that shows when pointed at.
    pub fn bar(&mut self, class: &str, x: (f64, f64), y: f64, hint: &str) {
        let (left, right, top, base) = (self.px(x.0), self.px(x.1), self.py(y), self.py(self.y.0));
        let (width, height) = ((right - left).max(0.0), (base - top).max(0.0));
        self.put(&format!(
            r#"<rect class="{class}" x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}"><title>{}</title></rect>"#,
            escape(hint)
        ));
    }

    /// A short level line across `x`.
    pub fn level(&mut self, class: &str, x: (f64, f64), y: f64) {
        let (left, right, y) = (self.px(x.0), self.px(x.1), self.py(y));
        self.put(&format!(r#"<line class="{class}" x1="{left:.1}" y1="{y:.1}" x2="{right:.1}" y2="{y:.1}"/>"#));
    }

    /// An upright line over the ordinate's part `y`.
    pub fn upright(&mut self, class: &str, x: f64, y: (f64, f64)) {
        let (x, bottom, top) = (self.px(x), self.py(y.0), self.py(y.1));
        self.put(&format!(r#"<line class="{class}" x1="{x:.1}" y1="{bottom:.1}" x2="{x:.1}" y2="{top:.1}"/>"#));
    }

    /// A line through points.
    pub fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        let mut path = String::new();
        for (x, y) in points {
            let (x, y) = (self.px(*x), self.py(y.clamp(self.y.0, self.y.1)));
            write!(path, "{x:.1},{y:.1} ").expect("a string takes all text");
        }
        self.put(&format!(r#"<polyline class="{class}" points="{}"/>"#, path.trim_end()));
    }

    /// Dots at points.
    pub fn dots(&mut self, class: &str, points: &[(f64, f64)]) {
        for (x, y) in points {
            let (x, y) = (self.px(*x), self.py(y.clamp(self.y.0, self.y.1)));
            self.put(&format!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3"/>"#));
        }
    }

    /// The finished element.
    pub fn finish(self) -> String {
        let Self { width, height, body, .. } = self;
        format!(
            "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n{body}</svg>\n"
        )
    }
}

/// Level bars over 0–1 with a name at their left and a mark for chance.
pub struct Bars {
    width: f64,
    height: f64,
    names: f64,
    body: String,
}

impl Bars {
    /// Room for names of `names` pixels; a title.
    pub fn new(width: f64, names: f64, height: f64, title: &str) -> Self {
        let mut bars = Self { width, height, names, body: String::new() };
        bars.put(&format!(r#"<text class="title" x="{names}" y="12">{}</text>"#, escape(title)));
        for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let x = bars.px(tick);
            bars.put(&format!(r#"<line class="grid" x1="{x:.1}" y1="32" x2="{x:.1}" y2="{height}"/>"#));
            bars.put(&format!(r#"<text class="tick mid" x="{x:.1}" y="28">{tick:.2}</text>"#));
        }
        bars
    }

    fn put(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    fn px(&self, value: f64) -> f64 {
        self.names + value * (self.width - self.names - 46.0)
    }

    /// A bar whose top is at `y`.
    pub fn row(&mut self, y: f64, name: &str, value: f64, chance: f64) {
        let (name, names, end, mark) = (escape(name), self.names, self.px(value), self.px(chance));
        let (bar, text, low) = (y + 1.5, y + 11.0, y + 14.0);
        self.put(&format!(r#"<text class="end" x="{}" y="{text:.1}">{name}</text>"#, names - 8.0));
        self.put(&format!(
            r#"<rect class="set0" x="{names}" y="{bar:.1}" width="{:.1}" height="11"><title>{name}: AP {value:.3}, chance {chance:.3}</title></rect>"#,
            end - names
        ));
        self.put(&format!(r#"<line class="chance solid" x1="{mark:.1}" y1="{y:.1}" x2="{mark:.1}" y2="{low:.1}"/>"#));
        self.put(&format!(r#"<text class="tick" x="{:.1}" y="{text:.1}">{value:.3}</text>"#, end.max(mark) + 5.0));
    }

    /// The finished element.
    pub fn finish(self) -> String {
        let Self { width, height, body, .. } = self;
        element(width, height, &body)
    }
}

fn element(width: f64, height: f64, body: &str) -> String {
    format!("<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n{body}</svg>\n")
}

/// Round ticks from 0 to at least `max`: 4 to 6 of them.
pub fn ticks(max: f64) -> Vec<f64> {
    let raw = (max / 5.0).max(1e-9);
    let power = 10f64.powf(raw.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= raw * 0.999).unwrap_or(raw);
    (0..=(max / step).ceil() as usize).map(|i| i as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        assert_eq!(ticks(1.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(43.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert!(ticks(0.137).last().is_some_and(|top| *top >= 0.137));
    }

    #[test]
    fn texts_in_plots_are_escaped() {
        let mut plot = Plot::new(100.0, 100.0, "<script>", (0.0, 1.0), (0.0, 1.0));
        plot.bar("b", (0.0, 1.0), 0.5, "a & b");
        let svg = plot.finish();
        assert!(svg.contains("&lt;script&gt;") && svg.contains("a &amp; b") && !svg.contains("<script>"));
    }
}
