//! Rounds, medians and ratios.

use std::fmt;

use serde::Serialize;

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// Its unit: "ops/s", "us", "B".
    pub(crate) unit: &'static str,
    /// Mainstay, one figure per round.
    pub(crate) ours: Vec<f64>,
    /// What it is held against.
    pub(crate) against: &'static str,
    /// The floor or peer, one figure per round; empty when there is none.
    pub(crate) theirs: Vec<f64>,
}

impl Row {
    fn ratios(&self) -> Vec<f64> {
        self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours / theirs).collect()
    }
}

/// Everything that was measured, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Cores of the machine.
    pub(crate) cores: usize,
    /// Release or debug.
    pub(crate) profile: &'static str,
    /// The rows.
    pub(crate) rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let profile = if cfg!(debug_assertions) { "debug" } else { "optimised" };
        Self { cores, profile, rows: Vec::new() }
    }
}

/// The middle of these figures.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Measures ours and theirs in turn.
pub(crate) fn interleave<E>(
    rounds: usize,
    mut ours: impl FnMut() -> Result<f64, E>,
    mut theirs: impl FnMut() -> Result<f64, E>,
) -> Result<(Vec<f64>, Vec<f64>), E> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Who goes first changes, so that neither always finds the machine warmed by the other.
        if round % 2 == 0 {
            a.push(ours()?);
            b.push(theirs()?);
        } else {
            b.push(theirs()?);
            a.push(ours()?);
        }
    }
    Ok((a, b))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} cores, {} build; medians [least to most]", self.cores, self.profile)?;
        writeln!(f, "| what | mainstay | floor | ratio | floor is |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        for row in &self.rows {
            let theirs = if row.theirs.is_empty() { "-".to_owned() } else { spread(&row.theirs) };
            let ratios = row.ratios();
            let ratio = if ratios.is_empty() {
                "-".to_owned()
            } else {
                let (least, most) = ends(&ratios);
                format!("{:.2} x [{least:.2} to {most:.2}]", median(&ratios))
            };
            let (what, unit, against) = (&row.what, row.unit, row.against);
            let ours = spread(&row.ours);
            writeln!(f, "| {what} ({unit}) | {ours} | {theirs} | {ratio} | {against} |")?;
        }
        Ok(())
    }
}

fn spread(figures: &[f64]) -> String {
    let (least, most) = ends(figures);
    format!("{} [{} to {}]", short(median(figures)), short(least), short(most))
}

fn ends(figures: &[f64]) -> (f64, f64) {
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let most = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (least, most)
}

fn short(figure: f64) -> String {
    if figure >= 1e6 {
        format!("{:.2} M", figure / 1e6)
    } else if figure >= 1e4 {
        format!("{:.1} k", figure / 1e3)
    } else if figure >= 100.0 {
        format!("{figure:.0}")
    } else {
        format!("{figure:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }

    #[test]
    fn rounds_alternate_who_goes_first() {
        let order = std::cell::RefCell::new(String::new());
        let ours = || {
            order.borrow_mut().push('a');
            Ok::<_, ()>(1.0)
        };
        let theirs = || {
            order.borrow_mut().push('b');
            Ok::<_, ()>(2.0)
        };
        interleave(2, ours, theirs).unwrap();
        assert_eq!(order.into_inner(), "abba");
    }
}
